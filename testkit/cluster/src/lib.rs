//! A real Kubernetes on one machine, for tests and for people who try things.
//!
//! etcd, the API server, controller manager, scheduler, kubelet and kube-proxy are Kubernetes' own, built from its Go modules into
//! one binary (`go/`); containerd, runc and the CNI plugins are Debian's. All of it runs in a network namespace and a mount
//! namespace of its own (`node.rs`), so the machine's addresses, rules and folders stay as they are, and several clusters
//! run side by side. There is no registry: images are archives that `image.rs` writes.
//!
//! Everything a cluster runs is in one control group, so `down` finds it by name alone: also when a start failed half-way, and
//! when whoever started it was killed.

mod cgroup;
mod error;
mod example_images;
pub mod image;
mod mesh_images;
mod node;
mod own_images;
mod parts;
mod pki;
mod place;
mod programs;
mod static_images;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use error::{Error, Result};
pub use example_images::example_images;
pub use image::Image;
pub use mesh_images::{mesh_images, proxy_image};
pub use place::{Place, State};
pub use static_images::{shipped_images, static_programs};

use error::During;

/// What may differ between clusters.
pub struct Options<'a> {
    pub name: String,
    /// Imported before anything runs, beside those that every cluster has: pause, CoreDNS, `busybox:1`.
    pub images: Vec<Image>,
    /// More flags for a part: `("kube-apiserver", "--etcd-compaction-interval=1s")`.
    pub flags: Vec<(&'static str, String)>,
    /// Leaves a cluster whose start failed as it is, to be looked at.
    pub keep_failed: bool,
    /// Is told how far the start is.
    pub say: &'a dyn Fn(&str),
}

impl Default for Options<'_> {
    /// A cluster of the calling test's own, which tells what it does on standard error.
    fn default() -> Self {
        let name = format!("test-{}", std::process::id());
        Self {
            name,
            images: Vec::new(),
            flags: Vec::new(),
            keep_failed: false,
            say: &|line| eprintln!("cluster: {line}"),
        }
    }
}

/// A running cluster; it goes when this is dropped, unless it was `detach`ed or only `open`ed.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    programs: PathBuf,
    /// Those of its parts that this process started.
    children: Vec<(String, Child)>,
    flags: Vec<(&'static str, String)>,
    owned: bool,
}

impl Cluster {
    /// Starts a cluster and waits until its node is ready and its DNS answers.
    pub fn start(options: Options<'_>) -> Result<Self> {
        let say = options.say;
        let programs = programs::ready(say)?;
        // Clusters whose starter is gone have numbers and memory that nobody else will give back.
        for place in Place::orphans()? {
            say(&format!("removing {}, which whoever started it has left", place.name()));
            node::remove(&place)?;
        }
        let place = Place::claim(&options.name)?;
        let mut cluster = Self { place, programs, children: Vec::new(), flags: options.flags.clone(), owned: true };
        let outcome = cluster.begin(&options);
        if outcome.is_err() && options.keep_failed {
            cluster.detach()?;
        }
        outcome.map(|()| cluster)
    }

    fn begin(&mut self, options: &Options<'_>) -> Result<()> {
        let (place, begun) = (self.place.clone(), Instant::now());
        let say = |what: &str| (options.say)(&format!("{what} ({:.1} s)", begun.elapsed().as_secs_f32()));
        let holder = node::make(&place)?;
        self.children.push((node::HOLDER.into(), holder));
        pki::write(&place)?;
        parts::write_files(&place)?;
        for part in parts::FIRST {
            self.start_part(part)?;
        }
        let socket = place.containerd();
        self.wait("containerd", Duration::from_secs(30), || {
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok())
        })?;
        let own = own_images::all(&self.programs)?;
        for image in own.iter().chain(&options.images) {
            self.import(image)?;
        }
        say(&format!("{} images imported", own.len() + options.images.len()));

