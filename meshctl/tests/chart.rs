//! The chart has two readers: Helm, and `meshctl install`. They make the same of it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use weft_policy::diag::Diags;
use weft_policy::yaml;
use weft_testkit::tools;

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weft")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// By kind and name, for Helm has an order of its own.
fn objects(text: &str) -> Vec<Value> {
    let mut diags = Diags::default();
    let nodes = yaml::documents(text, &mut diags).unwrap_or_else(|| panic!("{:?}\n{text}", diags.0));
    let mut all: Vec<Value> = nodes.iter().map(yaml::json).filter(|o| !o.is_null()).collect();
    let place = |o: &Value| format!("{} {}", o["kind"], o["metadata"]["name"]);
    all.sort_by_key(place);
    all
}

fn helm(args: &[&str]) -> String {
    text(
        &Command::new(tools::helm())
            .args(["template", "weft", "--kube-version", "1.34.0"])
            .arg(chart())
            .args(args)
            .output()
            .unwrap(),
    )
}

fn meshctl(args: &[&str]) -> String {
    let program = env!("CARGO_BIN_EXE_meshctl");
    text(&Command::new(program).args(["install", "--dry-run"]).args(args).output().unwrap())
}

#[test]
fn helm_makes_the_same_objects() {
    let file = |name: &str| chart().join(name).to_str().unwrap().to_string();
    let (demo, ha, minimal) = (file("profiles/demo.yaml"), file("profiles/ha.yaml"), file("profiles/minimal.yaml"));
    let (istio, linkerd) = (file("compat/istio.yaml"), file("compat/linkerd.yaml"));
    let odd = [
        "--set",
        "otlp=http://a:4317",
        "--set",
        "meshRanges={10.0.0.0/8,fd00::/8}",
        "--set",
        "sampling=0.5",
        "--set",
        "createNamespace=false",
        "--set",
        "images.pullSecrets={a,b}",
        "--set",
        "images.control=r.example/<&>/c:1",
        "--set",
        "control.resources.limits.cpu=2",
    ];
    for (of_helm, of_meshctl) in [
        (vec![], vec![]),
        (vec!["-f", &demo], vec!["--profile", "demo"]),
        (vec!["-f", &ha], vec!["--profile", "ha"]),
        (vec!["-f", &minimal], vec!["--profile", "minimal"]),
        (vec!["-f", &ha, "-f", &istio], vec!["--profile", "ha", "--compat", "istio"]),
        (vec!["-f", &linkerd], vec!["--compat", "linkerd"]),
        (odd.to_vec(), odd.to_vec()),
    ] {
        let (theirs, ours) = (objects(&helm(&of_helm)), objects(&meshctl(&of_meshctl)));
        assert!(ours.len() > 10, "{of_meshctl:?}");
        assert_eq!(theirs, ours, "{of_meshctl:?}");
    }
}

#[test]
fn helm_finds_nothing_wrong() {
    let told = text(&Command::new(tools::helm()).args(["lint", "--strict"]).arg(chart()).output().unwrap());
    assert!(told.contains("0 chart(s) failed"), "{told}");
    let mut crds = objects(&helm(&["--include-crds"]));
    crds.retain(|o| o["kind"] == "CustomResourceDefinition");
    assert_eq!(crds, objects(&meshctl(&["--crds"])));
}

#[test]
fn wrong_values_are_refused() {
    let program = env!("CARGO_BIN_EXE_meshctl");
    let wrong = Command::new(program).args(["install", "--dry-run", "--set", "control.replica=2"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    let told = String::from_utf8(wrong.stderr).unwrap();
    assert!(told.contains("control.replica; there are log, replicas, resources") && told.contains("try:"), "{told}");
}
