//! The kubelet has no certificate, so what it asks of an app would be refused under STRICT. It asks the sidecar instead, which
//! asks the app over loopback: `/app-health/CONTAINER/readyz` on 15020, as with Istio. What was to be asked is told to the sidecar
//! (`WEFT_APP_PROBES`), by path: `{"/app-health/web/livez": {"httpGet": {"port": 8080, "path": "/"}, "timeoutSeconds": 1}}`.
//!
//! The hooks at a container's start and end are asked in the same way. The kubelet does so once, so that a sidecar that is not
//! there yet would end the app: the hook at the start goes that way only where the app waits for its sidecar.

use crate::record::Record;
use crate::workload::name;
use crate::{AGENT, READY, Warnings, shown};
use serde_json::{Map, Value, json};

/// Where they stand in a container, and what they are called in a path.
const PROBES: [(&str, &str); 5] = [
    ("readinessProbe", "readyz"),
    ("livenessProbe", "livez"),
    ("startupProbe", "startupz"),
    (AT_START, "poststartz"),
    ("lifecycle/preStop", "prestopz"),
];
const AT_START: &str = "lifecycle/postStart";
/// Hooks name none, and may take long; a sidecar does not wait for longer.
const HOOK_SECONDS: u64 = 15;
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];
/// A process does not start with more than 128 KiB in one variable.
const MAX_BYTES: usize = 64 << 10;

/// Changes them where they stand, and says what the sidecar is to ask. `held`: no app starts before its sidecar is ready.
pub fn rewrite(pod: &mut Value, held: bool, record: &mut Record, warnings: &mut Warnings) -> Map<String, Value> {
    let mut asked = Map::new();
    let mut bytes = 0;
    let Some(spec) = pod.get_mut("spec") else { return asked };
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers {
            // Only those that go on running are asked.
            if list == "initContainers" && container.get("restartPolicy").and_then(Value::as_str) != Some("Always") {
                continue;
            }
            for (probe, path) in PROBES {
                let owner = name(container).to_string();
                let mut stays = |why: &str| {
                    let probe = probe.rsplit('/').next().unwrap_or(probe);
                    warnings.add(format!("{probe} of container {} stays as it is: {why}", shown(&owner)));
                };
                let found = match one(container, probe) {
                    Ok(Some(found)) => found,
                    Ok(None) => continue,
                    Err(why) => {
                        stays(&why);
                        continue;
                    }
                };
                if probe == AT_START && !held {
                    stays("the app does not wait for its sidecar; STRICT refuses what the kubelet asks, use exec");
                    continue;
                }
                bytes += found.entry.to_string().len() + owner.len();
                if bytes > MAX_BYTES {
                    stays("all probes have too many bytes");
                    continue;
                }
                let path = format!("/app-health/{owner}/{path}");
                let place = format!("/{probe}");
                let Some(fields) = container.pointer_mut(&place).and_then(Value::as_object_mut) else { continue };
                record.probe(&owner, probe, found.handler, fields.remove(found.handler).unwrap_or_default());
                fields.insert("httpGet".into(), json!({"path": path, "port": AGENT, "scheme": "HTTP"}));
                asked.insert(path, found.entry);
            }
        }
    }
    asked
}

struct Found {
    handler: &'static str,
    entry: Value,
}

/// A probe that can be asked by the sidecar; None if it need not.
fn one(container: &Value, probe: &str) -> Result<Option<Found>, String> {
    let Some(fields) = container.pointer(&format!("/{probe}")).and_then(Value::as_object) else { return Ok(None) };
    let Some(handler) = HANDLERS.into_iter().find(|h| fields.contains_key(*h)) else { return Ok(None) };
    let owner = name(container);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if owner.is_empty() || owner.len() > 63 || !owner.chars().all(plain) {
        return Err("the container's name is none that Kubernetes takes".into());
    }
    let mut how = fields.get(handler).and_then(Value::as_object).cloned().ok_or("it is no map")?;
    if how.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty()) {
        return Err("it names a host".into());
    }
    let port = how.get("port").ok_or("it names no port")?;
    let number = port_of(port, container).ok_or_else(|| format!("no port {} is declared", shown(&port.to_string())))?;
    if number == u64::from(AGENT) || number == u64::from(READY) {
        return Ok(None);
    }
    how.insert("port".into(), number.into());
    let mut entry = json!({handler: how});
    if let Some(timeout) = fields.get("timeoutSeconds").filter(|t| t.is_u64()) {
        entry["timeoutSeconds"] = timeout.clone();
    } else if probe.contains('/') {
        entry["timeoutSeconds"] = HOOK_SECONDS.into();
    }
    Ok(Some(Found { handler, entry }))
}

/// By number, or by a name among the container's.
fn port_of(port: &Value, container: &Value) -> Option<u64> {
    let number = match port {
        Value::Number(n) => n.as_u64(),
        Value::String(name) => match name.parse::<u64>() {
            Ok(n) => Some(n),
            Err(_) => {
                let ports = container.get("ports")?.as_array()?;
                let own = ports.iter().find(|p| p.get("name").and_then(Value::as_str) == Some(name))?;
                own.get("containerPort")?.as_u64()
            }
        },
        _ => None,
    };
    number.filter(|n| (1..=65535).contains(n))
}
