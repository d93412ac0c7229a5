//! What the proxy listens on, and what it does with a connection before any request is read.

use crate::doc::Cursor;
use crate::mtls::InboundConfig;
use crate::route::BackendRef;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// One plaintext hop in front of a service: no mesh on either side unless the backend asks for it.
    Hop,
    /// The app's outbound traffic: found by the address dialled or by Host.
    Outbound,
    /// The mesh's traffic to this pod's app.
    Inbound,
    /// Opaque TCP, outbound and inbound.
    TcpOut,
    TcpIn,
}

impl Role {
    pub fn word(self) -> &'static str {
        match self {
            Role::Hop => "hop",
            Role::Outbound => "outbound",
            Role::Inbound => "inbound",
            Role::TcpOut => "tcp-out",
            Role::TcpIn => "tcp-in",
        }
    }

    pub fn is_inbound(self) -> bool {
        matches!(self, Role::Inbound | Role::TcpIn)
    }

    pub fn is_tcp(self) -> bool {
        matches!(self, Role::TcpOut | Role::TcpIn)
    }
}

/// What travels on a port, as declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum Protocol {
    /// Not declared: learned from earlier connections to the same destination, else sniffed.
    #[default]
    Detect,
    /// HTTP of either version, told apart by the HTTP/2 preface.
    Http,
    Http1,
    /// HTTP/2 with prior knowledge; gRPC.
    Http2,
    /// Bytes; also what server-first protocols need.
    Opaque,
    /// TLS that is passed on, routed by server name.
    Tls,
}

impl Protocol {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.word(&[
            ("detect", Self::Detect),
            ("http", Self::Http),
            ("http1", Self::Http1),
            ("http2", Self::Http2),
            ("grpc", Self::Http2),
            ("tcp", Self::Opaque),
            ("tls", Self::Tls),
        ])
    }
}

/// Destinations nobody configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Unknown {
    /// Passed to where the app dialled, without mesh.
    #[default]
    Allow,
    /// 502, or a closed connection.
    Deny,
}

/// Whom an inbound listener lets in (mesh mTLS only; authorization proper is another policy).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Clients {
    /// Whoever the trust bundle proves.
    #[default]
    Any,
    Ids(Arc<[crate::id::SpiffeId]>),
    DnsName(String),
}

/// What a client may make the proxy hold or wait for. Equal on every hop, so that what one accepts the next does too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub header_bytes: u32,
    pub header_count: u32,
    pub path_bytes: u32,
    /// A request head must be complete in this time after its first byte.
    pub header_timeout: Duration,
    /// The first byte of a new connection, where the protocol has to be sniffed.
    pub detect_timeout: Duration,
    pub handshake_timeout: Duration,
    /// While the client owes body bytes or does not take response bytes.
    pub body_idle: Duration,
    /// Without any request; zero is for ever.
    pub idle: Duration,
    pub max_connections: u32,
    pub max_streams: u32,
    /// How long a drain waits for what is in flight.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 60 * 1024,
            header_count: 100,
            path_bytes: 16 * 1024,
            header_timeout: Duration::from_secs(10),
            detect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(10),
            body_idle: Duration::from_secs(30),
            idle: Duration::from_secs(3600),
            max_connections: 15_000,
            max_streams: 250,
            drain: Duration::from_secs(30),
        }
    }
}

/// How the proven peer is told to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ForwardIdentity {
    None,
    /// `x-forwarded-client-cert`, in Envoy's format.
    #[default]
    Xfcc,
    /// `l5d-client-id`, as Linkerd's users expect.
    L5d,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub name: Arc<str>,
    pub role: Role,
    pub address: SocketAddr,
    /// Take the destination from SO_ORIGINAL_DST (connections arrive through a redirect rule).
    pub original_dst: bool,
    pub protocol: Protocol,
    /// Declared protocols per destination port; these win over `protocol`.
    pub ports: BTreeMap<u16, Protocol>,
    /// Inbound only.
    pub mtls: InboundConfig,
    pub clients: Clients,
    pub forward_identity: ForwardIdentity,
    /// A fixed destination, instead of looking one up.
    pub to: Option<BackendRef>,
    /// Inbound: where the app listens; without it, on loopback at the port that was dialled.
    pub app: Option<SocketAddr>,
    pub app_ip: Option<IpAddr>,
    pub unknown: Unknown,
    pub limits: Limits,
    /// Trusted proxies in front of this one, for `x-forwarded-for`.
    pub trusted_hops: u32,
    pub workers_share: bool,
}
