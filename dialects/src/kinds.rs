//! The kinds we read. Watches, admission, status and the support matrix go by this table.

use crate::builder::Builder;
use crate::object::{Object, field};
use crate::reader::Reader;
use crate::{gateway, istio, kubernetes, linkerd, native, smi};
use weft_policy::diag::Severity;
use weft_policy::doc::Value;

#[derive(Debug)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    pub kind: &'static str,
    pub versions: &'static [&'static str],
    pub translate: fn(&Reader<'_>, &mut Builder<'_>),
}

impl Kind {
    /// As in the paths of the API server and in RBAC rules.
    pub fn plural(&self) -> String {
        let lower = self.kind.to_ascii_lowercase();
        match lower.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None => format!("{lower}s"),
        }
    }

    /// Kubernetes' own; others are CustomResourceDefinitions, which come and go.
    pub fn is_built_in(&self) -> bool {
        ["", "apps", "batch", "discovery.k8s.io", "networking.k8s.io"].contains(&self.group)
    }

    pub fn is(&self, object: &Object) -> bool {
        self.kind == object.kind && self.group == object.group() && self.versions.contains(&object.version())
    }
}

const fn kind(
    group: &'static str,
    kind: &'static str,
    versions: &'static [&'static str],
    translate: fn(&Reader<'_>, &mut Builder<'_>),
) -> Kind {
    Kind { group, kind, versions, translate }
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const GATEWAY: &str = "gateway.networking.k8s.io";
/// Linkerd's copy of HTTPRoute is in its policies' group.
const LINKERD_POLICY: &str = "policy.linkerd.io";
const LINKERD_ROUTE: &[&str] = &["v1beta3", "v1beta2", "v1beta1", "v1alpha1"];
const HTTP_ROUTE: &[&str] = &["v1", "v1beta1", "v1alpha2"];
const SPLIT: &[&str] = &["v1alpha4", "v1alpha3", "v1alpha2", "v1alpha1"];
const ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];

/// In the order in which they are translated: what others refer to comes first. A kind may be here more than once.
pub const KINDS: &[Kind] = &[
    kind("", "Namespace", &["v1"], kubernetes::namespace::translate),
    kind("", "Node", &["v1"], kubernetes::node::translate),
    kind("networking.k8s.io", "ServiceCIDR", &["v1"], kubernetes::node::services),
    kind("", "Service", &["v1"], kubernetes::service::translate),
    kind("", "Pod", &["v1"], kubernetes::pod::translate),
    kind("discovery.k8s.io", "EndpointSlice", &["v1"], kubernetes::endpoint_slice::translate),
    kind("apps", "Deployment", &["v1"], kubernetes::workload::translate),
    kind("apps", "StatefulSet", &["v1"], kubernetes::workload::translate),
    kind("apps", "DaemonSet", &["v1"], kubernetes::workload::translate),
    kind("apps", "ReplicaSet", &["v1"], kubernetes::workload::translate),
    kind("batch", "Job", &["v1"], kubernetes::workload::translate),
    kind("batch", "CronJob", &["v1"], kubernetes::workload::translate),
    kind("", "Service", &["v1"], kubernetes::workload::check_targets),
    kind("", "ConfigMap", &["v1"], kubernetes::without_effect),
    kind("", "Secret", &["v1"], kubernetes::without_effect),
    kind("", "ServiceAccount", &["v1"], kubernetes::without_effect),
    kind(NETWORKING, "DestinationRule", ISTIO, istio::destination_rule::translate),
    kind(NETWORKING, "VirtualService", ISTIO, istio::virtual_service::translate),
    kind(GATEWAY, "ReferenceGrant", &["v1", "v1beta1", "v1alpha2"], gateway::reference_grant::translate),
    kind(GATEWAY, "HTTPRoute", HTTP_ROUTE, gateway::http_route::translate),
    kind(GATEWAY, "GRPCRoute", &["v1", "v1alpha2"], gateway::grpc_route::translate),
    kind(LINKERD_POLICY, "HTTPRoute", LINKERD_ROUTE, gateway::http_route::translate),
    kind("", "Namespace", &["v1"], linkerd::annotations::namespace),
    kind("", "Namespace", &["v1"], linkerd::inbound_policy::namespace),
    kind("", "Pod", &["v1"], linkerd::inbound_policy::pod),
    kind("", "Service", &["v1"], linkerd::annotations::service),
    kind(GATEWAY, "HTTPRoute", HTTP_ROUTE, linkerd::annotations::route),
    kind(GATEWAY, "GRPCRoute", &["v1", "v1alpha2"], linkerd::annotations::route),
    kind(LINKERD_POLICY, "HTTPRoute", LINKERD_ROUTE, linkerd::annotations::route),
    kind("linkerd.io", "ServiceProfile", &["v1alpha2"], linkerd::service_profile::translate),
    kind("specs.smi-spec.io", "HTTPRouteGroup", SPLIT, smi::http_route_group::translate),
    kind("split.smi-spec.io", "TrafficSplit", SPLIT, smi::traffic_split::translate),
    kind("weft.dev", "TrafficPolicy", &["v1alpha1"], native::traffic_policy::translate),
    kind(SECURITY, "PeerAuthentication", &["v1", "v1beta1"], istio::peer_authentication::translate),
];

