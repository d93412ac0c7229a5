//! The machine that the cluster believes to be on: a network namespace, a mount namespace, and the programs in them.
//!
//! The network namespace has a name, so that people and tests can enter it. The mount namespace has none: it lives as long as the
//! cluster's processes, and with it goes whatever the kubelet and containerd have mounted. In it `/run`, `/var/lib` and `/var/log`
//! are folders of the cluster, so that two kubelets on one machine do not tidy up each other's files. The kernel settings
//! that a kubelet insists on are covered with files that say what it wants to read, so that the machine keeps its own.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup;
use crate::error::{During, Error, Result};
use crate::place::Place;
use crate::programs::PATH;

/// What the mount namespace hangs on, beside the parts.
pub const HOLDER: &str = "namespaces";

const KERNEL: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// `run` and the rest at `/run`, `/var/lib`, `/var/log`; then it tells that it is done and stays.
const MOUNTS: &str = r#"
cd "$0"
mount --bind run /run
mount --bind lib /var/lib
mount --bind log /var/log
for file in kernel/*; do mount --bind "$file" "/proc/sys/$(echo "${file#kernel/}" | tr . /)"; done
mount --make-rshared /
touch mounted
cd /
exec sleep infinity
"#;

/// Makes folders, groups, the network and the mounts; the process that holds the mount namespace.
pub fn make(place: &Place) -> Result<Child> {
    for folder in ["run/containerd", "lib", "log", "logs", "pki", "config", "kernel"] {
        fs::create_dir_all(place.path(folder)).during(place.path(folder).display())?;
    }
    for (key, value) in KERNEL.iter().filter(|(key, _)| Path::new("/proc/sys").join(key).exists()) {
        fs::write(place.path("kernel").join(key.replace('/', ".")), format!("{value}\n")).during(key)?;
    }
    cgroup::make(&place.node())?;

    let node = place.node();
    ip(&["netns", "add", &node])?;
    let inside = |args: &str| ip(&[&["-n", &node], &args.split(' ').collect::<Vec<_>>()[..]].concat());
    inside("link set lo up")?;
    // A bridge without ports: an address of the node's own that no cable belongs to.
    inside("link add node0 type bridge")?;
    inside(&format!("addr add {}/24 dev node0", place.address()))?;
    inside("link set node0 up")?;
    // The kubelet wants a default route. Nobody is at its end: nothing leaves the namespace.
    inside(&format!("route add default via {}", place.gateway()))?;

    let mut command = joined(place)?;
    command.arg("unshare").args(["--mount", "--propagation", "slave", "--", "sh", "-euc", MOUNTS]).arg(place.folder());
    let mut child = spawn(place, HOLDER, command)?;
    let end = Instant::now() + Duration::from_secs(10);
    while !place.path("mounted").exists() {
        if child.try_wait().during(HOLDER)?.is_some() || Instant::now() > end {
            return Err(failed(place, HOLDER, "could not be made"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child)
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).env("PATH", PATH).output().during("ip")?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Starts one part of the cluster in its namespaces and groups.
pub fn start(place: &Place, part: &str, words: &[String]) -> Result<Child> {
    let holder = pid(place, HOLDER).ok_or_else(|| Error::from(format!("the cluster {} does not run", place.name())))?;
    let mut command = joined(place)?;
    command.arg("nsenter").arg(format!("--mount=/proc/{holder}/ns/mnt")).arg("--").args(words);
    spawn(place, part, command)
}

/// A command that has joined the groups and the network before its own words begin; its pid stays the same through all of it.
fn joined(place: &Place) -> Result<Command> {
    let doors = cgroup::make(&place.node())?;
    let mut command = Command::new("sh");
    command.args([
        "-euc",
        "while [ \"$1\" != -- ]; do echo 0 >\"$1\"; shift; done; shift; exec setsid nsenter \"$@\"",
        "sh",
    ]);
    command.args(doors).args(["--", &format!("--net={}", place.netns().display()), "--"]);
    Ok(command)
}

fn spawn(place: &Place, part: &str, mut command: Command) -> Result<Child> {
    let path = place.log(part);
    let log = fs::File::options().create(true).append(true).open(&path).during(path.display())?;
    command.env_clear().env("PATH", PATH).env("HOME", "/root").current_dir("/").stdin(Stdio::null());
    command.stdout(log.try_clone().during("log")?).stderr(log);
    let child = command.spawn().during(part)?;
    fs::write(pid_file(place, part), child.id().to_string()).during("pid")?;
    Ok(child)
}

fn pid_file(place: &Place, part: &str) -> PathBuf {
    place.path("run").join(format!("{part}.pid"))
}

/// The process of a part, if it runs: in the cluster's groups, so that no other process of that number is meant.
pub fn pid(place: &Place, part: &str) -> Option<i32> {
    let pid = fs::read_to_string(pid_file(place, part)).ok()?.parse().ok()?;
    cgroup::processes(&place.node()).ok()?.contains(&pid).then_some(pid)
}

/// Says that a part failed, with the end of what it wrote.
pub fn failed(place: &Place, part: &str, how: &str) -> Error {
    Error::from(format!("{part} {how}; the end of its log:\n{}", log_end(&place.log(part), 25)))
}

pub fn log_end(file: &Path, lines: usize) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = fs::File::open(file) {
        let length = file.metadata().map(|m| m.len()).unwrap_or(0);
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(64 << 10)));
        let _ = file.read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    let last = &all[all.len().saturating_sub(lines)..];
    last.iter().map(|l| format!("  | {}\n", l.chars().take(400).collect::<String>())).collect()
}

/// Ends what runs, and removes every trace: processes, namespaces, groups, the folder. Safe to run again, and on half a cluster.
pub fn remove(place: &Place) -> Result<()> {
    cgroup::remove(&place.node())?;
    if place.netns().exists() {
        ip(&["netns", "del", &place.node()])?;
    }
    // The kernel takes mounts apart a moment after their last process.
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match fs::remove_dir_all(place.folder()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                if Instant::now() > end {
                    return Err(format!("{}: {e}", place.folder().display()).into());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            _ => return Ok(()),
        }
    }
}