        self.until("kube-apiserver", Duration::from_secs(60), &["get", "--raw", "/readyz"])?;
        say("the API server is ready");
        for part in parts::THEN {
            self.start_part(part)?;
        }
        self.apply(&include_str!("../manifests/coredns.yaml").replace("CLUSTER_DNS", &place.dns()))?;
        let node = format!("node/{}", place.node());
        self.until("kubelet", Duration::from_secs(60), &["wait", "--for=condition=Ready", &node, "--timeout=2s"])?;
        say("the node is ready");
        let dns = ["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=2s"];
        self.until("coredns", Duration::from_secs(60), &dns)?;
        // It is ready a moment before kube-proxy leads anybody to it.
        let mut question = self.command("busybox");
        question.args(["nslookup", "kubernetes.default.svc.cluster.local", &place.dns()]);
        self.wait("kube-proxy", Duration::from_secs(30), || Ok(question.output().during("busybox")?.status.success()))?;
        let account = ["wait", "--for=create", "serviceaccount/default", "--timeout=2s"];
        self.until("kube-controller-manager", Duration::from_secs(30), &account)?;
        say("DNS is ready");
        Ok(())
    }

    /// A cluster that runs already; it goes on when this is dropped.
    pub fn open(name: &str) -> Result<Self> {
        let place = Place::find(name)?.ok_or_else(|| {
            Error::new(
                format!("there is no cluster {name}"),
                "weft-cluster up, or weft-cluster status to see which there are",
            )
        })?;
        Ok(Self {
            place,
            programs: programs::ready(&|line| eprintln!("{line}"))?,
            children: Vec::new(),
            flags: Vec::new(),
            owned: false,
        })
    }

    /// Lets it run until somebody takes it down.
    pub fn detach(&mut self) -> Result<()> {
        self.owned = false;
        self.place.release()
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// For programs inside the cluster's network.
    pub fn kubeconfig(&self) -> PathBuf {
        self.place.kubeconfig()
    }

    /// A command on the cluster's node, as far as the network goes: it reaches Services and pods, and `kubectl` is there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.place.netns().display())).arg("--").arg(program);
        let path =
            format!("{}:{}:{}", self.programs.display(), std::env::var("PATH").unwrap_or_default(), programs::PATH);
        command.env("PATH", path).env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// What `kubectl` prints, if it succeeds.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        text_of(args, self.command("kubectl").args(args).stdin(Stdio::null()).output().during("kubectl")?)
    }

    /// `kubectl apply` of a text.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let args = ["apply", "-f", "-"];
        let child = self
            .command("kubectl")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.during("kubectl")?;
        // One that ends early says why itself.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(yaml.as_bytes()));
        text_of(&args, child.wait_with_output().during("kubectl")?)
    }

    /// `ctr`, containerd's own client, among the cluster's containers.
    pub fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command
            .env("PATH", programs::PATH)
            .arg("--address")
            .arg(self.place.containerd())
            .args(["--namespace", "k8s.io"]);
        command
    }

    /// Gives the node an image.
    pub fn import(&self, image: &Image) -> Result<()> {
        let mut command = self.ctr();
        command.args(["images", "import", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().during("ctr")?;
        let written = match child.stdin.take() {
            Some(stdin) => {
                let mut stdin = std::io::BufWriter::with_capacity(1 << 20, stdin);
                image.write(&mut stdin).and_then(|()| stdin.flush())
            }
            None => Ok(()),
        };
        let told = text_of(&["images", "import"], child.wait_with_output().during("ctr")?);
        // If it ended early, what it said is the reason and the broken pipe only follows.
        told.and_then(|_| written.during("image"))
            .map_err(|e| format!("the image {} is not imported: {e}", image.name()).into())
    }

    /// Starts a part that was stopped, or all for the first time.
    pub fn start_part(&mut self, part: &str) -> Result<()> {
        let mut words = parts::words(&self.place, &self.programs, part);
        words.extend(self.flags.iter().filter(|(whose, _)| *whose == part).map(|(_, flag)| flag.clone()));
        let child = node::start(&self.place, part, &words)?;
        self.children.push((part.into(), child));
        Ok(())
    }

    /// Kills one of the cluster's daemons: `kube-apiserver`, say.
    pub fn kill_part(&mut self, part: &str) -> Result<()> {
        let none = || Error::from(format!("{part} does not run"));
        let pid = node::pid(&self.place, part).and_then(rustix::process::Pid::from_raw).ok_or_else(none)?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).during(part)?;
        // Those of our own are waited for; of others the kernel tells when they are gone.
        if let Some(at) = self.children.iter().position(|(name, _)| name == part) {
            let _ = self.children.swap_remove(at).1.wait();
        }
        let end = Instant::now() + Duration::from_secs(10);
        while node::pid(&self.place, part).is_some() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Each part, and its process if it runs.
    pub fn parts(&self) -> Vec<(&'static str, Option<i32>)> {
        let all = parts::FIRST.iter().chain(parts::THEN);
        all.map(|part| (*part, node::pid(&self.place, part))).collect()
    }

    /// Everything that runs in the cluster, containers and all, by pid.
    pub fn processes(&self) -> Result<std::collections::BTreeSet<i32>> {
        cgroup::processes(&self.place.node())
    }

    /// Ends everything and removes every trace.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.owned = false;
        let outcome = node::remove(&self.place);
        for (_, child) in &mut self.children {
            let _ = child.wait();
        }
        outcome
    }

    /// Until `kubectl ARGS` succeeds. `part` is who must have failed if it does not.
    fn until(&mut self, part: &str, limit: Duration, args: &[&str]) -> Result<()> {
        let (mut command, mut last) = (self.command("kubectl"), String::new());
        command.args(args).stdin(Stdio::null());
        self.wait(part, limit, || {
            let output = command.output().during("kubectl")?;
            last = String::from_utf8_lossy(&output.stderr).trim().to_string();
            Ok(output.status.success())
        })
        .map_err(|e| Error::from(format!("{e}\nkubectl {}: {last}", args.join(" "))))
    }

    fn wait(&mut self, part: &str, limit: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + limit;
        while !ready()? {
            for (name, child) in &mut self.children {
                if let Some(status) = child.try_wait().during(&*name)? {
                    return Err(node::failed(&self.place, name, &format!("ended ({status})")));
                }
            }
            if Instant::now() > end {
                let (log, what) =
                    if part == "coredns" { ("kubelet", "has no CoreDNS ready") } else { (part, "was not ready") };
                return Err(node::failed(&self.place, log, &format!("{what} within {} s", limit.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if std::thread::panicking() {
            for part in parts::FIRST.iter().chain(parts::THEN) {
                eprintln!("--- the end of {part}'s log ---\n{}", node::log_end(&self.place.log(part), 15));
            }
        }
        if let Err(e) = self.end() {
            eprintln!("{e}");
        }
    }
}

/// Takes a cluster down by its name, whatever is left of it; whether there was one.
pub fn down(name: &str) -> Result<bool> {
    match Place::find(name)? {
        Some(place) => node::remove(&place).map(|()| true),
        None => Ok(false),
    }
}

fn text_of(args: &[&str], output: Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Where the cluster's programs are, built if need be.
pub fn programs() -> Result<PathBuf> {
    programs::ready(&|line| eprintln!("{line}"))
}

/// The end of a part's log.
pub fn log_end(place: &Place, part: &str, lines: usize) -> String {
    node::log_end(&place.log(part), lines)
}
