//! What was added to a pod, written on it (`weft.dev/injected`), so that it can be taken out again and nothing else.

use crate::decide::{INIT, VOLUMES};
use crate::settings::Dialect;
use crate::workload::{self, name};
use crate::{AGENT, shape};
use serde_json::{Map, Value, json};

pub const ANNOTATION: &str = "weft.dev/injected";

/// Of one pod.
#[derive(Debug)]
pub struct Record {
    dialect: Dialect,
    /// Lists and maps that were made, and what stood in their place: `absent`, or `null`.
    made: Map<String, Value>,
    secrets: Vec<String>,
    /// What was asked of the app, by container and probe: its handler.
    probes: Map<String, Value>,
}

impl Record {
    pub fn new(dialect: Dialect) -> Self {
        let (made, secrets, probes) = Default::default();
        Self { dialect, made, secrets, probes }
    }

    /// Changes a list of the spec, which is made if it is not there.
    pub fn list(&mut self, spec: &mut Map<String, Value>, name: &str, change: impl FnOnce(&mut Vec<Value>)) {
        self.make(spec, name, json!([]));
        if let Some(items) = spec.get_mut(name).and_then(Value::as_array_mut) {
            change(items);
        }
    }

    fn make(&mut self, within: &mut Map<String, Value>, name: &str, empty: Value) {
        let was = match within.get(name) {
            None => "absent",
            Some(Value::Null) => "null",
            Some(_) => return,
        };
        self.made.insert(name.into(), was.into());
        within.insert(name.into(), empty);
    }

    pub fn secrets(&mut self, spec: &mut Map<String, Value>, secrets: &[String]) {
        let has = |spec: &Map<String, Value>, secret: &String| {
            spec.get("imagePullSecrets").and_then(Value::as_array).is_some_and(|l| l.iter().any(|s| name(s) == secret))
        };
        for secret in secrets {
            if !has(spec, secret) {
                self.list(spec, "imagePullSecrets", |list| list.push(json!({"name": secret})));
                self.secrets.push(secret.clone());
            }
        }
    }

    pub fn probe(&mut self, container: &str, probe: &str, handler: &str, was: Value) {
        let of = self.probes.entry(container).or_insert_with(|| json!({}));
        of[probe] = json!({handler: was});
    }

    /// Annotations and labels, and the record itself.
    pub fn write(mut self, pod: &mut Value, annotations: Vec<(String, String)>, labels: Vec<(String, String)>) {
        let Some(pod) = pod.as_object_mut() else { return };
        self.make(pod, "metadata", json!({}));
        let Some(meta) = pod.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        let mut texts = |name: &str, new: Vec<(String, String)>| {
            let mut were = Map::new();
            if new.is_empty() {
                return were;
            }
            self.make(meta, name, json!({}));
            let Some(map) = meta.get_mut(name).and_then(Value::as_object_mut) else { return were };
            for (key, value) in new {
                let value = Value::String(value);
                if map.get(&key) != Some(&value) {
                    let was = map.insert(key.clone(), value);
                    were.insert(key, was.map_or(Value::Null, |was| json!([was])));
                }
            }
            were
        };
        let labels = texts("labels", labels);
        // Its own place is made as well; its value comes when all the rest is known.
        let placeholder = vec![(ANNOTATION.to_string(), String::new())];
        let annotations = texts("annotations", annotations.into_iter().chain(placeholder).collect());
        let record = json!({
            "version": 1,
            "container": self.dialect.container(),
            "made": self.made,
            "secrets": self.secrets,
            "probes": self.probes,
            "labels": labels,
            "annotations": annotations,
        });
        if let Some(map) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            map.insert(ANNOTATION.into(), record.to_string().into());
        }
    }
}

/// The object as it was before it was injected; None if it was not, by us. `Err` says why it cannot be told.
pub fn uninject(object: &Value) -> Result<Option<Value>, String> {
    let Some(pointer) = workload::pointer(object) else { return Ok(None) };
    shape::check(object)?;
    let Some(template) = workload::template(object) else { return Ok(None) };
    let Some(text) = template.annotation(ANNOTATION) else { return Ok(None) };
    let unreadable = || format!("{ANNOTATION} is not what inject wrote");
    let record: Value = serde_json::from_str(&text).map_err(|_| unreadable())?;
    if record.get("version") != Some(&json!(1)) {
        return Err(unreadable());
    }
    let container = record.get("container").and_then(Value::as_str).ok_or_else(unreadable)?;
    let mut out = object.clone();
    let Some(pod) = out.pointer_mut(pointer).and_then(Value::as_object_mut) else { return Ok(None) };
    let empty = Map::new();
    let map = |name: &str| record.get(name).and_then(Value::as_object).unwrap_or(&empty);
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        let secrets: Vec<&str> =
            record.get("secrets").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let ours: [(&str, &[&str]); 4] = [
            ("initContainers", &[INIT, container]),
            ("containers", &[container]),
            ("volumes", &VOLUMES),
            ("imagePullSecrets", &secrets),
        ];
        for (list, names) in ours {
            if let Some(items) = spec.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|v| !names.contains(&name(v)));
                restore(spec, list, map("made"));
            }
        }
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                let owner = name(container).to_string();
                let were = map("probes").get(&owner).and_then(Value::as_object);
                for (probe, was) in were.into_iter().flatten() {
                    put_back(container, probe, was);
                }
            }
        }
    }
    if let Some(meta) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        for name in ["labels", "annotations"] {
            let Some(texts) = meta.get_mut(name).and_then(Value::as_object_mut) else { continue };
            for (key, was) in map(name) {
                match was.get(0) {
                    Some(was) => drop(texts.insert(key.clone(), was.clone())),
                    None => drop(texts.remove(key)),
                }
            }
            restore(meta, name, map("made"));
        }
    }
    restore(pod, "metadata", map("made"));
    Ok(Some(out))
}

/// Takes a list or a map away that was made and is empty again.
fn restore(within: &mut Map<String, Value>, name: &str, made: &Map<String, Value>) {
    let is_empty = match within.get(name) {
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(items)) => items.is_empty(),
        _ => false,
    };
    match made.get(name).and_then(Value::as_str).filter(|_| is_empty) {
        Some("absent") => drop(within.remove(name)),
        Some("null") => drop(within.insert(name.into(), Value::Null)),
        _ => {}
    }
}

/// A probe's own handler (`livenessProbe`, `lifecycle/preStop`), unless somebody has written another one since.
fn put_back(container: &mut Value, probe: &str, was: &Value) {
    let Some(fields) = container.pointer_mut(&format!("/{probe}")).and_then(Value::as_object_mut) else { return };
    let ours = |get: &Value| {
        get.get("port").and_then(Value::as_u64) == Some(AGENT.into())
            && get.get("path").and_then(Value::as_str).is_some_and(|p| p.starts_with("/app-health/"))
    };
    if !fields.get("httpGet").is_some_and(ours) {
        return;
    }
    fields.remove("httpGet");
    for (handler, value) in was.as_object().into_iter().flatten() {
        fields.insert(handler.clone(), value.clone());
    }
}
