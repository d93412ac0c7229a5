//! `meshctl check`: whether a cluster can have the mesh, whether the one it has works, and whether its pods are in it.
//!
//! One file for each of these questions, in `check/`; each check is a function that says what it found and what helps.

pub mod mesh;
mod pre;
mod proxy;

use crate::error::Result;
use crate::install;
use crate::install::server::{Reach, Server};
use crate::terminal::{Tone, coloured, paint};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::process::ExitCode;

/// Say whether a cluster can have the mesh, or whether its mesh works
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl check --pre            before an install: may I, can it\n  \
    meshctl check                  the control plane, its webhooks, its CA\n  \
    meshctl check --proxy          also every namespace's pods: who has no sidecar, or an old one\n  \
    meshctl check --proxy -n shop -o json\n\n\
    √ is well, ‼ works but should be looked at, × does not work; a line below says what helps.\n\
    Exit codes: 0 no ×, 1 at least one × (or the cluster is not reached), 2 wrong use.")]
pub struct Check {
    /// What an install needs
    #[arg(long, conflicts_with = "proxy")]
    pre: bool,
    /// Also the sidecars of pods
    #[arg(long)]
    proxy: bool,
    /// Sidecars of one namespace only
    #[arg(short, long, value_name = "NAMESPACE", requires = "proxy")]
    namespace: Option<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Well,
    Doubtful,
    Broken,
}

/// One line of the answer.
#[derive(Clone, Debug)]
struct Finding {
    state: State,
    what: String,
    /// What was found, one line each.
    found: Vec<String>,
    hint: &'static str,
}

impl Finding {
    fn well(what: impl Into<String>) -> Self {
        Self { state: State::Well, what: what.into(), found: Vec::new(), hint: "" }
    }

    fn doubtful(what: impl Into<String>, found: Vec<String>, hint: &'static str) -> Self {
        Self { state: State::Doubtful, what: what.into(), found, hint }
    }

    fn broken(what: impl Into<String>, found: Vec<String>, hint: &'static str) -> Self {
        Self { state: State::Broken, what: what.into(), found, hint }
    }

    /// Well when nothing was found against it.
    fn unless(found: Vec<String>, what: &str, state: State, hint: &'static str) -> Self {
        let state = if found.is_empty() { State::Well } else { state };
        Self { state, what: what.into(), found, hint }
    }
}

/// A check that could not be made has failed.
fn settled(what: &str, outcome: Result<Finding>) -> Finding {
    outcome.unwrap_or_else(|error| {
        Finding::broken(what, vec![error.to_string()], "ask as somebody who may read it, such as cluster-admin")
    })
}

struct Section {
    name: &'static str,
    findings: Vec<Finding>,
}

impl Check {
    pub fn run(self) -> Result<ExitCode> {
        let sections = install::block_on(async {
            let server = self.reach.server().await?;
            let mut sections = vec![Section { name: "cluster", findings: pre::cluster(&server).await }];
            // Nobody to ask: the rest would say the same thing many times.
            if sections[0].findings.iter().any(|f| f.state == State::Broken) {
                return Ok(sections);
            }
            sections.extend(self.sections(&server).await);
            Ok(sections)
        })?;
        let broken = sections.iter().flat_map(|s| &s.findings).any(|f| f.state == State::Broken);
        match self.output {
            Output::Text => print!("{}", text(&sections, broken, coloured())),
            Output::Json => println!("{:#}", document(&sections, broken)),
        }
        Ok(ExitCode::from(u8::from(broken)))
    }

    async fn sections(&self, server: &Server) -> Vec<Section> {
        if self.pre {
            return vec![Section { name: "before an install", findings: pre::install(server).await }];
        }
        let mut out = vec![Section { name: "control plane", findings: mesh::all(server).await }];
        if self.proxy {
            out.push(Section { name: "sidecars", findings: proxy::all(server, self.namespace.as_deref()).await });
        }
        out
    }
}

/// Lines for what was found; a page is enough.
const MOST: usize = 12;

fn text(sections: &[Section], broken: bool, coloured: bool) -> String {
    let mut out = String::new();
    for Section { name, findings } in sections {
        out.push_str(&format!("{}\n{}\n", paint(name, Tone::Bold, coloured), "-".repeat(name.len())));
        for finding in findings {
            let (sign, tone) = match finding.state {
                State::Well => ("√", Tone::Good),
                State::Doubtful => ("‼", Tone::Bold),
                State::Broken => ("×", Tone::Bad),
            };
            out.push_str(&format!("{} {}\n", paint(sign, tone, coloured), finding.what));
            for line in finding.found.iter().take(MOST) {
                out.push_str(&format!("    {line}\n"));
            }
            if finding.found.len() > MOST {
                out.push_str(&format!("    and {} more\n", finding.found.len() - MOST));
            }
            if finding.state != State::Well {
                out.push_str(&format!("    try: {}\n", finding.hint));
            }
        }
        out.push('\n');
    }
    let sign = if broken { paint("×", Tone::Bad, coloured) } else { paint("√", Tone::Good, coloured) };
    out + &format!("Status check results are {sign}\n")
}

fn document(sections: &[Section], broken: bool) -> serde_json::Value {
    let state = |s: State| match s {
        State::Well => "ok",
        State::Doubtful => "warning",
        State::Broken => "error",
    };
    let findings = |all: &[Finding]| -> Vec<_> {
        all.iter()
            .map(|f| {
                let hint = if f.state == State::Well { "" } else { f.hint };
                json!({"check": f.what, "result": state(f.state), "found": f.found, "hint": hint})
            })
            .collect()
    };
    let sections: Vec<_> =
        sections.iter().map(|s| json!({"section": s.name, "checks": findings(&s.findings)})).collect();
    json!({"success": !broken, "sections": sections})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_it_looks() {
        let many = (0..15).map(|i| format!("pod {i}")).collect();
        let sections = [Section {
            name: "cluster",
            findings: vec![Finding::well("it is there"), Finding::doubtful("pods", many, "kubectl get pods")],
        }];
        let page = text(&sections, false, false);
        assert!(page.starts_with("cluster\n-------\n√ it is there\n‼ pods\n    pod 0\n"), "{page}");
        assert!(page.ends_with("    and 3 more\n    try: kubectl get pods\n\nStatus check results are √\n"), "{page}");
        let document = document(&sections, true);
        assert_eq!(document["sections"][0]["checks"][1]["result"], "warning");
        assert_eq!(document["success"], false);
    }
}
