//! A running lab, driven by the command line as people type it.

#![allow(dead_code)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};
use weft_testkit::dir::TempDir;

pub const MESHCTL: &str = env!("CARGO_BIN_EXE_meshctl");
pub const LIMIT: Duration = Duration::from_secs(60);

/// Cargo builds this package's program for us; those that it starts are built here if they are not there yet, or older than
/// their sources.
pub fn programs() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let folder = Path::new(MESHCTL).parent().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let all = [
            ("mesh-sample", "weft-sample", &["examples/sample"][..]),
            ("weft-control", "weft-control", &["control-plane", "dialects", "policy", "tls"]),
            ("weft-proxy", "weft-proxy", &["proxy", "policy", "tls"]),
        ];
        let stale = |program: &str, sources: &[&str]| {
            let built = std::fs::metadata(folder.join(program)).and_then(|m| m.modified());
            built.map_or(true, |built| sources.iter().any(|dir| newest(&root.join(dir).join("src")) > built))
        };
        let missing: Vec<&str> =
            all.into_iter().filter(|(program, _, dir)| stale(program, dir)).map(|(_, package, _)| package).collect();
        if missing.is_empty() {
            return;
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo.arg("build").args(missing.iter().flat_map(|package| ["-p", package])).args(["--bins"]);
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.current_dir(root).status().expect("cargo").success(), "{missing:?}");
    });
}

/// When a folder was last changed, with all below it.
fn newest(folder: &Path) -> SystemTime {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let times = entries.map(|p| if p.is_dir() { newest(&p) } else { p.metadata().unwrap().modified().unwrap() });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A running `meshctl lab`, with a place of its own for what it writes down.
pub struct Lab {
    pub home: TempDir,
    pub child: Child,
    pub id: String,
    /// Whose it is; root's, unless it says otherwise.
    pub user: Option<Somebody>,
}

pub fn meshctl(home: &Path, args: &[&str]) -> Command {
    as_user(None, home, args)
}

fn as_user(user: Option<&Somebody>, home: &Path, args: &[&str]) -> Command {
    let mut command = match user {
        None => Command::new(MESHCTL),
        Some(user) => user.command(&user.meshctl()),
    };
    command.args(args).env("WEFT_LAB_HOME", home).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// A user who is not root and has no name, with our programs where he may read them.
pub struct Somebody {
    id: String,
    programs: TempDir,
}

impl Somebody {
    /// Nobody else is he.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = (100_000 + std::process::id() * 16 + COUNT.fetch_add(1, Ordering::Relaxed)).to_string();
        programs();
        let (own, folder) = (TempDir::new(), Path::new(MESHCTL).parent().unwrap());
        for program in ["meshctl", "weft-proxy", "weft-control", "mesh-sample"] {
            let (from, to) = (folder.join(program), own.join(program));
            if std::fs::hard_link(&from, &to).is_err() {
                std::fs::copy(&from, &to).unwrap();
            }
        }
        Self { id, programs: own }
    }

    pub fn meshctl(&self) -> PathBuf {
        self.programs.join("meshctl")
    }

    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &self.id, "--regid", &self.id, "--clear-groups", "--"]).arg(program);
        // What is root's is nothing to him.
        command.current_dir(self.programs.path()).env_remove("XDG_RUNTIME_DIR").env("HOME", self.programs.path());
        command
    }

    /// A folder of his own.
    pub fn folder(&self) -> TempDir {
        let folder = TempDir::new();
        let owned = Command::new("chown").arg(&self.id).arg(folder.path()).status().unwrap();
        assert!(owned.success());
        folder
    }

    /// What he runs.
    pub fn processes(&self) -> Vec<String> {
        let all = std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.path());
        let status = |p: &PathBuf| std::fs::read_to_string(p.join("status")).unwrap_or_default();
        let all = all.filter(|p| {
            let text = status(p);
            text.contains(&format!("\nUid:\t{}\t", &self.id)) && !text.contains("\nState:\tZ")
        });
        all.map(|p| std::fs::read_to_string(p.join("cmdline")).unwrap_or_default().replace('\0', " ")).collect()
    }
}

impl Lab {
    pub fn start(manifests: &Path, args: &[&str]) -> Self {
        Self::start_at(TempDir::new(), manifests, args)
    }

    pub fn start_as(user: Somebody, manifests: &Path, args: &[&str]) -> Self {
        let home = user.folder();
        Self::begin(home, Some(user), manifests, args)
    }

