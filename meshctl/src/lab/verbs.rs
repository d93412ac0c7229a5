//! `ps`, `logs`, `exec`, `scale`, `restart`, `forward`, `clean`: what is done with a lab that runs, from another terminal.

use super::isolation::Isolation;
use super::net::{Netns, SIDECAR};
use super::process::Inside;
use super::record::Lab;
use super::unit::Unit;
use super::{clean, table};
use crate::error::{During, Error, Result};
use serde_json::{Map, Value, json};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

pub fn ps(lab: Option<&str>, json: bool) -> Result<()> {
    let status = Lab::find(lab)?.status()?;
    if json {
        println!("{status:#}");
    } else {
        print!("{}", table::pods(&status, crate::terminal::coloured()));
    }
    Ok(())
}

/// Before a name, as kubectl has them: deploy/web, pod/web-1.
pub const KINDS: &[&str] = &["deploy", "deployment", "pod", "po", "sts", "statefulset", "ds", "daemonset", "job"];

/// A pod by its name, or all of a workload by the workload's, with `NAMESPACE/` before it where that is needed.
pub fn pods<'s>(status: &'s Value, wanted: &str, place: &str) -> Result<Vec<&'s Value>> {
    let all: Vec<&Value> = status["pods"].as_array().into_iter().flatten().collect();
    let (namespace, name) = match wanted.split_once('/') {
        Some((kind, name)) if KINDS.contains(&kind) => (None, name),
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, wanted),
    };
    let here = |p: &&&Value| namespace.is_none_or(|n| p["namespace"] == n);
    let mut found: Vec<&Value> = all.iter().filter(here).filter(|p| p["name"] == name).copied().collect();
    if found.is_empty() {
        found = all.iter().filter(here).filter(|p| p["workload"] == name).copied().collect();
    }
    if found.is_empty() {
        let mut names: Vec<&str> = all.iter().filter_map(|p| p["workload"].as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let hint = if names.is_empty() { "-n NAMESPACE".into() } else { format!("one of {}", names.join(", ")) };
        return Err(Error::new(format!("no pod or workload {wanted:?} in {place}"), hint));
    }
    Ok(found)
}

fn word<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

fn key(pod: &Value) -> String {
    format!("{}.{}", word(pod, "namespace"), word(pod, "name"))
}

pub fn logs(lab: Option<&str>, wanted: &str, container: Option<&str>, follow: bool) -> Result<()> {
    let lab = Lab::find(lab)?;
    let status = lab.status()?;
    let mut files: Vec<(String, PathBuf, u64)> = Vec::new();
    if wanted == "control" && status["mesh"] == true {
        files.push(("control".into(), lab.logs().join("control.log"), 0));
    } else {
        for pod in pods(&status, wanted, "this lab")? {
            let names = pod["containers"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let chosen: Vec<&str> = match container {
                Some(name) => vec![name],
                None => names.collect(),
            };
            for name in chosen {
                let file = Unit::log_of(&lab.logs(), &key(pod), name);
                if container.is_some() && !file.exists() {
                    let hint = "the name of a container, or `sidecar`";
                    return Err(Error::new(format!("{} has no log of {name:?}", word(pod, "name")), hint));
                }
                files.push((format!("{} {name}", word(pod, "name")), file, 0));
            }
        }
    }
    let prefixed = files.len() > 1;
    let mut out = std::io::stdout().lock();
    loop {
        for (name, file, at) in &mut files {
            let Ok(mut log) = std::fs::File::open(&file) else { continue };
            let length = log.metadata().map(|m| m.len()).unwrap_or(0);
            // It was cut.
            if length < *at {
                *at = 0;
            }
            let mut bytes = Vec::new();
            log.seek(SeekFrom::Start(*at))
                .and_then(|_| log.take(length - *at).read_to_end(&mut bytes))
                .during("the log")?;
            // Whole lines; the rest when it is one.
            let whole = if follow { bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1) } else { bytes.len() };
            *at += whole as u64;
            for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
                let wrote = if prefixed { writeln!(out, "[{name}] {line}") } else { writeln!(out, "{line}") };
                // A reader that went away has seen enough.
                if wrote.is_err() {
                    return Ok(());
                }
            }
        }
        if !follow || !lab.runs.runs() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The inside of a pod as `ps.json` has it.
pub fn inside(lab: &Lab, pod: &Value) -> Inside {
    let address = word(pod, "address").parse().unwrap_or(Ipv4Addr::LOCALHOST);
    Inside::of(lab, Netns::named(word(pod, "netns")), &key(pod), word(pod, "name"), address)
}

pub fn exec(lab: Option<&str>, wanted: &str, container: Option<&str>, command: &[String]) -> Result<ExitCode> {
    let lab = Lab::find(lab)?;
    let status = lab.status()?;
    let found = pods(&status, wanted, "this lab")?;
    let pod = found.iter().find(|p| p["ready"] == true).or(found.first()).copied().unwrap_or(&Value::Null);
    let mut inside = inside(&lab, pod);
    // In the sidecar's place, traffic is not redirected.
    let as_sidecar = container == Some("sidecar");
    if as_sidecar && lab.isolation == Isolation::Userns {
        let message = "in a user namespace sidecars have no group of their own that a command could have";
        return Err(Error::new(message, "without -c sidecar; or the lab as root"));
    }
    if as_sidecar {
        // It asks nobody where things are.
        inside.proxy = None;
    }
    let words = inside.wrap(as_sidecar.then_some(SIDECAR), command);
    let mut command = Command::new(&words[0]);
    let status = command.args(&words[1..]).envs(inside.environment()).status().during(&words[0])?;
    Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)))
}

