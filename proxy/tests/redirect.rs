//! `weft-proxy redirect` in a pod's network: a namespace with the app and a stand-in for the sidecar, joined to another one that
//! is everything else. Whoever answers says who it is, so what is redirected shows by real connections.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use weft_proxy::sys::sockopt::dialler;
use weft_testkit::netns::Netns;
use weft_testkit::wait::block_on;

const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");
const LIMIT: Duration = Duration::from_secs(20);
const POD: [&str; 2] = ["10.77.0.1", "fd77::1"];
const ELSEWHERE: [&str; 2] = ["10.77.0.2", "fd77::2"];
/// Another of its addresses.
const FAR: [&str; 2] = ["10.79.0.2", "fd79::2"];
const SIDECAR: u32 = 1337;

struct World {
    pod: Netns,
    elsewhere: Netns,
}

/// Answers every connection with a word.
fn serve(ns: &Netns, port: u16, word: &'static str) {
    let listener = ns.run(|| TcpListener::bind(("::", port)).expect("bind"));
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(word.as_bytes());
        }
    });
}

fn world() -> World {
    let (pod, elsewhere) = (Netns::new("pod"), Netns::new("else"));
    // As in a pod, where nobody may change it.
    pod.sysctl("net.ipv4.conf.all.route_localnet", "0");
    Netns::join(
        &pod,
        &["10.77.0.1/24", "10.79.0.1/24", "fd77::1/64", "fd79::1/64"],
        &elsewhere,
        &["10.77.0.2/24", "10.79.0.2/24", "fd77::2/64", "fd79::2/64"],
    );
    for (port, word) in [(15001, "outbound"), (15006, "inbound"), (16001, "new outbound"), (15020, "status")] {
        serve(&pod, port, word);
    }
    for port in [22, 80, 8080] {
        serve(&pod, port, "app");
    }
    for port in [22, 53, 80, 443, 6005] {
        serve(&elsewhere, port, "elsewhere");
    }
    World { pod, elsewhere }
}

fn told(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    text
}

