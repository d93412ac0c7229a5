//! The programs a cluster is made of: some are Debian's, some are built here once.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{During, Error, Result};

/// A file that tells that the package is there, and the package.
const PACKAGES: &[(&str, &str)] = &[
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/bin/busybox", "busybox-static"),
    ("/usr/bin/nsenter", "util-linux"),
    ("/usr/bin/mount", "mount"),
    ("/usr/sbin/ip", "iproute2"),
];

/// Where Debian's programs are; root's PATH has it all, a CI's may not.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Installs what is missing, if apt can, and builds what is not built; the folder with Kubernetes' programs.
pub fn ready(say: &dyn Fn(&str)) -> Result<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new("a cluster needs root: it makes namespaces and control groups", "sudo"));
    }
    install(say)?;
    build(say)
}

fn install(say: &dyn Fn(&str)) -> Result<()> {
    let missing = || {
        let mut all: Vec<&str> =
            PACKAGES.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect();
        all.dedup();
        all
    };
    let wanted = missing();
    if wanted.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", wanted.join(", ")));
    let guard = NoDaemons::new();
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).args(if args[0] == "install" { &wanted[..] } else { &[] });
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).output()
    };
    // Another start, or anybody, may be installing something.
    let install = ["install", "-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"];
    let mut told = apt(&install);
    if !told.as_ref().is_ok_and(|o| o.status.success()) {
        let _ = apt(&["update", "-qq"]);
        told = apt(&install);
    }
    drop(guard);
    let left = missing();
    if left.is_empty() {
        return Ok(());
    }
    let why = match told {
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_string(),
        Err(e) => format!("apt-get: {e}"),
    };
    Err(Error::new(
        format!("these packages are missing and could not be installed: {}\n{why}", left.join(", ")),
        "install what they hold (names are Debian's) and start again",
    ))
}

/// While it lives, a package that is installed starts no daemon: a containerd of the machine's own is not wanted.
struct NoDaemons(bool);

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoDaemons {
    fn new() -> Self {
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY);
        Self(file.and_then(|mut f| f.write_all(b"#!/bin/sh\nexit 101\n")).is_ok())
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.0 {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}

/// `go/build`, with its progress told.
fn build(say: &dyn Fn(&str)) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("go/build");
    let mut child = Command::new(&script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .during(script.display())?;
    let begun = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let (mut total, mut done, mut told) = (0, 0, None::<Instant>);
    let (mut fetching, mut last) = (false, VecDeque::new());
    for line in child.stderr.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let Ok(line) = line else { break };
        if let Some(number) = line.strip_prefix("packages ") {
            total = number.parse().unwrap_or(0);
            say(&format!("building Kubernetes' programs and CoreDNS, once ({total} packages, minutes)"));
        } else if line.starts_with("go: downloading") && !fetching {
            fetching = true;
            say("fetching Go modules");
        } else if total > 0 && !line.contains(' ') {
            done += 1;
        }
        last.push_back(line);
        if last.len() > 20 {
            last.pop_front();
        }
        let every = Duration::from_millis(if terminal { 200 } else { 20_000 });
        if total > 0 && told.is_none_or(|at| at.elapsed() > every) {
            told = Some(Instant::now());
            let text = format!("compiled {done} of {total}, {} s", begun.elapsed().as_secs());
            if terminal {
                eprint!("\r  {text}\x1b[K");
            } else {
                say(&text);
            }
        }
    }
    if terminal && told.is_some() {
        eprint!("\r\x1b[K");
    }
    let mut folder = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut folder).during("go/build")?;
    }
    if !child.wait().during("go/build")?.success() {
        let last: Vec<String> = last.into();
        return Err(Error::new(
            format!(
                "the cluster's programs could not be built; the end of what {} said:\n{}",
                script.display(),
                last.join("\n")
            ),
            "Go and its module proxy are needed, once; run that script to see all of it",
        ));
    }
    if total > 0 {
        say(&format!("built in {} s", begun.elapsed().as_secs()));
    }
    Ok(folder.trim_end().into())
}
