//! The proxy under test as what it is in production: a process with a file, a log, signals and an admin port.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::dir::TempDir;
use crate::netns::Netns;

/// What the process wrote, line by line.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    grew: Condvar,
}

impl Log {
    /// A test that fails while it waits leaves the lock poisoned; the log is printed all the same.
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Proxy {
    child: Child,
    log: Arc<Log>,
    dir: TempDir,
    config: PathBuf,
    admin: SocketAddr,
    ns: Option<Netns>,
    exited: Option<ExitStatus>,
}

/// Everything that may differ from `Proxy::start`.
#[derive(Default)]
pub struct Start<'a> {
    pub bin: &'a str,
    pub yaml: &'a str,
    /// Where `/ready` is asked; None: the process counts as started as soon as it runs.
    pub admin: Option<SocketAddr>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Runs in this namespace, with group id 1337 so that redirect rules can leave its own traffic alone.
    pub ns: Option<&'a Netns>,
    /// Without a file: the arguments say where configuration comes from.
    pub fileless: bool,
    /// Start and wait for nothing: for configurations that must be refused.
    pub no_wait: bool,
}

impl Proxy {
    /// Writes `yaml` to a file of its own, starts `bin --config FILE` and waits until `admin` answers `/ready` with 200.
    /// The YAML has to name that admin address.
    #[track_caller]
    pub fn start(bin: &str, yaml: &str, admin: SocketAddr) -> Self {
        Self::with(Start { bin, yaml, admin: Some(admin), ..Start::default() })
    }

