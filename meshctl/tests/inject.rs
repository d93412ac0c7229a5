//! `meshctl inject` and `uninject` as people type them: over the examples' manifests and there and back again.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use weft_policy::diag::Diags;
use weft_policy::yaml;

fn meshctl(args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("meshctl starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_string();
    // It may fail before it reads.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("written");
    output
}

fn run(args: &[&str], input: &str) -> (String, String) {
    let output = meshctl(args, input);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{args:?}: {err}");
    (out, err)
}

fn documents(text: &str) -> Vec<Value> {
    let mut diags = Diags::default();
    let found = yaml::documents(text, &mut diags);
    found.unwrap_or_else(|| panic!("{:?}\n{text}", diags.0)).iter().map(yaml::json).collect()
}

fn examples() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let folders = std::fs::read_dir(root).unwrap().flatten().map(|f| f.path()).filter(|p| p.is_dir());
    let files = folders.flat_map(|f| std::fs::read_dir(f).unwrap().flatten().map(|f| f.path()));
    let mut files: Vec<PathBuf> = files.filter(|f| f.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    files
}

#[test]
fn examples_go_there_and_come_back() {
    let (mut injected, mut same) = (0, 0);
    let files = examples();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        // Sidecars' own configurations are no objects, and pass.
        let (with, told) = run(&["inject", file.to_str().unwrap(), "--as", "istio"], "");
        let count = told.lines().filter(|l| l.contains(" injected: istio-proxy, native")).count()
            + told.lines().filter(|l| l.contains(" injected: linkerd-proxy, native")).count();
        assert_eq!(with.matches("restartPolicy: Always").count(), count, "{}: {told}", file.display());
        let (back, _) = run(&["uninject", "-"], &with);
        assert_eq!(documents(&back), documents(&text), "{}", file.display());
        injected += count;
        same += usize::from(back == text);
    }
    assert!(injected >= 15, "{injected} pods of {} files", files.len());
    // Comments, quotes and order too, wherever the text allows it.
    assert!(same * 10 >= files.len() * 8, "{same} of {} came back to the byte", files.len());
}

const FILE: &str = "\
# The shop.
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {linkerd.io/inject: enabled}}
---
apiVersion: v1
kind: Service   # stays
metadata: {name: web, namespace: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata:
      annotations:
        config.linkerd.io/proxy-cpu-request: \"$(reboot)\"   # hostile
    spec:
      containers:
      - name: app   # the app
        image: 'web:1'
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: node, namespace: shop}
spec: {template: {spec: {hostNetwork: true, containers: [{name: a, image: b}]}}}
";

#[test]
fn what_is_said_and_what_stays() {
    let (with, told) = run(&["inject", "-"], FILE);
    let said: Vec<&str> = told.lines().collect();
    assert_eq!(said.len(), 3, "{told}");
    assert!(
        said[0].starts_with("warning: deployment/web.shop: \"$(reboot)\" is refused") || said[0].contains("refused"),
        "{told}"
    );
    assert_eq!(
        said[1],
        "deployment/web.shop injected: linkerd-proxy, native; linkerd.io/inject=enabled on the namespace"
    );
    assert_eq!(
        said[2],
        "daemonset/node.shop not injected: it uses the host's network, where nothing can be redirected"
    );
    for kept in
        ["# The shop.\n", "kind: Service   # stays\n", "- name: app   # the app\n", "image: 'web:1'\n", "# hostile"]
    {
        assert!(with.contains(kept), "{kept:?} in\n{with}");
    }
    assert!(!with.contains("cpu: $(reboot)") && with.contains("cpu: 50m"), "{with}");
    let (again, told) = run(&["inject", "-"], &with);
    assert_eq!(again, with);
    assert!(told.contains("it has a sidecar already: linkerd-proxy"), "{told}");
    let (back, told) = run(&["uninject", "-"], &with);
    assert_eq!(back, FILE);
    assert!(told.contains("deployment/web.shop uninjected"), "{told}");

    let (json, _) = run(&["inject", "-", "-o", "json", "--mode", "classic", "--image", "r/p:1"], FILE);
    let list: Value = serde_json::from_str(&json).unwrap();
    let kinds: Vec<&str> = list["items"].as_array().unwrap().iter().map(|i| i["kind"].as_str().unwrap()).collect();
    assert_eq!((list["kind"].as_str(), kinds), (Some("List"), vec!["Namespace", "Service", "Deployment", "DaemonSet"]));
    let containers = &list["items"][2]["spec"]["template"]["spec"]["containers"];
    assert_eq!((&containers[0]["name"], &containers[0]["image"]), (&"linkerd-proxy".into(), &"r/p:1".into()));
    // A List is read as what is in it.
    let (back, _) = run(&["uninject", "-", "-o", "json"], &json);
    assert_eq!(serde_json::from_str::<Value>(&back).unwrap()["items"], Value::from(documents(FILE)));
}

#[test]
fn texts_that_cannot_be_edited_are_written_anew() {
    let text = FILE.replace("      annotations:\n", "      annotations: &notes\n");
    let text = text.replace("    spec:\n", "      labels: *notes\n    spec:\n");
    assert!(text.contains("&notes") && text.contains("*notes"));
    let (with, _) = run(&["inject", "-"], &text);
    assert_eq!(with.matches("restartPolicy: Always").count(), 1, "{with}");
    let (back, _) = run(&["uninject", "-"], &with);
    assert_eq!(documents(&back), documents(&text));
}

#[test]
fn wrong_files_and_settings_are_told() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("inject");
    std::fs::create_dir_all(&folder).unwrap();
    let settings = folder.join("settings.yaml");
    std::fs::write(&settings, "image: r/p:2\ncontrol: here:1\n").unwrap();
    let (with, _) = run(&["inject", "-", "--settings", settings.to_str().unwrap()], FILE);
    assert!(with.contains("image: r/p:2") && with.contains("- here:1"), "{with}");
    std::fs::write(&settings, "imgae: r/p:2\n").unwrap();
    let user = FILE.replace("image: 'web:1'\n", "image: 'web:1'\n        securityContext: {runAsUser: 1337}\n");
    let deep = format!("a: {}1{}", "[".repeat(70), "]".repeat(70));
    let big = format!("a: {}", "x".repeat(5 << 20));
    for (args, input, code, said) in [
        (&["inject", "-", "--settings", settings.to_str().unwrap()][..], FILE, 1, "unknown field `imgae`"),
        (&["inject", "-"], "a: [1\n", 1, "not YAML"),
        (&["inject", "-"], &deep, 1, "levels deep"),
        (&["inject", "-"], &big, 1, "bytes"),
        (&["inject", "-"], &user, 1, "deployment/web.shop is refused: container app has runAsUser 1337"),
        (&["inject", "nothing.yaml"], "", 1, "nothing.yaml"),
        (&["inject"], "", 2, "Usage"),
    ] {
        let output = meshctl(args, input);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
        assert!(err.contains(said), "{args:?}: {err}");
    }
}
