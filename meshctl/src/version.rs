//! `meshctl version`: of this program, and of the control plane and the sidecars of a running lab or a cluster.

use crate::error::Result;
use crate::place::Place;
use crate::running::{self, Running};
use crate::runtime::wait;
use clap::{Args, ValueEnum};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// A version is not worth more.
const PATIENCE: Duration = Duration::from_secs(5);
const OWN: &str = env!("CARGO_PKG_VERSION");

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl version                 also of the lab that runs, or the cluster\n  \
    meshctl version -o json")]
pub struct Version {
    #[command(flatten)]
    place: Place,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

impl Version {
    pub fn run(self) -> Result<ExitCode> {
        let mut out = json!({"meshctl": OWN});
        // Nobody has to run a mesh to ask for a version; who names one means it.
        match self.place.running().and_then(|running| ask(&running, &mut out)) {
            Err(error) if self.place.is_given() => return Err(error),
            Err(error) if self.place.is_cluster() => eprintln!("{error}"),
            _ => {}
        }
        match self.output {
            Output::Json => println!("{out:#}"),
            Output::Text => print!("{}", text(&out)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn ask(running: &Running, out: &mut Json) -> Result<()> {
    let answers = wait(async {
        let asked = tokio::time::timeout(PATIENCE, running.ask_controls("/status"));
        asked.await.unwrap_or_else(|_| Err(format!("{} does not answer", running.name()).into()))
    })?;
    let mut control: Vec<&str> = answers.iter().filter_map(|status| status["version"].as_str()).collect();
    control.sort_unstable();
    control.dedup();
    let mut proxies: BTreeMap<String, u64> = BTreeMap::new();
    for proxy in running::proxies(&answers) {
        *proxies.entry(proxy["version"].as_str().unwrap_or_default().into()).or_default() += 1;
    }
    let place = match running {
        Running::Lab(lab) => ("lab", lab.id.clone()),
        Running::Cluster(cluster) => ("cluster", cluster.context.clone()),
    };
    out[place.0] = place.1.into();
    out["control"] = control.join(", ").into();
    out["proxies"] = json!(proxies);
    Ok(())
}

fn text(out: &Json) -> String {
    let mut lines = vec![format!("meshctl        {OWN}")];
    let place = ["lab", "cluster"].into_iter().find_map(|kind| Some(format!("{kind} {}", out[kind].as_str()?)));
    if let Some(place) = place {
        lines.push(format!("control plane  {} ({place})", out["control"].as_str().unwrap_or("unknown")));
        for (version, count) in out["proxies"].as_object().into_iter().flatten() {
            let version = version.trim_start_matches("weft-proxy/");
            lines.push(format!("sidecars       {version} ({count})"));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}