    #[track_caller]
    pub fn with(start: Start<'_>) -> Self {
        let dir = TempDir::new();
        let config = dir.write("weft.yaml", start.yaml);
        let mut command = match start.ns {
            Some(ns) => ns.command_as(start.bin, 1337),
            None => Command::new(start.bin),
        };
        if !start.fileless {
            command.arg("--config").arg(&config);
        }
        command.args(&start.args).envs(start.env.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", start.bin));
        let log = Arc::new(Log::default());
        follow(child.stdout.take().expect("stdout"), &log, dir.join("stdout"));
        follow(child.stderr.take().expect("stderr"), &log, dir.join("stderr"));
        let admin = start.admin.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut proxy = Self { child, log, dir, config, admin, ns: start.ns.cloned(), exited: None };
        if start.admin.is_some() && !start.no_wait {
            proxy.wait_ready(Duration::from_secs(20));
        }
        proxy
    }

    #[track_caller]
    pub fn wait_ready(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.exit_status() {
                panic!("the proxy ended ({status}) before it was ready (a port taken in between is one cause)");
            }
            if matches!(self.try_admin("GET", "/ready", Duration::from_secs(2)), Ok((200, _))) {
                return;
            }
            assert!(Instant::now() < end, "the proxy was not ready within {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// Replaces the configuration file by rename; the proxy sees the change or gets `sighup`.
    pub fn reconfigure(&self, yaml: &str) {
        self.dir.write("weft.yaml", yaml);
    }

    pub fn sighup(&self) {
        self.signal(libc::SIGHUP);
    }

    pub fn sigterm(&self) {
        self.signal(libc::SIGTERM);
    }

    pub fn signal(&self, signal: libc::c_int) {
        if self.exited.is_none() {
            // SAFETY: a plain system call; the child is not reaped yet, so its pid is still its own.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
    }

    /// The exit status if the process has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait().expect("wait");
        }
        self.exited
    }

    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.exit_status() {
                return status;
            }
            assert!(Instant::now() < end, "the proxy still runs after {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Standard output and standard error, in the order the lines came.
    pub fn log_lines(&self) -> Vec<String> {
        self.log.lines().clone()
    }

    /// The first line, past or future, that `wanted` accepts.
    #[track_caller]
    pub fn wait_log(&self, wanted: impl Fn(&str) -> bool, limit: Duration) -> String {
        self.wait_log_from(0, wanted, limit)
    }

    /// As `wait_log`, from line number `from` on (`log_lines().len()` before the deed finds only what came after it).
    #[track_caller]
    pub fn wait_log_from(&self, from: usize, wanted: impl Fn(&str) -> bool, limit: Duration) -> String {
        let end = Instant::now() + limit;
        let mut lines = self.log.lines();
        let mut seen = from;
        loop {
            if let Some(line) = lines.iter().skip(seen).find(|l| wanted(l)) {
                return line.clone();
            }
            seen = lines.len().max(from);
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no such line in the log within {limit:?}");
            lines = self.log.grew.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Status and body of a GET on the admin port.
    #[track_caller]
    pub fn admin_get(&self, path: &str) -> (u16, String) {
        self.try_admin("GET", path, Duration::from_secs(10)).unwrap_or_else(|e| panic!("admin GET {path}: {e}"))
    }

    #[track_caller]
    pub fn admin_post(&self, path: &str) -> (u16, String) {
        self.try_admin("POST", path, Duration::from_secs(10)).unwrap_or_else(|e| panic!("admin POST {path}: {e}"))
    }

    fn try_admin(&self, method: &str, path: &str, limit: Duration) -> std::io::Result<(u16, String)> {
        let admin = self.admin;
        let exchange = || -> std::io::Result<(u16, String)> {
            let mut stream = TcpStream::connect_timeout(&admin, limit)?;
            stream.set_read_timeout(Some(limit))?;
            write!(
                stream,
                "{method} {path} HTTP/1.1\r\nhost: {admin}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )?;
            let answer = crate::client::read_response(&mut stream, method == "HEAD")
                .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e.to_string()))?;
            Ok((answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
        };
        match &self.ns {
            Some(ns) => ns.run(exchange),
            None => exchange(),
        }
    }

    /// The whole Prometheus text.
    #[track_caller]
    pub fn metrics(&self) -> String {
        let (status, text) = self.admin_get("/stats/prometheus");
        assert_eq!(status, 200, "{text}");
        text
    }

    /// The sum of the series named `name` that carry all of `labels`; 0 when there is none.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum_metric(&self.metrics(), name, labels)
    }

    /// Waits until that sum is at least `least`, and returns it.
    #[track_caller]
    pub fn wait_metric(&self, name: &str, labels: &[(&str, &str)], least: f64, limit: Duration) -> f64 {
        crate::wait::poll(limit, || Some(self.metric(name, labels)).filter(|v| *v >= least))
            .unwrap_or_else(|| panic!("{name}{labels:?} is {}, not {least}", self.metric(name, labels)))
    }

    /// Resident memory, KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }

    /// Open file descriptors.
    pub fn fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("fd").count()
    }

    /// Lets the process have no more than so many file descriptors.
    #[track_caller]
    pub fn limit_fds(&self, files: u64) {
        let limit = libc::rlimit { rlim_cur: files, rlim_max: files };
        // SAFETY: a plain system call on our own child; the limit lives as long as the call.
        let done =
            unsafe { libc::prlimit(self.child.id() as libc::pid_t, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// User and system time used so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("stat");
        let after = &stat[stat.rfind(')').expect("a name") + 2..];
        let ticks: u64 = after.split(' ').skip(11).take(2).map(|n| n.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.exited.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let lines = self.log_lines();
            let skipped = lines.len().saturating_sub(200);
            eprintln!("--- log of the proxy, pid {} ({skipped} earlier lines left out) ---", self.pid());
            for line in &lines[skipped..] {
                eprintln!("{line}");
            }
            eprintln!("--- its configuration ---\n{}", std::fs::read_to_string(&self.config).unwrap_or_default());
        }
    }
}

fn follow(pipe: impl Read + Send + 'static, log: &Arc<Log>, file: PathBuf) {
    let log = Arc::clone(log);
    let mut file = std::fs::File::create(file).expect("log file");
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            let _ = file.write_all(&line);
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_string();
            log.lines().push(text);
            log.grew.notify_all();
            line.clear();
        }
    });
}

/// Sums the samples of `name` that carry all of `labels` in Prometheus text.
pub fn sum_metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    samples(text)
        .filter(|s| s.name == name && labels.iter().all(|(k, v)| s.labels.iter().any(|(k2, v2)| k == k2 && v == v2)))
        .map(|s| s.value)
        .sum()
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

/// The samples of a Prometheus text; a line that is none panics, as a scraper would refuse the page.
pub fn samples(text: &str) -> impl Iterator<Item = Sample> + '_ {
    text.lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line}")))
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let name = line[..end].to_string();
    let mut labels = Vec::new();
    let mut rest = &line[end..];
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            rest = loop {
                match chars.next()? {
                    (i, '"') => break &after[i + 1..],
                    (_, '\\') => match chars.next()?.1 {
                        'n' => value.push('\n'),
                        c => value.push(c),
                    },
                    (_, c) => value.push(c),
                }
            };
            labels.push((key.to_string(), value));
        }
    }
    // A value, then perhaps a timestamp (and after '#' an exemplar).
    let value = match rest.split_whitespace().next()? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample { name, labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_prometheus_text() {
        let text = "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"q\\\"}\"} 2\na{x=\"1\",y=\"z\"} 3.5 1700\na 4\nb{le=\"+Inf\"} +Inf\n";
        assert_eq!(sum_metric(text, "a", &[]), 9.5);
        assert_eq!(sum_metric(text, "a", &[("x", "1")]), 5.5);
        assert_eq!(sum_metric(text, "a", &[("y", "q\"}")]), 2.0);
        assert_eq!(sum_metric(text, "none", &[]), 0.0);
        assert_eq!(samples(text).count(), 4);
    }

    /// A shell script in the proxy's place: lines of the log, signals, the exit status.
    #[test]
    fn follows_a_process() {
        let dir = TempDir::new();
        let script = "#!/bin/sh\necho started with $1\ntrap 'echo reload >&2' HUP\ntrap 'echo bye; exit 3' TERM\n\
                      echo waiting\nwhile :; do sleep 0.05; done\n";
        let bin = dir.write("fake", script);
        std::fs::set_permissions(&bin, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
        let mut proxy = Proxy::with(Start { bin: bin.to_str().expect("path"), yaml: "a: 1", ..Start::default() });
        let limit = Duration::from_secs(10);
        assert_eq!(proxy.wait_log(|l| l.starts_with("started"), limit), "started with --config");
        proxy.wait_log(|l| l == "waiting", limit);
        assert!(proxy.rss_kib() > 0 && proxy.fds() >= 3);
        proxy.sighup();
        proxy.wait_log(|l| l == "reload", limit);
        proxy.sigterm();
        assert_eq!(proxy.wait_exit(limit).code(), Some(3));
        proxy.wait_log(|l| l == "bye", limit);
    }
}
