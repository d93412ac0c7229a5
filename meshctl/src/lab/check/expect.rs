//! What a command should have done: its exit code, and what its output shows.

use super::shell::Output;
use crate::lab::manifest;
use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use serde_json::Value;
use std::fmt;
use weft_policy::doc::{self, Cursor, Fields};

/// All of it must hold.
#[derive(Debug, Default)]
pub struct Expect {
    exit: Exit,
    output: Vec<Pattern>,
    never: Vec<Pattern>,
    /// How many lines of the output match.
    count: Vec<(Pattern, Bounds)>,
    /// Which part of them does.
    share: Vec<(Pattern, Bounds)>,
    /// Values of the output, read as JSON, by JSON pointer.
    json: Vec<(String, Value)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Exit {
    #[default]
    Success,
    Failure,
    Code(i32),
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    low: f64,
    high: f64,
}

#[derive(Debug)]
struct Pattern {
    text: String,
    regex: Regex,
}

impl Expect {
    pub fn read(f: &mut Fields<'_, '_>) -> Option<Self> {
        let exit = f.or("exit", Exit::Success, |c| match c.node.value {
            doc::Value::Int(0) => Some(Exit::Success),
            doc::Value::Int(_) => c.int(1, 255).map(|code| Exit::Code(code as i32)),
            _ => c.word(&[("failure", Exit::Failure)]),
        });
        let json = f.opt("json", |c| c.entries(|_, c| Some(manifest::json(c.node)))).unwrap_or_default();
        let (output, never) = (f.or("output", Vec::new(), patterns), f.or("never", Vec::new(), patterns));
        let count = f.or("count", Vec::new(), |c| counted(c, f64::MAX));
        let share = f.or("share", Vec::new(), |c| counted(c, 1.0));
        Some(Self { exit, output, never, count, share, json })
    }

