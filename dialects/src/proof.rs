//! What a proxy would refuse, found while the place it came from is still known.

use serde_json::{Value, json};
use weft_policy::diag::{Diags, Severity};
use weft_policy::{backend, doc, plan, service, yaml};

/// What is wrong with a route, in one text. `order` is the document's.
pub fn route(route: &Value, order: &str) -> Result<Vec<String>, String> {
    let document = json!({"name": "any", "namespace": "any", "port": 80, "order": order, "routes": [route]});
    let mut diags = Diags::default();
    let node = yaml::parse(&document.to_string(), &mut diags);
    let entry = node.and_then(|n| service::Entry::read(&mut doc::Cursor::new(&n, &mut diags), "any"));
    let (mut errors, mut warnings) = said(&diags, "routes[0]");
    match entry.as_deref().map(|e| e.iter().map(|e| plan::compile(&e.config)).collect::<Vec<_>>()) {
        Some(plans) => errors.extend(plans.into_iter().filter_map(Result::err).flatten().map(|e| {
            let field = e.field.trim_start_matches("routes[0]").trim_start_matches('.');
            format!("{field}: {}", e.message).trim_start_matches(": ").to_string()
        })),
        None if errors.is_empty() => errors.push("cannot be used".into()),
        None => {}
    }
    warnings.dedup();
    if errors.is_empty() { Ok(warnings) } else { Err(errors.join("; ")) }
}

/// The same for a service.
pub fn service(document: &Value) -> Result<Vec<String>, String> {
    let mut diags = Diags::default();
    let node = yaml::parse(&document.to_string(), &mut diags);
    let read = node.and_then(|n| service::Entry::read(&mut doc::Cursor::new(&n, &mut diags), "any"));
    let (errors, warnings) = said(&diags, "");
    match read {
        Some(_) if errors.is_empty() => Ok(warnings),
        _ => Err(errors.join("; ")),
    }
}

/// The same for a `policy`.
pub fn policy(policy: &Value) -> Result<Vec<String>, String> {
    let mut diags = Diags::default();
    let node = yaml::parse(&policy.to_string(), &mut diags);
    let read = node.and_then(|n| backend::Config::read(&mut doc::Cursor::new(&n, &mut diags)));
    let (errors, warnings) = said(&diags, "");
    match read {
        Some(_) if errors.is_empty() => Ok(warnings),
        _ => Err(errors.join("; ")),
    }
}

fn said(diags: &Diags, below: &str) -> (Vec<String>, Vec<String>) {
    let of = |severity| {
        let texts = diags.0.iter().filter(move |d| d.severity == severity);
        texts.map(|d| {
            let field = d.field.strip_prefix(below).unwrap_or(&d.field).trim_start_matches('.');
            let hint = d.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
            format!("{field}: {}{hint}", d.message).trim_start_matches(": ").to_string()
        })
    };
    (of(Severity::Error).collect(), of(Severity::Warning).collect())
}
