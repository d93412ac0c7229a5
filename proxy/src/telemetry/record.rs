//! What one request or connection leaves behind. Everything that reports (metrics, access log, spans, tap) reads this.

use crate::telemetry::trace::Trace;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, StatusCode};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use weft_policy::endpoint::Endpoint;
use weft_policy::id::BackendId;
use weft_policy::listener::Role;
use weft_policy::meta::Workload;
use weft_policy::reason::Flags;
use weft_policy::route::RoutePlan;
use weft_tls::PeerIdentity;

/// The other end of a client's connection, interned once per connection.
#[derive(Debug)]
pub struct Peer {
    pub addr: SocketAddr,
    /// Proven by its certificate.
    pub identity: Option<Arc<PeerIdentity>>,
    /// What it says of itself; the certificate wins.
    pub workload: Option<Workload>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proto {
    Http1,
    Http2,
    Grpc,
    Tcp,
}

impl Proto {
    pub fn word(self) -> &'static str {
        match self {
            Proto::Http1 => "http/1.1",
            Proto::Http2 => "http/2",
            Proto::Grpc => "grpc",
            Proto::Tcp => "tcp",
        }
    }
}

/// One attempt at an endpoint, for the access log, attempt counters and client spans.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub endpoint: Arc<Endpoint>,
    pub started: Instant,
    pub ended: Instant,
    pub status: Option<StatusCode>,
    pub span: [u8; 8],
    pub tls: bool,
}

/// A request from its first byte to its last. Filled on the way, reported once, also when it is aborted.
#[derive(Debug)]
pub struct Record {
    pub role: Role,
    pub listener: Arc<str>,
    pub peer: Arc<Peer>,
    pub destination: SocketAddr,
    pub proto: Proto,
    pub method: Method,
    /// For logs and spans only: a client chooses it, so it never is a label.
    pub authority: Option<Authority>,
    /// As the client sent it.
    pub path: PathAndQuery,
    pub request_id: Option<HeaderValue>,
    pub user_agent: Option<HeaderValue>,
    pub trace: Trace,
    pub service: Option<Arc<weft_policy::plan::ServicePlan>>,
    pub route: Option<Arc<RoutePlan>>,
    pub backend: Option<BackendId>,
    pub attempts: smallvec::SmallVec<[Attempt; 1]>,
    pub started: Instant,
    /// When the response head went out.
    pub head_sent: Option<Instant>,
    pub status: StatusCode,
    pub grpc_status: Option<u8>,
    pub flags: Flags,
    /// Why a retry that was wanted did not happen, or a like remark.
    pub note: Option<&'static str>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub upgraded: bool,
}

impl Record {
    /// Texts of the client's; empty where there is none, or where it is not text.
    pub fn authority(&self) -> &str {
        self.authority.as_ref().map_or("", Authority::as_str)
    }

    pub fn request_id(&self) -> &str {
        text(&self.request_id)
    }

    pub fn user_agent(&self) -> &str {
        text(&self.user_agent)
    }
}

fn text(value: &Option<HeaderValue>) -> &str {
    value.as_ref().and_then(|v| std::str::from_utf8(v.as_bytes()).ok()).unwrap_or("")
}

/// An opaque connection, reported when it opens, now and then, and when it closes.
#[derive(Debug)]
pub struct TcpRecord {
    pub role: Role,
    pub listener: Arc<str>,
    pub peer: Arc<Peer>,
    pub destination: SocketAddr,
    pub backend: Option<BackendId>,
    pub endpoint: Option<Arc<Endpoint>>,
    pub tls_upstream: bool,
    pub server_name: Option<String>,
    pub started: Instant,
    pub sent: Cell<u64>,
    pub received: Cell<u64>,
    /// What of `sent` and `received` the counters have already; the recorder's own.
    pub counted: Cell<(u64, u64)>,
    pub flags: Flags,
}
