//! `get`, `apply` and `delete` on a folder, as people and scripts call them. What they make of texts is in `edits.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::io::Write;
use std::process::{Command, Stdio};
use weft_testkit::dir::TempDir;

const MESHCTL: &str = env!("CARGO_BIN_EXE_meshctl");

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: demo}\nspec: {ports: [{name: http, port: 80}]}\n";

fn split(name: &str, weight: &str) -> String {
    format!(
        "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {{name: {name}}}\nspec:\n  service: web\n  \
         backends: [{{service: web, weight: {weight}}}]\n"
    )
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn meshctl(dir: &TempDir, args: &[&str], input: &str) -> Said {
    let mut command = Command::new(MESHCTL);
    // No lab of this machine is meant.
    command.args(args).current_dir(dir.path()).env("NO_COLOR", "1").env("WEFT_LAB_HOME", dir.join("labs"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that fails early does not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn ok(dir: &TempDir, args: &[&str], input: &str) -> String {
    let said = meshctl(dir, args, input);
    assert_eq!(said.code, Some(0), "{args:?}: {}{}", said.out, said.err);
    said.out
}

fn fails(dir: &TempDir, args: &[&str], input: &str) -> String {
    let said = meshctl(dir, args, input);
    assert_eq!(said.code, Some(1), "{args:?}: {}{}", said.out, said.err);
    assert!(said.err.contains("\n  try: "), "{args:?} does not say what to do: {}", said.err);
    said.err
}

fn folder() -> TempDir {
    let dir = TempDir::new();
    std::fs::create_dir(dir.join("mesh")).unwrap();
    dir.write("mesh/a.yaml", SERVICE);
    dir
}

fn listing(dir: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("mesh")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn apply_get_delete() {
    let dir = folder();
    let at = ["--dir", "mesh"];
    let with = |args: &[&'static str]| [args, &at].concat();
    // From a pipe, into a namespace; and once more, which changes nothing.
    let said = ok(&dir, &with(&["apply", "-f", "-", "-n", "demo"]), &split("web", "1"));
    assert_eq!(said, "trafficsplit/web.demo created (mesh/trafficsplit-web.yaml)\n");
    let text = std::fs::read_to_string(dir.join("mesh/trafficsplit-web.yaml")).unwrap();
    assert_eq!(text, split("web", "1").replace("name: web}", "name: web, namespace: demo}"));
    let said = ok(&dir, &with(&["apply", "-f", "-", "-n", "demo"]), &split("web", "1"));
    assert_eq!(said, "trafficsplit/web.demo unchanged (mesh/trafficsplit-web.yaml)\n");
    // As JSON, which is YAML: the values change, the hand stays.
    let json = "{\"apiVersion\": \"split.smi-spec.io/v1alpha2\", \"kind\": \"TrafficSplit\", \"metadata\": {\"name\": \"web\", \
                \"namespace\": \"demo\"}, \"spec\": {\"service\": \"web\", \"backends\": [{\"service\": \"web\", \"weight\": 7}]}}";
    ok(&dir, &with(&["apply", "-f", "-"]), json);
    let now = std::fs::read_to_string(dir.join("mesh/trafficsplit-web.yaml")).unwrap();
    assert_eq!(now, text.replace("weight: 1", "weight: 7"));
    assert_eq!(listing(&dir), ["a.yaml", "trafficsplit-web.yaml"]);

    assert!(ok(&dir, &with(&["get", "svc"]), "").contains("mesh/a.yaml:1"));
    assert_eq!(ok(&dir, &with(&["get", "trafficsplits", "web", "-o", "yaml"]), ""), now);
    let one: Value = serde_json::from_str(&ok(&dir, &with(&["get", "ts/web", "-o", "json"]), "")).unwrap();
    assert_eq!(one["spec"]["backends"][0]["weight"], 7);
    let all: Value = serde_json::from_str(&ok(&dir, &with(&["get", "all", "-o", "json"]), "")).unwrap();
    assert_eq!((all["kind"].as_str(), all["items"].as_array().map(Vec::len)), (Some("List"), Some(2)));
    assert_eq!(ok(&dir, &with(&["get", "vs"]), ""), "");
    assert!(ok(&dir, &with(&["get", "svc", "-n", "other"]), "").is_empty());
    // What was printed can be applied again.
    let printed = ok(&dir, &with(&["get", "all", "-o", "yaml"]), "");
    let again = ok(&dir, &with(&["apply", "-f", "-"]), &printed);
    assert_eq!(again.matches("unchanged").count(), 2, "{again}");

    let shown = ok(&dir, &with(&["delete", "ts", "web", "--dry-run"]), "");
    assert!(shown.contains("+++ /dev/null") && shown.contains("-kind: TrafficSplit"), "{shown}");
    assert_eq!(listing(&dir).len(), 2);
    ok(&dir, &with(&["delete", "-f", "-", "-n", "demo"]), &split("web", "1"));
    assert_eq!(listing(&dir), ["a.yaml"]);
    ok(&dir, &with(&["delete", "ts", "web", "--ignore-not-found"]), "");
}

#[test]
fn what_is_refused_and_how() {
    let dir = folder();
    let wrong = dir.write("wrong.yaml", split("web", "many"));
    let wrong = wrong.to_str().unwrap();
    let with = |args: &[&'static str]| [args, &["--dir", "mesh"]].concat();
    let apply = ["apply", "-f", wrong, "-n", "demo", "--dir", "mesh"];
    let said = fails(&dir, &apply, "");
    assert!(said.contains("spec.backends[0].weight: \"many\" is not a weight") && said.contains("--force"), "{said}");
    assert_eq!(listing(&dir), ["a.yaml"]);
    let forced = meshctl(&dir, &[&apply[..], &["--force"]].concat(), "");
    assert_eq!(forced.code, Some(0), "{}", forced.err);
    assert!(forced.err.contains("warning: ") && forced.err.contains("is not a weight"), "{}", forced.err);
    // An error that was there before is nobody's fault.
    let more =
        ok(&dir, &with(&["apply", "-f", "-", "-n", "demo"]), "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n");
    assert!(more.contains("secret/s.demo created"), "{more}");

    for (args, input, told) in [
        (&["get", "servcies"][..], "", "did you mean services?"),
        (&["get", "svc", "wbe"], "", "web (-n demo)"),
        (&["delete", "svc", "wbe"], "", "meshctl get svc"),
        (&["delete", "svc/web", "vs"], "", "KIND/NAME"),
        (&["apply", "-f", "gone.yaml"], "", "gone.yaml"),
        (&["apply", "-f", "-"], "a: [", "standard input: line 2"),
        (&["apply", "-f", "-"], "a: 1\n", "apiVersion and kind"),
        (&["apply", "-f", "-"], "", "holds no objects"),
        (&["apply", "-f", "-", "-n", "shop"], SERVICE, "-n demo, or none"),
        (&["apply", "-f", "-"], &format!("{SERVICE}---\n{SERVICE}"), "given twice"),
        (&["route", "show", "wbe"], "", "did you mean web?"),
        (&["route", "split", "web", "web=1", "web=2"], "", "named twice"),
        (&["route", "split", "web", "web=0"], "", "weight above 0"),
        (&["route", "split", "web", "other=1"], "", "there is no Service other"),
        (&["route", "set", "web", "--retry-on", "5xx"], "", "--retries 2"),
        (&["route", "set", "web", "--timeout", "1s", "--port", "81"], "", "one of 80"),
        (&["route", "set", "web", "--timeout", "1s", "--route", "main"], "", "no --route"),
        (&["route", "delete", "web"], "", "no object routes web"),
    ] {
        let dir = folder();
        let said = fails(&dir, &[args, &["--dir", "mesh"]].concat(), input);
        assert!(said.contains(told), "{args:?}: {said}");
        assert_eq!(listing(&dir), ["a.yaml"], "{args:?}");
    }
    let said = fails(&dir, &["get", "svc", "--dir", "nowhere"], "");
    assert!(said.contains("nowhere cannot be read"), "{said}");
    let said = fails(&dir, &["route", "list"], "");
    assert!(said.contains("no lab is running") && said.contains("--dir DIR"), "{said}");
    assert_eq!(meshctl(&dir, &["route", "set", "web"], "").code, Some(2));
}
