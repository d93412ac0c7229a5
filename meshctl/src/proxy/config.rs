//! A sidecar's configuration dump as tables: what it listens on, what it can reach and how, what it has refused.

use crate::terminal::{Tone, table};
use serde_json::Value as Json;

fn rows(value: &Json) -> &[Json] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word<'j>(value: &'j Json, field: &str) -> &'j str {
    value[field].as_str().unwrap_or_default()
}

fn plain(text: impl Into<String>) -> (String, Tone) {
    (text.into(), Tone::Plain)
}

pub fn page(dump: &Json, coloured: bool) -> String {
    let config = &dump["config"];
    let listeners: Vec<Vec<(String, Tone)>> = rows(&config["listeners"])
        .iter()
        .map(|l| {
            let mtls = match &l["mtls"] {
                Json::Null => String::new(),
                Json::String(mode) => mode.clone(),
                other => other.to_string(),
            };
            vec![plain(word(l, "name")), plain(word(l, "role")), plain(word(l, "address")), plain(mtls)]
        })
        .collect();
    let mut out = table(&["LISTENER", "ROLE", "ADDRESS", "MTLS"], &listeners, coloured);
    let mut services = Vec::new();
    for service in rows(&config["services"]) {
        let name = match word(service, "namespace") {
            "" => word(service, "name").to_string(),
            namespace => format!("{}.{namespace}", word(service, "name")),
        };
        let own = [service.clone()];
        let ports = if service["ports"].is_array() { rows(&service["ports"]) } else { &own };
        for port in ports {
            let policy = port["policy"].as_object().map(|p| p.keys().cloned().collect::<Vec<_>>().join(","));
            let routes = rows(&port["routes"]).iter().map(|r| word(r, "name")).collect::<Vec<_>>();
            let subsets = rows(&port["subsets"]).iter().map(|s| word(s, "name")).collect::<Vec<_>>();
            services.push(vec![
                plain(&name),
                plain(port["port"].to_string()),
                plain(port["protocol"].as_str().unwrap_or("detect")),
                plain(rows(&port["endpoints"]).len().to_string()),
                plain(routes.join(",")),
                plain(subsets.join(",")),
                plain(policy.unwrap_or_default()),
            ]);
        }
    }
    let heading = ["SERVICE", "PORT", "PROTOCOL", "ENDPOINTS", "ROUTES", "SUBSETS", "POLICY"];
    out.push('\n');
    out.push_str(&table(&heading, &services, coloured));
    let refused: Vec<Vec<(String, Tone)>> = rows(&dump["resources"])
        .iter()
        .filter(|r| r["state"] == "refused")
        .map(|r| {
            let whys: Vec<&str> = rows(&r["why"]).iter().filter_map(Json::as_str).collect();
            vec![plain(format!("{} {}", word(r, "kind"), word(r, "name"))), (whys.join("; "), Tone::Bad)]
        })
        .collect();
    if !refused.is_empty() {
        out.push('\n');
        out.push_str(&table(&["REFUSED", "WHY"], &refused, coloured));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_dump_at_a_glance() {
        let dump = json!({
            "config": {
                "listeners": [{"name": "in", "role": "inbound", "address": "[::]:15006", "mtls": "strict"}],
                "services": [{"name": "web", "namespace": "demo", "ports": [
                    {"port": 80, "protocol": "http", "routes": [{"name": "a"}, {"name": "b"}], "subsets": [{"name": "v1"}],
                     "policy": {"breaker": {}}, "endpoints": ["10.0.0.1:80", "10.0.0.2:80"]}]}],
            },
            "resources": [{"kind": "service", "name": "web.demo:80", "state": "refused", "why": ["no"]},
                          {"kind": "service", "name": "other.demo:80", "state": "applied", "why": []}],
        });
        let page = page(&dump, false);
        assert!(page.contains("in         inbound   [::]:15006   strict\n"), "{page}");
        assert!(page.contains("web.demo   80     http       2           a,b      v1        breaker\n"), "{page}");
        assert!(page.contains("service web.demo:80   no\n") && !page.contains("other.demo"), "{page}");
    }
}
