//! A cluster's whole life, and what is left when it ends: nothing, however it ends. Needs root; fails where it cannot start.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weft_cluster::{Cluster, Options, Place};

/// A start removes what others left, and one of these tests wants to find that itself. The first test's cluster runs on beside
/// the others', so that several do.
static STARTS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    STARTS.lock().unwrap_or_else(PoisonError::into_inner)
}

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: busybox:1
    command: [sh, -c, "mkdir /www; echo hello from $HOSTNAME > /www/index.html; exec httpd -f -p 8080 -h /www"]
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: client, image: "busybox:1", command: [sleep, infinity]}
---
# Ends although its sidecar would run for ever, and begins only when the sidecar is ready.
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - name: side
    image: busybox:1
    restartPolicy: Always
    command: [sh, -c, "trap 'exit 0' TERM; sleep 1; touch /shared/ready; while :; do sleep 0.1; done"]
    startupProbe: {exec: {command: [test, -e, /shared/ready]}, periodSeconds: 1}
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, "ls /shared; echo done"]
    volumeMounts: [{name: shared, mountPath: /shared}]
"#;

#[test]
fn runs_pods_and_leaves_nothing() {
    let before = machine();
    let alone = alone();
    let mut cluster = Cluster::start(Options::default()).unwrap_or_else(|e| panic!("{e}"));
    drop(alone);
    let run = |cluster: &Cluster, args: &[&str]| cluster.kubectl(args).unwrap_or_else(|e| panic!("{e}"));
    let name = cluster.place().name().to_string();
    let inode = fs::metadata(cluster.place().netns()).unwrap().ino();

    cluster.apply(PODS).unwrap();
    run(&cluster, &["wait", "--for=condition=Ready", "pod/web", "pod/client", "--timeout=60s"]);
    run(&cluster, &["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/once", "--timeout=60s"]);
    assert_eq!(run(&cluster, &["logs", "once", "-c", "main"]), "ready\ndone\n");

    // By name, through the Service, from another pod; and by exec in the pod itself.
    assert_eq!(run(&cluster, &["exec", "web", "--", "cat", "/www/index.html"]), "hello from web\n");
    let full = "http://web.default.svc.cluster.local/";
    for url in ["http://web/", full] {
        let asked = ["exec", "client", "--", "timeout", "5", "wget", "-qO-", url];
        assert_eq!(wait_for(|| cluster.kubectl(&asked).ok()), "hello from web\n");
    }
    let address = run(&cluster, &["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let looked_up = run(&cluster, &["exec", "client", "--", "nslookup", "web.default.svc.cluster.local"]);
    assert!(looked_up.contains(&address), "{address}\n{looked_up}");
    // The node reaches Services as well, as the API server does for webhooks.
    let fetched = cluster.command("busybox").args(["wget", "-qO-", &format!("http://{address}/")]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&fetched.stdout), "hello from web\n", "{fetched:?}");

    // The API server goes and comes back; the pods do not care.
    cluster.kill_part("kube-apiserver").unwrap();
    assert!(cluster.kubectl(&["get", "--raw", "/readyz"]).is_err());
    cluster.start_part("kube-apiserver").unwrap();
    wait_for(|| cluster.kubectl(&["get", "--raw", "/readyz"]).ok());
    assert_eq!(
        run(&cluster, &["get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"]),
        "0 0 0"
    );
    assert!(cluster.parts().iter().all(|(_, pid)| pid.is_some()), "{:?}", cluster.parts());

    run(&cluster, &["delete", "pod,service", "--all", "--timeout=60s"]);
    assert_eq!(run(&cluster, &["get", "pods", "-o", "name"]), "");

    assert_eq!(machine(), before, "the machine's own network and settings while a cluster runs");
    assert!(cluster.processes().unwrap().len() > 8);
    cluster.stop().unwrap();
    assert_nothing_left(&name, Some(inode));
    assert_eq!(machine(), before);
}

#[test]
fn a_start_that_fails_says_which_part_and_leaves_nothing() {
    let _alone = alone();
    let name = format!("fails-{}", std::process::id());
    let flags = vec![("kube-apiserver", "--no-such-flag".to_string())];
    let error = Cluster::start(Options { name: name.clone(), flags, ..Options::default() }).unwrap_err().to_string();
    assert!(error.contains("kube-apiserver ended") && error.contains("unknown flag: --no-such-flag"), "{error}");
    assert_nothing_left(&name, None);
}

#[test]
fn down_finds_what_a_killed_start_left() {
    let _alone = alone();
    let program = env!("CARGO_BIN_EXE_weft-cluster");
    let name = format!("killed-{}", std::process::id());
    let mut up = Command::new(program).args(["up", "--name", &name]).stderr(Stdio::null()).spawn().unwrap();
    let node = wait_for(|| {
        assert!(up.try_wait().unwrap().is_none(), "it ended before it was killed");
        let place = Place::find(&name).unwrap()?;
        let cluster = Cluster::open(&name).unwrap();
        let running = cluster.parts().iter().any(|(part, pid)| *part == "kube-apiserver" && pid.is_some());
        running.then(|| place.netns())
    });
    up.kill().unwrap();
    up.wait().unwrap();
    let inode = fs::metadata(node).unwrap().ino();
    let status = Command::new(program).args(["status"]).output().unwrap();
    assert_eq!(status.status.code(), Some(1), "{status:?}");
    assert!(Command::new(program).args(["down", "--name", &name]).status().unwrap().success());
    assert_nothing_left(&name, Some(inode));
}

fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "not within 90 s");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What a cluster must not change.
fn machine() -> String {
    let told = |words: &[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).env("PATH", "/usr/sbin:/usr/bin").output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut all: String =
        [&["ip", "-br", "address"][..], &["ip", "route"], &["nft", "list", "ruleset"]].map(told).concat();
    for key in [
        "vm/overcommit_memory",
        "kernel/panic",
        "kernel/panic_on_oops",
        "net/ipv4/ip_forward",
        "net/netfilter/nf_conntrack_max",
    ] {
        all += &fs::read_to_string(Path::new("/proc/sys").join(key)).unwrap_or_default();
    }
    // That a path is a mount point here and not only in the cluster's own view would show.
    all + &mounts().replace("/run/netns", "")
}

fn mounts() -> String {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().filter_map(|l| l.split(' ').nth(4)).filter(|p| !p.starts_with("/run/netns"));
    points.map(|p| format!("{p}\n")).collect()
}

fn assert_nothing_left(name: &str, netns: Option<u64>) {
    let node = format!("weft-{name}");
    assert!(Place::find(name).unwrap().is_none());
    assert!(!Path::new("/run/netns").join(&node).exists());
    assert!(!mounts().contains(&node) && !mounts().contains(&format!("/{name}/")), "{}", mounts());
    let of_groups: Vec<PathBuf> = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|e| e.path().join(&node))
        .filter(|p| p.exists())
        .collect();
    assert!(of_groups.is_empty(), "{of_groups:?}");
    // The kernel is a moment with the last of them, and whoever inherits the dead may be slow to bury them.
    wait_for(|| left_running(&node, netns).is_empty().then_some(()));
}

fn left_running(node: &str, netns: Option<u64>) -> Vec<PathBuf> {
    let all = fs::read_dir("/proc").unwrap().flatten().map(|e| e.path());
    let left = all.filter(|process| {
        let text = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default();
        let inside = netns.is_some() && fs::metadata(process.join("ns/net")).map(|m| m.ino()).ok() == netns;
        (inside || text("cgroup").contains(&format!("/{node}/"))) && !text("status").contains("\nState:\tZ")
    });
    left.collect()
}
