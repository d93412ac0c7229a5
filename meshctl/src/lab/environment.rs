//! A container's environment: plain values, ConfigMaps, Secrets and the pod's own fields, with `$(NAME)` expanded.

use super::manifest::{json, text, texts};
use super::workload::Container;
use serde_json::Value;
use std::collections::BTreeMap;
use weft_dialects::object::Objects;

/// What a pod may say about itself.
pub struct Facts<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub uid: &'a str,
    pub ip: String,
    pub host_ip: String,
    pub service_account: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub annotations: &'a BTreeMap<String, String>,
}

/// The variables in the order in which they were given; later ones may use earlier ones.
pub fn variables(container: &Container, objects: &Objects, pod: &Facts<'_>) -> Result<Vec<(String, String)>, String> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut set = |key: String, value: String| {
        found.retain(|(k, _)| *k != key);
        found.push((key, value));
    };
    for source in &container.env_from {
        let prefix = text(&source["prefix"]).unwrap_or_default();
        let (kind, reference) = match source.get("configMapRef") {
            Some(reference) => ("ConfigMap", reference),
            None => ("Secret", &source["secretRef"]),
        };
        for (key, value) in data(objects, kind, pod.namespace, reference)?.into_iter().flatten() {
            set(format!("{prefix}{key}"), value);
        }
    }
    for entry in &container.env {
        let Some(key) = text(&entry["name"]) else { continue };
        let value = match entry.get("valueFrom") {
            Some(from) => referred(from, objects, pod).map_err(|e| format!("env {key}: {e}"))?,
            None => Some(text(&entry["value"]).unwrap_or_default()),
        };
        if let Some(value) = value {
            set(key, value);
        }
    }
    for i in 0..found.len() {
        let value = expand(&found[i].1, &found[..i]);
        found[i].1 = value;
    }
    Ok(found)
}

fn referred(from: &Value, objects: &Objects, pod: &Facts<'_>) -> Result<Option<String>, String> {
    for (field, kind) in [("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")] {
        let Some(reference) = from.get(field) else { continue };
        let key = text(&reference["key"]).unwrap_or_default();
        let value = data(objects, kind, pod.namespace, reference)?.and_then(|mut all| all.remove(&key));
        return match value {
            None if reference["optional"] != true => Err(format!("{kind} has no key {key:?}")),
            value => Ok(value),
        };
    }
    let Some(path) = from["fieldRef"]["fieldPath"].as_str() else {
        return Err("only configMapKeyRef, secretKeyRef and fieldRef are known in a lab".into());
    };
    let of = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        return match map {
            "metadata.labels" => Ok(Some(of(pod.labels, key))),
            "metadata.annotations" => Ok(Some(of(pod.annotations, key))),
            _ => Err(format!("the field {path:?} is not known")),
        };
    }
    Ok(Some(match path {
        "metadata.name" => pod.name.into(),
        "metadata.namespace" => pod.namespace.into(),
        "metadata.uid" => pod.uid.into(),
        "spec.serviceAccountName" => pod.service_account.into(),
        "spec.nodeName" => "lab".into(),
        "status.podIP" | "status.podIPs" => pod.ip.clone(),
        "status.hostIP" => pod.host_ip.clone(),
        _ => return Err(format!("the field {path:?} is not known")),
    }))
}

/// The entries of a ConfigMap or Secret; `None` if it is not there and need not be.
fn data(
    objects: &Objects,
    kind: &str,
    namespace: &str,
    reference: &Value,
) -> Result<Option<BTreeMap<String, String>>, String> {
    let name = text(&reference["name"]).unwrap_or_default();
    let Some(object) = objects.of("", kind).find(|o| o.name == name && o.namespace == namespace) else {
        if reference["optional"] == true {
            return Ok(None);
        }
        return Err(format!("there is no {kind} {name:?} in namespace {namespace}"));
    };
    let whole = json(&object.node);
    let mut all = texts(&whole["data"]);
    if kind == "Secret" {
        for (key, value) in &mut all {
            *value = base64(value).ok_or_else(|| format!("Secret {name}: {key} is not base64 text"))?;
        }
        all.extend(texts(&whole["stringData"]));
    }
    Ok(Some(all))
}

fn base64(text: &str) -> Option<String> {
    let (mut out, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for byte in text.bytes().filter(|b| !b.is_ascii_whitespace() && *b != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    String::from_utf8(out).ok()
}

/// `$(NAME)` becomes that variable's value, `$$` a dollar; what is not known stays as it is.
pub fn expand(text: &str, known: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix('(').and_then(|r| r.split_once(')'));
        match name.and_then(|(name, after)| Some((known.iter().find(|(k, _)| k == name)?, after))) {
            Some(((_, value), after)) => {
                out.push_str(value);
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_policy::diag::Diags;

    #[test]
    fn values_from_everywhere() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: shop}\ndata: {MODE: fast, n: 5}\n---\n\
                    apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: shop}\ndata: {key: aGVsbG8h}\nstringData: {more: x}\n---\n\
                    apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  env:\n  - {name: A, value: a}\n  - {name: B, value: $(A)$(X)$$}\n  \
                    - {name: C, valueFrom: {secretKeyRef: {name: s, key: key}}}\n  \
                    - {name: D, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}\n  \
                    - {name: E, valueFrom: {fieldRef: {fieldPath: status.podIP}}}\n  \
                    - {name: F, valueFrom: {configMapKeyRef: {name: none, key: k, optional: true}}}\n";
        let found = weft_dialects::object::read(&"a".into(), text, "default", &mut Diags::default()).unwrap();
        let objects = Objects(found.into_iter().map(std::sync::Arc::new).collect());
        let env = json(&objects.0[2].node)["spec"]["env"].as_array().unwrap().clone();
        let labels = BTreeMap::from([("app".to_string(), "web".to_string())]);
        let pod = Facts {
            name: "web-1",
            namespace: "shop",
            uid: "u",
            ip: "10.244.1.1".into(),
            host_ip: "10.244.0.1".into(),
            service_account: "default",
            labels: &labels,
            annotations: &labels,
        };
        let from = serde_json::json!({"prefix": "C_", "configMapRef": {"name": "c"}});
        let container = Container { env, env_from: vec![from], ..Container::default() };
        let got = variables(&container, &objects, &pod).unwrap();
        let got: Vec<String> = got.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(got, ["C_MODE=fast", "C_n=5", "A=a", "B=a$(X)$", "C=hello!", "D=web", "E=10.244.1.1"]);
        let missing = serde_json::json!({"configMapRef": {"name": "none"}});
        let container = Container { env_from: vec![missing], ..Container::default() };
        let error = variables(&container, &objects, &pod).unwrap_err();
        assert_eq!(error, "there is no ConfigMap \"none\" in namespace shop");
    }
}
