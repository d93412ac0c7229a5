//! Before an install: whether the cluster is reached and new enough, and whether whoever asks may do what an install does.

use super::{Finding, State, settled};
use crate::error::Result;
use crate::install::server::{Kind, Server};
use crate::install::{CRD, LABEL, chart};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Since 1.28 there are native sidecars, which are on since 1.29.
const OLDEST: (u32, u32) = (1, 28);
const NATIVE: (u32, u32) = (1, 29);

/// The only thing that both who installs and who has installed asks first.
pub async fn cluster(server: &Server) -> Vec<Finding> {
    match server.version().await {
        Err(error) => {
            let hint = "kubectl cluster-info; --kubeconfig FILE and --context NAME say which cluster";
            vec![Finding::broken("the API server answers", vec![error.to_string()], hint)]
        }
        Ok(version) => vec![Finding::well("the API server answers"), new_enough(version)],
    }
}

fn new_enough(version: (u32, u32)) -> Finding {
    let what = format!("Kubernetes is {}.{}", version.0, version.1);
    if version < OLDEST {
        return Finding::broken(what, vec![], "at least 1.28; 1.29 has native sidecars");
    }
    match version < NATIVE {
        true => Finding::doubtful(
            what,
            vec!["native sidecars are off before 1.29".into()],
            "meshctl install --set sidecar.mode=classic",
        ),
        false => Finding::well(what),
    }
}

pub async fn install(server: &Server) -> Vec<Finding> {
    vec![
        settled("you may create what an install creates", rights(server).await),
        settled("nodes run Linux", nodes(server).await),
        settled("no other mesh injects sidecars", other_meshes(server).await),
        settled("kinds that are there already are of versions that are read", kinds(server).await),
        settled("no namespace's pod security keeps sidecars out", restricted(server).await),
        settled("no quota counts sidecars", quotas(server).await),
    ]
}

/// Whether whoever asks may make each kind of thing that an install makes.
async fn rights(server: &Server) -> Result<Finding> {
    let values = crate::install::values::defaults()?;
    let mut wanted: BTreeSet<(String, String, Option<String>)> = BTreeSet::new();
    for object in chart::objects(&values)?.iter().chain(&chart::crds()?[..1]) {
        let group = object["apiVersion"].as_str().and_then(|v| v.split_once('/')).map_or("", |(group, _)| group);
        let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
        let namespace = object["metadata"]["namespace"].as_str().map(ToString::to_string);
        wanted.insert((group.into(), format!("{kind}s"), namespace));
    }
    let mut missing = Vec::new();
    for (group, resource, namespace) in wanted {
        for verb in ["create", "patch"] {
            let mut of = json!({"verb": verb, "group": group, "resource": resource});
            if let Some(namespace) = &namespace {
                of["namespace"] = namespace.as_str().into();
            }
            let question = json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {},
                "spec": {"resourceAttributes": of},
            });
            if server.ask(&question).await?["status"]["allowed"] != true {
                missing.push(format!(
                    "{verb} {resource}{}",
                    if group.is_empty() { String::new() } else { format!(".{group}") }
                ));
            }
        }
    }
    let hint = "an install wants cluster-admin: kubectl create clusterrolebinding, by somebody who is";
    Ok(Finding::unless(missing, "you may create what an install creates", State::Broken, hint))
}

async fn nodes(server: &Server) -> Result<Finding> {
    let nodes = server.list(Kind("v1", "Node"), "", "").await?;
    let (mut linux, mut odd) = (0, Vec::new());
    for node in &nodes {
        let info = &node["status"]["nodeInfo"];
        match (info["operatingSystem"].as_str(), info["architecture"].as_str()) {
            (Some("linux"), Some("amd64" | "arm64")) => linux += 1,
            (system, machine) => odd.push(format!(
                "{}: {} on {}",
                node["metadata"]["name"].as_str().unwrap_or_default(),
                system.unwrap_or("unknown"),
                machine.unwrap_or("unknown")
            )),
        }
    }
    let state = if linux == 0 { State::Broken } else { State::Doubtful };
    Ok(Finding::unless(
        odd,
        "nodes run Linux",
        state,
        "pods on other nodes get no sidecar: keep meshed ones away with nodeSelector",
    ))
}

