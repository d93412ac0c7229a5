//! A cluster with the mesh in it.

use crate::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};
use weft_cluster::{Cluster, Options};

/// Of waiting for anything: generous, for a machine that does much else.
pub const LIMIT: Duration = Duration::from_secs(90);

pub struct Mesh {
    pub cluster: Cluster,
    /// Where our programs are built.
    pub programs: PathBuf,
}

impl Mesh {
    /// Starts a cluster that has all images, and installs the mesh.
    pub fn start() -> Result<Self> {
        let mesh = Self::bare()?;
        mesh.meshctl(&["install", "-y"])?;
        Ok(mesh)
    }

    /// The same without the mesh.
    pub fn bare() -> Result<Self> {
        let programs = built()?;
        let mut all = weft_cluster::mesh_images(&programs)?;
        all.extend(weft_cluster::example_images(&programs)?);
        let cluster = Cluster::start(Options { images: all, ..Options::default() })?;
        Ok(Self { cluster, programs })
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        Ok(self.cluster.kubectl(args)?)
    }

    pub fn apply(&self, yaml: &str) -> Result<String> {
        Ok(self.cluster.apply(yaml)?)
    }

    /// `meshctl` in the cluster's network.
    pub fn meshctl(&self, args: &[&str]) -> Result<String> {
        let meshctl = self.programs.join("meshctl");
        let mut command = self.cluster.command(&meshctl.to_string_lossy());
        let output = command.args(args).env("NO_COLOR", "1").stdin(Stdio::null()).output()?;
        said(&format!("meshctl {}", args.join(" ")), output)
    }

    /// A program in a pod's container: `deploy/client`, `pod -c istio-proxy`.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let mut args = vec!["-n", namespace, "exec"];
        args.extend(pod.split(' '));
        args.push("--");
        args.extend(command);
        self.kubectl(&args)
    }

    /// `curl` in a pod; the status it ended with, and what it said. The arguments are those of a command line.
    pub fn curl(&self, namespace: &str, pod: &str, args: &[&str]) -> Result<(i32, String)> {
        let mut command = self.cluster.command("kubectl");
        command.args(["-n", namespace, "exec"]).args(pod.split(' ')).args(["--", "curl", "-sS", "-m", "20"]).args(args);
        let output = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code().unwrap_or(-1), said))
    }

    /// Waits for all Deployments of a namespace.
    pub fn rolled_out(&self, namespace: &str) -> Result {
        let list = self.kubectl(&["-n", namespace, "get", "deploy,sts", "-o", "name"])?;
        for name in list.lines() {
            self.kubectl(&["-n", namespace, "rollout", "status", name, "--timeout=120s"])?;
        }
        Ok(())
    }

    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// Of each pod that is not on its way out: name, how many of its containers are ready, and how many it has, as `kubectl get pods` counts.
    pub fn ready(&self, namespace: &str) -> Result<Vec<(String, String)>> {
        let table = self.kubectl(&["-n", namespace, "get", "pods", "--no-headers"])?;
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let standing = rows.filter(|row| row.len() > 2 && row[2] != "Terminating");
        Ok(standing.map(|row| (row[0].to_string(), row[1].to_string())).collect())
    }

    /// Until something holds; what it says then is passed on, and the last reason why not if it never does.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
        let end = Instant::now() + LIMIT;
        loop {
            match look() {
                Ok(seen) => return Ok(seen),
                Err(why) if Instant::now() > end => return Err(format!("{what}: {why}").into()),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// What somebody would look at first when a test has failed.
    pub fn state(&self) -> String {
        let look = |args: &[&str]| {
            let text = self.kubectl(args).unwrap_or_else(|e| e.to_string());
            let lines: Vec<&str> = text.lines().collect();
            format!("--- kubectl {}\n{}\n", args.join(" "), lines[lines.len().saturating_sub(40)..].join("\n"))
        };
        [
            &["get", "pods", "-A", "-o", "wide"][..],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &["-n", "weft-system", "logs", "deploy/weft-control", "--tail=30"],
            &["-n", "weft-system", "logs", "deploy/weft-injector", "--tail=30"],
        ]
        .iter()
        .map(|args| look(args))
        .collect()
    }
}

pub fn said(what: &str, output: Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{what}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

/// Where this test's own program lies are the others too; what is not built yet, or is older than its sources, is built.
/// `WEFT_PROFILE=dist` takes what is shipped instead of what tests are built as: for figures.
fn built() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut folder = own.parent().and_then(Path::parent).ok_or("no target folder")?.to_path_buf();
    let profile = std::env::var("WEFT_PROFILE").ok();
    if let Some(profile) = &profile {
        folder.set_file_name(profile);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let libraries = ["policy", "tls", "proto", "dialects", "kubernetes"];
    let programs = [
        ("weft-proxy", "weft-proxy", "proxy"),
        ("weft-control", "weft-control", "control-plane"),
        ("weft-injector", "weft-injector", "injector"),
        ("meshctl", "meshctl", "meshctl"),
        ("mesh-sample", "weft-sample", "examples/sample"),
    ];
    let shared = libraries.iter().map(|dir| newest(&root.join(dir).join("src"))).max();
    let stale = |program: &str, dir: &str| {
        let built = std::fs::metadata(folder.join(program)).and_then(|m| m.modified()).ok();
        built < Some(newest(&root.join(dir).join("src"))) || built < shared
    };
    let missing: Vec<&str> =
        programs.iter().filter(|(program, _, dir)| stale(program, dir)).map(|(_, package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(folder);
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root).args(["build", "--bins"]).args(missing.iter().flat_map(|package| ["-p", package]));
    let release = folder.ends_with("release").then(|| "release".to_string());
    if let Some(profile) = profile.or(release) {
        cargo.args(["--profile", &profile]);
    }
    match cargo.status()?.success() {
        true => Ok(folder),
        false => Err("our programs do not build".into()),
    }
}

/// When a folder was last changed, with all below it.
fn newest(folder: &Path) -> SystemTime {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let time = |p: PathBuf| {
        if p.is_dir() { newest(&p) } else { p.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH) }
    };
    entries.map(time).max().unwrap_or(SystemTime::UNIX_EPOCH)
}
