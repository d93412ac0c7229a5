//! Of the pods: which should have a sidecar and have none, which have one of before, and which sidecars are not ready.

use super::{Finding, State, settled};
use crate::error::Result;
use crate::install::NAMESPACE;
use crate::install::server::{Kind, Server};
use crate::install::values;
use serde_json::Value;
use std::collections::BTreeMap;
use weft_injector::{Dialect, Namespace, Outcome, Request, Settings};

pub async fn all(server: &Server, only: Option<&str>) -> Vec<Finding> {
    findings(server, only).await.unwrap_or_else(|error| vec![settled("pods are looked at", Err(error))])
}

async fn findings(server: &Server, only: Option<&str>) -> Result<Vec<Finding>> {
    let map = server.get(Kind("v1", "ConfigMap"), Some(NAMESPACE), "weft-injector").await?;
    let text = map.as_ref().and_then(|m| m["data"]["settings.yaml"].as_str()).unwrap_or_default();
    let settings = match values::settings(text) {
        Ok(settings) => settings,
        Err(error) => {
            let found = vec![error.to_string()];
            return Ok(vec![Finding::broken("the injector's settings are there", found, "meshctl install")]);
        }
    };
    let fields = only.map(|namespace| format!("metadata.namespace={namespace}")).unwrap_or_default();
    let pods = server.list(Kind("v1", "Pod"), "", &fields).await?;
    let pods: Vec<Value> = pods.into_iter().filter(is_live).collect();
    let namespaces = server.list(Kind("v1", "Namespace"), "", "").await?;
    let namespaces: BTreeMap<String, Namespace> =
        namespaces.iter().map(namespace).map(|n| (n.name.clone(), n)).collect();
    Ok(vec![some(&pods), without(&pods, &namespaces, &settings), outdated(&pods, &settings), unready(&pods)])
}

/// What has ended needs no sidecar any more.
fn is_live(pod: &Value) -> bool {
    !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
        && pod["metadata"]["deletionTimestamp"].is_null()
}

fn namespace(object: &Value) -> Namespace {
    let texts = |field: &str| {
        let items = object["metadata"][field].as_object().into_iter().flatten();
        items.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect()
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_string();
    Namespace { name, labels: texts("labels"), annotations: texts("annotations") }
}

/// Its container, as it is in the pod's spec.
pub fn sidecar(pod: &Value) -> Option<&Value> {
    let names = [Dialect::Weft, Dialect::Istio, Dialect::Linkerd].map(Dialect::container);
    if pod["metadata"]["annotations"]["weft.dev/sidecar"] != "true" {
        return None;
    }
    let all = ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array()).flatten();
    all.into_iter().find(|c| c["name"].as_str().is_some_and(|name| names.contains(&name)))
}

fn shown(pod: &Value) -> String {
    let meta = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", meta("namespace"), meta("name"))
}

fn some(pods: &[Value]) -> Finding {
    let count = pods.iter().filter(|p| sidecar(p).is_some()).count();
    match count {
        0 => Finding::doubtful(
            "pods have sidecars",
            vec!["none has one yet".into()],
            "kubectl label namespace NAME istio-injection=enabled, then kubectl rollout restart deployment -n NAME",
        ),
        n => Finding::well(format!("{n} of {} pods have sidecars", pods.len())),
    }
}

/// Made before its namespace asked for it, or while the injector was away: the webhook would put one in now.
fn without(pods: &[Value], namespaces: &BTreeMap<String, Namespace>, settings: &Settings) -> Finding {
    let mut found = Vec::new();
    for pod in pods.iter().filter(|p| sidecar(p).is_none()) {
        let Some(namespace) = pod["metadata"]["namespace"].as_str().and_then(|n| namespaces.get(n)) else { continue };
        match weft_injector::inject(settings, &Request { object: pod, namespace, asked: None }).map(|v| v.outcome) {
            Some(Outcome::Injected(new)) => found.push(format!("{}: {}", shown(pod), new.why)),
            Some(Outcome::Refused(why)) => found.push(format!("{}: {why}", shown(pod))),
            Some(Outcome::Skipped(_)) | None => {}
        }
    }
    let hint = "kubectl rollout restart deployment -n NAMESPACE makes pods anew, with a sidecar";
    Finding::unless(found, "every pod that should have a sidecar has one", State::Broken, hint)
}

fn outdated(pods: &[Value], settings: &Settings) -> Finding {
    let old = |pod: &&Value| sidecar(pod).is_some_and(|c| c["image"] != settings.image.as_str());
    let line = |pod: &Value| {
        let image = sidecar(pod).and_then(|c| c["image"].as_str()).unwrap_or_default();
        format!("{} has {image}", shown(pod))
    };
    let found = pods.iter().filter(old).map(line).collect();
    let hint = "kubectl rollout restart deployment -n NAMESPACE gives them the installed one";
    Finding::unless(found, &format!("every sidecar is {}", settings.image), State::Doubtful, hint)
}

fn unready(pods: &[Value]) -> Finding {
    let mut found = Vec::new();
    for pod in pods {
        let Some(name) = sidecar(pod).and_then(|c| c["name"].as_str()) else { continue };
        let all = ["initContainerStatuses", "containerStatuses"].into_iter();
        let own = all.filter_map(|list| pod["status"][list].as_array()).flatten().find(|s| s["name"] == name);
        if own.is_none_or(|status| status["ready"] != true) {
            found.push(shown(pod));
        }
    }
    let hint = "kubectl describe pod NAME says why; kubectl logs NAME -c istio-proxy (or weft-proxy, linkerd-proxy)";
    Finding::unless(found, "every sidecar is ready", State::Broken, hint)
}
