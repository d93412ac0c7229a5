//! One rule of `http`.

use super::matches::{self, string_match};
use super::{Destination, Rule};
use crate::builder::Builder;
use crate::reader::Field;
use crate::world::Clients;
use serde_json::{Map, Value, json};
use weft_policy::retry::Conditions;

/// What is retried where a rule says nothing of it: nothing that an app has seen, or what it asked for by its gRPC status.
const RETRIED: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// `None`: it has no effect, and why is told.
pub fn rule(field: &Field<'_>, name: String, clients: &Clients, b: &Builder<'_>) -> Option<Rule> {
    let name = field.get("name").and_then(|f| f.text()).unwrap_or(name);
    let matches = matches::read(field, clients);
    let mut rest = Map::new();
    let actions = ["route", "redirect", "directResponse", "delegate"].map(|a| field.has(a));
    let to: Vec<Option<Destination>> = field.list("route").iter().map(|f| destination(f, b)).collect();
    put(&mut rest, "redirect", field.get("redirect").map(|f| redirect(&f)));
    put(&mut rest, "respond", field.get("directResponse").and_then(|f| respond(&f)));
    if let Some(delegate) = field.get("delegate") {
        delegate.ignored("delegates are not read yet");
        delegate.warn(None, "has no effect: delegates are not read yet", "write the routes here");
    }
    let forwards = actions[0];
    put(&mut rest, "rewrite", field.get("rewrite").and_then(|f| rewrite(&f, field)));
    put(&mut rest, "timeout", field.get("timeout").and_then(|f| Some(json!({"request": span(&f)?}))));
    let retries = field.get("retries");
    if forwards {
        let unasked = || json!({"attempts": 2, "on": RETRIED});
        let retry = retries.map_or_else(unasked, |f| retry(&f, field));
        rest.insert("retry".into(), retry);
    }
    put(&mut rest, "fault", field.get("fault").and_then(|f| fault(&f)));
    put(&mut rest, "cors", field.get("corsPolicy").and_then(|f| cors(&f)));
    if let Some(headers) = field.get("headers") {
        put(&mut rest, "requestHeaders", headers.get("request").and_then(|f| operations(&f)));
        put(&mut rest, "responseHeaders", headers.get("response").and_then(|f| operations(&f)));
    }
    let mirrors = mirrors(field, b);
    match actions.iter().filter(|a| **a).count() {
        1 if actions[3] => return None,
        1 => {}
        0 => return field.fail("does nothing", "one of route, redirect, directResponse"),
        _ => return field.fail("does more than one thing", "one of route, redirect, directResponse"),
    }
    // Part of a split is no split, and half a rule is no rule.
    let mut to: Vec<Destination> = to.into_iter().collect::<Option<_>>()?;
    if let [only] = &mut to[..] {
        // A single destination may leave its weight out.
        only.rest.remove("weight");
    }
    if matches.is_none() {
        closed(field);
    }
    Some(Rule { name, matches: matches?, to, mirrors, rest, from: field.source() })
}

/// A rule of which no alternative can hold.
pub fn closed(rule: &Field<'_>) {
    for (name, field) in rule.entries() {
        if name != "match" {
            field.ignored("none of the rule's matches can hold");
        }
    }
}

fn put(out: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    out.extend(value.map(|v| (name.to_string(), v)));
}

fn span(field: &Field<'_>) -> Option<String> {
    field.duration()?;
    field.text()
}

pub fn destination(field: &Field<'_>, b: &Builder<'_>) -> Option<Destination> {
    let Some(to) = field.get("destination") else {
        return field.fail("has no destination", "destination: {host: NAME}");
    };
    let mut destination = Destination::read(&to, b)?;
    // Beside others, no weight is none.
    let weight = field.get("weight").map_or(Some(0), |f| f.u32());
    destination.rest.insert("weight".into(), json!(weight?));
    if let Some(headers) = field.get("headers") {
        put(&mut destination.rest, "requestHeaders", headers.get("request").and_then(|f| operations(&f)));
        put(&mut destination.rest, "responseHeaders", headers.get("response").and_then(|f| operations(&f)));
    }
    Some(destination)
}

