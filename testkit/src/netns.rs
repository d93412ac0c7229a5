//! Network namespaces: hosts of a test's own, joined by virtual cables, with redirect rules as in a pod.
//!
//! Needs root, and says so loudly. Names are unique per process; namespaces (and with them cables, addresses and rules)
//! go away when the last clone of their handle is dropped. Processes are entered with `nsenter`, which leaves mounts alone.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
}

fn unique() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

impl Netns {
    /// A namespace with its loopback up.
    pub fn new(role: &str) -> Self {
        // SAFETY: takes nothing, changes nothing.
        assert_eq!(unsafe { libc::geteuid() }, 0, "network namespaces need root: run these tests as root");
        let name = format!("weft-{role}-{}-{}", std::process::id(), unique());
        sh(Command::new("ip").args(["netns", "add", &name]));
        let ns = Self(Arc::new(Inner { name }));
        ns.ip("link set lo up");
        // Redirected traffic that goes back to loopback, and answers to it, must not be dropped as martian.
        ns.sysctl("net.ipv4.conf.all.route_localnet", "1");
        ns
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.0.name)
    }

    /// `ip ARGS` inside.
    #[track_caller]
    pub fn ip(&self, args: &str) {
        sh(Command::new("ip").args(["-n", self.name()]).args(args.split_whitespace()));
    }

    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let value = value.to_string();
        self.run(|| std::fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    /// Loads an nft script inside.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        use std::io::Write;
        let mut child = self
            .command("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nft (run .ci/tools)");
        child.stdin.take().expect("stdin").write_all(script.as_bytes()).expect("nft");
        let output = child.wait_with_output().expect("nft");
        assert!(output.status.success(), "nft: {}\n{script}", String::from_utf8_lossy(&output.stderr));
    }

    /// The sidecar's rules: what the app sends goes to `outbound`, what comes in goes to `inbound` (ports), for both
    /// families. Loopback, and whatever runs with user or group 1337, is left alone, as are `inbound`'s own port and
    /// `excluded_in`. What the proxy sends to the pod's own address is not looped back.
    pub fn redirect(&self, outbound: Option<u16>, inbound: Option<u16>, excluded_in: &[u16]) {
        let mut script = String::from("table inet weft {\n");
        if let Some(port) = outbound {
            script += &format!(
                "chain output {{ type nat hook output priority -100; policy accept;\n\
                 meta skuid 1337 return\nmeta skgid 1337 return\n\
                 ip daddr 127.0.0.0/8 return\nip6 daddr ::1 return\n\
                 meta l4proto tcp redirect to :{port}\n}}\n"
            );
        }
        if let Some(port) = inbound {
            let excluded: Vec<String> = [port].iter().chain(excluded_in).map(u16::to_string).collect();
            script += &format!(
                "chain prerouting {{ type nat hook prerouting priority -100; policy accept;\n\
                 tcp dport {{ {} }} return\n\
                 meta l4proto tcp redirect to :{port}\n}}\n",
                excluded.join(", ")
            );
        }
        self.nft(&(script + "}\n"));
    }

    /// A cable between two namespaces, each end with its addresses ("10.1.0.1/24", "fd00:1::1/64").
    pub fn join(a: &Netns, a_addrs: &[&str], b: &Netns, b_addrs: &[&str]) {
        // Device names hold 15 characters; the two ends are made inside, so only the pair must differ.
        let n = unique();
        let (left, right) = (format!("wl{n}"), format!("wr{n}"));
        a.ip(&format!("link add {left} type veth peer name {right} netns {}", b.name()));
        for (ns, device, addrs) in [(a, &left, a_addrs), (b, &right, b_addrs)] {
            for addr in addrs {
                // No duplicate address detection: it would leave an IPv6 address unusable for a second.
                let nodad = if addr.contains(':') { " nodad" } else { "" };
                ns.ip(&format!("addr add {addr} dev {device}{nodad}"));
            }
            ns.ip(&format!("link set {device} up"));
        }
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// As `command`, with that group id: rules tell a sidecar's own traffic by it, while the user stays root, so that
    /// the binary and its files are readable wherever the checkout lies.
    pub fn command_as(&self, program: &str, gid: u32) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(format!("--setgid={gid}")).arg("--").arg(program);
        command
    }

    /// Runs `f` on a thread inside. Sockets it makes stay inside wherever they go: peers of this kit bind before they
    /// start their threads, so `ns.run(|| Backend::start(..))` gives a backend in the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        run_in(Path::new(&self.path()), f)
    }
}

/// As `Netns::run`, in a namespace that somebody else has made.
pub fn run_in<T: Send>(namespace: &Path, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace);
            f()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Moves the calling thread (and the threads it starts) inside, for good.
fn enter(namespace: &Path) {
    let file = File::open(namespace).expect("namespace");
    // SAFETY: a plain system call on a descriptor we own; it changes this thread only.
    let done = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(done, 0, "setns: {}", std::io::Error::last_os_error());
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

#[track_caller]
fn sh(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e} (run .ci/tools)"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Two hosts; what the client sends anywhere lands on its own port 15001, on both families, except for group 1337.
    #[test]
    fn joins_and_redirects() {
        let (a, b) = (Netns::new("a"), Netns::new("b"));
        Netns::join(&a, &["10.77.0.1/24", "fd77::1/64"], &b, &["10.77.0.2/24", "fd77::2/64"]);
        a.redirect(Some(15001), None, &[]);
        b.redirect(None, Some(15006), &[]);
        let serve = |ns: &Netns, addr: &str, word: &'static [u8]| {
            let listener = ns.run(|| TcpListener::bind(addr).expect("bind"));
            std::thread::spawn(move || {
                while let Ok((mut s, _)) = listener.accept() {
                    let _ = s.write_all(word);
                }
            });
        };
        let read = |ns: &Netns, addr: &str| {
            ns.run(|| {
                let mut text = String::new();
                let mut stream = TcpStream::connect(addr).expect("connect");
                stream.read_to_string(&mut text).expect("read");
                text
            })
        };
        serve(&a, "[::]:15001", b"outbound");
        serve(&b, "[::]:15006", b"inbound");
        assert_eq!(read(&a, "10.77.0.2:80"), "outbound");
        assert_eq!(read(&a, "[fd77::2]:80"), "outbound");
        // bash's /dev/tcp as the process of group 1337.
        for host in ["10.77.0.2", "fd77::2"] {
            let mut command = a.command_as("bash", 1337);
            command.args(["-c", &format!("cat < /dev/tcp/{host}/80")]);
            let output = command.output().expect("bash");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "inbound", "{output:?}");
        }
    }
}
