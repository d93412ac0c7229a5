//! Prometheus scrapes one place per pod, by its annotations. It is the sidecar's, which gives its own metrics and the app's:
//! where those are is told to it (`WEFT_APP_METRICS`), if the app's annotations say so.

use crate::workload::Template;
use crate::{AGENT, Warnings, shown, values};
use serde_json::{Value, json};

const PATH: &str = "/stats/prometheus";
const MAX_PATH: usize = 1024;

pub struct Merged {
    pub annotations: Vec<(String, String)>,
    /// `{"port": 9095, "path": "/metrics"}`
    pub app: Option<Value>,
}

/// None: the pod does not want to be scraped.
pub fn merge(pod: &Template<'_>, warnings: &mut Warnings) -> Option<Merged> {
    let annotation = |name: &str| pod.annotation(&format!("prometheus.io/{name}"));
    let scrape = annotation("scrape");
    if scrape.as_deref() == Some("false") {
        return None;
    }
    let app = match scrape.as_deref() {
        Some("true") => {
            // Without a port Prometheus would ask the ports that are declared.
            let port = annotation("port").unwrap_or_else(|| declared(pod).to_string().into());
            let path = annotation("path").unwrap_or("/metrics".into());
            let good = |c: char| c.is_ascii_graphic();
            let number = values::number(&port, 1, 65535);
            match number {
                Ok(number) if path.starts_with('/') && path.len() <= MAX_PATH && path.chars().all(good) => {
                    Some(json!({"port": number, "path": path}))
                }
                _ => {
                    let where_ = format!("port {}, path {}", shown(&port), shown(&path));
                    warnings
                        .add(format!("the app's own metrics are not found ({where_}): prometheus.io/port and path"));
                    None
                }
            }
        }
        _ => None,
    };
    let set = [("scrape", "true".to_string()), ("port", AGENT.to_string()), ("path", PATH.to_string())];
    let annotations = set.into_iter().map(|(name, value)| (format!("prometheus.io/{name}"), value)).collect();
    Some(Merged { annotations, app })
}

/// The first port that is, else the usual one.
fn declared(pod: &Template<'_>) -> u64 {
    let mut ports = pod.list("containers").iter().filter_map(|c| c.get("ports")?.as_array()).flatten();
    ports.find_map(|p| p.get("containerPort")?.as_u64()).unwrap_or(80)
}
