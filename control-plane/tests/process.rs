//! The program itself: its commands, its exit codes, and manifests as people write them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use rig::{SERVER, SOON, Stream, get, identity, request, sign};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use weft_control::identity::token::{self, Binding};
use weft_testkit::ca::Ca;
use weft_testkit::dir::TempDir;
use weft_testkit::wait::{block_on, until};
use weft_tls::Identity;

const BIN: &str = env!("CARGO_BIN_EXE_weft-control");

/// Ends with its owner.
struct Process {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    fn start(args: &[&str]) -> Self {
        Self::spawn(Command::new(BIN).args(args))
    }

    fn spawn(command: &mut Command) -> Self {
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (found, serving) = mpsc::channel();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = lines.clone();
        // Reads to the end, so that the process never waits for us.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if line.contains("serving") {
                    let _ = found.send(line.clone());
                }
                kept.lock().unwrap().push(line);
            }
        });
        let line = serving.recv_timeout(SOON).expect("serving");
        let line: String = plain(&line);
        let word = |after: &str| {
            let rest = &line[line.find(after).unwrap() + after.len()..];
            rest.split([' ', ')']).next().unwrap().parse().unwrap()
        };
        let (address, admin) = (word("address="), word("admin=Some("));
        Self { child, address, admin, log: lines }
    }

    fn end(mut self) -> i32 {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut code = None;
        until("it ends", SOON, || {
            code = self.child.try_wait().unwrap().map(|s| s.code());
            code.is_some()
        });
        code.flatten().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Without colours.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            chars.by_ref().find(|c| *c == 'm');
        } else {
            out.push(c);
        }
    }
    out
}

fn run(args: &[&str]) -> Output {
    Command::new(BIN).args(args).output().unwrap()
}

#[test]
fn out_of_descriptors_and_back() {
    let (manifests, state) = (TempDir::new(), TempDir::new());
    let (dir, state) = (manifests.path().display().to_string(), state.path().display().to_string());
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 48; exec \"$0\" \"$@\"", BIN, "--dir", &dir, "--state", &state]);
    let process = Process::spawn(&mut command);
    let held: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(process.address).unwrap()).collect();
    // It says so, and waits instead of ending.
    until("the log says so", SOON, || process.log.lock().unwrap().iter().any(|l| l.contains("accept")));
    drop(held);
    let token = ["token", "--state", &state, "--namespace", "demo", "--service-account", "web", "--pod", "web-1"];
    let token = String::from_utf8(run(&token).stdout).unwrap();
    block_on(async {
        let bundle = rig::bundle(std::path::Path::new(&state).join("root.pem"));
        let client = rig::connect(process.address, bundle, None, SERVER).await.unwrap();
        sign(client, request(&[]).1, token.trim()).await.unwrap();
    });
    assert_eq!(process.end(), 0);
}

const MANIFESTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: demo, labels: {app: web}, annotations: {weft.dev/sidecar: 'true'}}
spec: {serviceAccountName: web, containers: [{name: web, ports: [{containerPort: 8080}]}]}
status: {phase: Running, podIP: 10.1.0.5, conditions: [{type: Ready, status: 'True'}]}
";