fn redirect(f: &Field<'_>) -> Value {
    let mut out = Map::new();
    let text = |name: &str| f.get(name).and_then(|f| f.text());
    put(&mut out, "status", f.get("redirectCode").and_then(|f| f.int(300, 399)).map(|c| json!(c)));
    put(&mut out, "scheme", text("scheme").map(|s| json!(s)));
    if let Some(authority) = text("authority") {
        match authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?))) {
            Some((host, port)) => {
                out.insert("host".into(), json!(host));
                out.insert("port".into(), json!(port));
            }
            None => put(&mut out, "host", Some(json!(authority))),
        }
    }
    put(&mut out, "path", text("uri").map(|path| json!({"full": path})));
    put(&mut out, "path", text("prefixRewrite").map(|path| json!({"prefix": path})));
    let derived = [("FROM_PROTOCOL_DEFAULT", "scheme"), ("FROM_REQUEST_PORT", "request")];
    put(&mut out, "port", f.get("derivePort").and_then(|f| f.word(&derived)).map(|w| json!(w)));
    put(&mut out, "port", f.get("port").and_then(|f| f.port()).map(|p| json!(p)));
    Value::Object(out)
}

fn respond(f: &Field<'_>) -> Option<Value> {
    let mut out = Map::new();
    put(&mut out, "status", f.get("status").and_then(|f| f.int(200, 599)).map(|s| json!(s)));
    if let Some(body) = f.get("body") {
        let bytes = body.get("bytes").and_then(|f| {
            let decoded = base64(&f.text()?).and_then(|bytes| String::from_utf8(bytes).ok());
            decoded.or_else(|| f.fail("is no text in base64", "string: TEXT"))
        });
        put(&mut out, "body", body.get("string").and_then(|f| f.text()).or(bytes).map(|t| json!(t)));
    }
    Some(Value::Object(out))
}

fn rewrite(f: &Field<'_>, rule: &Field<'_>) -> Option<Value> {
    let mut out = Map::new();
    if let Some(uri) = f.get("uri") {
        let new = uri.text()?;
        let open = |m: &Field<'_>| {
            let prefix = m.get("uri").and_then(|u| u.get("prefix"));
            prefix.and_then(|p| p.text()).is_some_and(|p| p.len() > 1 && !p.ends_with('/'))
        };
        if new.ends_with('/') && rule.list("match").iter().any(open) {
            let hint = "end the matched prefix with / as well";
            uri.warn(None, "makes // of what follows the matched prefix, as Envoy does", hint);
        }
        out.insert("path".into(), json!({"prefix": new}));
    }
    if let Some(regex) = f.get("uriRegexRewrite") {
        let (pattern, to) = (regex.get("match")?.text()?, regex.get("rewrite").and_then(|f| f.text()));
        out.insert("path".into(), json!({"regex": pattern, "to": to.unwrap_or_default()}));
    }
    put(&mut out, "authority", f.get("authority").and_then(|f| f.text()).map(|a| json!(a)));
    Some(Value::Object(out))
}

fn retry(f: &Field<'_>, rule: &Field<'_>) -> Value {
    let mut out = Map::new();
    let attempts = f.get("attempts").and_then(|f| f.int(0, 100)).unwrap_or(0);
    out.insert("attempts".into(), json!(attempts));
    f.ignore("retryRemoteLocalities", "locality is not looked at yet");
    put(&mut out, "perTryTimeout", f.get("perTryTimeout").and_then(|f| span(&f)).map(|d| json!(d)));
    put(&mut out, "backoff", f.get("backoff").and_then(|f| span(&f)).map(|d| json!({"base": d})));
    put(&mut out, "avoidPreviousHosts", f.get("retryIgnorePreviousHosts").and_then(|f| f.bool()).map(|y| json!(y)));
    let on = match f.get("retryOn") {
        Some(on) => conditions(&on, rule, attempts > 0),
        None => {
            if attempts > 0 {
                let message =
                    format!("without retryOn only {RETRIED} are retried: an answer of the app, such as 500, is not");
                f.warn(Some("G8"), message, "retryOn: 5xx,reset,connect-failure,refused-stream");
            }
            RETRIED.to_string()
        }
    };
    out.insert("on".into(), json!(on));
    if attempts == 0 {
        f.warn(None, "attempts: 0 switches retries off", "");
    }
    Value::Object(out)
}

