//! The chart's templates, as far as they are written: values by path, `toJson`, `if`, `else`, `range`, `end`.
//!
//! What Helm makes of these words is made here too, so one chart serves both; a test renders it with both. Values go in as JSON
//! (which YAML reads), so none can end its field and begin another.

use serde_json::Value;
use std::fmt::Write as _;

/// The text that the template makes; `values` is what it calls `.Values`.
pub fn render(template: &str, values: &Value) -> Result<String, String> {
    let pieces = pieces(template)?;
    let mut out = String::new();
    let end = block(&pieces, 0, values, None, true, &mut out)?;
    if end == pieces.len() { Ok(out) } else { Err("an `else` or `end` too many".into()) }
}

#[derive(Debug)]
enum Piece<'t> {
    Text(&'t str),
    Action(&'t str),
}

fn pieces(mut rest: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut out = Vec::new();
    while let Some((text, after)) = rest.split_once("{{") {
        let (inner, after) = after.split_once("}}").ok_or("an action does not end")?;
        let (text, inner) = match inner.strip_prefix('-') {
            Some(inner) => (text.trim_end(), inner),
            None => (text, inner),
        };
        let (after, inner) = match inner.strip_suffix('-') {
            Some(inner) => (after.trim_start(), inner),
            None => (after, inner),
        };
        out.extend([Piece::Text(text), Piece::Action(inner.trim())]);
        rest = after;
    }
    out.push(Piece::Text(rest));
    Ok(out)
}

/// Up to the `else` or `end` that belongs to somebody further out; where it is.
fn block(
    pieces: &[Piece<'_>],
    mut at: usize,
    values: &Value,
    dot: Option<&Value>,
    live: bool,
    out: &mut String,
) -> Result<usize, String> {
    while let Some(piece) = pieces.get(at) {
        let action = match piece {
            Piece::Text(text) => {
                if live {
                    out.push_str(text);
                }
                at += 1;
                continue;
            }
            Piece::Action(action) => *action,
        };
        let (word, path) = action.split_once(' ').unwrap_or((action, ""));
        at = match word {
            "else" | "end" => return Ok(at),
            "if" => {
                let yes = live && truth(find(path, values, dot)?);
                let middle = block(pieces, at + 1, values, dot, yes, out)?;
                match pieces.get(middle) {
                    Some(Piece::Action("else")) => {
                        ended(pieces, block(pieces, middle + 1, values, dot, live && !yes, out)?)?
                    }
                    _ => ended(pieces, middle)?,
                }
            }
            "range" => {
                let items = if live { find(path, values, dot)?.as_array().cloned() } else { None };
                let end = block(pieces, at + 1, values, None, false, out)?;
                for item in items.iter().flatten() {
                    block(pieces, at + 1, values, Some(item), live, out)?;
                }
                ended(pieces, end)?
            }
            _ if !live => at + 1,
            "toJson" => {
                out.push_str(&json(find(path, values, dot)?));
                at + 1
            }
            path => {
                match find(path, values, dot)? {
                    Value::String(text) => out.push_str(text),
                    other => {
                        let _ = write!(out, "{other}");
                    }
                }
                at + 1
            }
        };
    }
    Ok(at)
}

/// Behind the `end`.
fn ended(pieces: &[Piece<'_>], at: usize) -> Result<usize, String> {
    match pieces.get(at) {
        Some(Piece::Action("end")) => Ok(at + 1),
        _ => Err("an `if` or `range` without `end`".into()),
    }
}

fn find<'v>(path: &str, values: &'v Value, dot: Option<&'v Value>) -> Result<&'v Value, String> {
    match (path, path.strip_prefix(".Values.")) {
        (".", _) => dot.ok_or_else(|| "`.` outside of a range".into()),
        (_, Some(path)) => {
            path.split('.').try_fold(values, |at, key| at.get(key)).ok_or_else(|| format!("there is no value {path}"))
        }
        _ => Err(format!("{{{{ {path} }}}} is not read here")),
    }
}

/// What Go's templates take for true.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
    }
}

/// As Go writes it, which hides what HTML would read.
fn json(value: &Value) -> String {
    let mut out = value.to_string();
    for (sign, hidden) in
        [("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u{2028}", "\\u2028"), ("\u{2029}", "\\u2029")]
    {
        out = out.replace(sign, hidden);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_understood() {
        let values = json!({"a": {"b": "x\"y", "n": 2}, "no": "", "list": ["p", "q"], "none": []});
        let made = |text: &str| render(text, &values);
        assert_eq!(made("v: {{ toJson .Values.a.b }}").unwrap(), "v: \"x\\\"y\"");
        assert_eq!(made("-n={{ .Values.a.n }}.").unwrap(), "-n=2.");
        assert_eq!(made("a\n{{- if .Values.no }}\nyes\n{{- else }}\nno\n{{- end }}\nb").unwrap(), "a\nno\nb");
        assert_eq!(
            made("l:\n{{- range .Values.list }}\n- {{ toJson . }}\n{{- end }}\n").unwrap(),
            "l:\n- \"p\"\n- \"q\"\n"
        );
        assert_eq!(made("{{ if .Values.a }}{{ if .Values.none }}1{{ else }}2{{ end }}{{ end }}").unwrap(), "2");
        assert_eq!(made("{{ if .Values.none }}{{ range .Values.list }}{{ . }}{{ end }}{{ end }}.").unwrap(), ".");
        assert_eq!(json(&json!("<&>")), "\"\\u003c\\u0026\\u003e\"");
        for wrong in ["{{ .Values.b }}", "{{ if .Values.a }}", "{{ end }}", "{{", "{{ include \"x\" . }}", "{{ . }}"] {
            assert!(made(wrong).is_err(), "{wrong}");
        }
    }
}