    /// What does not hold, the first of it.
    pub fn judge(&self, got: &Output) -> Result<(), String> {
        let fine = match self.exit {
            Exit::Success => got.code == Some(0),
            Exit::Failure => got.code != Some(0),
            Exit::Code(code) => got.code == Some(code),
        };
        if !fine {
            let code = got.code.map_or_else(|| "a signal".to_string(), |c| c.to_string());
            return Err(format!("it ended with {code}, not with {}", self.exit));
        }
        let all = format!("{}\n{}", got.out, got.err);
        if let Some(missing) = self.output.iter().find(|p| !p.is_in(&all)) {
            return Err(format!("nothing in its output matches {missing}"));
        }
        if let Some(found) = self.never.iter().find(|p| p.is_in(&all)) {
            return Err(format!("its output matches {found}"));
        }
        let lines: Vec<&str> = got.out.lines().filter(|l| !l.trim().is_empty()).collect();
        let matching = |p: &Pattern| lines.iter().filter(|line| p.is_in(line)).count();
        for (pattern, bounds) in &self.count {
            let count = matching(pattern);
            if !bounds.hold(count as f64) {
                return Err(format!("{count} lines match {pattern}, not {bounds}"));
            }
        }
        for (pattern, bounds) in &self.share {
            let (count, all) = (matching(pattern), lines.len());
            if all == 0 || !bounds.hold(count as f64 / all as f64) {
                return Err(format!("{count} of {all} lines match {pattern}, not {bounds} of them"));
            }
        }
        if self.json.is_empty() {
            return Ok(());
        }
        let json: Value = serde_json::from_str(&got.out).map_err(|e| format!("its output is no JSON: {e}"))?;
        for (pointer, wanted) in &self.json {
            let value = json.pointer(pointer).unwrap_or(&Value::Null);
            if value != wanted {
                return Err(format!("{pointer} is {value}, not {wanted}"));
            }
        }
        Ok(())
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    let regex = Regex::builder().syntax(syntax::Config::new().multi_line(true)).build(text);
    let regex = regex.map_err(|e| match e.syntax_error() {
        Some(syntax) => format!("no regular expression: {syntax}"),
        None => format!("no regular expression: {e}"),
    })?;
    Ok(Pattern { text: text.into(), regex })
}

fn patterns(c: &mut Cursor<'_, '_>) -> Option<Vec<Pattern>> {
    let one = |c: &mut Cursor<'_, '_>| {
        let text = c.text()?;
        pattern(&text).map_or_else(|why| c.fail(why, ""), Some)
    };
    match c.node.value {
        doc::Value::List(_) => c.list(one),
        _ => one(c).map(|p| vec![p]),
    }
}

/// Patterns with a number each, or with two between which it is.
fn counted(c: &mut Cursor<'_, '_>, most: f64) -> Option<Vec<(Pattern, Bounds)>> {
    let found = c.entries(|text, c| {
        let bounds = match c.node.value {
            doc::Value::List(_) => match c.list(|c| c.float(0.0, most))?[..] {
                [low, high] if low <= high => Bounds { low, high },
                _ => return c.fail("not two numbers, the smaller one first", "as in [0.08, 0.12]"),
            },
            _ => c.float(0.0, most).map(|n| Bounds { low: n, high: n })?,
        };
        pattern(text).map_or_else(|why| c.fail(why, ""), |p| Some((p, bounds)))
    })?;
    Some(found.into_iter().map(|(_, pair)| pair).collect())
}

impl Bounds {
    fn hold(&self, n: f64) -> bool {
        n >= self.low && n <= self.high
    }
}

impl Pattern {
    fn is_in(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("0"),
            Self::Failure => f.write_str("a failure"),
            Self::Code(code) => write!(f, "{code}"),
        }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high { write!(f, "{}", self.low) } else { write!(f, "{} to {}", self.low, self.high) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_policy::diag::Diags;

    fn expect(text: &str) -> Expect {
        let mut diags = Diags::default();
        let node = weft_policy::yaml::parse(text, &mut diags).unwrap();
        Cursor::new(&node, &mut diags).fields(Expect::read).unwrap_or_else(|| panic!("{:?}", diags.0))
    }

    fn got(code: i32, out: &str) -> Output {
        Output { code: Some(code), out: out.into(), err: "oh\n".into() }
    }

    #[test]
    fn what_holds_and_what_does_not() {
        for (wanted, code, out, wrong) in [
            ("{exit: 0}", 0, "", ""),
            ("{exit: 0}", 1, "", "it ended with 1, not with 0"),
            ("{exit: failure}", 56, "", ""),
            ("{exit: 56}", 7, "", "it ended with 7, not with 56"),
            ("{output: [^b$, oh]}", 0, "a\nb\n", ""),
            ("{output: ^c$}", 0, "a\nb\n", "nothing in its output matches \"^c$\""),
            ("{never: a}", 0, "a\n", "its output matches \"a\""),
            ("{count: {'200': 2, '5..': [0, 1]}}", 0, "200\n200\n\n503\n", ""),
            ("{count: {'200': 3}}", 0, "200\n200\n", "2 lines match \"200\", not 3"),
            ("{share: {'200': [0.4, 0.6]}}", 0, "200\n500\n", ""),
            ("{share: {'200': [0.6, 1]}}", 0, "200\n500\n", "1 of 2 lines match \"200\", not 0.6 to 1 of them"),
            ("{share: {'200': 1}}", 0, "", "0 of 0 lines"),
            ("{json: {/a/0/b: true, /none: null}}", 0, "{\"a\": [{\"b\": true}]}", ""),
            ("{json: {/a: 1}}", 0, "{\"a\": 2}", "/a is 2, not 1"),
            ("{json: {/a: 1}}", 0, "a", "its output is no JSON"),
        ] {
            let judged = expect(wanted).judge(&got(code, out));
            match wrong {
                "" => assert_eq!(judged, Ok(()), "{wanted}"),
                _ => assert!(judged.as_ref().is_err_and(|e| e.starts_with(wrong)), "{wanted}: {judged:?}"),
            }
        }
    }
}
