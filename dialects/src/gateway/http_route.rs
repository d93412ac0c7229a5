//! HTTPRoute, of Gateway API and the older one of Linkerd's own group.

use super::backend::Backends;
use super::{matches, route};
use crate::builder::Builder;
use crate::reader::{Field, Reader};
use serde_json::{Map, Value, json};
use std::time::Duration;

pub fn translate(reader: &Reader<'_>, builder: &mut Builder<'_>) {
    route::translate(reader, builder, rule);
}

fn rule(field: &Field<'_>, backends: &Backends<'_>) -> Option<Map<String, Value>> {
    let mut route = route::rule(field, backends, matches::http);
    let (request, per_try) = timeouts(field);
    let mut retry = retry(field);
    field.ignore("sessionPersistence", "sessions are pinned with balance.hash of a TrafficPolicy");
    let route_fields = route.as_mut()?;
    if let Some(request) = request {
        route_fields.insert("timeout".into(), json!({"request": request}));
    }
    if let Some(per_try) = per_try {
        retry.get_or_insert_default().insert("perTryTimeout".into(), json!(per_try));
    }
    if let Some(retry) = retry {
        let methods = route_fields.get("match").and_then(Value::as_array).into_iter().flatten();
        let unsafe_one =
            methods.filter_map(|m| m.get("method")?.as_str()).any(|m| ["POST", "PATCH", "CONNECT"].contains(&m));
        if let Some(asked) = field.get("retry").filter(|_| unsafe_one) {
            let hint = "make sure that the app takes a repeated request for one";
            asked.warn(Some("G18"), "repeats requests that are not safe to repeat", hint);
        }
        route_fields.insert("retry".into(), retry.into());
    }
    route
}

/// For the whole request, and for one attempt of it.
fn timeouts(rule: &Field<'_>) -> (Option<String>, Option<String>) {
    let Some(timeouts) = rule.get("timeouts") else { return (None, None) };
    let request = timeouts.get("request").and_then(|f| duration(&f));
    let backend = timeouts.get("backendRequest").and_then(|f| {
        let backend = duration(&f)?;
        // Zero is no limit.
        match &request {
            Some((all, _)) if !all.is_zero() && backend.0 > *all => {
                f.fail("is longer than `request`", "at most what the whole request has")
            }
            _ => Some(backend),
        }
    });
    (request.map(|(_, text)| text), backend.map(|(_, text)| text))
}

fn retry(rule: &Field<'_>) -> Option<Map<String, Value>> {
    let retry = rule.get("retry")?;
    // Errors of connections are retried besides the codes.
    let mut on = vec!["reset".to_string(), "connect-failure".into(), "refused-stream".into()];
    on.extend(retry.list("codes").iter().filter_map(|c| c.int(400, 599)).map(|c| c.to_string()));
    let mut out = Map::from_iter([("on".to_string(), json!(on.join(",")))]);
    if let Some(attempts) = retry.get("attempts").and_then(|a| a.int(1, 100)) {
        out.insert("attempts".into(), json!(attempts));
    }
    if let Some(backoff) = retry.get("backoff")
        && let Some((_, base)) = duration(&backoff)
    {
        backoff.differs("the pause is drawn between nothing and this, doubled with each retry up to ten times of it");
        out.insert("backoff".into(), json!({"base": base}));
    }
    Some(out)
}

/// GEP-2257's: up to four whole numbers of at most five digits, each with h, m, s or ms.
fn duration(field: &Field<'_>) -> Option<(Duration, String)> {
    const HINT: &str = "whole numbers with h, m, s or ms, such as 1m30s or 250ms";
    let text = field.text()?;
    let mut rest = &*text;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let unit = ["ms", "h", "m", "s"].into_iter().find(|u| rest[digits..].starts_with(u));
        parts += 1;
        match unit {
            Some(unit) if (1..=5).contains(&digits) && parts <= 4 => rest = &rest[digits + unit.len()..],
            _ => return field.fail(format!("{text:?} is not a duration of Gateway API"), HINT),
        }
    }
    field.duration().map(|duration| (duration, text))
}
