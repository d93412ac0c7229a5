//! Of a mesh that is installed: does everything run, is it called, and is the CA good for some time yet.

use super::{Finding, State, settled};
use crate::error::Result;
use crate::install::server::{Kind, Server};
use crate::install::{CRD, DEPLOYMENT, NAMESPACE, chart, rolled_out};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use x509_parser::pem::Pem;

const MUTATING: Kind = Kind("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration");
const VALIDATING: Kind = Kind("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration");
const CONFIG_MAP: Kind = Kind("v1", "ConfigMap");
/// As long as a root should be good for when it is looked at.
const ROOT_DAYS: i64 = 30;

pub(super) async fn all(server: &Server) -> Vec<Finding> {
    let what = "the mesh is installed";
    match server.get(DEPLOYMENT, Some(NAMESPACE), "weft-control").await {
        Ok(Some(_)) => {}
        Ok(None) => {
            let found = vec![format!("there is no Deployment weft-control in {NAMESPACE}")];
            return vec![Finding::broken(what, found, "meshctl install")];
        }
        Err(error) => return vec![settled(what, Err(error))],
    }
    vec![
        Finding::well(what),
        settled("every kind is defined", kinds(server).await),
        settled("weft-control runs", runs(server, "weft-control").await),
        settled("weft-injector runs", runs(server, "weft-injector").await),
        settled("everything is of one version", versions(server).await),
        settled(INJECTS.0, bundle(server, MUTATING, "weft-injector", INJECTS).await),
        settled("a pod that asks for a sidecar gets one", injects(server).await),
        settled(ADVISES.0, bundle(server, VALIDATING, "weft-injector", ADVISES).await),
        settled(PROVES.0, bundle(server, VALIDATING, "weft-control", PROVES).await),
        settled("the CA is kept in a Secret", ca(server).await),
        settled("the root of trust is good for a while", root(server).await),
        settled("every namespace has the root", roots(server).await),
    ]
}

async fn kinds(server: &Server) -> Result<Finding> {
    let known = server.list(CRD, "", "").await?;
    let named = |crd: &Value| crd["metadata"]["name"].as_str().unwrap_or_default().to_string();
    let has = |crd: &Value| known.iter().any(|k| named(k) == named(crd));
    let missing = chart::crds()?.iter().filter(|crd| !has(crd)).map(named).collect();
    Ok(Finding::unless(missing, "every kind is defined", State::Broken, "meshctl install --crds"))
}

async fn runs(server: &Server, name: &str) -> Result<Finding> {
    let what = format!("{name} runs");
    let why = match server.get(DEPLOYMENT, Some(NAMESPACE), name).await? {
        None => vec![format!("there is no Deployment {name}")],
        Some(deployment) => rolled_out(&deployment).err().into_iter().collect(),
    };
    let hint = "kubectl -n weft-system get pods; kubectl -n weft-system describe pods; meshctl install";
    Ok(Finding::unless(why, &what, State::Broken, hint))
}

/// This program's, the control plane's and the injector's.
async fn versions(server: &Server) -> Result<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let mut found = Vec::new();
    for name in ["weft-control", "weft-injector"] {
        let Some(deployment) = server.get(DEPLOYMENT, Some(NAMESPACE), name).await? else { continue };
        let image =
            deployment.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str).unwrap_or_default();
        if image.rsplit(':').next() != Some(own) {
            found.push(format!("{name} is {image}"));
        }
    }
    let hint = "meshctl upgrade, or the meshctl of that version";
    Ok(Finding::unless(found, &format!("everything is of version {own}"), State::Doubtful, hint))
}

