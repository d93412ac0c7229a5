//! What the verbs that change manifests make of them, byte by byte. Each `edits/NAME` is a folder `in` (or `from`, which names an
//! example), a `verb` to be typed with what it says, and in `out` the files that are different afterwards. `UPDATE_GOLDEN=1`
//! writes what comes out now.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use weft_testkit::dir::TempDir;

const MESHCTL: &str = env!("CARGO_BIN_EXE_meshctl");

fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path());
    let yaml = entries.filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "json"));
    let named =
        yaml.map(|p| (p.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read_to_string(&p).unwrap()));
    named.collect()
}

#[test]
fn goldens() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/edits");
    let mut cases: Vec<_> = std::fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 25, "{} cases", cases.len());
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut differ = BTreeSet::new();
    for case in &cases {
        let name = case.file_name().unwrap().to_str().unwrap();
        let from = match std::fs::read_to_string(case.join("from")) {
            Ok(example) => Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(example.trim()),
            Err(_) => case.join("in"),
        };
        let before = files(&from);
        let dir = TempDir::new();
        before.iter().for_each(|(name, text)| drop(dir.write(name, text)));
        let verb = std::fs::read_to_string(case.join("verb")).unwrap();
        let typed = verb.lines().next().unwrap().to_string();
        let said = run(&typed, dir.path(), case);
        let after = files(dir.path());
        let gone = before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("{name} is gone\n"));
        let verb_now = format!("{typed}\n{said}{}", gone.collect::<String>());
        let changed: BTreeMap<String, String> =
            after.into_iter().filter(|(name, text)| before.get(name) != Some(text)).collect();
        if update {
            std::fs::write(case.join("verb"), verb_now).unwrap();
            let _ = std::fs::remove_dir_all(case.join("out"));
            for (name, text) in changed {
                std::fs::create_dir_all(case.join("out")).unwrap();
                std::fs::write(case.join("out").join(name), text).unwrap();
            }
            continue;
        }
        if verb_now != verb {
            eprintln!("{name}: said\n{verb_now}\nnot\n{verb}");
            differ.insert(name.to_string());
        }
        if changed != files(&case.join("out")) {
            eprintln!("{name}: wrote {changed:#?}");
            differ.insert(name.to_string());
        }
    }
    assert!(differ.is_empty(), "these came out differently (UPDATE_GOLDEN=1 writes them): {differ:?}");
}

/// What it prints, first what is for people who go on with it, then the rest; and how it ended, if not well.
fn run(typed: &str, dir: &Path, case: &Path) -> String {
    let mut words = words(typed).into_iter();
    assert_eq!(words.next().as_deref(), Some("meshctl"), "{typed}");
    // What is given is no part of the folder.
    let given = case.join("given").display().to_string();
    let words = words.map(|w| if w.starts_with("given") { w.replacen("given", &given, 1) } else { w });
    let mut command = Command::new(MESHCTL);
    command.args(words).args(["--dir", "."]).current_dir(dir).env("NO_COLOR", "1").stdin(Stdio::null());
    let output = command.output().unwrap();
    let mut said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    if !output.status.success() {
        said += &format!("exit {}\n", output.status.code().unwrap_or(-1));
    }
    said.replace(&given, "given")
}

/// As a shell takes them apart.
fn words(typed: &str) -> Vec<String> {
    let (mut out, mut quoted) = (vec![String::new()], false);
    for c in typed.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => out.push(String::new()),
            c => out.last_mut().unwrap().push(c),
        }
    }
    out
}
