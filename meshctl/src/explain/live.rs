//! How the backends of an explained request are now: asked of the caller's own sidecar, whose breakers and ejections count.

use super::mesh::Pod;
use crate::error::{Error, Result};
use crate::proxy::clusters;
use crate::running::Running;
use serde_json::{Value as Json, json};

pub async fn add(running: &Running, client: &Pod, answer: &mut Json) -> Result<()> {
    let pods = running.pods(Some(&client.id.namespace)).await?;
    let pod = pods.iter().find(|p| p["name"] == client.id.name);
    let pod = pod.ok_or_else(|| Error::new(format!("{} is gone", client.id.name), "ask again"))?;
    let text = running.sidecar(pod)?.get("/clusters").await?;
    let clusters = clusters::read(&text);
    let backends = answer["backends"].as_array().into_iter().flatten();
    let live = backends.filter_map(|backend| {
        let subset = backend["subset"].as_str().unwrap_or_default();
        let (service, namespace) = (backend["service"].as_str()?, backend["namespace"].as_str()?);
        let name = format!("outbound|{}|{subset}|{service}.{namespace}.svc.cluster.local", backend["port"]);
        let Some(found) = clusters.iter().find(|c| c.name == name) else {
            return Some(json!({"name": backend["name"], "held": false}));
        };
        let endpoints = found.endpoints.iter().map(|e| json!({"address": e.address, "state": e.state()}));
        Some(json!({
            "name": backend["name"], "held": true, "connections": found.figure("cx_active"), "requests": found.figure("rq_active"),
            "pending": found.figure("rq_pending_active"), "ejections": found.figure("outlier_ejections"),
            "endpoints": endpoints.collect::<Vec<_>>(),
        }))
    });
    answer["live"] = live.collect();
    Ok(())
}