/// Two meshes that inject into the same pods break them.
async fn other_meshes(server: &Server) -> Result<Finding> {
    let mut found = Vec::new();
    for webhook in server.list(Kind("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"), "", "").await? {
        let name = webhook["metadata"]["name"].as_str().unwrap_or_default();
        let others =
            ["istio-sidecar-injector", "istio-revision-tag", "linkerd-proxy-injector", "consul-connect-injector"];
        if let Some(other) = others.iter().find(|other| name.starts_with(**other)) {
            found.push(format!("{name}: {}", other.split('-').next().unwrap_or_default()));
        }
    }
    let hint = "pods take the sidecar of whoever is first: uninstall the other, or give each its own namespaces";
    Ok(Finding::unless(found, "no other mesh injects sidecars", State::Doubtful, hint))
}

/// What others have defined stays as it is, and may lack what is needed.
async fn kinds(server: &Server) -> Result<Finding> {
    let known = server.list(CRD, "", "").await?;
    let mut found = Vec::new();
    for crd in chart::crds()? {
        let Some(there) = known.iter().find(|c| c["metadata"]["name"] == crd["metadata"]["name"]) else { continue };
        if there["metadata"]["labels"][LABEL] == "weft" {
            continue;
        }
        let served = |c: &Value| -> BTreeSet<String> {
            let versions = c["spec"]["versions"].as_array();
            let served = versions.into_iter().flatten().filter(|v| v["served"] == true);
            served.filter_map(|v| v["name"].as_str().map(ToString::to_string)).collect()
        };
        let (ours, theirs) = (served(&crd), served(there));
        if ours.is_disjoint(&theirs) {
            let list = |s: &BTreeSet<String>| s.iter().cloned().collect::<Vec<_>>().join(", ");
            let name = there["metadata"]["name"].as_str().unwrap_or_default();
            found.push(format!("{name} serves {}, and not {}", list(&theirs), list(&ours)));
        }
    }
    let hint = "kubectl get crd NAME -o yaml: the definition is of another release; upgrade it";
    Ok(Finding::unless(found, "kinds that are there already are of versions that are read", State::Doubtful, hint))
}

/// The container that sets the redirection has NET_ADMIN, which these levels refuse.
async fn restricted(server: &Server) -> Result<Finding> {
    let mut found = Vec::new();
    for namespace in server.list(Kind("v1", "Namespace"), "", "").await? {
        let meta = &namespace["metadata"];
        let level = meta["labels"]["pod-security.kubernetes.io/enforce"].as_str().unwrap_or("privileged");
        if level != "privileged" && meta["labels"]["weft.dev/control-plane"] != "true" {
            found.push(format!("{} enforces {level}", meta["name"].as_str().unwrap_or_default()));
        }
    }
    let hint = "no pod with a sidecar starts there: its init container needs NET_ADMIN";
    Ok(Finding::unless(found, "no namespace's pod security keeps sidecars out", State::Doubtful, hint))
}

async fn quotas(server: &Server) -> Result<Finding> {
    let mut found = Vec::new();
    for quota in server.list(Kind("v1", "ResourceQuota"), "", "").await? {
        let hard = quota["spec"]["hard"].as_object();
        let counts = |k: &&String| ["cpu", "memory", "requests.", "limits."].iter().any(|w| k.starts_with(w));
        if hard.is_some_and(|h| h.keys().any(|k| counts(&k))) {
            let meta = |f: &str| quota["metadata"][f].as_str().unwrap_or_default();
            found.push(format!("{}/{}", meta("namespace"), meta("name")));
        }
    }
    let hint = "sidecars count too: 50m CPU and 32Mi each (sidecar.resources); make room before a rollout";
    Ok(Finding::unless(found, "no quota counts sidecars", State::Doubtful, hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(new_enough((1, 27)).state, State::Broken);
        assert_eq!(new_enough((1, 28)).state, State::Doubtful);
        assert_eq!(new_enough((1, 34)).state, State::Well);
    }
}