fn to(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Who answers somebody in that namespace.
#[track_caller]
fn ask(ns: &Netns, ip: &str, port: u16) -> String {
    told(ns.run(|| TcpStream::connect_timeout(&to(ip, port), LIMIT)).expect("connect"))
}

impl World {
    fn redirect(&self, words: &[&str]) -> Output {
        self.pod.command(BIN).arg("redirect").args(words).output().expect("weft-proxy")
    }

    #[track_caller]
    fn set(&self, words: &[&str]) -> String {
        let output = self.redirect(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Who answers a process of the pod that has another user or group.
    fn ask_as(&self, who: &[&str], ip: &str, port: u16) -> String {
        let mut command = self.pod.command("setpriv");
        command.args(who).args(["--clear-groups", "bash", "-c", &format!("cat < /dev/tcp/{ip}/{port}")]);
        let output = command.output().expect("setpriv");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Who answers the sidecar, known by its mark, when it passes something on to its own app, or calls its own pod.
    fn ask_as_sidecar(&self, ip: &str, port: u16, own_app: bool) -> (String, IpAddr) {
        let to = to(ip, port);
        let stream = self.pod.run(|| {
            block_on(async {
                dialler(to, own_app, Some(SIDECAR)).unwrap().connect(to).await.unwrap().into_std().unwrap()
            })
        });
        stream.set_nonblocking(false).unwrap();
        let from = stream.local_addr().unwrap().ip();
        (told(stream), from)
    }

    fn listed(&self) -> String {
        let output = self.pod.command("nft").args(["-n", "list", "ruleset"]).output().expect("nft");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn everything_goes_through_the_sidecar() {
    let w = world();
    let said = w.set(&[]);
    assert!(said.contains("15001") && said.contains("15006") && said.contains("read back"), "{said}");
    for i in 0..2 {
        let (pod, elsewhere) = (POD[i], ELSEWHERE[i]);
        for port in [22, 80, 443] {
            assert_eq!(ask(&w.pod, elsewhere, port), "outbound", "{elsewhere} {port}");
        }
        assert_eq!(ask(&w.pod, elsewhere, 53), "elsewhere", "DNS");
        for port in [22, 80, 8080] {
            assert_eq!(ask(&w.elsewhere, pod, port), "inbound", "{pod} {port}");
        }
        assert_eq!(ask(&w.elsewhere, pod, 15020), "status");
        // What the app asks itself.
        assert_eq!(ask(&w.pod, ["127.0.0.1", "::1"][i], 8080), "app");
        assert_eq!(ask(&w.pod, pod, 8080), "app");
        // The sidecar's own, by user and by group; that it calls its own pod shows at itself.
        for who in ["--reuid=1337", "--regid=1337"] {
            assert_eq!(w.ask_as(&[who], elsewhere, 80), "elsewhere", "{who}");
            assert_eq!(w.ask_as(&[who], pod, 8080), "inbound", "{who}");
            assert_eq!(w.ask_as(&[who], ["127.0.0.1", "::1"][i], 8080), "app", "{who}");
        }
        assert_eq!(w.ask_as_sidecar(elsewhere, 80, false).0, "elsewhere");
        assert_eq!(w.ask_as_sidecar(pod, 8080, false).0, "inbound");
        let to_its_app = ["127.0.0.6", "::6"][i].parse().unwrap();
        assert_eq!(w.ask_as_sidecar(pod, 8080, true), ("app".into(), to_its_app));
        // Anybody else's is nobody special.
        assert_eq!(w.ask_as(&["--reuid=2000", "--regid=2000"], elsewhere, 80), "outbound");
    }
}

#[test]
fn what_is_left_alone() {
    let w = world();
    w.set(&[
        "--skip-inbound-ports=22,8000-8100",
        "--skip-outbound-ports=22,6000-6010",
        "--skip-outbound-cidrs=10.79.0.0/17,fd79::2",
        "--skip-uids=2000,2001",
    ]);
    for i in 0..2 {
        let (pod, elsewhere, far) = (POD[i], ELSEWHERE[i], FAR[i]);
        for (port, who) in [(22, "app"), (8080, "app"), (80, "inbound")] {
            assert_eq!(ask(&w.elsewhere, pod, port), who, "{pod} {port}");
        }
        for (port, who) in [(22, "elsewhere"), (6005, "elsewhere"), (80, "outbound")] {
            assert_eq!(ask(&w.pod, elsewhere, port), who, "{elsewhere} {port}");
        }
        assert_eq!(ask(&w.pod, far, 80), "elsewhere");
        for (uid, who) in [("--reuid=2001", "elsewhere"), ("--reuid=2002", "outbound")] {
            assert_eq!(w.ask_as(&[uid], elsewhere, 80), who, "{uid}");
        }
    }
    // Only some; one port whatever the address.
    w.set(&["--inbound-ports=80", "--outbound-cidrs=10.79.0.0/16,fd79::/16", "--outbound-ports=443"]);
    for i in 0..2 {
        let (pod, elsewhere, far) = (POD[i], ELSEWHERE[i], FAR[i]);
        assert_eq!((ask(&w.elsewhere, pod, 80), ask(&w.elsewhere, pod, 8080)), ("inbound".into(), "app".into()));
        assert_eq!((ask(&w.pod, far, 80), ask(&w.pod, elsewhere, 80)), ("outbound".into(), "elsewhere".into()));
        assert_eq!(ask(&w.pod, elsewhere, 443), "outbound");
    }
    w.set(&["--inbound-ports=", "--outbound-cidrs="]);
    for i in 0..2 {
        assert_eq!((ask(&w.elsewhere, POD[i], 80), ask(&w.pod, ELSEWHERE[i], 80)), ("app".into(), "elsewhere".into()));
    }
}

#[test]
fn set_again_and_taken_away() {
    let w = world();
    // Somebody else's stay.
    w.pod.nft("table inet theirs {\nchain a { type filter hook input priority 0; policy accept; }\n}\n");
    let empty = w.listed();
    assert!(w.set(&["--remove"]).contains("gone"), "nothing there is no error");
    assert_eq!(w.listed(), empty);
    w.set(&[]);
    let once = w.listed();
    w.set(&[]);
    assert_eq!(w.listed(), once);
    w.set(&["--outbound-port=16001"]);
    assert_eq!(ask(&w.pod, ELSEWHERE[0], 80), "new outbound");
    w.set(&["--remove"]);
    assert_eq!(w.listed(), empty);
    for i in 0..2 {
        assert_eq!((ask(&w.elsewhere, POD[i], 80), ask(&w.pod, ELSEWHERE[i], 80)), ("app".into(), "elsewhere".into()));
    }
}

/// What is printed is what is set: nft makes the same of it.
#[test]
fn printed_as_set() {
    let w = world();
    let many: Vec<String> = (1..=200).map(|n| format!("10.{n}.0.0/16")).collect();
    let many = format!("--skip-outbound-cidrs={}", many.join(","));
    for words in [
        &[][..],
        &["--skip-inbound-ports=22,8000-8100", "--skip-uids=5", "--outbound-cidrs=10.96.0.0/12,fd00::/13,10.1.2.3"],
        &[&many],
    ] {
        let script = w.set(&[words, &["--print"]].concat());
        assert!(!w.listed().contains("weft"), "printing sets nothing");
        w.set(words);
        let set = w.listed();
        w.pod.nft(&script);
        assert_eq!(w.listed(), set, "{words:?}\n{script}");
        w.set(&["--remove"]);
    }
}

#[test]
fn refusals_tell_what_to_do() {
    let w = world();
    let mut command = w.pod.command("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", BIN, "redirect"]);
    let (code, said) = outcome(&mut command);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("Operation not permitted") && said.contains("capabilities: {add: [NET_ADMIN]}"), "{said}");
    assert!(!w.listed().contains("weft"));
    for (flag, value) in [
        ("--skip-outbound-ports", "80 } } ; flush ruleset"),
        ("--skip-uids", "$(id)"),
        ("--outbound-cidrs", "10.0.0.0/64"),
    ] {
        let (code, said) = outcome(w.pod.command(BIN).args(["redirect", flag, value]));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(flag), "{said}");
    }
    let (code, said) = outcome(w.pod.command(BIN).args(["redirect", "--outbound-port=15006"]));
    assert!(code == Some(2) && said.contains("--outbound-port"), "{said}");
    assert!(!w.listed().contains("weft"));
}

fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("weft-proxy");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}