fn conditions(on: &Field<'_>, rule: &Field<'_>, active: bool) -> String {
    let text = on.text().unwrap_or_default();
    let words = text.split(',').map(str::trim).filter(|w| !w.is_empty());
    // A code says it all; this word says only that there are some.
    let (known, unknown): (Vec<&str>, Vec<&str>) =
        words.filter(|w| *w != "retriable-status-codes").partition(|w| Conditions::parse(w).is_ok());
    if !unknown.is_empty() {
        on.differs(format!("without {}", unknown.join(", ")));
        on.warn(None, format!("not known here: {}", unknown.join(", ")), "");
    }
    let seen = |w: &&&str| !RETRIED.split(',').any(|safe| safe == **w) && **w != "reset-before-request";
    let unsafe_words: Vec<&str> = known.iter().filter(seen).copied().collect();
    if active && !unsafe_words.is_empty() && !only_safe_methods(rule) {
        let message = format!(
            "repeats every method on {}, POST too, though the app may have acted on the first",
            unsafe_words.join(", ")
        );
        on.warn(Some("G18"), message, "a rule for method GET with these retries, and one without for the others");
    }
    known.join(",")
}

fn only_safe_methods(rule: &Field<'_>) -> bool {
    let alternatives = rule.list("match");
    let safe = |m: &Field<'_>| {
        let method = m.get("method").and_then(|f| f.get("exact")?.text());
        method.is_some_and(|m| ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"].contains(&m.as_str()))
    };
    !alternatives.is_empty() && alternatives.iter().all(safe)
}

fn fault(f: &Field<'_>) -> Option<Value> {
    let mut out = Map::new();
    if let Some(delay) = f.get("delay") {
        let mut made = share(&delay);
        delay.ignore("exponentialDelay", "was never part of Istio's");
        match delay.get("fixedDelay").and_then(|f| span(&f)) {
            Some(fixed) => {
                made.insert("fixed".into(), json!(fixed));
                out.insert("delay".into(), Value::Object(made));
            }
            None => delay.ignored("has no fixedDelay"),
        }
    }
    if let Some(abort) = f.get("abort") {
        let mut made = share(&abort);
        abort.ignore("http2Error", "was never part of Istio's");
        put(&mut made, "status", abort.get("httpStatus").and_then(|f| f.int(200, 599)).map(|s| json!(s)));
        put(&mut made, "grpcStatus", abort.get("grpcStatus").and_then(|f| f.text()).map(|s| json!(s)));
        out.insert("abort".into(), Value::Object(made));
    }
    if out.is_empty() {
        f.ignored("does nothing");
        return None;
    }
    let text = "in Istio a rule with faults has neither retries nor its timeout; here it keeps them";
    f.find(weft_policy::diag::Severity::Warning, Some("G26"), text, "");
    Some(Value::Object(out))
}

/// Without a share a fault hits nothing.
fn share(f: &Field<'_>) -> Map<String, Value> {
    let value = f.get("percentage").map(|p| p.get("value").and_then(|v| v.float(0.0, 100.0)).unwrap_or(0.0));
    let old = f.get("percent").and_then(|f| f.float(0.0, 100.0));
    let percent = value.or(old);
    if percent.is_none() {
        f.warn(None, "hits no request, because it has no percentage", "percentage: {value: 100}");
    }
    Map::from_iter([("percent".to_string(), json!(percent.unwrap_or(0.0)))])
}

