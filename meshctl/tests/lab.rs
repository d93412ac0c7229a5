//! Whole labs: real namespaces, real programs, the command line as people type it. Needs root, and says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{LIMIT, Lab, meshctl, programs};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use weft_testkit::dir::TempDir;

/// GET as a browser on this machine would.
fn get(url: &str, path: &str) -> String {
    let addr = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

fn body(answer: &str) -> Value {
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

fn deployment(name: &str, replicas: u32, more: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      \
         containers:\n      - name: main\n        image: weft/sample\n        ports: [{{name: http, containerPort: 8080}}]\n{more}---\n"
    )
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: http}}]{spec}}}\n---\n"
    )
}

fn shop() -> TempDir {
    let dir = TempDir::new();
    dir.write("users.yaml", deployment("users", 2, "") + &service("users", ""));
    let env = "        env: [{name: USERS_SERVICE_URL, value: \"http://users:80\"}]\n";
    dir.write("web.yaml", deployment("web", 1, env) + &service("web", ", type: LoadBalancer"));
    dir
}

#[test]
fn apps_reach_each_other_by_name_and_leave_nothing() {
    let shop = shop();
    let mut lab = Lab::start(shop.path(), &["--no-mesh"]);
    let users = lab.ready("users", 2);
    assert!(users.iter().all(|p| p["sidecar"] == false));

    // From this machine, through the app, to both replicas of the other one.
    let url = lab.ps()["urls"][0]["url"].as_str().unwrap().to_string();
    assert!(lab.out().contains(&url), "{}", lab.out());
    let mut instances = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let answer = body(&get(&url, "/some/path"));
        assert_eq!((answer["service"].as_str(), answer["path"].as_str()), (Some("web"), Some("/some/path")));
        let inner = &answer["calls"]["users"]["body"];
        assert_eq!(inner["service"], "users", "{answer:#}");
        instances.insert(inner["instance"].as_str().unwrap().to_string());
    }
    assert_eq!(instances, users.iter().map(|p| p["name"].as_str().unwrap().to_string()).collect());
    for name in ["users", "users.shop", "users.shop.svc", "users.shop.svc.cluster.local"] {
        assert_eq!(lab.ask("web", &format!("http://{name}/"))["service"], "users", "{name}");
    }
    let none = lab.run(&["exec", "web", "--", "curl", "-sS", "-m", "10", "http://nobody/"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("Could not resolve host"), "{none:?}");
    // A pod reaches itself through its Service, too.
    assert_eq!(lab.ask("web", "http://web/")["service"], "web");

    // A Service that is not open to the outside, opened.
    let opened = lab.get(&["forward", "users:80"]);
    assert_eq!(body(&get(opened.trim().rsplit(' ').next().unwrap(), "/"))["service"], "users");
    let wrong = lab.run(&["forward", "user"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("one of users.shop:80, web.shop:80"), "{wrong:?}");

    // More, fewer, others.
    lab.get(&["scale", "users", "3"]);
    lab.ready("users", 3);
    lab.get(&["scale", "deploy/users", "1"]);
    let before = lab.ready("users", 1)[0]["name"].clone();
    lab.get(&["restart", "users"]);
    lab.wait("another pod of users", |_, status| {
        let pods: Vec<&Value> =
            status["pods"].as_array().unwrap().iter().filter(|p| p["workload"] == "users").collect();
        (pods.len() == 1 && pods[0]["ready"] == true && pods[0]["name"] != before).then_some(())
    });
    // The folder is followed; a slip of the pen stops nobody.
    shop.write("web.yaml", "apiVersion: apps/v1\nkind: [Deploym");
    lab.wait("a word about the broken file", |text, _| text.contains("warning: ").then_some(()));
    lab.ready("web", 1);
    let env = "        env: [{name: VERSION, value: v2}]\n";
    shop.write("web.yaml", deployment("web", 2, env) + &service("web", ", type: LoadBalancer"));
    lab.ready("web", 2);
    lab.wait("the new version", |_, _| (body(&get(&url, "/"))["version"] == "v2").then_some(()));

    assert!(lab.get(&["logs", "web"]).contains("web listens on 0.0.0.0:8080"));
    assert!(lab.get(&["ps"]).contains("users-"));
    let failed = lab.run(&["exec", "web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7));
    let unknown = lab.run(&["logs", "nobody"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("one of users, web"), "{unknown:?}");

    let pids = lab.pids();
    lab.signal("-INT");
    assert!(lab.wait_exit().success(), "{}", lab.out());
    lab.assert_gone(&pids);
    assert!(lab.out().contains("nothing of it is left"), "{}", lab.out());
}

#[test]
fn what_a_killed_lab_leaves_is_removed() {
    let dir = TempDir::new();
    let script = dir.write("app.sh", "#!/bin/sh\nsleep 1000 &\nexec sleep 1000\n");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let plain = "apiVersion: v1\nkind: Pod\nmetadata: {name: lone}\nspec: {containers: [{name: a, image: own/app}]}\n";
    dir.write("pod.yaml", plain);
    let image = format!("own/app={}", script.display());
    for again in [false, true] {
        let mut lab = Lab::start(dir.path(), &["--no-mesh", "--image", &image]);
        lab.ready("lone", 1);
        let inside = lab.get(&[
            "exec",
            "lone",
            "--",
            "sh",
            "-c",
            "ls -l /proc/*/ns/net 2>/dev/null | grep -F \"$(readlink /proc/self/ns/net)\"",
        ]);
        // The app, what it left in the background, and the shell that asks.
        let mut pids: Vec<String> =
            inside.lines().filter_map(|l| l.split("/proc/").nth(1)?.split('/').next().map(String::from)).collect();
        pids.retain(|pid| pid.parse::<u32>().is_ok());
        assert!(pids.len() >= 2, "{inside}");
        lab.signal("-KILL");
        lab.wait_exit();
        assert!(!lab.namespaces().is_empty());
        if again {
            // The next start does it as well.
            let mut next = meshctl(&lab.home.join("labs"), &["lab"]);
            next.arg(dir.path()).args(["--no-mesh", "--image", &image]).stdout(Stdio::piped());
            let mut next = next.spawn().unwrap();
            let end = Instant::now() + LIMIT;
            while !lab.namespaces().is_empty() {
                assert!(Instant::now() < end, "{:?}", lab.namespaces());
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(Command::new("kill").args(["-TERM", &next.id().to_string()]).status().unwrap().success());
            assert!(next.wait().unwrap().success());
        } else {
            let out = lab.get(&["clean"]);
            assert!(out.contains(&format!("removed 1 lab: {}", lab.id)), "{out}");
            assert!(lab.get(&["clean"]).contains("nothing to clean"));
        }
        lab.assert_gone(&pids);
    }
}

#[test]
fn two_labs_do_not_meet() {
    let (one, other) = (TempDir::new(), TempDir::new());
    one.write("a.yaml", deployment("web", 1, "") + &service("web", ", type: NodePort"));
    other.write(
        "a.yaml",
        deployment("web", 1, "        env: [{name: VERSION, value: other}]\n") + &service("web", ", type: NodePort"),
    );
    let mut a = Lab::start(one.path(), &["--no-mesh"]);
    let mut b = Lab::start(other.path(), &["--no-mesh"]);
    assert_eq!(a.ready("web", 1)[0]["address"], b.ready("web", 1)[0]["address"], "the same addresses, apart");
    let url = |lab: &Lab| lab.ps()["urls"][0]["url"].as_str().unwrap().to_string();
    for _ in 0..10 {
        assert_eq!(body(&get(&url(&a), "/"))["version"], "");
        assert_eq!(body(&get(&url(&b), "/"))["version"], "other");
        assert_eq!(a.ask("web", "http://web/")["version"], "");
        assert_eq!(b.ask("web", "http://web/")["version"], "other");
    }
    let pids = a.pids();
    a.signal("-TERM");
    assert!(a.wait_exit().success());
    a.assert_gone(&pids);
    assert_eq!(body(&get(&url(&b), "/"))["version"], "other");
}

#[test]
fn unknown_images_and_empty_folders_say_what_to_do() {
    programs();
    let dir = TempDir::new();
    let home = dir.join("labs");
    let empty = meshctl(&home, &["lab"]).arg(dir.path()).output().unwrap();
    assert_eq!(empty.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&empty.stderr).contains("no Deployment"), "{empty:?}");
    dir.write("a.yaml", deployment("web", 1, "").replace("weft/sample", "registry.test/shop/web:v3"));
    let unknown = meshctl(&home, &["lab"]).arg(dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text.contains("a.yaml:1") && text.contains("registry.test/shop/web:v3"), "{text}");
    assert!(text.contains("--image shop/web=COMMAND"), "{text}");
    let wrong = meshctl(&home, &["lab"])
        .arg(dir.path())
        .args(["--no-mesh", "--image", "shop/web=not-a-program"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("there is no program \"not-a-program\""), "{wrong:?}");
    assert!(!home.exists(), "nothing was made");
    let none = meshctl(&home, &["lab", "ps"]).output().unwrap();
    assert!(String::from_utf8_lossy(&none.stderr).contains("no lab is running"), "{none:?}");
}

/// Stateful pods with names of their own, environments from everywhere, a port that nobody listens on, a program that fails.
#[test]
fn pods_as_in_a_cluster() {
    let dir = TempDir::new();
    let env = "        envFrom: [{configMapRef: {name: settings}}]\n        env:\n        \
               - {name: SERVICE_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}\n";
    let stateful = deployment("db", 2, env)
        .replace("kind: Deployment", "kind: StatefulSet")
        .replace("  selector", "  serviceName: db\n  selector");
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: shop}\ndata: {VERSION: \"1.5\", BODY_SIZE: \"2000\"}\n---\n";
    dir.write("db.yaml", stateful + &service("db", ", clusterIP: None") + settings);
    dir.write("echo.yaml", deployment("echo", 1, "").replace("weft/sample", "hashicorp/http-echo:1.0"));
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: once, namespace: shop}\nspec:\n  template:\n    spec:\n      \
               restartPolicy: Never\n      containers: [{name: a, image: busybox, command: [sh, -c, \"echo done; exit 0\"]}]\n---\n";
    let fails = deployment("fails", 1, "        command: [sh, -c, \"echo no database; exit 3\"]\n")
        .replace("weft/sample", "busybox");
    let probed = "        readinessProbe: {httpGet: {path: \"/up?status=503\", port: http}}\n";
    dir.write("more.yaml", job.to_string() + &fails + &deployment("probed", 1, probed));
    programs();
    let home = TempDir::new();
    let log = std::fs::File::create(home.join("out")).unwrap();
    let mut command = meshctl(&home.join("labs"), &["lab"]);
    command.arg(dir.path()).arg("--no-mesh").stdout(log.try_clone().unwrap()).stderr(log);
    let child = command.spawn().unwrap();
    let mut lab = Lab { home, child, id: String::new(), user: None };
    lab.id = lab.wait("a lab", |text, _| {
        text.lines().find_map(|l| l.strip_prefix("lab ")?.split(' ').next().map(String::from))
    });
    let db = lab.ready("db", 2);
    let names: Vec<&str> = db.iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["db-0", "db-1"]);
    for name in names {
        let answer = lab.ask("db", &format!("http://{name}.db:8080/"));
        assert_eq!((answer["service"].as_str(), answer["version"].as_str()), (Some(name), Some("1.5")), "{answer:#}");
    }
    let note = |wanted: &'static str, workload: &'static str| {
        move |_: &str, status: &Value| {
            let pods = status["pods"].as_array().into_iter().flatten();
            let pod = pods
                .filter(|p| p["workload"] == workload)
                .find(|p| p["note"].as_str().is_some_and(|n| n.contains(wanted)))?;
            Some(pod["status"].clone())
        }
    };
    lab.wait("a word about http-echo", note("nothing listens on port 8080, only on 5678", "echo"));
    lab.wait("a word about the probe", note("the probe was answered with 503", "probed"));
    let status = lab.wait("a word about the failure", note("exit status: 3: no database", "fails"));
    assert_eq!(status, "CrashLoopBackOff");
    lab.wait("the job's end", |_, status| {
        let pods = status["pods"].as_array().into_iter().flatten();
        pods.filter(|p| p["workload"] == "once").find(|p| p["status"] == "Completed").map(|_| ())
    });
    assert_eq!(lab.get(&["logs", "once"]), "done\n");
}

/// Control plane, sidecars and apps that know nothing of either: who calls is known, and where plaintext is refused it is.
#[test]
fn sidecars_carry_it_all() {
    let shop = shop();
    let namespace =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio-injection: enabled}}\n---\n";
    let accounts = |name: &str| format!("    spec:\n      serviceAccountName: {name}\n      containers");
    let web = deployment("web", 1, "        env: [{name: USERS_SERVICE_URL, value: \"http://users:80\"}]\n");
    let web = web.replace("    spec:\n      containers", &accounts("web")) + &service("web", ", type: LoadBalancer");
    shop.write("web.yaml", web);
    let outside = deployment("outside", 1, "")
        .replace("labels: {app: outside}", "labels: {app: outside, sidecar.istio.io/inject: \"false\"}");
    shop.write("more.yaml", namespace.to_string() + &outside);
    let mut lab = Lab::start(shop.path(), &[]);
    let users = lab.ready("users", 2);
    assert!(users.iter().all(|p| p["sidecar"] == true && p["sidecarReady"] == true), "{users:?}");
    assert_eq!(lab.ready("outside", 1)[0]["sidecar"], false);

    let inner = |answer: &Value| answer["calls"]["users"]["body"].clone();
    let url = lab.ps()["urls"][0]["url"].as_str().unwrap().to_string();
    // The table tells of pods; that sidecars have heard of them as well shows in the first answer.
    lab.wait("an answer through both sidecars", |_, _| {
        let answer = body(&get(&url, "/"));
        (answer["calls"]["users"]["status"] == 200).then_some(())
    });
    for _ in 0..10 {
        let answer = body(&get(&url, "/"));
        assert_eq!(answer["caller"], Value::Null, "this machine is nobody in the mesh: {answer:#}");
        assert_eq!(inner(&answer)["caller"], "spiffe://cluster.local/ns/shop/sa/web", "{answer:#}");
    }
    assert_eq!(
        lab.ask("web", "http://users.shop.svc.cluster.local/")["caller"],
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    // From one without a sidecar, in plaintext, while that is allowed.
    assert_eq!(lab.ask("outside", "http://users/")["caller"], Value::Null);
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: all, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    shop.write("strict.yaml", strict);
    let end = Instant::now() + LIMIT;
    while lab.run(&["exec", "outside", "--", "curl", "-sf", "-m", "5", "http://users/"]).status.success() {
        assert!(Instant::now() < end, "plaintext still gets through");
    }
    assert_eq!(lab.ask("web", "http://users/")["service"], "users");
    // A pod that calls its own Service and is picked itself arrives at its own sidecar, as by anybody else.
    assert_eq!(lab.ask("web", "http://web/")["caller"], "spiffe://cluster.local/ns/shop/sa/web");

    // One more, which the others find, and one less, which nobody misses.
    lab.get(&["scale", "users", "3"]);
    lab.ready("users", 3);
    lab.get(&["scale", "users", "1"]);
    for _ in 0..100 {
        assert_eq!(lab.ask("web", "http://users/")["service"], "users");
    }
    lab.ready("users", 1);
    the_root_is_rotated(&lab);
    assert!(lab.get(&["logs", "web", "-c", "sidecar"]).contains("users"));
    let pids = lab.pids();
    lab.signal("-INT");
    assert!(lab.wait_exit().success(), "{}", lab.out());
    lab.assert_gone(&pids);
}

/// As far as it goes before certificates are renewed.
fn the_root_is_rotated(lab: &Lab) {
    let ca = |args: &[&str]| {
        let output = meshctl(&lab.home.join("labs"), &[&["ca"][..], args].concat()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = ca(&["status"]);
    assert!(code == Some(0) && out.contains("no rotation is under way"), "{out}{err}");
    let (code, out, err) = ca(&["rotate"]);
    assert!(code == Some(0) && out.contains("is trusted beside"), "{out}{err}");
    let (code, out, err) = ca(&["status", "--wait", "--timeout", "60s", "-o", "json"]);
    let status: Value = serde_json::from_str(&out).unwrap_or_default();
    assert!(code == Some(0) && status["stage"] == "introduced" && status["waitsFor"].is_null(), "{out}{err}");
    let (code, out, err) = ca(&["rotate"]);
    assert!(code == Some(0) && out.contains("is still trusted"), "{out}{err}");
    let (code, out, err) = ca(&["rotate"]);
    assert!(code == Some(1) && out.is_empty() && err.contains("are still in use by"), "{out}{err}");
    assert!(err.contains("try: meshctl ca rotate --wait"), "{err}");
    assert_eq!(lab.ask("web", "http://users/")["caller"], "spiffe://cluster.local/ns/shop/sa/web");
}