    /// Returns when the lab has shown its table.
    pub fn start_at(home: TempDir, manifests: &Path, args: &[&str]) -> Self {
        Self::begin(home, None, manifests, args)
    }

    fn begin(home: TempDir, user: Option<Somebody>, manifests: &Path, args: &[&str]) -> Self {
        programs();
        let log = std::fs::File::create(home.join("out")).unwrap();
        let mut command = as_user(user.as_ref(), &home.join("labs"), &["lab"]);
        command.arg(manifests).args(args).stdout(log.try_clone().unwrap()).stderr(log);
        let mut lab = Self { home, child: command.spawn().unwrap(), id: String::new(), user };
        lab.wait("the table", |text, _| text.contains("It follows its manifests").then_some(()));
        lab.id = lab.out().lines().find_map(|l| l.strip_prefix("lab ")?.split(' ').next().map(String::from)).unwrap();
        lab
    }

    pub fn out(&self) -> String {
        std::fs::read_to_string(self.home.join("out")).unwrap()
    }

    /// Waits until what the lab has printed, or what `ps` says, is as wanted.
    pub fn wait<T>(&mut self, what: &str, wanted: impl Fn(&str, &Value) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let text = self.out();
            // The first moments have no pods to show.
            let status = self.run(&["ps", "-o", "json"]).stdout;
            let status: Value = serde_json::from_slice(&status).unwrap_or_default();
            if let Some(found) = wanted(&text, &status) {
                return found;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the lab ended ({status}) before {what}:\n{text}");
            }
            assert!(Instant::now() < end, "no {what} within {LIMIT:?}:\n{text}\n{status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn run(&self, args: &[&str]) -> Output {
        let mut all = vec!["lab"];
        all.extend_from_slice(args);
        as_user(self.user.as_ref(), &self.home.join("labs"), &all).output().unwrap()
    }

    /// Standard output of a verb that must succeed.
    pub fn get(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}\n{}", self.out());
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn ps(&self) -> Value {
        serde_json::from_str(&self.get(&["ps", "-o", "json"])).unwrap()
    }

    /// From a pod of that workload, as the sample app's JSON.
    pub fn ask(&self, from: &str, url: &str) -> Value {
        let text = self.get(&["exec", from, "--", "curl", "-sS", "-m", "10", url]);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{from} -> {url}: {e}: {text}"))
    }

    pub fn ready(&mut self, workload: &str, count: usize) -> Vec<Value> {
        let of = |status: &Value| -> Vec<Value> {
            let pods = status["pods"].as_array().into_iter().flatten();
            pods.filter(|p| p["workload"] == workload).cloned().collect()
        };
        self.wait(&format!("{count} ready pods of {workload}"), |_, status| {
            let pods = of(status);
            (pods.len() == count && pods.iter().all(|p| p["ready"] == true)).then_some(pods)
        })
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the lab does not end:\n{}", self.out());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pids(&self) -> Vec<String> {
        let status = self.ps();
        let pods = status["pods"].as_array().into_iter().flatten();
        let processes = pods.flat_map(|p| p["processes"].as_array().unwrap().clone());
        processes.map(|p| p["pid"].to_string()).collect()
    }

    pub fn namespaces(&self) -> Vec<String> {
        let all = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = all.map(|e| e.file_name().into_string().unwrap());
        names.filter(|n| n.starts_with(&format!("weft-{}", self.id))).collect()
    }

    pub fn assert_gone(&self, pids: &[String]) {
        assert!(!pids.is_empty(), "somebody ran");
        for pid in pids {
            // One that has ended and that nobody has asked after yet is no process any more.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let ended = stat.is_empty() || stat[stat.rfind(')').unwrap()..].starts_with(") Z");
            assert!(ended, "process {pid} is left: {stat}");
        }
        assert!(self.namespaces().is_empty(), "{:?}", self.namespaces());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(&self.id), "{mounts}");
        assert!(!self.home.join("labs").exists(), "files are left");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|s| s.is_none()) {
            self.signal("-TERM");
            let end = Instant::now() + Duration::from_secs(20);
            while self.child.try_wait().is_ok_and(|s| s.is_none()) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = self.run(&["clean"]);
        if std::thread::panicking() {
            eprintln!("--- the lab ---\n{}", self.out());
        }
    }
}
