//! The examples do what the texts say that they come from: `lab --check` takes their steps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::MESHCTL;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use weft_testkit::dir::TempDir;

/// A copy that may be edited.
fn example(name: &str) -> TempDir {
    let copy = TempDir::new();
    for entry in std::fs::read_dir(original(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            std::fs::copy(&path, copy.join(path.file_name().unwrap().to_str().unwrap())).unwrap();
        }
    }
    copy
}

fn original(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

fn edit(dir: &TempDir, file: &str, changes: &[(&str, &str)]) {
    let mut text = std::fs::read_to_string(dir.join(file)).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{file} has no {from:?}");
        text = text.replace(from, to);
    }
    dir.write(file, text);
}

/// Takes an example's steps as a person would; what was found, by `-o json`. Nothing is left, and the example is as it was.
fn check(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    kit::programs();
    let before = contents(folder);
    let home = TempDir::new();
    let mut command = kit::meshctl(&home.join("labs"), &["lab"]);
    let output = command.arg(folder).arg("--check").args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(!home.join("labs").exists(), "files are left\n{out}\n{err}");
    assert_eq!(contents(folder), before, "the example was changed");
    (output.status.code(), out, err)
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Every line of the text that is a command or says what to expect is a step: so many that pass, none that fails, and so many
/// that belong to a later release.
fn passes(name: &str, passed: usize, later: usize) {
    let (code, out, err) = check(&original(name), &["-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}\n{err}"));
    let steps = report["steps"].as_array().unwrap();
    let failed: Vec<_> = steps.iter().filter(|s| s["outcome"] == "failed").collect();
    assert!(failed.is_empty() && code == Some(0), "{code:?} {failed:#?}\n{err}");
    assert_eq!((&report["passed"], &report["later"]), (&passed.into(), &later.into()));
    assert_eq!(steps.len(), passed + later);
    assert!(steps.windows(2).all(|two| two[0]["line"].as_u64() < two[1]["line"].as_u64()), "{out}");
    assert!(steps.iter().all(|s| s["text"].as_str().is_some_and(|t| !t.is_empty())), "{out}");
}

#[test]
fn tutorial_5_9() {
    passes("tutorial-5.9", 21, 11);
}

#[test]
fn lab_9_5() {
    passes("lab-9.5", 56, 35);
}

#[test]
fn lab_8() {
    passes("lab-8", 62, 80);
}

/// What does not hold is said with what was seen, and counts.
#[test]
fn a_step_that_fails() {
    let dir = TempDir::new();
    dir.write(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: web, image: weft/sample}]}\n",
    );
    dir.write(
        "steps.check",
        "steps:\n\
         - {line: 1, text: curl web, from: web, run: 'curl -s localhost:8080/', json: {/service: web}}\n\
         - {line: 2, text: 'Expected: a cat', output: cat}\n\
         - {line: 3, text: edit, run: 'echo edited >>pod.yaml; exit 3', exit: 3}\n\
         - {line: 4, text: buy a cat, later: next year}\n",
    );
    let (code, out, err) = check(dir.path(), &["--no-mesh"]);
    assert_eq!(code, Some(1), "{out}\n{err}");
    for wanted in [
        "passed     1  curl web\n              $ meshctl lab exec web -- curl -s localhost:8080/\n",
        "failed     2  Expected: a cat\n",
        "s: nothing in its output matches \"cat\"\n",
        "\"service\": \"web\"",
        "passed     3  edit\n",
        "later      4  buy a cat\n              next year\n",
    ] {
        assert!(out.contains(wanted), "no {wanted:?} in\n{out}");
    }
    assert!(out.ends_with("2 passed, 1 failed, 1 later\n"), "{out}");
    std::fs::remove_file(dir.join("steps.check")).unwrap();
    let (code, _, err) = check(dir.path(), &["--no-mesh"]);
    assert!(code == Some(1) && err.contains("steps.check") && err.contains("docs/lab.md"), "{err}");
}

/// `analyze` names the traps of these labs' own texts, and fails only for errors.
#[test]
fn analyzed() {
    let analyze = |folder: &Path, more: &[&str]| {
        let mut command = Command::new(MESHCTL);
        command.arg("analyze").arg(folder).args(more).env("NO_COLOR", "1");
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = analyze(&original("lab-9.5"), &[]);
    assert_eq!(code, Some(0), "{text}");
    for known in ["[G2]", "[G18]", " honoured, ", "0 errors"] {
        assert!(text.contains(known), "no {known}: {text}");
    }
    let (code, text) = analyze(&original("tutorial-5.9"), &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, json["problems"].as_array().map(Vec::len)), (Some(0), Some(0)), "{text}");
    let weight = |f: &&serde_json::Value| f["field"] == "spec.http[1].route[0].weight";
    assert_eq!(json["fields"].as_array().unwrap().iter().find(weight).unwrap()["verdict"], "honoured");
    let (code, text) = analyze(&original("lab-8"), &[]);
    assert!(code == Some(0) && text.contains("[G5]") && text.contains("0 errors"), "{text}");
    let broken = example("tutorial-5.9");
    edit(&broken, "virtual-service.yaml", &[("weight: 90", "weight: much")]);
    let (code, text) = analyze(broken.path(), &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("virtual-service.yaml:") && text.contains("weight"), "{text}");
    let (code, _) = analyze(Path::new("/nowhere"), &[]);
    assert_eq!(code, Some(1));
}
