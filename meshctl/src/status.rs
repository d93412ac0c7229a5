//! `meshctl status`: whether every sidecar has what it should, and what is wrong with the manifests.

use crate::error::Result;
use crate::place::Place;
use crate::running::{self, Running};
use crate::runtime::wait;
use crate::terminal::{Tone, coloured, paint, table};
use clap::{Args, ValueEnum};
use serde_json::{Value as Json, json};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// Says whether every sidecar of a running lab or a cluster has what it should, and what is wrong with files and objects.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl status\n  \
    meshctl status --context staging         of a cluster: what each replica of the control plane knows\n  \
    meshctl status -o wide                   also identities and what each one holds\n  \
    meshctl status -o json | jq '.proxies[] | select(.inSync | not)'\n\n\
    Exit codes: 0 all is well, 1 something is refused or wrong, 2 wrong use.")]
pub struct Status {
    #[command(flatten)]
    place: Place,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Table,
    Wide,
    Json,
}

impl Status {
    pub fn run(self) -> Result<ExitCode> {
        let running = self.place.running()?;
        let all = wait(ask(&running))?;
        match self.output {
            Output::Json => println!("{all:#}"),
            output => print!("{}", text(&all, output == Output::Wide, coloured(), now())),
        }
        Ok(if is_well(&all) { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn rows(value: &Json) -> &[Json] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word<'j>(value: &'j Json, field: &str) -> &'j str {
    value[field].as_str().unwrap_or_default()
}

/// The control plane's pages, and from each sidecar when its certificate ends.
async fn ask(running: &Running) -> Result<Json> {
    let controls = running.controls().await?;
    let (mut status, mut errors) = (Vec::new(), Vec::new());
    for control in &controls {
        status.push(control.json("/status").await?);
        errors.push(control.json("/errors").await?);
    }
    let mut proxies = running::proxies(&status);
    let pods = running.pods(None).await?;
    for proxy in &mut proxies {
        let Some(pod) = pods.iter().find(|p| p["name"] == proxy["pod"] && p["namespace"] == proxy["namespace"]) else {
            continue;
        };
        // One that does not answer has no certificate to show; that it is away is told beside.
        let Ok(door) = running.sidecar(pod) else { continue };
        if let Ok(certs) = door.json("/certs").await {
            let leaf = &certs["certificates"][0]["cert_chain"][0];
            proxy["certificate"] = json!({"from": leaf["valid_from"], "until": leaf["expiration_time"]});
        }
    }
    // Pods that should have a sidecar the control plane has never heard of.
    let heard = |pod: &Json| proxies.iter().any(|p| p["pod"] == pod["name"] && p["namespace"] == pod["namespace"]);
    let silent = pods.iter().filter(|p| p["sidecar"] == true && !heard(p));
    let silent: Vec<Json> = silent.map(|p| json!({"pod": p["name"], "namespace": p["namespace"]})).collect();
    let mut out = json!({
        "replicas": controls.len(), "proxies": proxies, "silent": silent, "files": each(&errors, "files"),
        "objects": each(&errors, "objects"), "withheld": each(&errors, "withheld"),
    });
    match running {
        Running::Lab(lab) => (out["lab"], out["manifests"]) = (json!(lab.id), json!(lab.manifests)),
        Running::Cluster(cluster) => out["cluster"] = json!(cluster.context),
    }
    Ok(out)
}

/// What replicas say, once: they read the same.
fn each(answers: &[Json], list: &str) -> Json {
    let mut out: Vec<Json> = Vec::new();
    for said in answers.iter().flat_map(|answer| rows(&answer[list])) {
        if !out.contains(said) {
            out.push(said.clone());
        }
    }
    out.into()
}

/// Warnings are no errors, and neither is a sidecar that is about to take what it was sent.
fn is_well(all: &Json) -> bool {
    let refused = rows(&all["proxies"]).iter().any(|p| !rows(&p["refused"]).is_empty());
    let wrong = |list: &str| rows(&all[list]).iter().any(|e| e["severity"] == "error");
    !refused && !wrong("files") && !wrong("objects") && rows(&all["withheld"]).is_empty()
}

fn state(proxy: &Json) -> (String, Tone) {
    let (refused, pending) = (rows(&proxy["refused"]).len(), rows(&proxy["pending"]).len());
    match (refused, proxy["connected"] == true, proxy["known"] == true, pending) {
        (1.., ..) => (format!("{refused} refused"), Tone::Bad),
        (_, false, ..) => ("away".into(), Tone::Bad),
        (_, _, false, _) => ("in no manifest yet".into(), Tone::Bold),
        (.., 1..) => (format!("{pending} pending"), Tone::Bold),
        _ => ("in sync".into(), Tone::Good),
    }
}

fn text(all: &Json, wide: bool, coloured: bool, now: u64) -> String {
    let mut body = Vec::new();
    for proxy in rows(&all["proxies"]) {
        let (state, tone) = state(proxy);
        let since = proxy["since"].as_u64().map_or(String::new(), |since| ago(now.saturating_sub(since)));
        let until = word(&proxy["certificate"], "until").split('.').next().unwrap_or_default().trim_end_matches('Z');
        let mut row = vec![
            (word(proxy, "namespace").to_string(), Tone::Plain),
            (word(proxy, "pod").to_string(), Tone::Plain),
            (state, tone),
            (proxy["resources"].as_object().map_or(0, |all| all.len()).to_string(), Tone::Plain),
            (since, Tone::Plain),
            (if until.is_empty() { "unknown".into() } else { until.replace('T', " ") }, Tone::Plain),
            (word(proxy, "version").trim_start_matches("weft-proxy/").to_string(), Tone::Plain),
        ];
        if wide {
            row.push((word(proxy, "address").to_string(), Tone::Plain));
            row.push((word(proxy, "identity").to_string(), Tone::Plain));
        }
        body.push(row);
    }
    for pod in rows(&all["silent"]) {
        let (namespace, name) = (word(pod, "namespace").to_string(), word(pod, "pod").to_string());
        body.push(vec![(namespace, Tone::Plain), (name, Tone::Plain), ("not heard of yet".into(), Tone::Bold)]);
    }
    let mut heading = vec!["NAMESPACE", "POD", "CONFIGURATION", "RESOURCES", "SINCE", "CERTIFICATE UNTIL", "VERSION"];
    if wide {
        heading.extend(["ADDRESS", "IDENTITY"]);
    }
    let mut out = table(&heading, &body, coloured);
    for proxy in rows(&all["proxies"]) {
        for refused in rows(&proxy["refused"]) {
            let why = paint(word(refused, "why"), Tone::Bad, coloured);
            let (pod, name) = (word(proxy, "pod"), word(refused, "name"));
            out.push_str(&format!("{pod} refuses {name}, and keeps what it had: {why}\n"));
        }
    }
    for withheld in rows(&all["withheld"]) {
        let why = paint(word(withheld, "why"), Tone::Bad, coloured);
        out.push_str(&format!("{} is not sent, since no sidecar would take it: {why}\n", word(withheld, "name")));
    }
    let mut warnings = 0;
    for found in rows(&all["files"]).iter().chain(rows(&all["objects"])) {
        if found["severity"] != "error" {
            warnings += 1;
            continue;
        }
        let what = [word(found, "object"), word(found, "field"), word(found, "message")];
        let what: Vec<&str> = what.into_iter().filter(|w| !w.is_empty()).collect();
        let at = if word(found, "at").is_empty() { String::new() } else { format!("{}: ", word(found, "at")) };
        out.push_str(&format!("{at}{}: {}\n", paint("error", Tone::Bad, coloured), what.join(": ")));
        if let Some(hint) = found["hint"].as_str() {
            out.push_str(&format!("    {}\n", paint(hint, Tone::Faint, coloured)));
        }
    }
    if warnings > 0 {
        let (noun, dir) =
            (if warnings == 1 { "warning" } else { "warnings" }, all["manifests"].as_str().unwrap_or("-A"));
        out.push_str(&format!("{warnings} {noun}: meshctl analyze {dir}\n"));
    }
    out
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(pod: &str, more: Json) -> Json {
        let mut out = json!({
            "pod": pod, "namespace": "shop", "identity": "spiffe://cluster.local/ns/shop/sa/web", "version": "weft-proxy/0.1.0",
            "address": "10.0.0.1:9", "connected": true, "since": 940, "known": true, "inSync": true, "refused": [],
            "pending": [], "resources": {"proxy": "1", "trust": "2"},
        });
        out.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        out
    }

    #[test]
    fn what_is_well_and_what_is_not() {
        let certificate = json!({"certificate": {"until": "2026-11-22T10:00:00.000Z"}});
        let mut all = json!({
            "proxies": [proxy("web-1", certificate), proxy("web-2", json!({"connected": false})),
                        proxy("web-3", json!({"pending": ["trust"]}))],
            "silent": [{"namespace": "shop", "pod": "new-1"}], "files": [], "withheld": [], "manifests": "demo",
            "objects": [{"severity": "warning", "message": "odd"}],
        });
        assert!(is_well(&all));
        let page = text(&all, false, false, 1000);
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[1], "shop        web-1   in sync            2           60s     2026-11-22 10:00:00   0.1.0");
        assert!(
            lines[2].contains("web-2   away") && lines[3].contains("1 pending") && lines[4].contains("not heard of")
        );
        assert_eq!(lines[5], "1 warning: meshctl analyze demo");
        all["proxies"][1]["refused"] = json!([{"name": "service/shop/web", "version": "1", "why": "routes[0]: no"}]);
        assert!(!is_well(&all));
        let page = text(&all, true, false, 1000);
        assert!(page.contains("web-2 refuses service/shop/web, and keeps what it had: routes[0]: no"), "{page}");
        assert!(page.contains("spiffe://cluster.local/ns/shop/sa/web"), "{page}");
        all["proxies"] = json!([]);
        all["files"] = json!([{"severity": "error", "at": "a.yaml:3", "message": "no YAML", "hint": "two spaces"}]);
        assert!(!is_well(&all));
        assert!(text(&all, false, false, 1000).contains("a.yaml:3: error: no YAML\n    two spaces\n"));
    }
}
