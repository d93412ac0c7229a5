//! A running lab follows what `meshctl route` writes. Needs root, as every lab does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{LIMIT, Lab, meshctl};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use weft_testkit::dir::TempDir;

fn example(name: &str) -> TempDir {
    let copy = TempDir::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            std::fs::copy(&path, copy.join(path.file_name().unwrap().to_str().unwrap())).unwrap();
        }
    }
    copy
}

/// Somebody who calls without a pause, and notes each answer with its time.
struct Caller<'l> {
    lab: &'l Lab,
    child: Child,
}

impl<'l> Caller<'l> {
    fn start(lab: &'l Lab, from: &str, url: &str) -> Self {
        let script = format!("while curl -s -m 10 {url} && date +' %s.%N'; do :; done");
        let mut command = meshctl(&lab.home.join("labs"), &["lab", "exec", from, "--", "sh", "-c", &script]);
        let out = std::fs::File::create(lab.home.join("answers")).unwrap();
        Self { lab, child: command.stdout(out).stderr(Stdio::null()).spawn().unwrap() }
    }

    /// The answers so far, and when each came.
    fn answers(&self) -> Vec<(String, f64)> {
        let text = std::fs::read_to_string(self.lab.home.join("answers")).unwrap();
        let whole = &text[..text.rfind('\n').map_or(0, |i| i + 1)];
        // The app's answer may end with a line break of its own.
        let mut out = Vec::new();
        let mut answer = String::new();
        for line in whole.lines() {
            match line.rsplit_once(' ').and_then(|(before, at)| Some((before, at.parse::<f64>().ok()?))) {
                Some((before, at)) if at > 1e9 => {
                    out.push((std::mem::take(&mut answer) + before, at));
                }
                _ => answer += line,
            }
        }
        out
    }

    fn wait(&self, what: &str, wanted: impl Fn(&[(String, f64)]) -> bool) -> Vec<(String, f64)> {
        let end = Instant::now() + LIMIT;
        loop {
            let answers = self.answers();
            if wanted(&answers) {
                return answers;
            }
            assert!(Instant::now() < end, "no {what} within {LIMIT:?}: {:?}", answers.last());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn a_split_is_in_effect() {
    let dir = example("tutorial-5.9");
    let mut lab = Lab::start(dir.path(), &[]);
    for (workload, pods) in [("hello-v1", 2), ("hello-v2", 1), ("client", 1)] {
        lab.ready(workload, pods);
    }
    let labs = lab.home.join("labs");
    let verb = |args: &[&str]| {
        let output = meshctl(&labs, args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let caller = Caller::start(&lab, "client", "http://hello:8080/");
    let is_v1 = |(answer, _): &(String, f64)| answer.contains("v1");
    caller.wait("answers of v1", |a| a.len() >= 20 && a.iter().any(is_v1));

    // No --dir: the folder is the running lab's.
    let said = verb(&["route", "split", "hello", "v1=0", "v2=100"]);
    let written = now();
    assert!(said.contains("0% v1, 100% v2"), "{said}");
    let after = caller.wait("only v2", |a| a.len() >= 50 && !a[a.len() - 50..].iter().any(is_v1));
    let last = after.iter().rev().find(|a| is_v1(a)).map_or(0.0, |(_, at)| *at);
    let took = (last - written).max(0.0);
    println!("the last request to v1 was answered {took:.3} s after meshctl route split had ended");
    assert!(took < 20.0, "{took}");
    assert!(after.iter().all(|(answer, _)| answer.contains("Hello from")), "no request failed");
    let text = std::fs::read_to_string(dir.join("virtual-service.yaml")).unwrap();
    assert!(text.contains("subset: v1}, weight: 0}\n") && text.contains("subset: v2}, weight: 100}\n"), "{text}");

    // And back again, by whatever stands there.
    drop(caller);
    verb(&["route", "split", "hello", "v1=100", "v2=0"]);
    let caller = Caller::start(&lab, "client", "http://hello:8080/");
    caller.wait("only v1", |a| a.len() >= 50 && a[a.len() - 50..].iter().all(is_v1));
    assert!(verb(&["route", "show", "hello"]).contains("100% v1, 0% v2"));
}
