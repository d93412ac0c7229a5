//! Labs of somebody who is not root: in a user namespace, and on loopback where there are none. The tests themselves need root,
//! to be somebody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{LIMIT, Lab, Somebody};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use weft_testkit::dir::TempDir;

fn tutorial() -> TempDir {
    let copy = TempDir::new();
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/tutorial-5.9");
    for file in ["app.yaml", "peer-authentication.yaml", "virtual-service.yaml"] {
        copy.write(file, std::fs::read_to_string(original.join(file)).unwrap());
    }
    copy
}

fn echo(name: &str) -> TempDir {
    let dir = TempDir::new();
    dir.write(
        "a.yaml",
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    \
             metadata: {{labels: {{app: web}}}}\n    spec:\n      containers:\n      - {{name: main, image: weft/sample, env: [{{name: \
             VERSION, value: {name}}}], ports: [{{name: http, containerPort: 8080}}]}}\n---\napiVersion: v1\nkind: Service\n\
             metadata: {{name: web}}\nspec: {{selector: {{app: web}}, type: NodePort, ports: [{{port: 80, targetPort: http}}]}}\n"
        ),
    );
    dir
}

/// GET as a browser on this machine would.
fn get(url: &str) -> String {
    let addr = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

/// What the tutorial promises, whatever keeps its pods apart.
fn tutorial_holds(dir: &TempDir, lab: &mut Lab, isolation: &str) {
    assert!(lab.out().contains(&format!("\n{isolation}: ")), "{}", lab.out());
    assert_eq!(lab.ps()["isolation"], isolation);
    for (workload, pods) in [("hello-v1", 2), ("hello-v2", 1), ("client", 1), ("stranger", 1)] {
        lab.ready(workload, pods);
    }
    let calls = "for i in $(seq 200); do curl -s -m 10 http://hello:8080/; done";
    let text = lab.get(&["exec", "client", "--", "sh", "-c", calls]);
    let of = |line: &str| text.lines().filter(|l| *l == line).count();
    assert_eq!(of("Hello from v1") + of("Hello from v2"), 200, "{text}");
    // Four standard deviations around a tenth.
    assert!((3..=37).contains(&of("Hello from v2")), "{}", of("Hello from v2"));
    // STRICT: nobody without an identity, and so all of the above with one.
    let refused = lab.run(&["exec", "stranger", "--", "curl", "-s", "-m", "10", "http://hello:8080/"]);
    assert!(!refused.status.success(), "{refused:?}");
    // Chrome is sent to v2, which is one pod: itself.
    let chrome = ["exec", "hello-v2", "--", "curl", "-s", "-m", "10", "-A", "Chrome", "http://hello:8080/"];
    assert_eq!(lab.get(&chrome), "Hello from v2\n");

    assert_eq!(lab.run(&["exec", "client", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    let name = lab.get(&["exec", "client", "--", "sh", "-c", "echo $HOSTNAME"]);
    assert!(name.starts_with("client-"), "{name}");
    assert!(lab.get(&["logs", "hello-v2"]).contains("hello listens on 0.0.0.0:"));
    dir.write("peer-authentication.yaml", "# PERMISSIVE\n");
    let opened = lab.get(&["forward", "hello"]);
    let url = opened.trim().rsplit(' ').next().unwrap().to_string();
    let end = Instant::now() + LIMIT;
    while !get(&url).contains("Hello from v") {
        assert!(Instant::now() < end, "PERMISSIVE does not let plaintext in: {}", get(&url));
    }
    assert!(lab.run(&["exec", "stranger", "--", "curl", "-sf", "-m", "10", "http://hello:8080/"]).status.success());
}

fn ends(lab: &mut Lab) {
    let pids = lab.pids();
    lab.signal("-INT");
    assert!(lab.wait_exit().success(), "{}", lab.out());
    lab.assert_gone(&pids);
    assert!(lab.out().contains("nothing of it is left"), "{}", lab.out());
    let left = lab.user.as_ref().unwrap().processes();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn in_a_user_namespace() {
    let dir = tutorial();
    // What somebody who is not root gets without asking.
    let mut lab = Lab::start_as(Somebody::new(), dir.path(), &[]);
    tutorial_holds(&dir, &mut lab, "userns");
    let host = lab.get(&["exec", "client", "--", "hostname"]);
    assert!(host.starts_with("client-"), "{host}");
    let refused = lab.run(&["exec", "client", "-c", "sidecar", "--", "true"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in a user namespace"), "{refused:?}");
    ends(&mut lab);
}

#[test]
fn on_loopback() {
    let dir = tutorial();
    let mut lab = Lab::start_as(Somebody::new(), dir.path(), &["--isolation", "loopback"]);
    assert!(lab.out().contains("http://auth-service:8080 is resolved by"), "{}", lab.out());
    tutorial_holds(&dir, &mut lab, "loopback");
    // Another one beside it, whose names are its own.
    let other = echo("other");
    let mut beside = Lab::start(other.path(), &["--no-mesh", "--isolation", "loopback"]);
    let address = beside.ready("web", 1)[0]["address"].clone();
    assert!(lab.ps()["pods"].as_array().unwrap().iter().all(|p| p["address"] != address), "{address}");
    for name in ["web", "web.default", "web.default.svc.cluster.local:80"] {
        assert_eq!(beside.ask("web", &format!("http://{name}/"))["version"], "other");
    }
    assert!(get(beside.ps()["urls"][0]["url"].as_str().unwrap()).contains("\"version\": \"other\""));
    let none = beside.get(&["exec", "web", "--", "curl", "-s", "-m", "10", "http://hello:8080/"]);
    assert_eq!(none, "nobody is hello:8080 here\n");
    drop(beside);
    ends(&mut lab);
}

/// Where nobody may make a namespace it is said, and the lab runs all the same.
#[test]
fn what_the_machine_forbids() {
    let (user, dir) = (Somebody::new(), echo("plain"));
    let home = user.folder();
    // In a user namespace of his own there shall be no further ones.
    let script = "echo 0 >/proc/sys/user/max_user_namespaces; exec \"$@\"";
    let run = |outside: bool, args: &[&str]| {
        let mut command = user.command(Path::new(if outside { "env" } else { "unshare" }));
        if !outside {
            command.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]);
        }
        command.arg(user.meshctl()).arg("lab").arg(dir.path()).args(["--no-mesh"]).args(args);
        command.env("WEFT_LAB_HOME", home.join("labs")).stdin(Stdio::null());
        command
    };
    for (outside, isolation, why) in [
        (false, "userns", "user namespaces are switched off (user.max_user_namespaces is 0)"),
        (false, "netns", "is not possible: "),
        (true, "netns", "--isolation netns is not possible: it takes root"),
    ] {
        let output = run(outside, &["--isolation", isolation]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text.contains(why) && text.contains("try: "), "{text}");
    }
    assert!(!home.join("labs").exists(), "nothing was made");
    let log = std::fs::File::create(home.join("out")).unwrap();
    let child = run(false, &[]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let mut lab = Lab { home, child, id: String::new(), user: None };
    lab.user = Some(user);
    lab.wait("a lab on loopback", |text, _| {
        let lines = ["no userns: user namespaces are switched off", "\nloopback: ", "It follows its manifests"];
        lines.iter().all(|l| text.contains(l)).then_some(())
    });
    lab.id = lab.ps()["lab"].as_str().unwrap().to_string();
    assert_eq!(lab.ask("web", "http://web/")["version"], "plain");
    ends(&mut lab);
}

/// What survives the end of a lab that could not clean up is found by whoever cleans.
#[test]
fn killed_labs_are_cleaned() {
    let dir = TempDir::new();
    let script = dir.write("app.sh", "#!/bin/sh\nsleep 1000 &\nexec sleep 1000\n");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    dir.write(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: lone}\nspec: {containers: [{name: a, image: own/app}]}\n",
    );
    let image = format!("own/app={}", script.display());
    for isolation in ["userns", "loopback"] {
        let mut lab =
            Lab::start_as(Somebody::new(), dir.path(), &["--no-mesh", "--isolation", isolation, "--image", &image]);
        lab.ready("lone", 1);
        let pids = lab.pids();
        lab.signal("-KILL");
        lab.wait_exit();
        // The app goes with its lab; what it left in the background does not.
        let left = lab.user.as_ref().unwrap().processes();
        assert!(left.iter().any(|p| p.starts_with("sleep 1000")), "{left:?}");
        let out = lab.get(&["clean"]);
        assert!(out.contains(&format!("removed 1 lab: {}", lab.id)), "{out}");
        lab.assert_gone(&pids);
        let left = lab.user.as_ref().unwrap().processes();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Nobody's word but one's own is taken for what labs there are.
#[test]
fn a_home_of_somebody_else() {
    let (user, dir) = (Somebody::new(), echo("plain"));
    let home = TempDir::new();
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut command: Command = user.command(&user.meshctl());
    command.arg("lab").arg(dir.path()).arg("--no-mesh").env("WEFT_LAB_HOME", home.path());
    let output = command.output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("belongs to somebody else"), "{output:?}");
}
