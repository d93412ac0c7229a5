//! The chart, which is the only place where it is written what an install consists of.

use super::template;
use crate::error::{Error, Result};
use serde_json::Value;
use weft_policy::diag::Diags;
use weft_policy::yaml;

macro_rules! files {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../charts/weft/", $folder, "/", $name, ".yaml")))),*]
    };
}

type Files = &'static [(&'static str, &'static str)];

pub const VALUES: &str = include_str!("../../../charts/weft/values.yaml");
pub const PROFILES: Files = files!("profiles": "demo", "minimal", "ha");
pub const COMPAT: Files = files!("compat": "istio", "linkerd");

/// In the order in which they are applied: nobody is called before there is somebody to answer.
const TEMPLATES: Files =
    files!("templates": "namespace", "control-rbac", "injector-rbac", "control", "injector", "webhooks");

const CRDS: Files = files!("crds":
    "weft-trafficpolicies",
    "gateway-api-gatewayclasses", "gateway-api-gateways", "gateway-api-grpcroutes", "gateway-api-httproutes",
    "gateway-api-referencegrants",
    "istio-authorizationpolicies", "istio-destinationrules", "istio-envoyfilters", "istio-gateways",
    "istio-peerauthentications", "istio-requestauthentications", "istio-serviceentries", "istio-sidecars",
    "istio-telemetries", "istio-virtualservices",
    "linkerd-httproutes", "linkerd-serviceprofiles",
    "smi-httproutegroups", "smi-trafficsplits",
);

/// All but the CRDs.
pub fn objects(values: &Value) -> Result<Vec<Value>> {
    let mut out = Vec::new();
    for (name, text) in TEMPLATES {
        let text = template::render(text, values).map_err(|why| format!("the chart's {name}: {why}"))?;
        out.extend(documents(name, &text)?);
    }
    Ok(out)
}

pub fn crds() -> Result<Vec<Value>> {
    let mut out = Vec::new();
    for (name, text) in CRDS {
        out.extend(documents(name, text)?);
    }
    Ok(out)
}

fn documents(name: &str, text: &str) -> Result<Vec<Value>> {
    let mut diags = Diags::default();
    let nodes = yaml::documents(text, &mut diags).ok_or_else(|| {
        let why = diags.0.first().map(ToString::to_string).unwrap_or_default();
        Error::from(format!("the chart's {name}: {why}"))
    })?;
    Ok(nodes.iter().map(yaml::json).filter(|o| !o.is_null()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_file_of_the_chart_is_known() {
        for (folder, known) in [("templates", TEMPLATES), ("crds", CRDS), ("profiles", PROFILES), ("compat", COMPAT)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weft").join(folder);
            let there: BTreeSet<String> =
                std::fs::read_dir(path).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
            let known: BTreeSet<String> = known.iter().map(|(name, _)| format!("{name}.yaml")).collect();
            assert_eq!(there, known, "{folder}");
        }
    }

    #[test]
    fn crds_are_whole() {
        let crds = crds().unwrap();
        assert_eq!(crds.len(), CRDS.len());
        for crd in crds {
            let name = crd["metadata"]["name"].as_str().unwrap();
            let (plural, group) = (&crd["spec"]["names"]["plural"], &crd["spec"]["group"]);
            assert_eq!(name, format!("{}.{}", plural.as_str().unwrap(), group.as_str().unwrap()));
            let stored = crd["spec"]["versions"].as_array().unwrap().iter().filter(|v| v["storage"] == true);
            assert_eq!(stored.count(), 1, "{name}");
        }
    }

    /// Every kind that is read has its definition here, unless it is Kubernetes' own.
    #[test]
    fn every_kind_has_its_crd() {
        let crds = crds().unwrap();
        for kind in weft_dialects::kinds::KINDS {
            if !kind.group.contains('.') || kind.group.ends_with("discovery.k8s.io") {
                continue;
            }
            let own = crds.iter().find(|c| c["spec"]["group"] == kind.group && c["spec"]["names"]["kind"] == kind.kind);
            assert!(own.is_some(), "{} {}", kind.group, kind.kind);
        }
    }

    /// What the control plane may list in the whole cluster is what it watches, and no more.
    #[test]
    fn rights_follow_what_is_watched() {
        let objects = objects(&super::super::values::defaults().unwrap()).unwrap();
        let named = |o: &&Value| o["kind"] == "ClusterRole" && o["metadata"]["name"] == "weft-control";
        let rules = objects.iter().find(named).unwrap()["rules"].as_array().unwrap();
        let words = |v: &Value| -> Vec<String> {
            v.as_array().into_iter().flatten().map(|w| w.as_str().unwrap().to_string()).collect()
        };
        let mut may = BTreeSet::new();
        for rule in rules.iter().filter(|r| words(&r["verbs"]).contains(&"list".into()) && r["resourceNames"].is_null())
        {
            assert!(words(&rule["verbs"]).contains(&"watch".into()), "{rule}");
            may.extend(words(&rule["resources"]).into_iter().map(|r| format!("{r}.{}", words(&rule["apiGroups"])[0])));
        }
        let watched = weft_dialects::kinds::watched();
        let mut wanted: BTreeSet<String> = watched.iter().map(|k| format!("{}.{}", k.plural(), k.group)).collect();
        wanted.insert("customresourcedefinitions.apiextensions.k8s.io".into());
        assert_eq!(may, wanted);
    }

    #[test]
    fn all_of_it_has_the_label() {
        let objects = objects(&super::super::values::defaults().unwrap()).unwrap();
        assert!(objects.len() > 15);
        for object in objects {
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/part-of"], "weft", "{object}");
        }
    }
}
