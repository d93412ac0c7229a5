//! `meshctl analyze`: what the mesh makes of manifests, or of the objects of a cluster.
//!
//! Every field of every object is accounted for, in the words of the ledger that the control plane's own translation writes.

use crate::error::{Error, Result};
use crate::lab::manifest::{Folder, Manifests};
use crate::objects::{Namespaces, Store, before};
use crate::place::{Place, Source};
use crate::terminal::{Tone, coloured, paint};
use clap::{Args, ValueEnum};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weft_dialects::ledger::{Entry, Finding, Verdict};
use weft_dialects::object::ObjectRef;
use weft_dialects::{Ledger, Options, translate};
use weft_policy::diag::Severity;

/// Says what the mesh does with manifests or with the objects of a cluster: mistakes, and what became of every field.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl analyze examples/lab-9.5              mistakes, and a count of what is honoured\n  \
    meshctl analyze examples/lab-9.5 --fields     every field, with its verdict\n  \
    meshctl analyze manifests -o json | jq '.findings[].message'\n  \
    meshctl analyze -A                            all namespaces of the cluster\n  \
    meshctl analyze -n shop --context staging\n\n\
    Exit codes: 0 nothing worse than warnings, 1 errors, 2 wrong use.")]
pub struct Analyze {
    /// A folder of YAML or JSON files; without one, those of the lab that runs, or the cluster
    #[arg(conflicts_with_all = ["id", "dir", "kubeconfig", "context"])]
    folder: Option<PathBuf>,
    #[command(flatten)]
    which: Namespaces,
    #[command(flatten)]
    place: Place,
    /// List every field, not only those that are not simply honoured
    #[arg(long)]
    fields: bool,
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

impl Analyze {
    pub fn run(self) -> Result<ExitCode> {
        let source = self.folder.clone().map_or_else(|| self.place.source(), |folder| Ok(Source::Folder(folder)))?;
        let (Ledger { entries, findings, .. }, problems, namespace) = match source {
            Source::Folder(folder) => {
                let (ledger, problems) = of_folder(&folder)?;
                (ledger, problems, self.which.namespace.clone())
            }
            Source::Cluster(cluster) => {
                let store = Store::of_cluster(cluster)?;
                store.warn();
                let namespace = store.namespace(&self.which).map(str::to_string);
                (store.into_ledger(), Vec::new(), namespace)
            }
        };
        // Of a cluster what is in no namespace is everybody's; what a folder says so is shown, too.
        let meant = |o: &ObjectRef| namespace.as_ref().is_none_or(|n| o.namespace.is_empty() || o.namespace == *n);
        let ledger = Ledger {
            entries: entries.into_iter().filter(|e| meant(&e.object)).collect(),
            findings: findings.into_iter().filter(|f| meant(&f.object)).collect(),
            ..Ledger::default()
        };
        match self.output {
            Output::Json => println!("{:#}", as_json(&problems, &ledger)),
            Output::Text => print!("{}", as_text(&problems, &ledger, self.fields, coloured())),
        }
        let failed = ledger.has_errors() || !problems.is_empty();
        Ok(if failed { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }
}

fn of_folder(folder: &Path) -> Result<(Ledger, Vec<String>)> {
    let open = Folder::open(folder).map_err(|e| {
        let hint = "name a folder that holds manifests, such as examples/lab-9.5";
        Error::new(format!("{} cannot be read: {e}", folder.display()), hint)
    })?;
    let Manifests { objects, problems } = open.manifests();
    Ok((translate(&objects, &Options::default()).1, problems))
}

/// What a cluster has added itself is nobody's mistake, and there is a lot of it.
fn is_the_clusters(entry: &Entry) -> bool {
    entry.file.is_empty() && ["", "apps", "batch", "discovery.k8s.io"].contains(&&*entry.object.group)
}

fn as_text(problems: &[String], ledger: &Ledger, fields: bool, coloured: bool) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    for problem in problems {
        line(format!("{problem}  {}", paint("error", Tone::Bad, coloured)));
    }
    for finding in &ledger.findings {
        let Finding { object, field, message, hint, .. } = finding;
        let (word, tone) = match finding.severity {
            Severity::Error => ("error", Tone::Bad),
            Severity::Warning => ("warning", Tone::Bold),
        };
        let known = finding.reference.map_or(String::new(), |r| format!(" [{r}]"));
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        let place = before(&finding.file, finding.at);
        line(format!("{place}{}{known}: {object}: {field}{message}", paint(word, tone, coloured)));
        if let Some(hint) = hint {
            line(format!("    {}", paint(hint, Tone::Faint, coloured)));
        }
    }
    let listed = |e: &&Entry| fields || (e.verdict != Verdict::Honoured && !is_the_clusters(e));
    for Entry { object, file, field, at, verdict } in ledger.entries.iter().filter(listed) {
        let (word, why) = told(verdict);
        let why = if why.is_empty() { why } else { format!(": {why}") };
        line(format!("{}{object}: {field}: {}{why}", before(file, *at), paint(word, Tone::Faint, coloured)));
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in &ledger.entries {
        *counts.entry(told(&entry.verdict).0).or_default() += 1;
    }
    let of = |word| counts.get(word).copied().unwrap_or(0);
    let errors = problems.len() + ledger.findings.iter().filter(|f| f.severity == Severity::Error).count();
    let warnings = ledger.findings.len() + problems.len() - errors;
    line(format!(
        "{} fields: {} honoured, {} differently, {} ignored, {} won by another object; {errors} errors, {warnings} warnings",
        ledger.entries.len(),
        of("honoured"),
        of("differently"),
        of("ignored"),
        of("won by"),
    ));
    out
}

fn told(verdict: &Verdict) -> (&'static str, String) {
    match verdict {
        Verdict::Honoured => ("honoured", String::new()),
        Verdict::Differently(how) => ("differently", how.clone()),
        Verdict::Ignored(why) => ("ignored", why.clone()),
        Verdict::WonBy(object) => ("won by", object.to_string()),
    }
}

fn as_json(problems: &[String], ledger: &Ledger) -> Json {
    let findings: Vec<Json> = ledger
        .findings
        .iter()
        .map(|f| {
            let severity = if f.severity == Severity::Error { "error" } else { "warning" };
            json!({
                "severity": severity, "reference": f.reference, "object": f.object.to_string(), "file": &*f.file,
                "line": f.at.line, "field": f.field, "message": f.message, "hint": f.hint,
            })
        })
        .collect();
    let fields: Vec<Json> = ledger
        .entries
        .iter()
        .map(|e| {
            let (verdict, why) = told(&e.verdict);
            json!({
                "object": e.object.to_string(), "file": &*e.file, "line": e.at.line, "field": e.field,
                "verdict": verdict, "why": why,
            })
        })
        .collect();
    json!({ "problems": problems, "findings": findings, "fields": fields })
}
