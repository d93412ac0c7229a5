//! `meshctl ca`: the root that signs everybody's certificate, and its rotation in three steps, none of which loses a request.
//!
//! A step is one write, in a cluster of Secret `weft-ca`, in a lab of its state folder: whoever is interrupted goes on later.

use crate::cluster::SYSTEM;
use crate::error::{Error, Result};
use crate::place::Place;
use crate::running::Running;
use crate::runtime::wait;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use weft_control::identity::ca::{CaError, Stage};
use weft_control::identity::rotate::Progress;
use weft_control::identity::{replicas, rotate};
use weft_control::state::StateDir;

/// The root of trust of a running lab or a cluster: which it is, and its rotation
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl ca status              which root signs, and what the next step would wait for\n  \
    meshctl ca rotate              one step; three of them replace the root\n  \
    meshctl ca rotate --wait       all that are left, each as soon as nobody is left behind\n\n\
    Exit codes: 0 done, 1 the step is too early or failed (the message says why), 2 wrong use.")]
pub struct Ca {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Say which roots are trusted, which one signs, and what the next step of a rotation waits for
    Status(Status),
    /// Take the next step of a rotation: a second root is trusted; it signs; the first one goes
    Rotate(Rotate),
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl ca status\n  \
    meshctl ca status --wait && meshctl ca rotate\n  \
    meshctl ca status -o json | jq -r .waitsFor")]
struct Status {
    /// Until the next step can be taken
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl ca rotate\n  \
    meshctl ca rotate --wait --timeout 30m --context staging\n  \
    meshctl ca rotate --force      the root's key is known to others: does not wait for sidecars that are not reached\n\n\
    1. A second root is made and trusted beside the first, and every sidecar is told.\n\
    2. The second one signs, when every sidecar trusts it.\n\
    3. The first one goes, when every sidecar has a certificate of the second: they are renewed at half of their time, 12 h.\n\
    Ctrl-C between two steps loses nothing: the same command goes on.")]
struct Rotate {
    /// Take all steps that are left, and wait before each until it can be taken
    #[arg(long)]
    wait: bool,
    /// Take the step though somebody would be left behind, whom nobody then believes, or who believes nobody
    #[arg(long, conflicts_with = "wait")]
    force: bool,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
struct How {
    /// Wait no longer than this; without it, as long as it takes
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "wait")]
    timeout: Option<Duration>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

fn duration(text: &str) -> std::result::Result<Duration, String> {
    weft_policy::doc::parse_duration(text).ok_or_else(|| "a duration such as 90s, 30m or 13h".into())
}

const LOOK: Duration = Duration::from_secs(1);

impl Ca {
    pub fn run(self) -> Result<ExitCode> {
        let (how, steps) = match &self.what {
            What::Status(status) => (&status.how, Vec::new()),
            What::Rotate(rotate) => (&rotate.how, rotate.run()?),
        };
        let running = how.place.running()?;
        let progress = match &self.what {
            What::Status(Status { wait: true, .. }) => until_ready(&running, how)?,
            _ => progress(&running)?,
        };
        match how.output {
            Output::Text => print!("{}", text(&progress)),
            Output::Json => println!("{:#}", document(&progress, &steps)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Rotate {
    /// What was done.
    fn run(&self) -> Result<Vec<String>> {
        let running = self.how.place.running()?;
        let mut steps = Vec::new();
        loop {
            let last = match self.wait {
                true => until_ready(&running, &self.how)?.stage == Stage::Switched,
                false => true,
            };
            let done = step(&running, self.force)?;
            if self.how.output == Output::Text {
                println!("{done}");
            }
            steps.push(done);
            if last {
                return Ok(steps);
            }
        }
    }
}

/// Says each new reason to wait once.
fn until_ready(running: &Running, how: &How) -> Result<Progress> {
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        let now = progress(running)?;
        let Some(why) = now.waits.as_deref().map(reason) else { return Ok(now) };
        if how.timeout.is_some_and(|most| begun.elapsed() >= most) {
            return Err(Error::new(
                format!("still too early: {why}"),
                "the same command again, or --force in place of --wait",
            ));
        }
        if told != why {
            eprintln!("waiting until {}: {why}", now.stage.next());
            told = why;
        }
        std::thread::sleep(LOOK);
    }
}

/// Without advice, which is about commands of another program, and without seconds, which are others each time.
fn reason(why: &str) -> String {
    let why = why.split("; ").next().unwrap_or(why);
    match (why.find(", for up to "), why.find(" s, by ")) {
        (Some(start), Some(end)) if start < end => format!("{}{}", &why[..start], &why[end + 3..]),
        _ => why.to_string(),
    }
}

fn progress(running: &Running) -> Result<Progress> {
    match running {
        Running::Cluster(cluster) => {
            wait(async { replicas::progress(cluster.client(), SYSTEM).await.map_err(|e| failed(running, &e)) })
        }
        Running::Lab(_) => rotate::progress(&folder(running)?, SystemTime::now()).map_err(|e| failed(running, &e)),
    }
}

fn step(running: &Running, force: bool) -> Result<String> {
    let now = SystemTime::now();
    match running {
        Running::Cluster(cluster) => {
            wait(async { replicas::step(cluster.client(), SYSTEM, force, now).await.map_err(|e| failed(running, &e)) })
        }
        Running::Lab(_) => rotate::step(&folder(running)?, force, now).map_err(|e| failed(running, &e)),
    }
}

fn folder(running: &Running) -> Result<StateDir> {
    let Running::Lab(lab) = running else { return Err(Error::from("a cluster has no state folder".to_string())) };
    StateDir::open(&lab.control_state()).map_err(|e| failed(running, &e.into()))
}

fn failed(running: &Running, error: &CaError) -> Error {
    let hint = match error {
        CaError::TooEarly(_) => "meshctl ca rotate --wait",
        CaError::Secret(_) | CaError::None => "meshctl check",
        CaError::Kube(_) => {
            "as somebody who may get and update Secret weft-ca in weft-system, and get ConfigMaps and Pods"
        }
        _ => "",
    };
    let why = match error {
        CaError::TooEarly(why) => reason(why),
        other => other.to_string(),
    };
    Error::new(format!("{}: {why}", running.name()), hint)
}

fn text(now: &Progress) -> String {
    let mut out = String::new();
    for root in &now.roots {
        let signs = if *root == now.signing { "is trusted, and signs" } else { "is trusted" };
        out += &format!("root {root} {signs}\n");
    }
    match (&now.waits, now.stage) {
        (None, Stage::Single) => out += "no rotation is under way\n",
        (None, stage) => out += &format!("next: {}; try: meshctl ca rotate\n", stage.next()),
        (Some(why), stage) => out += &format!("next: {}, which is too early: {}\n", stage.next(), reason(why)),
    }
    out
}

fn document(now: &Progress, steps: &[String]) -> Value {
    let roots: Vec<Value> = now.roots.iter().map(|id| json!({"id": id, "signs": *id == now.signing})).collect();
    json!({
        "stage": now.stage.word(), "since": now.since, "roots": roots, "next": now.stage.next(),
        "waitsFor": now.waits.as_deref().map(reason), "steps": steps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_it_looks() {
        let waits = "certificates of root a are still in use, for up to 42 s, by web-1, web-2; wait until they are renewed, or use --force";
        let (roots, waits) = (vec!["a".into(), "b".into()], Some(waits.to_string()));
        let mut now = Progress { stage: Stage::Switched, since: 7, roots, signing: "b".into(), waits };
        let expected = "root a is trusted\nroot b is trusted, and signs\nnext: the first root goes, which is too early: \
                        certificates of root a are still in use by web-1, web-2\n";
        assert_eq!(text(&now), expected);
        now.waits = None;
        assert!(text(&now).ends_with("next: the first root goes; try: meshctl ca rotate\n"));
        let document = document(&now, &[]);
        assert_eq!((&document["stage"], &document["roots"][1]["signs"]), (&"switched".into(), &true.into()));
        assert_eq!(document["waitsFor"], Value::Null);
        let single = Progress { stage: Stage::Single, roots: vec!["b".into()], ..now };
        assert_eq!(text(&single), "root b is trusted, and signs\nno rotation is under way\n");
    }
}
