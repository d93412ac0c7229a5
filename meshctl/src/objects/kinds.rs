//! What kinds are called on a command line: as kubectl calls them.

use weft_dialects::Object;
use weft_dialects::kinds::KINDS;

struct Names {
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
}

const fn names(kind: &'static str, plural: &'static str, short: &'static [&'static str]) -> Names {
    Names { kind, plural, short }
}

const NAMES: &[Names] = &[
    names("Namespace", "namespaces", &["ns"]),
    names("Service", "services", &["svc"]),
    names("Pod", "pods", &["po"]),
    names("Node", "nodes", &["no"]),
    names("ServiceCIDR", "servicecidrs", &[]),
    names("EndpointSlice", "endpointslices", &[]),
    names("Deployment", "deployments", &["deploy"]),
    names("StatefulSet", "statefulsets", &["sts"]),
    names("DaemonSet", "daemonsets", &["ds"]),
    names("ReplicaSet", "replicasets", &["rs"]),
    names("Job", "jobs", &[]),
    names("CronJob", "cronjobs", &["cj"]),
    names("ConfigMap", "configmaps", &["cm"]),
    names("Secret", "secrets", &[]),
    names("ServiceAccount", "serviceaccounts", &["sa"]),
    names("DestinationRule", "destinationrules", &["dr"]),
    names("VirtualService", "virtualservices", &["vs"]),
    names("ReferenceGrant", "referencegrants", &["refgrant"]),
    names("HTTPRoute", "httproutes", &[]),
    names("GRPCRoute", "grpcroutes", &[]),
    names("ServiceProfile", "serviceprofiles", &["sp"]),
    names("HTTPRouteGroup", "httproutegroups", &["htrg"]),
    names("TrafficSplit", "trafficsplits", &["ts"]),
    names("TrafficPolicy", "trafficpolicies", &["tp"]),
    names("PeerAuthentication", "peerauthentications", &["pa"]),
];

/// A kind as somebody typed it: `vs`, `virtualservices`, `virtualservice.networking.istio.io`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// In lower case. Empty: all kinds.
    kind: String,
    /// Empty: of any.
    group: String,
}

impl Wanted {
    pub fn new(typed: &str) -> Self {
        let typed = typed.to_ascii_lowercase();
        let (word, group) = typed.split_once('.').unwrap_or((&typed, ""));
        // `deployment.v1.apps`, too.
        let group = match group.split_once('.') {
            Some((version, rest)) if is_version(version) => rest,
            _ => group,
        };
        let named =
            NAMES.iter().find(|n| n.kind.eq_ignore_ascii_case(word) || n.plural == word || n.short.contains(&word));
        let kind = match (named, word) {
            (_, "all") => String::new(),
            (Some(named), _) => named.kind.to_ascii_lowercase(),
            (None, word) => word.to_string(),
        };
        Self { kind, group: group.to_string() }
    }

    pub fn is(&self, object: &Object) -> bool {
        self.fits(object.group(), &object.kind)
    }

    pub fn of(object: &Object) -> Self {
        Self { kind: object.kind.to_ascii_lowercase(), group: object.group().into() }
    }

    pub fn is_all(&self) -> bool {
        self.kind.is_empty()
    }

    pub fn fits(&self, group: &str, kind: &str) -> bool {
        let kind = kind.to_ascii_lowercase();
        let group = self.group.is_empty() || group == self.group;
        // What nobody here knows is found by its own name, with or without an s.
        group && (self.kind.is_empty() || kind == self.kind || self.kind.strip_suffix('s') == Some(&*kind))
    }

    /// Whether there is such a kind at all, as far as is known here.
    pub fn is_known(&self) -> bool {
        self.kind.is_empty() || KINDS.iter().any(|k| k.kind.eq_ignore_ascii_case(&self.kind))
    }

    /// What else could have been meant.
    pub fn hint(&self) -> String {
        let all = NAMES.iter().flat_map(|n| [n.plural].into_iter().chain(n.short.iter().copied()));
        match weft_policy::doc::nearest(&self.kind, all) {
            Some(near) => format!("did you mean {near}?"),
            None => "a kind such as svc, deploy, vs, dr, httproute, ts, sp; or all".into(),
        }
    }
}

fn is_version(word: &str) -> bool {
    word.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_names() {
        for kind in KINDS {
            assert!(NAMES.iter().any(|n| n.kind == kind.kind), "{} cannot be typed", kind.kind);
        }
        for names in NAMES {
            let own = Wanted::new(names.kind);
            assert!(own.is_known(), "{}", names.kind);
            for word in names.short.iter().chain([&names.plural]) {
                assert_eq!(Wanted::new(word), own, "{word}");
                let others = NAMES.iter().filter(|n| n.kind != names.kind);
                assert_eq!(others.filter(|n| n.plural == *word || n.short.contains(word)).count(), 0, "{word}");
            }
        }
        assert_eq!(Wanted::new("VS.networking.istio.io").group, "networking.istio.io");
        assert_eq!(Wanted::new("deployments.v1.apps"), Wanted::new("deploy.apps"));
        assert!(!Wanted::new("servcies").is_known() && Wanted::new("servcies").hint().contains("services"));
    }
}
