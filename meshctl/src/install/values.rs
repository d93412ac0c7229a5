//! What an install may say: the chart's values, a profile's over them, files' over those, and `--set` over all.
//!
//! `values.yaml` of the chart is what there is: names that it does not have are refused, and so is what is of another shape.

use super::chart;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::net::IpAddr;
use weft_injector::Settings;
use weft_policy::diag::Diags;
use weft_policy::id::TrustDomain;
use weft_policy::yaml;

const HINT: &str = "charts/weft/values.yaml has every value with its meaning: meshctl install --show-values";
/// Where any name may stand: resources have the names that a cluster gives them.
const OPEN: [&str; 4] = ["control.resources", "injector.resources", "sidecar.resources", "sidecar.initResources"];

pub fn defaults() -> Result<Value> {
    parse("values.yaml", chart::VALUES)
}

/// A file of values over those there are.
pub fn overlay(values: &mut Value, name: &str, text: &str) -> Result<()> {
    let over = parse(name, text)?;
    merge(values, &over, "").map_err(|why| wrong(format!("{name}: {why}")))
}

/// `a.b=c`: the value is YAML, or `{a,b}` for a list as Helm writes it.
pub fn set(values: &mut Value, text: &str) -> Result<()> {
    let example = || Error::new(format!("--set {text:?} is no PATH=VALUE"), "--set control.replicas=2");
    let (path, value) = text.split_once('=').ok_or_else(example)?;
    if path.is_empty() || path.split('.').any(str::is_empty) {
        return Err(example());
    }
    let value = match value.strip_prefix('{').and_then(|v| v.strip_suffix('}')) {
        Some(inner) if !inner.contains(": ") => inner.split(',').filter(|v| !v.is_empty()).map(Value::from).collect(),
        _ if value.is_empty() => json!(""),
        _ => parse(&format!("--set {path}"), value)?,
    };
    let over = path.rsplit('.').fold(value, |inner, key| Value::Object(Map::from_iter([(key.to_string(), inner)])));
    merge(values, &over, "").map_err(|why| wrong(format!("--set: {why}")))
}

fn parse(name: &str, text: &str) -> Result<Value> {
    let mut diags = Diags::default();
    match yaml::parse(text, &mut diags) {
        Some(node) => Ok(yaml::json(&node)),
        None => Err(wrong(format!("{name}: {}", diags.0.first().map(ToString::to_string).unwrap_or_default()))),
    }
}

fn wrong(message: String) -> Error {
    Error::new(message, HINT)
}

fn merge(values: &mut Value, over: &Value, path: &str) -> std::result::Result<(), String> {
    let within = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    let open = OPEN.iter().any(|o| path == *o || path.strip_prefix(o).is_some_and(|rest| rest.starts_with('.')));
    match (values, over) {
        (Value::Object(values), Value::Object(over)) => {
            for (key, new) in over {
                match values.get_mut(key) {
                    // As in Helm: as if it had never been said.
                    Some(_) if new.is_null() && open => {
                        values.remove(key);
                    }
                    Some(old) => merge(old, new, &within(key))?,
                    None if open && !new.is_null() => {
                        values.insert(key.clone(), new.clone());
                    }
                    None if open => {}
                    None => {
                        let known: Vec<&str> = values.keys().map(String::as_str).collect();
                        return Err(format!("there is no value {}; there are {}", within(key), known.join(", ")));
                    }
                }
            }
            Ok(())
        }
        (old @ Value::String(_), Value::Number(n)) => {
            *old = n.to_string().into();
            Ok(())
        }
        (old, new) if std::mem::discriminant(&*old) == std::mem::discriminant(new) => {
            *old = new.clone();
            Ok(())
        }
        (old, new) => Err(format!("{path} is {}, and {new} is not", shape(old))),
    }
}

