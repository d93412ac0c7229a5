//! `meshctl analyze`: what the mesh makes of manifests, without running any of them.
//!
//! Every field of every object is accounted for, in the words of the ledger that the control plane's own translation writes.

use crate::error::{Error, Result};
use crate::lab::manifest::Folder;
use crate::terminal::{Tone, coloured, paint};
use clap::{Args, ValueEnum};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use weft_dialects::ledger::{Entry, Finding, Verdict};
use weft_dialects::{Ledger, Options, translate};
use weft_policy::diag::Severity;

/// Says what the mesh does with manifests: mistakes, and what became of every field.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl analyze examples/lab-9.5              mistakes, and a count of what is honoured\n  \
    meshctl analyze examples/lab-9.5 --fields     every field, with its verdict\n  \
    meshctl analyze manifests -o json | jq '.findings[].message'\n\n\
    Exit codes: 0 nothing worse than warnings, 1 errors, 2 wrong use.")]
pub struct Analyze {
    /// A folder of YAML or JSON files
    folder: PathBuf,
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
        let folder = Folder::open(&self.folder).map_err(|e| {
            let hint = "name a folder that holds manifests, such as examples/lab-9.5";
            Error::new(format!("{} cannot be read: {e}", self.folder.display()), hint)
        })?;
        let manifests = folder.manifests();
        let (_, ledger) = translate(&manifests.objects, &Options::default());
        match self.output {
            Output::Json => println!("{:#}", as_json(&manifests.problems, &ledger)),
            Output::Text => print!("{}", as_text(&manifests.problems, &ledger, self.fields, coloured())),
        }
        let failed = ledger.has_errors() || !manifests.problems.is_empty();
        Ok(if failed { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }
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
        let Finding { object, file, field, at, message, hint, .. } = finding;
        let (word, tone) = match finding.severity {
            Severity::Error => ("error", Tone::Bad),
            Severity::Warning => ("warning", Tone::Bold),
        };
        let known = finding.reference.map_or(String::new(), |r| format!(" [{r}]"));
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        line(format!("{file}:{}: {}{known}: {object}: {field}{message}", at.line, paint(word, tone, coloured)));
        if let Some(hint) = hint {
            line(format!("    {}", paint(hint, Tone::Faint, coloured)));
        }
    }
    let listed = |e: &&Entry| fields || e.verdict != Verdict::Honoured;
    for Entry { object, file, field, at, verdict } in ledger.entries.iter().filter(listed) {
        let (word, why) = told(verdict);
        let why = if why.is_empty() { why } else { format!(": {why}") };
        line(format!("{file}:{}: {object}: {field}: {}{why}", at.line, paint(word, Tone::Faint, coloured)));
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