/// What is checked of a webhook, what it means if it is not there, how bad that is, and what helps.
type Webhook = (&'static str, &'static str, State, &'static str);

const INJECTS: Webhook =
    ("the API server knows weft-injector's certificate", "no pod gets a sidecar", State::Broken, "meshctl install");
const ADVISES: Webhook = (
    "the API server knows it where weft-injector only advises",
    "nobody who applies a Deployment is told what is wrong with its annotations",
    State::Doubtful,
    "meshctl install",
);
/// A minimal mesh has no admission.
const PROVES: Webhook = (
    "the API server knows weft-control's certificate",
    "nobody proves what is applied",
    State::Doubtful,
    "meshctl install with a profile other than minimal, or meshctl analyze -A now and then",
);

/// Without it the API server believes nobody at the webhook's address.
async fn bundle(server: &Server, kind: Kind, name: &str, (what, without, state, hint): Webhook) -> Result<Finding> {
    let Some(configuration) = server.get(kind, None, name).await? else {
        return Ok(Finding::unless(vec![format!("there is no {}: {without}", kind.1)], what, state, hint));
    };
    let hooks = configuration["webhooks"].as_array();
    let without =
        hooks.into_iter().flatten().filter(|w| w["clientConfig"]["caBundle"].as_str().is_none_or(str::is_empty));
    let found = without.map(|w| format!("{} has no caBundle", w["name"].as_str().unwrap_or_default())).collect();
    let hint = "it is its program's to fill in: kubectl -n weft-system logs deploy/weft-injector (or weft-control)";
    Ok(Finding::unless(found, what, State::Broken, hint))
}

async fn injects(server: &Server) -> Result<Finding> {
    let hint = "kubectl -n weft-system logs deploy/weft-injector; kubectl get mutatingwebhookconfigurations";
    let what = "a pod that asks for a sidecar gets one";
    Ok(Finding::unless(tried(server).await.err().into_iter().collect(), what, State::Broken, hint))
}

/// A pod that is only tried goes the way of all pods; why it has no sidecar.
pub async fn tried(server: &Server) -> std::result::Result<(), String> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "weft-check", "namespace": "default",
            "labels": {"weft.dev/inject": "true", "sidecar.istio.io/inject": "true"},
        },
        "spec": {"containers": [{"name": "app", "image": "weft/check:1"}]},
    });
    match server.apply(&pod, true).await {
        Ok(tried) if super::proxy::sidecar(&tried).is_some() => Ok(()),
        Ok(_) => Err("a pod was tried in namespace default, and none was put in".into()),
        Err(error) => Err(error.to_string()),
    }
}

async fn ca(server: &Server) -> Result<Finding> {
    let found = match server.get(Kind("v1", "Secret"), Some(NAMESPACE), "weft-ca").await? {
        Some(secret) if secret["data"]["ca.json"].is_string() => Vec::new(),
        Some(_) => vec!["Secret weft-ca has no ca.json".into()],
        None => vec!["there is no Secret weft-ca".into()],
    };
    let hint = "weft-control makes it when it starts: kubectl -n weft-system logs deploy/weft-control";
    Ok(Finding::unless(found, "the CA is kept in a Secret", State::Broken, hint))
}

async fn root(server: &Server) -> Result<Finding> {
    let what = "the root of trust is good for a while";
    let hint = "meshctl ca rotate, three times; docs/kubernetes.md says when";
    let map = server.get(CONFIG_MAP, Some(NAMESPACE), "weft-root").await?;
    let Some(pem) = map.as_ref().and_then(|m| m["data"]["root.pem"].as_str()) else {
        return Ok(Finding::broken(what, vec!["there is no root in ConfigMap weft-root".into()], hint));
    };
    let ends: Vec<i64> = Pem::iter_from_buffer(pem.as_bytes())
        .filter_map(|pem| Some(pem.ok()?.parse_x509().ok()?.validity().not_after.timestamp()))
        .collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0));
    Ok(match ends.iter().max().map(|end| (end - now) / 86_400) {
        None => Finding::broken(what, vec!["ConfigMap weft-root holds no certificate".into()], hint),
        Some(days) if days < 0 => Finding::broken(what, vec!["it has ended: no sidecar is believed".into()], hint),
        Some(days) if days < ROOT_DAYS => Finding::doubtful(what, vec![format!("it ends in {days} days")], hint),
        Some(days) => Finding::well(format!("{what}: {days} days")),
    })
}

/// Sidecars take it from their own namespace when they start.
async fn roots(server: &Server) -> Result<Finding> {
    let maps = server.list(CONFIG_MAP, "", "metadata.name=weft-root").await?;
    let pem = |m: &Value| m["data"]["root.pem"].clone();
    let own = maps.iter().find(|m| m["metadata"]["namespace"] == NAMESPACE).map(pem);
    let mut found = Vec::new();
    for namespace in server.list(Kind("v1", "Namespace"), "", "status.phase=Active").await? {
        let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
        match maps.iter().find(|m| m["metadata"]["namespace"] == name) {
            None => found.push(format!("{name} has no ConfigMap weft-root")),
            Some(map) if own.as_ref().is_some_and(|own| *own != pem(map)) => {
                found.push(format!("{name} has another root than {NAMESPACE}"));
            }
            Some(_) => {}
        }
    }
    let hint = "weft-control keeps them: kubectl -n weft-system logs deploy/weft-control";
    Ok(Finding::unless(found, "every namespace has the root", State::Broken, hint))
}
