//! Label sets: what a cell is about, in our words, Istio's and Linkerd's.
//!
//! No text that a client chooses gets here: names come from configuration, from certificates, and from the metadata of
//! peers whose certificate was verified, and those are held to the letters that names have.

use super::text::Labels;
use crate::telemetry::record::{Peer, Proto};
use http::Method;
use std::net::SocketAddr;
use std::sync::Arc;
use weft_policy::id::{BackendId, ServiceId, SpiffeId};
use weft_policy::listener::Role;
use weft_policy::meta::Workload;
use weft_policy::plan::ServicePlan;
use weft_policy::reason::{Flags, Reason};
use weft_policy::route::RoutePlan;

pub const UNKNOWN: &str = "unknown";
const NAME_BYTES: usize = 253;

/// One side of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Party {
    pub workload: Workload,
    pub identity: Option<Arc<str>>,
    /// Linkerd's labels name addresses; filled only where those are asked for.
    pub addr: Option<SocketAddr>,
}

impl Party {
    pub fn overflow() -> Self {
        let name: Arc<str> = "overflow".into();
        let workload = Workload { name: name.clone(), namespace: name.clone(), app: name, ..Workload::default() };
        Self { workload, ..Self::default() }
    }

    /// A client, as far as its certificate vouches for it.
    pub fn of_peer(peer: &Peer) -> Self {
        match &peer.identity {
            Some(proven) => Self::vouched(proven.spiffe.as_ref(), proven.dns.as_ref(), peer.workload.as_ref()),
            None => Self::default(),
        }
    }

