//! JSON answers. Whatever the configuration held, keys and credentials do not leave.

use super::{AdminState, Cert};
use crate::telemetry::access_log::Timestamp;
use serde_json::{Value, json};
use std::time::SystemTime;

const REDACTED: &str = "[redacted]";
/// Fields and headers whose values are credentials.
const SECRET: [&str; 9] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "private_key",
    "privatekey",
    "password",
    "token",
    "secret",
];

/// Takes out every key, credential and bearer token, wherever it stands.
pub fn redact(value: &mut Value) {
    match value {
        Value::String(text) => {
            let bearer =
                text.get(..7).is_some_and(|t| t.eq_ignore_ascii_case("bearer ") || t.eq_ignore_ascii_case("basic a"));
            if text.contains("PRIVATE KEY") || bearer {
                *text = REDACTED.into();
            }
        }
        Value::Array(list) => {
            // A header as a pair of name and value.
            if let [Value::String(name), Value::String(value)] = list.as_mut_slice()
                && is_secret(name)
            {
                *value = REDACTED.into();
            }
            list.iter_mut().for_each(redact);
        }
        Value::Object(map) => {
            // A header as an object with `name` and `value`.
            if map.get("name").and_then(Value::as_str).is_some_and(is_secret)
                && let Some(value) = map.get_mut("value")
            {
                *value = REDACTED.into();
            }
            for (key, value) in map.iter_mut() {
                if is_secret(key) {
                    *value = REDACTED.into();
                } else {
                    redact(value);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_secret(name: &str) -> bool {
    SECRET.iter().any(|s| name.eq_ignore_ascii_case(s))
}

pub fn config(state: &AdminState) -> Value {
    let mut config = state.proxy.config();
    redact(&mut config);
    config
}

pub fn certs(state: &AdminState) -> Value {
    let certs = state.proxy.certs();
    let all = |list: &[Cert]| list.iter().map(cert).collect::<Vec<_>>();
    match (certs.chain.is_empty(), certs.roots.is_empty()) {
        (true, true) => json!({ "certificates": [] }),
        _ => json!({ "certificates": [{ "ca_cert": all(&certs.roots), "cert_chain": all(&certs.chain) }] }),
    }
}

fn cert(cert: &Cert) -> Value {
    let left = cert.not_after.duration_since(SystemTime::now()).map_or(0, |d| d.as_secs() / 86_400);
    let uris = cert.uris.iter().map(|uri| json!({ "uri": uri }));
    let names: Vec<_> = uris.chain(cert.dns.iter().map(|dns| json!({ "dns": dns }))).collect();
    json!({
        "path": "<inline>",
        "serial_number": cert.serial,
        "subject_alt_names": names,
        "days_until_expiration": left.to_string(),
        "valid_from": Timestamp(cert.not_before).to_string(),
        "expiration_time": Timestamp(cert.not_after).to_string(),
    })
}

pub fn server_info(state: &AdminState) -> Value {
    let uptime = format!("{}s", state.hub.started.0.elapsed().as_secs());
    let w = &state.hub.workload;
    json!({
        "version": format!("weft-proxy/{}", env!("CARGO_PKG_VERSION")),
        "state": state.proxy.state().word(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "control": state.proxy.control(),
        "node": {
            "id": format!("sidecar~{}.{}", w.pod, w.namespace),
            "cluster": &*w.cluster,
            "metadata": {
                "NAME": &*w.pod,
                "NAMESPACE": &*w.namespace,
                "WORKLOAD_NAME": &*w.name,
                "LABELS": { "app": &*w.app, "version": &*w.version },
                "IDENTITY": state.hub.identity.as_ref().map(|id| id.as_str()),
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_leaves() {
        let mut value = json!({
            "services": [{ "headers": { "set": [
                { "name": "Authorization", "value": "s3cret" },
                ["authorization", "s3cret"],
                { "name": "x-fine", "value": "Bearer s3cret" },
            ], "AUTHORIZATION": "s3cret", "add": { "cookie": ["s3cret"] } } }],
            "key": "-----BEGIN EC PRIVATE KEY-----\ns3cret",
            "privateKey": { "deep": "s3cret" },
            "name": "fine", "value": "fine",
        });
        redact(&mut value);
        let text = value.to_string();
        assert!(!text.contains("s3cret"), "{text}");
        assert!(text.contains(r#""value":"fine""#) && text.contains("x-fine"), "{text}");
    }
}