fn mirrors(rule: &Field<'_>, b: &Builder<'_>) -> Vec<(Destination, Map<String, Value>)> {
    let mut out = Vec::new();
    let share = |percent: Option<f64>| percent.map(|p| ("percent".to_string(), json!(p))).into_iter().collect();
    let value = |f: Option<Field<'_>>| f.map(|p| p.get("value").and_then(|v| v.float(0.0, 100.0)).unwrap_or(0.0));
    let whole = value(rule.get("mirrorPercentage")).or(rule.get("mirrorPercent").and_then(|f| f.float(0.0, 100.0)));
    if let Some(mirror) = rule.get("mirror") {
        out.extend(Destination::read(&mirror, b).map(|d| (d, share(whole))));
    }
    for mirror in rule.list("mirrors") {
        let percent = value(mirror.get("percentage"));
        let to = mirror.get("destination").and_then(|f| Destination::read(&f, b));
        out.extend(to.map(|d| (d, share(percent))));
    }
    out
}

fn cors(f: &Field<'_>) -> Option<Value> {
    let mut out = Map::new();
    let mut origins: Vec<Value> = f.list("allowOrigins").iter().filter_map(string_match).collect();
    origins.extend(f.list("allowOrigin").iter().filter_map(|f| f.text()).map(Value::from));
    // An exact `*` is what people write for everybody.
    for origin in &mut origins {
        if *origin == json!({"exact": "*"}) {
            *origin = json!("*");
        }
    }
    if origins.is_empty() {
        f.ignored("allows no origin");
        return None;
    }
    out.insert("allowOrigins".into(), Value::Array(origins));
    for name in ["allowMethods", "allowHeaders", "exposeHeaders"] {
        let list: Vec<String> = f.list(name).iter().filter_map(|f| f.text()).collect();
        put(&mut out, name, (!list.is_empty()).then(|| json!(list)));
    }
    put(&mut out, "maxAge", f.get("maxAge").and_then(|f| span(&f)).map(|d| json!(d)));
    put(&mut out, "allowCredentials", f.get("allowCredentials").and_then(|f| f.bool()).map(|y| json!(y)));
    let words = [("UNSPECIFIED", "forward"), ("FORWARD", "forward"), ("IGNORE", "ignore")];
    let unmatched = f.get("unmatchedPreflights").and_then(|f| f.word(&words));
    put(&mut out, "unmatchedPreflights", unmatched.map(|w| json!(w)));
    Some(Value::Object(out))
}

/// `set`, `add` and `remove` of headers.
fn operations(f: &Field<'_>) -> Option<Value> {
    let mut out = Map::new();
    for name in ["set", "add"] {
        let pairs = f.get(name).map(|f| f.texts()).unwrap_or_default();
        put(&mut out, name, (!pairs.is_empty()).then(|| json!(pairs)));
    }
    let remove: Vec<String> = f.list("remove").iter().filter_map(|f| f.text()).collect();
    put(&mut out, "remove", (!remove.is_empty()).then(|| json!(remove)));
    (!out.is_empty()).then_some(Value::Object(out))
}

/// Standard base64, padded or not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes().map(|b| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    });
    let digits: Vec<u8> = digits.collect::<Option<_>>()?;
    let bytes = digits.chunks(4).flat_map(|chunk| {
        let word = chunk.iter().fold(0u32, |word, digit| word << 6 | u32::from(*digit)) << (6 * (4 - chunk.len()));
        word.to_be_bytes().into_iter().skip(1).take(chunk.len() - 1)
    });
    Some(bytes.collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64() {
        for (text, expected) in [("", ""), ("aA==", "h"), ("aGU", "he"), ("aGVs", "hel"), ("aGVsbG8=", "hello")] {
            assert_eq!(super::base64(text).as_deref(), Some(expected.as_bytes()), "{text}");
        }
        assert_eq!(super::base64("a b"), None);
    }
}