#[test]
fn from_manifests_to_a_proxy() {
    let (manifests, state) = (TempDir::new(), TempDir::new());
    let state = state.path().display().to_string();
    manifests.write("app.yaml", MANIFESTS);
    let dir = manifests.path().display().to_string();
    let process = Process::start(&["--dir", &dir, "--state", &state]);
    let root = run(&["root", "--state", &state]);
    assert!(root.status.success() && String::from_utf8_lossy(&root.stdout).starts_with("-----BEGIN CERTIFICATE-----"));
    let token = ["token", "--state", &state, "--namespace", "demo", "--service-account", "web", "--pod", "web-1"];
    let token = String::from_utf8(run(&token).stdout).unwrap();

    block_on(async {
        let end = tokio::time::Instant::now() + SOON;
        while get(process.admin, "/ready").await.0 != 200 {
            assert!(tokio::time::Instant::now() < end, "ready");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let bundle = || rig::bundle(std::path::Path::new(&state).join("root.pem"));
        let client = rig::connect(process.address, bundle(), None, SERVER).await.unwrap();
        let (key, csr) = request(&[]);
        let leaf = identity(&key, &sign(client, csr, token.trim()).await.unwrap());
        // Somebody who has stolen the token, somebody without a certificate, and somebody with one of another mesh.
        let thief = rig::connect(process.address, bundle(), None, SERVER).await.unwrap();
        assert!(sign(thief.clone(), request(&[]).1, token.trim()).await.is_err());
        assert!(Stream::open(thief).await.is_err());
        let foreign = Ca::new("other.domain").workload("demo", "web");
        let foreign = Identity::from_pem(foreign.cert_pem.as_bytes(), foreign.key_pem.as_bytes()).unwrap();
        let _ = rig::connect(process.address, bundle(), Some(&foreign), SERVER).await;
        let logged = |what: &str| process.log.lock().unwrap().iter().any(|l| l.contains("WARN") && l.contains(what));
        for what in ["the join token is unknown", "no certificate of a pod", "a client's certificate is refused"] {
            until(what, SOON, || logged(what));
        }
        let client = rig::connect(process.address, bundle(), Some(&leaf), SERVER).await.unwrap();
        let mut stream = Stream::open(client).await.unwrap();
        stream.hello(&[]).await;
        stream.subscribe(&["*"], &[]).await;
        stream.step().await;
        for name in ["proxy", "trust", "service/demo/web", "endpoints/demo/web/80"] {
            assert!(stream.have.contains_key(name), "{name} of {:?}", stream.have.keys());
        }
        assert!(stream.document("endpoints/demo/web/80").to_string().contains("10.1.0.5:"));
        manifests.write("app.yaml", MANIFESTS.replace("10.1.0.5", "10.1.0.6"));
        loop {
            stream.step().await;
            if stream.document("endpoints/demo/web/80").to_string().contains("10.1.0.6:") {
                break;
            }
        }
        let (_, errors) = get(process.admin, "/errors").await;
        let errors: serde_json::Value = serde_json::from_str(&errors).unwrap();
        assert_eq!(errors["withheld"], serde_json::json!([]), "{errors}");
        // What the dialects find is shown with its place.
        let typo = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: demo}\n\
                    spec:\n  hosts: [web]\n  http:\n  - route: [{destination: {host: web}}]\n    timeot: 1s\n";
        manifests.write("typo.yaml", typo);
        let end = tokio::time::Instant::now() + SOON;
        let found = loop {
            let (_, errors) = get(process.admin, "/errors").await;
            let errors: serde_json::Value = serde_json::from_str(&errors).unwrap();
            let found =
                errors["objects"].as_array().unwrap().iter().find(|f| f.to_string().contains("timeot")).cloned();
            if let Some(found) = found {
                break found;
            }
            assert!(tokio::time::Instant::now() < end, "{errors}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        assert_eq!(found["object"], "virtualservice/web.demo");
        assert!(found["at"].as_str().unwrap().ends_with("typo.yaml:8"), "{found}");
    });
    assert_eq!(process.end(), 0);
}

#[test]
fn commands_say_what_is_wrong() {
    let state = TempDir::new();
    let state = state.path().display().to_string();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let help = run(&["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Examples:"));
    for (args, code, says) in [
        (vec!["--dir", "x"], 2, "--listen"),
        (vec![], 2, "--help"),
        (vec!["root", "--state", &state], 2, "no root yet"),
        (vec!["rotate-root", "--state", &state], 2, "no root yet"),
        (vec!["token", "--state", &state, "--namespace", "a/b", "--service-account", "c", "--pod", "d"], 2, "a/b"),
        (vec!["--dir", "x", "--state", &state, "--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0"], 2, "loopback"),
        (vec!["--dir", "x", "--state", &state, "--listen", "127.0.0.1:0", "--log", "a=b=c"], 2, "--log"),
        (vec!["--dir", "x", "--state", &state, "--listen", &taken], 2, "something else has this port"),
        (vec!["--dir", "x", "--state", &state, "--listen", "127.0.0.1:0", "--admin", &taken], 2, &taken),
    ] {
        let out = run(&args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
}

/// Root without the right to pass over permissions is anybody.
#[test]
fn a_missing_privilege() {
    let (manifests, state) = (TempDir::new(), TempDir::new());
    std::fs::set_permissions(state.path(), std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-dac_override,-dac_read_search", BIN, "--listen", "127.0.0.1:0", "--dir"]);
    let out = command.arg(manifests.path()).arg("--state").arg(state.path()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("Permission denied") && said.contains("state"), "{said}");
}

/// What cannot be written down is not signed, nothing is lost by it, and it goes on when there is room.
#[test]
fn a_full_disk_for_the_authority() {
    let (manifests, state) = (TempDir::new(), TempDir::new());
    let (dir, folder) = (manifests.path().display().to_string(), state.path().display().to_string());
    let mut command = Command::new("unshare");
    let mount = "mount -t tmpfs -o size=128k tmpfs \"$0\" && exec \"$@\"";
    command.args(["-m", "sh", "-c", mount, &folder, BIN, "--dir", &dir, "--state", &folder]);
    let process = Process::spawn(&mut command);
    let inside = std::path::PathBuf::from(format!("/proc/{}/root{folder}", process.child.id()));
    let folder = inside.display().to_string();
    let token = |pod: &str| {
        run(&["token", "--state", &folder, "--namespace", "demo", "--service-account", "web", "--pod", pod])
    };
    let good = String::from_utf8(token("web-1").stdout).unwrap();
    // To the end of the page it has, so that a line more needs another.
    let log = inside.join("issued.log");
    let length = std::fs::metadata(&log).unwrap().len();
    let padding = " ".repeat((4096 - length % 4096) as usize);
    std::io::Write::write_all(&mut std::fs::OpenOptions::new().append(true).open(&log).unwrap(), padding.as_bytes())
        .unwrap();
    let filler = inside.join("filler");
    assert!(std::fs::write(&filler, vec![0; 1 << 20]).is_err(), "the disk is full");
    let before = std::fs::read(inside.join("ca.json")).unwrap();

    block_on(async {
        let join = async || {
            let bundle = rig::bundle(inside.join("root.pem"));
            let client = rig::connect(process.address, bundle, None, SERVER).await.unwrap();
            sign(client, request(&[]).1, good.trim()).await
        };
        let refused = join().await.unwrap_err();
        assert!(refused.code() == tonic::Code::Unavailable && refused.message().contains("cannot sign"), "{refused}");
        until("the log says why", SOON, || process.log.lock().unwrap().iter().any(|l| l.contains("No space left")));
        for full in [run(&["rotate-root", "--state", &folder]), token("web-2")] {
            let said = String::from_utf8_lossy(&full.stderr);
            assert!(full.status.code() == Some(2) && said.contains("No space left"), "{said}");
        }
        assert_eq!(std::fs::read(inside.join("ca.json")).unwrap(), before);
        std::fs::remove_file(&filler).unwrap();
        join().await.unwrap();
        assert!(run(&["rotate-root", "--state", &folder]).status.success());
    });
    assert_eq!(process.end(), 0);
}

#[test]
fn the_steps_of_a_rotation() {
    let (manifests, state) = (TempDir::new(), TempDir::new());
    let (dir, state) = (manifests.path().display().to_string(), state.path().display().to_string());
    let process = Process::start(&["--dir", &dir, "--state", &state]);
    let step = |more: &[&str]| run(&[&["rotate-root", "--state", &state], more].concat());
    let roots = || String::from_utf8_lossy(&run(&["root", "--state", &state]).stdout).matches("BEGIN").count();
    assert!(step(&[]).status.success());
    assert_eq!(roots(), 2);
    // Nobody is there who has to hear of it; the control plane says so within a second or two.
    until("the second step", SOON, || step(&[]).status.success());
    // The control plane itself takes a new certificate first.
    until("the third step", SOON, || step(&[]).status.success());
    assert_eq!(roots(), 1);
    assert_eq!(process.end(), 0);
}

/// Joins, each over a connection of its own, from an open loop: what a rollout of a hundred pods a second would be.
#[test]
fn a_hundred_certificates_a_second() {
    let seconds = if std::env::var_os("WEFT_FULL").is_some() { 20 } else { 3 };
    let rate = if cfg!(debug_assertions) { 10 } else { 100 };
    let (manifests, state) = (TempDir::new(), TempDir::new());
    let (dir, folder) = (manifests.path().display().to_string(), state.path().display().to_string());
    let process = Process::start(&["--dir", &dir, "--state", &folder, "--log", "info"]);
    let state = weft_control::state::StateDir::open(state.path()).unwrap();
    let asks: Vec<_> = (0..rate * seconds)
        .map(|n| {
            let (namespace, service_account) = ("demo".to_string(), "web".to_string());
            let binding = Binding { namespace, service_account, pod: format!("web-{n}") };
            let now = std::time::SystemTime::now();
            (token::create(&state, &binding, rig::DAY, now).unwrap(), request(&[]).1)
        })
        .collect();
    let mut times = block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        let begun = tokio::time::Instant::now();
        for (n, (token, csr)) in asks.into_iter().enumerate() {
            let due = begun + Duration::from_secs(1) * n as u32 / rate;
            let bundle = rig::bundle(std::path::Path::new(&folder).join("root.pem"));
            let address = process.address;
            tokio::time::sleep_until(due).await;
            tasks.spawn(async move {
                let client = rig::connect(address, bundle, None, SERVER).await.unwrap();
                sign(client, csr, &token).await.unwrap();
                due.elapsed()
            });
        }
        tasks.join_all().await
    });
    times.sort();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
    println!("{} certificates at {rate}/s: p50 {:?} p99 {:?} max {:?}", times.len(), at(0.5), at(0.99), at(1.0));
    // Meant to be 50 ms.
    assert!(at(0.99) <= Duration::from_millis(500), "{:?}", at(0.99));
    assert_eq!(process.end(), 0);
}

/// Killed wherever it happens to be: the state is the one before or the one after, and what was signed is still trusted.
#[test]
fn a_rotation_that_is_killed_at_any_point() {
    let (manifests, state) = (TempDir::new(), TempDir::new());
    let (dir, folder) = (manifests.path().display().to_string(), state.path().display().to_string());
    Process::start(&["--dir", &dir, "--state", &folder]).end();
    let stage_and_roots = || {
        let text = std::fs::read_to_string(state.join("ca.json")).unwrap();
        let ca: serde_json::Value = serde_json::from_str(&text).unwrap();
        (ca["stage"].as_str().unwrap().to_string(), ca["roots"].as_array().unwrap().len())
    };
    for n in 0..60 {
        let mut step = Command::new(BIN).args(["rotate-root", "--force", "--state", &folder]).spawn().unwrap();
        // Anywhere from before it has begun to after it is done.
        let end = std::time::Instant::now() + std::time::Duration::from_micros(n * 250);
        while std::time::Instant::now() < end {
            std::hint::spin_loop();
        }
        let _ = step.kill();
        step.wait().unwrap();
        let (stage, roots) = stage_and_roots();
        assert_eq!(roots, if stage == "single" { 1 } else { 2 }, "{stage}");
        assert!(run(&["root", "--state", &folder]).status.success());
    }
    // And it runs from what is there.
    let process = Process::start(&["--dir", &dir, "--state", &folder]);
    let pem = run(&["root", "--state", &folder]).stdout;
    assert_eq!(std::fs::read(state.join("root.pem")).unwrap(), pem);
    assert_eq!(process.end(), 0);
}
