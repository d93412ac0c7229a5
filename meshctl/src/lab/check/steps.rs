//! `steps.check`: the commands of a lab's text and what they should show, in its order, each with what stands for it here.
//!
//! It is YAML under a name of its own, since every `.yaml` of the folder is a manifest. docs/lab.md has the format.

use super::expect::Expect;
use crate::error::{Error, Result};
use std::path::Path;
use std::time::Duration;
use weft_policy::diag::{Diags, Severity};
use weft_policy::doc::{Cursor, Fields};
use weft_policy::yaml;

pub const FILE: &str = "steps.check";

#[derive(Debug)]
pub struct Steps {
    /// Files that the lab starts with; everything if none are named.
    pub start: Option<Vec<String>>,
    pub all: Vec<Step>,
}

/// A line of the text.
#[derive(Debug)]
pub struct Step {
    pub line: u32,
    pub text: String,
    pub act: Act,
}

#[derive(Debug)]
pub enum Act {
    /// Belongs to a later release, and why.
    Later(String),
    Check {
        /// Without one it is about what the last command printed.
        run: Option<Run>,
        expect: Expect,
        /// For how long it may be tried again.
        within: Duration,
    },
}

#[derive(Clone, Debug)]
pub struct Run {
    /// A workload, inside of whose pod it runs.
    pub from: Option<String>,
    pub command: String,
    pub times: u32,
}

pub fn read(folder: &Path) -> Result<Steps> {
    let file = folder.join(FILE);
    let text = std::fs::read_to_string(&file).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(
            format!("{} has no {FILE}, so there is nothing to check", folder.display()),
            "docs/lab.md says how steps are written",
        ),
        _ => format!("{}: {e}", file.display()).into(),
    })?;
    parse(&text).map_err(|wrong| {
        let lines: Vec<String> = wrong.iter().map(|w| format!("{}: {w}", file.display())).collect();
        Error::new(lines.join("\n  "), "docs/lab.md says how steps are written")
    })
}

fn parse(text: &str) -> std::result::Result<Steps, Vec<String>> {
    let mut diags = Diags::default();
    let read = yaml::parse(text, &mut diags).and_then(|node| {
        Cursor::new(&node, &mut diags).fields(|f| {
            let start = f.opt("start", |c| c.list(|c| c.text()));
            let groups = f.req("steps", |c| c.list(entry))?;
            Some(Steps { start, all: groups.into_iter().flatten().collect() })
        })
    });
    if let Some(steps) = &read {
        order(&steps.all, &mut diags);
    }
    match read {
        Some(steps) if !diags.has_errors() => Ok(steps),
        _ => Err(diags.0.iter().filter(|d| d.severity == Severity::Error).map(ToString::to_string).collect()),
    }
}

/// As the text has them, and nothing to be said about the output of nothing.
fn order(steps: &[Step], diags: &mut Diags) {
    let mut before: Option<&Step> = None;
    for step in steps {
        if let Some(before) = before.filter(|b| b.line >= step.line) {
            let message = format!("line {} stands after line {}", step.line, before.line);
            diags.error(Default::default(), "steps", message, Some("the order of the text".into()));
        }
        let after_nothing = before.is_none_or(|b| matches!(b.act, Act::Later(_)));
        if after_nothing && matches!(step.act, Act::Check { run: None, .. }) {
            let message = format!("line {} has no `run`, and no command before it was run", step.line);
            diags.error(Default::default(), "steps", message, None);
        }
        before = Some(step);
    }
}

/// One step, or several lines that wait for the same later release.
fn entry(c: &mut Cursor<'_, '_>) -> Option<Vec<Step>> {
    c.fields(|f| {
        if f.has("lines") {
            let later = f.req("later", |c| c.text());
            let lines = f.req("lines", |c| {
                c.entries(|line, c| match line.parse() {
                    Ok(line) => Some((line, c.text()?)),
                    Err(_) => c.fail(format!("{line:?} is no line's number"), ""),
                })
            })?;
            let later = later?;
            let step = |(line, text)| Step { line, text, act: Act::Later(later.clone()) };
            return Some(lines.into_iter().map(|(_, found)| step(found)).collect());
        }
        let line = f.req("line", |c| c.u32());
        let text = f.req("text", |c| c.text());
        let act = match f.opt("later", |c| c.text()) {
            Some(reason) => Act::Later(reason),
            None => Act::Check {
                run: run(f),
                expect: Expect::read(f)?,
                within: f.or("within", Duration::ZERO, |c| c.duration()),
            },
        };
        Some(vec![Step { line: line?, text: text?, act }])
    })
}

fn run(f: &mut Fields<'_, '_>) -> Option<Run> {
    let from = f.opt("from", |c| c.text());
    let times = f.opt("times", |c| c.int(1, 100_000)).map(|n| n as u32);
    if !f.has("run") && (from.is_some() || times.is_some()) {
        return f.fail("", "`from` and `times` are about a `run`, and there is none", "");
    }
    let command = f.opt("run", |c| c.text())?;
    Some(Run { from, command: command.trim().into(), times: times.unwrap_or(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says() {
        let steps = parse(
            "start: [a.yaml]\n\
             steps:\n\
             - line: 3\n  text: \"curl http://web/\"\n  from: client\n  run: curl -s http://web/\n  times: 10\n  share: {v2: [0.1, 0.2]}\n\
             - line: 4\n  text: \"Expected: hello\"\n  output: hello\n  within: 5s\n\
             - later: a dashboard\n  lines:\n    7: open it\n    9: \"Expected: it is there\"\n\
             - {line: 12, text: no run, later: another day}\n",
        )
        .unwrap();
        assert_eq!(steps.start.as_deref(), Some(&["a.yaml".to_string()][..]));
        assert_eq!(steps.all.iter().map(|s| s.line).collect::<Vec<_>>(), [3, 4, 7, 9, 12]);
        let Act::Check { run: Some(run), within, .. } = &steps.all[0].act else { panic!("{steps:?}") };
        assert_eq!((run.from.as_deref(), run.times, *within), (Some("client"), 10, Duration::ZERO));
        assert!(matches!(&steps.all[1].act, Act::Check { run: None, within, .. } if within.as_secs() == 5));
        assert!(matches!(&steps.all[3].act, Act::Later(why) if why == "a dashboard"));
    }

    #[test]
    fn mistakes_are_named_with_their_places() {
        for (text, wanted) in [
            ("steps:\n- {line: 2, text: a, run: x}\n- {line: 2, text: b}\n", "line 2 stands after line 2"),
            ("steps:\n- {line: 2, text: a}\n", "line 2 has no `run`"),
            ("steps:\n- {line: 2, text: a, later: b}\n- {line: 3, text: c}\n", "line 3 has no `run`"),
            ("steps:\n- {line: 2, text: a, runs: b}\n", "did you mean run?"),
            ("steps:\n- {line: 2, text: a, run: b, output: '('}\n", "line 2: error: steps[0].output: "),
            ("steps:\n- {line: 2, text: a, run: b, share: {x: [2, 1]}}\n", "steps[0].share.x"),
            ("steps:\n- {line: 2, text: a, times: 3}\n", "are about a `run`"),
            ("steps:\n- {later: x, lines: {two: a}}\n", "\"two\" is no line's number"),
            ("- a\n", "a list where a map is expected"),
        ] {
            let wrong = parse(text).unwrap_err().join("\n");
            assert!(wrong.contains(wanted), "{wanted:?} in {wrong:?}");
        }
    }
}