    fn vouched(spiffe: Option<&SpiffeId>, dns: Option<&Arc<str>>, says: Option<&Workload>) -> Self {
        let mut workload = says.cloned().unwrap_or_default();
        for text in [
            &mut workload.name,
            &mut workload.namespace,
            &mut workload.app,
            &mut workload.version,
            &mut workload.cluster,
        ] {
            if text.len() > NAME_BYTES || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b)) {
                *text = UNKNOWN.into();
            }
        }
        // Which pod it was is for the log.
        workload.pod = Arc::default();
        if let Some((namespace, _)) = spiffe.and_then(SpiffeId::workload) {
            workload.namespace = namespace.into();
        }
        Self { workload, identity: spiffe.map(SpiffeId::shared).or_else(|| dns.cloned()), addr: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MethodClass {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Connect,
    Other,
}

impl MethodClass {
    pub fn of(method: &Method) -> Self {
        match method.as_str() {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            "CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Connect => "CONNECT",
            Self::Other => "other",
        }
    }
}

/// What a cell counts. Holds what its key points at, so that no pointer is used twice.
#[derive(Clone, Debug)]
pub struct Subject {
    pub role: Role,
    pub service: Option<Arc<ServicePlan>>,
    pub route: Option<Arc<RoutePlan>>,
    pub backend: Option<BackendId>,
    pub source: Arc<Party>,
    pub destination: Arc<Party>,
    pub port: u16,
    pub proto: Proto,
    pub method: MethodClass,
    pub status: u16,
    pub grpc: Option<u8>,
    pub flags: Flags,
    pub tls: bool,
    /// The only attempt's status: 0 is none at all, 1 is an attempt without an answer.
    pub attempt: u16,
}

pub fn is_inbound(role: Role) -> bool {
    matches!(role, Role::Inbound | Role::TcpIn)
}

fn known(text: &str) -> &str {
    if text.is_empty() { UNKNOWN } else { text }
}

impl Subject {
    fn direction(&self) -> &'static str {
        if is_inbound(self.role) { "inbound" } else { "outbound" }
    }

    /// An answer that says so, or one that broke off. A client that left is not the server's failure.
    pub fn failed(&self) -> bool {
        let broken = self.status < 400 && self.flags.reason.is_some_and(|r| r != Reason::ClientGone);
        self.answered_with_error() || broken
    }

    fn answered_with_error(&self) -> bool {
        self.status >= 500 || self.grpc.is_some_and(|g| matches!(g, 2 | 4 | 7 | 13 | 14 | 15))
    }

    pub fn service_id(&self) -> Option<&ServiceId> {
        self.backend.as_ref().map(|b| &b.service).or(self.service.as_ref().map(|s| &s.id))
    }

    fn service_name(&self) -> &str {
        self.service_id().map_or(UNKNOWN, |s| known(&s.name))
    }

    fn service_namespace(&self) -> &str {
        self.service_id().map_or(UNKNOWN, |s| known(&s.namespace))
    }

    fn service_host(&self) -> String {
        self.service_id().map_or_else(|| UNKNOWN.into(), |s| format!("{}.{}.svc.cluster.local", s.name, s.namespace))
    }

    fn backend_text(&self) -> String {
        self.backend.as_ref().map_or_else(|| UNKNOWN.into(), BackendId::to_string)
    }

    fn route_name(&self) -> &str {
        self.route.as_ref().map_or("none", |r| known(&r.name))
    }

    fn tls_word(&self) -> &'static str {
        if self.tls { "mutual_tls" } else { "none" }
    }

    /// Who asked whom: what every series of ours begins with.
    fn edge(&self) -> Labels {
        let (from, to) = (&self.source, &self.destination);
        let mut l = Labels::default();
        l.push("direction", self.direction());
        l.push("role", self.role.word());
        l.push("source_workload", known(&from.workload.name));
        l.push("source_namespace", known(&from.workload.namespace));
        l.push("destination_service", self.service_name());
        l.push("destination_namespace", self.service_namespace());
        l.push("destination_workload", known(&to.workload.name));
        l.push("backend", &self.backend_text());
        l
    }

    pub fn weft_request(&self) -> Labels {
        let mut l = self.edge();
        l.push("source_identity", self.source.identity.as_deref().unwrap_or(UNKNOWN));
        l.push("destination_identity", self.destination.identity.as_deref().unwrap_or(UNKNOWN));
        l.push("route", self.route_name());
        l.push("method", self.method.word());
        l.push_display("status", self.status);
        l.push("grpc_status", &self.grpc.map(|g| g.to_string()).unwrap_or_default());
        l.push_display("flags", self.flags);
        l.push("reason", self.flags.reason.map_or("none", |r| r.word()));
        l.push("protocol", self.proto.word());
        l.push("tls", self.tls_word());
        l
    }

    /// Every bucket is a series, so these have fewer labels.
    pub fn weft_duration(&self) -> Labels {
        let mut l = self.edge();
        l.push("route", self.route_name());
        let class = match self.status {
            100..=599 => ["1xx", "2xx", "3xx", "4xx", "5xx"][usize::from(self.status / 100 - 1)],
            _ => "none",
        };
        l.push("status_class", class);
        l
    }

    pub fn weft_attempt(&self, status: u16) -> Labels {
        let mut l = self.edge();
        match status {
            0 | 1 => l.push("status", "none"),
            status => l.push_display("status", status),
        }
        l.push("tls", self.tls_word());
        l
    }

    pub fn weft_retry(&self, result: &str) -> Labels {
        let mut l = self.edge();
        l.push("route", self.route_name());
        l.push("result", result);
        l
    }

    pub fn weft_tcp(&self) -> Labels {
        let mut l = self.edge();
        l.push("source_identity", self.source.identity.as_deref().unwrap_or(UNKNOWN));
        l.push("destination_identity", self.destination.identity.as_deref().unwrap_or(UNKNOWN));
        l.push_display("flags", self.flags);
        l.push("reason", self.flags.reason.map_or("none", |r| r.word()));
        l.push("tls", self.tls_word());
        l
    }

    /// Istio's label set, in its order.
    pub fn istio(&self) -> Labels {
        let (from, to) = (&self.source, &self.destination);
        let mut l = Labels::default();
        let inbound = is_inbound(self.role);
        l.push("reporter", if inbound { "destination" } else { "source" });
        l.push("source_workload", known(&from.workload.name));
        l.push("source_canonical_service", known(&from.workload.app));
        l.push(
            "source_canonical_revision",
            if from.workload.version.is_empty() { "latest" } else { &from.workload.version },
        );
        l.push("source_workload_namespace", known(&from.workload.namespace));
        l.push("source_principal", from.identity.as_deref().unwrap_or(UNKNOWN));
        l.push("source_app", known(&from.workload.app));
        l.push("source_version", known(&from.workload.version));
        l.push("source_cluster", known(&from.workload.cluster));
        l.push("destination_workload", known(&to.workload.name));
        l.push("destination_workload_namespace", known(&to.workload.namespace));
        l.push("destination_principal", to.identity.as_deref().unwrap_or(UNKNOWN));
        l.push("destination_app", known(&to.workload.app));
        l.push("destination_version", known(&to.workload.version));
        l.push("destination_service", &self.service_host());
        l.push("destination_canonical_service", known(&to.workload.app));
        l.push(
            "destination_canonical_revision",
            if to.workload.version.is_empty() { "latest" } else { &to.workload.version },
        );
        l.push("destination_service_name", self.service_name());
        l.push("destination_service_namespace", self.service_namespace());
        l.push("destination_cluster", known(&to.workload.cluster));
        let protocol = match self.proto {
            Proto::Grpc => "grpc",
            Proto::Tcp => "tcp",
            Proto::Http1 | Proto::Http2 => "http",
        };
        l.push("request_protocol", protocol);
        if self.proto != Proto::Tcp {
            l.push_display("response_code", self.status);
            l.push("grpc_response_status", &self.grpc.map(|g| g.to_string()).unwrap_or_default());
        }
        l.push_display("response_flags", self.flags);
        // As in Istio: only the server's side vouches for it.
        l.push("connection_security_policy", if inbound { self.tls_word() } else { UNKNOWN });
        l
    }

    /// What all of Linkerd's series have.
    fn linkerd(&self) -> Labels {
        let inbound = is_inbound(self.role);
        let mut l = Labels::default();
        l.push("direction", self.direction());
        match self.destination.addr {
            Some(addr) => {
                let addr = if inbound { SocketAddr::new(addr.ip(), self.port) } else { addr };
                l.push_display("target_addr", addr);
                l.push_display("target_ip", addr.ip());
                l.push_display("target_port", addr.port());
            }
            None => {
                for name in ["target_addr", "target_ip", "target_port"] {
                    l.push(name, "");
                }
            }
        }
        l.push("tls", if self.tls { "true" } else { "no_identity" });
        let far = if inbound { &self.source } else { &self.destination };
        let id = if self.tls { far.identity.as_deref().unwrap_or("") } else { "" };
        l.push(if inbound { "client_id" } else { "server_id" }, id);
        if inbound {
            for (name, value) in [("srv_group", ""), ("srv_kind", "default"), ("srv_name", "all-unauthenticated")] {
                l.push(name, value);
            }
            l.push_display("srv_port", self.port);
        } else {
            let to = &self.destination.workload;
            l.push("dst_namespace", &to.namespace);
            l.push("dst_deployment", &to.name);
            l.push("dst_pod", &to.pod);
            l.push("dst_service", self.service_name());
            l.push("authority", &self.service_host());
        }
        if !self.tls {
            l.push("no_tls_reason", if inbound { "no_tls_from_remote" } else { "not_provided_by_service_discovery" });
        }
        l
    }

    fn linkerd_route(&self, l: &mut Labels) {
        if is_inbound(self.role) {
            for (name, value) in [("route_group", ""), ("route_kind", "default"), ("route_name", "default")] {
                l.push(name, value);
            }
        }
    }

    pub fn linkerd_request(&self) -> Labels {
        let mut l = self.linkerd();
        self.linkerd_route(&mut l);
        l
    }

    pub fn linkerd_latency(&self) -> Labels {
        let mut l = self.linkerd_request();
        l.push_display("status_code", self.status);
        l
    }

    pub fn linkerd_response(&self) -> Labels {
        let mut l = self.linkerd_latency();
        l.push("classification", if self.answered_with_error() { "failure" } else { "success" });
        l.push("grpc_status", &self.grpc.map(|g| g.to_string()).unwrap_or_default());
        l.push("error", self.flags.reason.map_or("", |r| r.word()));
        l
    }

    pub fn linkerd_tcp(&self) -> Labels {
        let mut l = Labels::default().with("peer", if is_inbound(self.role) { "src" } else { "dst" });
        let rest = self.linkerd();
        l.append(&rest);
        l
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_wins_and_names_are_names() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/demo/sa/web").unwrap();
        let says = Workload {
            name: "web-v1".into(),
            namespace: "kube-system".into(),
            app: "a\"} 1\nevil".into(),
            version: "x".repeat(300).into(),
            pod: "web-v1-123".into(),
            cluster: "\u{202e}".into(),
        };
        let party = Party::vouched(Some(&id), None, Some(&says));
        assert_eq!(&*party.workload.namespace, "demo");
        assert_eq!(&*party.workload.name, "web-v1");
        for text in [&party.workload.app, &party.workload.version, &party.workload.cluster] {
            assert_eq!(&**text, UNKNOWN);
        }
        assert_eq!(&*party.workload.pod, "");
        assert_eq!(party.identity.as_deref(), Some(id.as_str()));
        assert_eq!(Party::vouched(None, Some(&"a.b".into()), None).identity.as_deref(), Some("a.b"));
    }
}