fn shape(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// What would be found out only when something does not start.
pub fn check(values: &Value) -> Result<()> {
    let at = |path: &str| path.split('.').try_fold(values, |at, key| at.get(key)).cloned().unwrap_or_default();
    let one_of = |path: &str, words: &[&str]| {
        let value = at(path);
        match value.as_str().is_some_and(|v| words.contains(&v)) {
            true => Ok(()),
            false => Err(wrong(format!("{path} is {value}, and can be {}", words.join(", ")))),
        }
    };
    one_of("images.pullPolicy", &["IfNotPresent", "Always", "Never"])?;
    one_of("injector.failurePolicy", &["Ignore", "Fail"])?;
    one_of("admission.failurePolicy", &["Ignore", "Fail"])?;
    for path in ["control.replicas", "injector.replicas"] {
        if !at(path).as_u64().is_some_and(|n| (1..=100).contains(&n)) {
            return Err(wrong(format!("{path} is {}, and can be 1 to 100", at(path))));
        }
    }
    if !at("sampling").as_f64().is_some_and(|n| (0.0..=100.0).contains(&n)) {
        return Err(wrong(format!("sampling is {}, and is of a hundred: 0 to 100", at("sampling"))));
    }
    TrustDomain::parse(at("trustDomain").as_str().unwrap_or_default())
        .map_err(|e| wrong(format!("trustDomain: {e}")))?;
    for range in at("meshRanges").as_array().into_iter().flatten() {
        if !range.as_str().is_some_and(is_range) {
            return Err(wrong(format!("meshRanges: {range} is no range of addresses such as 10.244.0.0/16")));
        }
    }
    for image in ["images.control", "images.injector", "images.proxy"] {
        if at(image).as_str().is_none_or(|i| i.is_empty() || i.contains(char::is_whitespace)) {
            return Err(wrong(format!("{image} is {}, and is the name of an image", at(image))));
        }
    }
    Ok(())
}

/// What the injector will read must be what it understands.
pub fn check_settings(objects: &[Value]) -> Result<()> {
    let named = |o: &&Value| o["kind"] == "ConfigMap" && o["metadata"]["name"] == "weft-injector";
    let text = objects.iter().find(named).and_then(|o| o["data"]["settings.yaml"].as_str()).unwrap_or_default();
    settings(text).map(drop)
}

/// As the injector's ConfigMap has them.
pub fn settings(text: &str) -> Result<Settings> {
    serde_json::from_value(parse("sidecar", text)?).map_err(|e| wrong(format!("sidecar: {e}")))
}

fn is_range(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    match (address.parse::<IpAddr>(), bits.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(bits)) => bits <= 32,
        (Ok(IpAddr::V6(_)), Ok(bits)) => bits <= 128,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(sets: &[&str]) -> Result<Value> {
        let mut values = defaults()?;
        sets.iter().try_for_each(|s| set(&mut values, s))?;
        check(&values)?;
        check_settings(&chart::objects(&values)?)?;
        Ok(values)
    }

    #[test]
    fn what_may_be_said() {
        let values = with(&[
            "control.replicas=3",
            "sidecar.revisions={a,b}",
            "images.pullSecrets={c:d}",
            "sidecar.resources.cpuLimit=4",
            "meshRanges=[10.0.0.0/8, 'fd00::/8']",
            "control.resources.limits.cpu=2",
            "otlp=http://a:4317",
        ])
        .unwrap();
        assert_eq!(values["sidecar"]["revisions"], json!(["a", "b"]));
        assert_eq!(values["sidecar"]["resources"]["cpuLimit"], "4");
        assert_eq!(values["control"]["resources"]["limits"], json!({"memory": "1Gi", "cpu": 2}));
        for (name, text) in chart::PROFILES.iter().chain(chart::COMPAT) {
            let mut values = defaults().unwrap();
            overlay(&mut values, name, text).unwrap();
            check(&values).unwrap();
            check_settings(&chart::objects(&values).unwrap()).unwrap();
        }
    }

    #[test]
    fn what_may_not() {
        for (set, word) in [
            ("control.replica=3", "there are log, replicas, resources"),
            ("control.replicas=0", "1 to 100"),
            ("control.replicas=many", "is a number"),
            ("control=3", "is a map"),
            ("injector.failurePolicy=Maybe", "Ignore, Fail"),
            ("sampling=101", "0 to 100"),
            ("trustDomain=A B", "trustDomain"),
            ("meshRanges={10.0.0.0}", "10.244.0.0/16"),
            ("sidecar.mode=ambient", "sidecar"),
            ("sidecar.resources.cpu=1", "sidecar"),
            ("images.proxy=", "name of an image"),
            ("nothing", "PATH=VALUE"),
            ("a..b=1", "PATH=VALUE"),
            ("log=[", "--set log"),
        ] {
            let error = with(&[set]).unwrap_err().to_string();
            assert!(error.contains(word), "{set}: {error}");
        }
    }

    #[test]
    fn the_injectors_defaults_are_the_charts() {
        let objects = chart::objects(&defaults().unwrap()).unwrap();
        let named = |o: &&Value| o["kind"] == "ConfigMap" && o["metadata"]["name"] == "weft-injector";
        let text = objects.iter().find(named).unwrap()["data"]["settings.yaml"].as_str().unwrap();
        let settings: Settings = serde_json::from_value(parse("settings", text).unwrap()).unwrap();
        assert_eq!(settings, Settings::default());
    }
}
