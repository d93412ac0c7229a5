//! AdmissionReview v1: what an API server asks, and what it is answered.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

/// What an API server passes on to whoever applies: so much of one, and of all.
const MAX_WARNING: usize = 256;
const MAX_WARNINGS: usize = 4096;
const MAX_MESSAGE: usize = 8192;
const MAX_UID: usize = 128;

const VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Option<Request>,
}

/// An object that somebody wants to be kept.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    pub uid: String,
    pub kind: Kind,
    /// What was asked for; the object's own name is empty where the API server is to make one (`generateName`).
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub namespace: String,
    /// CREATE, UPDATE, DELETE, CONNECT.
    pub operation: String,
    #[serde(default)]
    pub user_info: User,
    /// Null for DELETE.
    #[serde(default)]
    pub object: Value,
    /// Null for CREATE.
    #[serde(default)]
    pub old_object: Value,
    #[serde(default)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Kind {
    #[serde(default)]
    pub group: String,
    pub version: String,
    pub kind: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct User {
    #[serde(default)]
    pub username: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The code and the reason.
    pub denied: Option<(u16, String)>,
    /// Operations of RFC 6902.
    pub patch: Vec<Value>,
    /// One sentence each, for whoever applies the object.
    pub warnings: Vec<String>,
}

impl Answer {
    pub fn allowed() -> Self {
        Self::default()
    }

    pub fn denied(code: u16, why: impl Into<String>) -> Self {
        Self { denied: Some((code, why.into())), ..Self::default() }
    }

    pub fn warn(mut self, warning: impl Into<String>) -> Self {
        self.warnings.push(warning.into());
        self
    }
}

/// The request of a review; or why it is none.
pub fn read(body: &[u8]) -> Result<Request, String> {
    let review: Review = serde_json::from_slice(body).map_err(|e| format!("this is no {KIND}: {e}"))?;
    if (review.api_version.as_str(), review.kind.as_str()) != (VERSION, KIND) {
        return Err(format!("only {KIND} of {VERSION} is answered here"));
    }
    let request = review.request.ok_or_else(|| format!("this {KIND} has no request"))?;
    if request.uid.is_empty() || request.uid.len() > MAX_UID {
        return Err(format!("the uid has {} bytes; 1 to {MAX_UID} make sense", request.uid.len()));
    }
    Ok(request)
}

pub fn write(uid: &str, answer: Answer) -> Value {
    let mut response = json!({"uid": uid, "allowed": answer.denied.is_none()});
    match answer.denied {
        Some((code, why)) => {
            let message = cut(printable(&why, true), MAX_MESSAGE);
            response["status"] = json!({"status": "Failure", "code": code, "message": message});
        }
        None if !answer.patch.is_empty() => {
            let patch = Value::Array(answer.patch).to_string();
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(STANDARD.encode(patch));
        }
        None => {}
    }
    let warnings = bounded(&answer.warnings);
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    json!({"apiVersion": VERSION, "kind": KIND, "response": response})
}

/// An API server drops what is too long; better that it is we who choose.
fn bounded(warnings: &[String]) -> Vec<String> {
    let (mut out, mut left) = (Vec::new(), MAX_WARNINGS);
    for warning in warnings {
        let warning = cut(printable(warning, false), MAX_WARNING);
        if warning.len() > left {
            break;
        }
        left -= warning.len();
        out.push(warning);
    }
    out
}

/// They are headers on the way and lines of a terminal at the end.
fn printable(text: &str, lines: bool) -> String {
    text.chars().map(|c| if c.is_control() && !(lines && c == '\n') { ' ' } else { c }).collect()
}

fn cut(mut text: String, most: usize) -> String {
    const MORE: &str = "...";
    if text.len() > most {
        let mut end = most - MORE.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MORE);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u1",
        "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "shop", "operation": "CREATE",
        "userInfo": {"username": "kim"}, "object": {"kind": "Pod"}, "oldObject": null, "dryRun": true}}"#;

    #[test]
    fn reviews() {
        let request = read(GOOD.as_bytes()).unwrap();
        let shown = (request.kind.kind.as_str(), request.namespace.as_str(), request.user_info.username.as_str());
        assert_eq!(shown, ("Pod", "shop", "kim"));
        assert!(request.dry_run && request.old_object.is_null() && request.name.is_empty());
        let deep = GOOD.replace(r#"{"kind": "Pod"}"#, &("[".repeat(500) + &"]".repeat(500)));
        let long = GOOD.replace("u1", &"u".repeat(200));
        let v1beta1 = GOOD.replace("k8s.io/v1", "k8s.io/v1beta1");
        let empty = r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}"#;
        for bad in ["", "{}", "[]", "null", "\u{0}", empty, &deep, &long, &v1beta1, &GOOD[..GOOD.len() - 2]] {
            assert!(read(bad.as_bytes()).is_err(), "{bad:.80}");
        }
    }

    #[test]
    fn answers_are_bounded_and_printable() {
        let warnings = (0..100).map(|i| format!("{i} \u{1b}[2J\r\n{}", "\u{e9}".repeat(300))).collect();
        let answer = write("u1", Answer { warnings, ..Answer::default() });
        let warnings = answer["response"]["warnings"].as_array().unwrap();
        assert!(warnings.len() >= 15 && warnings.iter().all(|w| w.as_str().unwrap().len() <= MAX_WARNING));
        assert!(warnings.iter().map(|w| w.as_str().unwrap().len()).sum::<usize>() <= MAX_WARNINGS);
        assert!(!answer.to_string().contains("\\u001b") && !answer.to_string().contains("\\n"));
        assert_eq!(answer["response"]["allowed"], true);

        let denied = write("u1", Answer::denied(422, "one\ntwo"));
        assert_eq!(denied["response"]["status"], json!({"status": "Failure", "code": 422, "message": "one\ntwo"}));
        let patch = write("u1", Answer { patch: vec![json!({"op": "remove", "path": "/a"})], ..Answer::default() });
        let bytes = STANDARD.decode(patch["response"]["patch"].as_str().unwrap()).unwrap();
        assert_eq!(bytes, br#"[{"op":"remove","path":"/a"}]"#);
    }
}