/// Groups of meshes, of which we read nothing.
const UNREAD: &[&str] = &["access.smi-spec.io", "extensions.istio.io", "telemetry.istio.io"];

/// Whether what is in this group is there to configure a mesh; Kubernetes' own groups are for Kubernetes to judge.
pub fn is_of_meshes(group: &str) -> bool {
    UNREAD.contains(&group) || KINDS.iter().any(|k| k.group == group && !k.is_built_in())
}

/// Kinds that would keep somebody out, if we read them. Of Linkerd's policies all are taken for such.
fn would_restrict(group: &str, kind: &str) -> bool {
    match group {
        SECURITY => matches!(kind, "AuthorizationPolicy" | "RequestAuthentication"),
        "access.smi-spec.io" | LINKERD_POLICY => true,
        _ => false,
    }
}

/// What there is many of in a cluster, and what says nothing that changes the world: an application's own, or known from its pods.
const UNWATCHED: &[&str] = &["ConfigMap", "Secret", "ServiceAccount", "ReplicaSet", "Job", "CronJob"];

/// The kinds worth a watch of a cluster, each once.
pub fn watched() -> Vec<&'static Kind> {
    all().into_iter().filter(|k| !UNWATCHED.contains(&k.kind)).collect()
}

/// All kinds, each once.
pub fn all() -> Vec<&'static Kind> {
    let mut out: Vec<&Kind> = Vec::new();
    for kind in KINDS {
        if !out.iter().any(|k| (k.group, k.kind) == (kind.group, kind.kind)) {
            out.push(kind);
        }
    }
    out
}

/// What is not in the table is without effect, and whoever wrote it is told.
pub fn check(reader: &Reader<'_>) {
    let object = reader.object;
    let same = |k: &&Kind| k.kind == object.kind && k.group == object.group();
    let (message, hint) = match KINDS.iter().find(same) {
        Some(kind) if kind.versions.contains(&object.version()) => return,
        Some(kind) => {
            let served: Vec<String> = kind.versions.iter().map(|v| format!("{}/{v}", kind.group)).collect();
            let served = served.iter().map(|v| v.trim_start_matches('/')).collect::<Vec<_>>().join(", ");
            (format!("there is no {} of version {}", object.kind, object.version()), format!("one of {served}"))
        }
        None => {
            let mut message = format!("{} ({}) is not read and has no effect", object.kind, object.api_version);
            if would_restrict(object.group(), &object.kind) {
                message += ": nothing is enforced, and whoever it would turn away is let in";
            }
            (message, String::new())
        }
    };
    reader.finding(Severity::Warning, None, "apiVersion", &message, &hint);
    let Value::Map(items) = &reader.root().node.value else { return };
    for (name, ..) in items.iter().filter(|(name, ..)| !crate::reader::HEAD.contains(&name.as_str())) {
        if field(&object.node, name).is_some() {
            reader.root().ignore(name, &message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_meshes() {
        for group in ["networking.istio.io", "security.istio.io", "telemetry.istio.io", "linkerd.io", "weft.dev"] {
            assert!(is_of_meshes(group), "{group}");
        }
        for group in ["", "apps", "discovery.k8s.io", "example.org"] {
            assert!(!is_of_meshes(group), "{group}");
        }
    }

    #[test]
    fn kinds_to_watch() {
        let names: Vec<String> = watched().iter().map(|k| format!("{}.{}", k.plural(), k.group)).collect();
        for name in [
            "services.",
            "endpointslices.discovery.k8s.io",
            "httproutes.gateway.networking.k8s.io",
            "httproutes.policy.linkerd.io",
            "trafficpolicies.weft.dev",
        ] {
            assert_eq!(names.iter().filter(|n| *n == name).count(), 1, "{name} in {names:?}");
        }
        assert!(names.iter().all(|n| n != "secrets." && n != "configmaps."), "{names:?}");
    }
}
