//! What came of each step: a line or two as they are done, and all of it as JSON.

use super::shell::Output;
use super::steps::Run;
use crate::terminal::{Tone, paint};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// Enough to see what went wrong.
const SHOWN: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Later,
}

pub struct Done {
    pub line: u32,
    pub text: String,
    pub outcome: Outcome,
    /// Why it failed, or why it comes later.
    pub why: String,
    pub run: Option<Run>,
    /// What it is about, if it failed.
    pub output: Option<Output>,
    pub took: Duration,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Later => "later",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::Passed => Tone::Good,
            Self::Failed => Tone::Bad,
            Self::Later => Tone::Faint,
        }
    }
}

impl Done {
    pub fn text(&self, coloured: bool) -> String {
        let word = format!("{:<6}", self.outcome.word());
        let mut out = format!("{} {:>5}  {}\n", paint(&word, self.outcome.tone(), coloured), self.line, self.text);
        let mut below = |text: &str, tone| {
            let _ = writeln!(out, "{:14}{}", "", paint(text, tone, coloured));
        };
        if let Some(run) = &self.run {
            let shown = run.shown();
            let mut lines = shown.lines();
            below(&format!("$ {}", lines.next().unwrap_or_default()), Tone::Faint);
            lines.for_each(|line| below(&format!("  {line}"), Tone::Faint));
        }
        match self.outcome {
            Outcome::Passed => {}
            Outcome::Later => below(&self.why, Tone::Faint),
            Outcome::Failed => {
                below(&format!("after {:.1} s: {}", self.took.as_secs_f64(), self.why), Tone::Bad);
                if let Some(output) = &self.output {
                    let lines: Vec<&str> = output.out.lines().chain(output.err.lines()).collect();
                    if lines.len() > SHOWN {
                        below(&format!("| ({} lines before)", lines.len() - SHOWN), Tone::Plain);
                    }
                    let last = lines.iter().skip(lines.len().saturating_sub(SHOWN));
                    last.for_each(|line| below(&format!("| {line}"), Tone::Plain));
                }
            }
        }
        out
    }

    fn json(&self) -> Value {
        let mut json = json!({
            "line": self.line, "text": self.text, "outcome": self.outcome.word(), "seconds": self.took.as_secs_f64(),
        });
        if let Some(run) = &self.run {
            json["run"] = run.shown().into();
        }
        if !self.why.is_empty() {
            json["why"] = self.why.as_str().into();
        }
        if let Some(Output { code, out, err }) = &self.output {
            json["output"] = json!({"exit": code, "stdout": out, "stderr": err});
        }
        json
    }
}

/// All that was done.
#[derive(Default)]
pub struct Report(pub Vec<Done>);

impl Report {
    pub fn count(&self, outcome: Outcome) -> usize {
        self.0.iter().filter(|done| done.outcome == outcome).count()
    }

    pub fn summary(&self, coloured: bool) -> String {
        let all = [Outcome::Passed, Outcome::Failed, Outcome::Later].map(|outcome| {
            let count = self.count(outcome);
            let tone = if count == 0 { Tone::Plain } else { outcome.tone() };
            paint(&format!("{count} {}", outcome.word()), tone, coloured)
        });
        all.join(", ")
    }

    pub fn json(&self, folder: &str, whole: bool) -> Value {
        json!({
            "folder": folder,
            "complete": whole,
            "passed": self.count(Outcome::Passed),
            "failed": self.count(Outcome::Failed),
            "later": self.count(Outcome::Later),
            "steps": self.0.iter().map(Done::json).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_counts() {
        let done = |outcome, why: &str| Done {
            line: 42,
            text: "Expected: hello".into(),
            outcome,
            why: why.into(),
            run: (outcome != Outcome::Later).then(|| Run {
                from: Some("web".into()),
                command: "curl x".into(),
                times: 3,
            }),
            output: (outcome == Outcome::Failed).then(|| Output {
                code: Some(0),
                out: "bye\n".into(),
                err: String::new(),
            }),
            took: Duration::from_millis(1500),
        };
        let report =
            Report(vec![done(Outcome::Passed, ""), done(Outcome::Failed, "no hello"), done(Outcome::Later, "soon")]);
        let text: String = report.0.iter().map(|d| d.text(false)).collect();
        assert_eq!(
            text,
            "passed    42  Expected: hello\n              $ meshctl lab exec web -- curl x   # 3 times\n\
             failed    42  Expected: hello\n              $ meshctl lab exec web -- curl x   # 3 times\n              \
             after 1.5 s: no hello\n              | bye\n\
             later     42  Expected: hello\n              soon\n"
        );
        assert_eq!(report.summary(false), "1 passed, 1 failed, 1 later");
        let json = report.json("here", true);
        assert_eq!((&json["failed"], &json["steps"][1]["output"]["stdout"]), (&json!(1), &json!("bye\n")));
    }
}