/// Writes down what is asked for; the lab sees it within a moment and does it.
fn wish(lab: Option<&str>, wanted: &str, change: impl Fn(&mut Map<String, Value>)) -> Result<()> {
    let lab = Lab::find(lab)?;
    let status = lab.status()?;
    let mut wishes = match lab.wishes() {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let mut names: Vec<String> =
        workloads(&status, wanted)?.iter().map(|w| format!("{}/{}", word(w, "namespace"), word(w, "name"))).collect();
    names.dedup();
    for name in &names {
        let entry = wishes.entry(name.clone()).or_insert_with(|| json!({}));
        if let Value::Object(entry) = entry {
            change(entry);
        }
        println!("{name}: asked for");
    }
    lab.wish(&Value::Object(wishes))
}

/// Workloads are known even when none of their pods runs.
fn workloads(status: &Value, wanted: &str) -> Result<Vec<Value>> {
    let all: Vec<&Value> = status["workloads"].as_array().into_iter().flatten().collect();
    let name = wanted.rsplit('/').next().unwrap_or(wanted);
    let namespace = wanted.split_once('/').map(|(n, _)| n).filter(|n| all.iter().any(|w| w["namespace"] == *n));
    let found = all.iter().filter(|w| w["name"] == name && namespace.is_none_or(|n| w["namespace"] == n));
    let found: Vec<Value> = found.map(|w| (*w).clone()).collect();
    if found.is_empty() {
        let names: Vec<&str> = all.iter().map(|w| word(w, "name")).collect();
        return Err(Error::new(format!("no workload {wanted:?} in this lab"), format!("one of {}", names.join(", "))));
    }
    Ok(found)
}

pub fn scale(lab: Option<&str>, wanted: &str, replicas: u32) -> Result<()> {
    wish(lab, wanted, |entry| {
        entry.insert("replicas".into(), replicas.into());
    })
}

pub fn restart(lab: Option<&str>, wanted: &str) -> Result<()> {
    wish(lab, wanted, |entry| {
        let times = entry.get("restarted").and_then(Value::as_u64).unwrap_or(0) + 1;
        entry.insert("restarted".into(), times.into());
    })
}

/// The `NAME.NS:PORT` that is meant by `NAME`, `NAME.NS`, with `:PORT`.
pub fn service(status: &Value, wanted: &str) -> Result<String> {
    let all: Vec<&str> = status["services"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let fits = |full: &&&str| {
        let rest = full.strip_prefix(wanted);
        // `web` is neither `web2.shop:80` nor, with a port, `web:8` of `web:80`.
        rest.is_some_and(|r| r.is_empty() || r.starts_with(['.', ':']))
            || full.split_once('.').is_some_and(|(name, more)| {
                wanted.split_once(':').is_some_and(|(n, port)| n == name && more.rsplit(':').next() == Some(port))
            })
    };
    match all.iter().filter(fits).collect::<Vec<_>>()[..] {
        [one] => Ok((*one).to_string()),
        [] => Err(Error::new(format!("no Service {wanted:?} in this lab"), format!("one of {}", all.join(", ")))),
        ref several => {
            let names: Vec<&str> = several.iter().map(|s| **s).collect();
            Err(Error::new(format!("{wanted:?} may be several"), format!("one of {}", names.join(", "))))
        }
    }
}

/// Opens a way into a Service that has none by itself, for as long as the lab runs.
pub fn forward(lab: Option<&str>, wanted: &str) -> Result<()> {
    let lab = Lab::find(lab)?;
    let service = service(&lab.status()?, wanted)?;
    let mut wishes = lab.wishes();
    if !wishes.is_object() {
        wishes = json!({});
    }
    match wishes["forward"].as_array_mut() {
        Some(asked) => asked.push(service.clone().into()),
        None => wishes["forward"] = json!([service]),
    }
    lab.wish(&wishes)?;
    for _ in 0..100 {
        let status = lab.status()?;
        let mut urls = status["urls"].as_array().into_iter().flatten();
        let same = |u: &&Value| format!("{}.{}:{}", word(u, "service"), word(u, "namespace"), u["port"]) == service;
        if let Some(url) = urls.find(same) {
            println!("{service} is at {}", word(url, "url"));
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(Error::new(format!("the lab does not open {service}"), "meshctl lab ps"))
}

pub async fn clean() -> Result<()> {
    let cleaned = clean::dead().await;
    let mut running: Vec<String> = Vec::new();
    for lab in Lab::all() {
        if lab.runs.runs() {
            running.push(format!("lab {} ({}) runs and is left alone", lab.id, lab.manifests));
        } else {
            return Err(Error::new(
                format!("something of lab {} is left", lab.id),
                "run this as the user who ran the lab",
            ));
        }
    }
    match cleaned.len() {
        0 => println!("nothing to clean"),
        n => println!("removed {n} lab{}: {}", if n == 1 { "" } else { "s" }, cleaned.join(", ")),
    }
    running.into_iter().for_each(|line| println!("{line}"));
    Ok(())
}
