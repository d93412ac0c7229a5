//! `meshctl version`: of this program, and of the control plane and the sidecars of a running lab.

use crate::error::{During, Result};
use crate::lab::ask::Door;
use crate::place::Place;
use clap::{Args, ValueEnum};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

const OWN: &str = env!("CARGO_PKG_VERSION");

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl version                 also of the lab that runs, if one does\n  \
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
        // Nobody has to run a lab to ask for a version; who names one means it.
        let lab = match self.place.lab() {
            Ok(lab) => Some(lab),
            Err(error) if self.place.is_given() => return Err(error),
            Err(_) => None,
        };
        let mut out = json!({"meshctl": OWN});
        if let Some(lab) = lab {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().during("the runtime")?;
            let status = runtime.block_on(Door::control(&lab).json("/status"))?;
            let mut proxies: BTreeMap<String, u64> = BTreeMap::new();
            for proxy in status["proxies"].as_array().into_iter().flatten() {
                *proxies.entry(proxy["version"].as_str().unwrap_or_default().into()).or_default() += 1;
            }
            out["lab"] = json!(lab.id);
            out["control"] = status["version"].clone();
            out["proxies"] = json!(proxies);
        }
        match self.output {
            Output::Json => println!("{out:#}"),
            Output::Text => print!("{}", text(&out)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn text(out: &Json) -> String {
    let mut lines = vec![format!("meshctl        {OWN}")];
    if let Some(lab) = out["lab"].as_str() {
        lines.push(format!("control plane  {} (lab {lab})", out["control"].as_str().unwrap_or("unknown")));
        for (version, count) in out["proxies"].as_object().into_iter().flatten() {
            let version = version.trim_start_matches("weft-proxy/");
            lines.push(format!("sidecars       {version} ({count})"));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}
