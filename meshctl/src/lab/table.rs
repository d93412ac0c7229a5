//! What a lab looks like: its pods, the ways in, what to try.

use crate::terminal::{Tone, paint, table};
use serde_json::Value;
use std::fmt::Write as _;

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The pods, one a line.
pub fn pods(status: &Value, coloured: bool) -> String {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let many = rows(&status["pods"]).iter().any(|p| p["namespace"] != status["pods"][0]["namespace"]);
    let mut all = Vec::new();
    for pod in rows(&status["pods"]) {
        let containers = rows(&pod["containers"]).len() as u64;
        let meshed = pod["sidecar"] == true;
        let ready = pod["containersReady"].as_u64().unwrap_or(0) + u64::from(pod["sidecarReady"] == true);
        let tone = |good: bool| if good { Tone::Good } else { Tone::Bad };
        let word = text(&pod["status"]);
        let fine = pod["ready"] == true || word == "Completed";
        let mut row = Vec::new();
        if many {
            row.push((text(&pod["namespace"]), Tone::Plain));
        }
        row.extend([
            (text(&pod["name"]), Tone::Plain),
            (format!("{ready}/{}", containers + u64::from(meshed)), tone(fine)),
            (word, if fine { Tone::Plain } else { Tone::Bad }),
            (pod["restarts"].to_string(), Tone::Plain),
            ((if meshed { "yes" } else { "no" }).into(), if meshed { Tone::Good } else { Tone::Faint }),
            (text(&pod["address"]), Tone::Plain),
            (text(&pod["note"]), Tone::Faint),
        ]);
        all.push(row);
    }
    let mut heading = vec!["NAME", "READY", "STATUS", "RESTARTS", "SIDECAR", "ADDRESS", ""];
    if many {
        heading.insert(0, "NAMESPACE");
    }
    table(&heading, &all, coloured)
}

/// All of it, once it is up.
pub fn lab(status: &Value, coloured: bool) -> String {
    let mut out = pods(status, coloured);
    let word = |v: &Value| v.as_str().unwrap_or_default().to_string();
    for url in rows(&status["urls"]) {
        let name = format!("{}.{}:{}", word(&url["service"]), word(&url["namespace"]), url["port"]);
        let _ = write!(out, "\n{name:<40} {}", paint(&word(&url["url"]), Tone::Bold, coloured));
    }
    if !rows(&status["urls"]).is_empty() {
        out.push('\n');
    }
    out.push_str("\nTry:\n");
    if let Some(url) = rows(&status["urls"]).first() {
        let _ = writeln!(out, "  curl -s {}/", word(&url["url"]));
    }
    if let Some(pod) = rows(&status["pods"]).first() {
        let workload = word(&pod["workload"]);
        let mut services = rows(&status["services"]).iter().filter_map(Value::as_str);
        // A call to somebody else shows more.
        if let Some(service) = services.find(|s| !s.starts_with(&format!("{workload}."))) {
            let _ = writeln!(out, "  meshctl lab exec {workload} -- curl -s http://{service}/");
        }
        let _ = writeln!(out, "  meshctl lab logs {workload}");
        let _ = writeln!(out, "  meshctl lab scale {workload} 3");
    }
    if rows(&status["pods"]).iter().any(|p| p["sidecar"] == true) {
        out.push_str("  meshctl lab traces\n");
    }
    out.push_str("  meshctl lab ps\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_at_a_glance() {
        let status = serde_json::json!({
            "pods": [{"namespace": "shop", "name": "web-1", "workload": "web", "ready": true, "status": "Running",
                "containers": ["main"], "containersReady": 1, "sidecar": true, "sidecarReady": true,
                "address": "10.244.1.1", "restarts": 0, "note": ""}],
            "urls": [{"namespace": "shop", "service": "web", "port": 80, "url": "http://127.0.0.1:4000"}],
            "services": ["web.shop:80", "users.shop:80"],
        });
        let text = lab(&status, false);
        assert!(
            text.starts_with("NAME    READY   STATUS    RESTARTS   SIDECAR   ADDRESS\nweb-1   2/2     Running   0"),
            "{text}"
        );
        for wanted in ["web.shop:80", "curl -s http://127.0.0.1:4000/", "exec web -- curl -s http://users.shop:80/"] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
        assert!(!text.contains('\x1b'));
    }
}
