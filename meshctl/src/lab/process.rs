//! What a process is recorded by, and how one is started inside a pod.

use super::control;
use super::isolation::Isolation;
use super::net::{Netns, OUTBOUND};
use super::record::Lab;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A process that no later one can be mistaken for: ids are reused, start times with them are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub pid: i32,
    /// In clock ticks since the machine's start.
    pub started: u64,
}

impl Recorded {
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold anything.
        let after = stat.get(stat.rfind(')')? + 2..)?;
        let mut fields = after.split(' ');
        if fields.next() == Some("Z") {
            return None;
        }
        Some(Self { pid, started: fields.nth(18)?.parse().ok()? })
    }

    pub fn runs(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    pub fn kill(&self) {
        if self.runs() {
            kill(self.pid);
        }
    }
}

pub fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// To a process and those it started.
pub fn signal_group(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process_group(pid, signal);
    }
}

/// What everything that a lab starts has in its environment, and passes on; nobody else is to set it.
const OF_LAB: &str = "WEFT_INSIDE_LAB";

/// Whatever a lab has started and is still there, wherever it has gone.
pub fn strays(lab: &str) -> Vec<i32> {
    let mark = format!("{OF_LAB}={lab}");
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_marked = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|variable| variable == mark.as_bytes())
    };
    pids.filter(is_marked).collect()
}

/// The inside of a pod: its network, its own files under /etc, its host name.
#[derive(Clone, Debug)]
pub struct Inside {
    pub lab: String,
    pub netns: Netns,
    /// `resolv.conf`, `hosts` and `nsswitch.conf` of the pod.
    pub etc: PathBuf,
    pub hostname: String,
    /// Who resolves names for its programs where there is no DNS.
    pub proxy: Option<SocketAddr>,
}

/// Mounts and host name are the process's own and go with it. Only a machine's root may write the name to /proc.
const ENTER: &str = "\
for file in resolv.conf hosts nsswitch.conf; do\n\
    if [ -e \"/etc/$file\" ]; then mount --bind \"$1/$file\" \"/etc/$file\" || exit 125; fi\n\
done\n\
{ hostname \"$2\" || echo \"$2\" >/proc/sys/kernel/hostname; } 2>/dev/null\n\
shift 2\n\
exec \"$@\"";

impl Inside {
    /// Of a pod, or of what else a lab runs: `file` is its name in folders.
    pub fn of(lab: &Lab, netns: Netns, file: &str, hostname: &str, address: Ipv4Addr) -> Self {
        Self {
            lab: lab.id.clone(),
            netns,
            etc: lab.folder.join("etc").join(file),
            hostname: hostname.into(),
            proxy: (lab.isolation == Isolation::Loopback).then_some((address, OUTBOUND).into()),
        }
    }

    /// The files a pod has of its own.
    pub fn write(&self, resolv_conf: &str, hosts: &str) -> std::io::Result<()> {
        if self.netns.is_the_machines() {
            return Ok(());
        }
        std::fs::create_dir_all(&self.etc)?;
        std::fs::write(self.etc.join("resolv.conf"), resolv_conf)?;
        std::fs::write(self.etc.join("hosts"), hosts)?;
        // Resolvers that are asked in other ways than DNS would answer for the machine.
        std::fs::write(self.etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")
    }

    /// What the programs inside are told besides their own.
    pub fn environment(&self) -> Vec<(String, String)> {
        let proxy = self.proxy.map(|proxy| format!("http://{proxy}"));
        // The sidecar's pages are where the sidecar is, and not everywhere that is called localhost.
        let admin = self.proxy.map(|proxy| format!("{}:{}", proxy.ip(), control::SIDECAR_ADMIN)).unwrap_or_default();
        let proxied =
            proxy.map(|url| [("http_proxy", url), ("no_proxy", "localhost,127.0.0.1".into()), ("WEFT_ADMIN", admin)]);
        let all = [("HOSTNAME", self.hostname.clone()), (OF_LAB, self.lab.clone())];
        all.into_iter().chain(proxied.into_iter().flatten()).map(|(k, v)| (k.to_string(), v)).collect()
    }

    /// What to run so that `argv` runs inside. Each step becomes the next, so the process keeps its id.
    pub fn wrap(&self, group: Option<u32>, argv: &[String]) -> Vec<String> {
        if self.netns.is_the_machines() {
            return argv.to_vec();
        }
        let mut words = vec!["nsenter".to_string(), format!("--net={}", self.netns.path().display())];
        words.extend(group.map(|g| format!("--setgid={g}")));
        words.extend(["--", "unshare", "--mount", "--uts", "--propagation", "private", "--"].map(Into::into));
        words.extend(["sh", "-c", ENTER, "weft"].map(Into::into));
        words.extend([path(&self.etc), self.hostname.clone()]);
        words.extend_from_slice(argv);
        words
    }
}

pub fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_as_well() {
        let own = Recorded::of(std::process::id() as i32).unwrap();
        assert!(own.runs());
        assert!(!Recorded { started: own.started + 1, ..own }.runs());
        assert_eq!(Recorded::of(i32::MAX), None);
    }
}
