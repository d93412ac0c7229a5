//! What the proxy listens on, and what it does with a connection before any request is read.

use crate::doc::{Cursor, Fields, Value};
use crate::mtls::{self, InboundConfig};
use crate::route::BackendRef;
use ipnet::IpNet;
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
    /// How long a drain waits for what is in flight, from its beginning.
    pub drain: Duration,
    /// How much of that new connections are still taken: peers learn of a goodbye later than it is said.
    pub drain_delay: Duration,
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
            drain_delay: Duration::from_secs(5),
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
    /// The mesh's own addresses: while nobody has said what one of them means, it is no unknown destination.
    pub mesh_ranges: Vec<IpNet>,
    pub limits: Limits,
}

impl Role {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        const ALL: [Role; 5] = [Role::Hop, Role::Outbound, Role::Inbound, Role::TcpOut, Role::TcpIn];
        c.word(&ALL.map(|r| (r.word(), r)))
    }
}

impl Clients {
    /// `any`, `{ids: [...]}` or `{dnsName: ...}`.
    fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        if matches!(c.node.value, Value::Text(_)) {
            return c.word(&[("any", ())]).map(|()| Self::Any);
        }
        c.fields(|f| {
            let ids = f.opt("ids", |c| c.list(mtls::read_id));
            let dns_name = f.opt("dnsName", |c| c.text());
            if f.has("ids") == f.has("dnsName") {
                let hint = "any, {ids: [spiffe://...]} or {dnsName: NAME}";
                return f.fail("", "either ids or dnsName is expected", hint);
            }
            match ids {
                Some(ids) if ids.is_empty() => f.fail("ids", "nobody is let in", "list identities, or say any"),
                Some(ids) => Some(Self::Ids(ids.into())),
                None => dns_name.map(Self::DnsName),
            }
        })
    }
}

impl Limits {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        let d = Self::default();
        let count = |c: &mut Cursor<'_, '_>, min, max| c.int(min, max).map(|i| i as u32);
        c.fields(|f| {
            Some(Self {
                header_bytes: f.or("headerBytes", d.header_bytes, |c| count(c, 1024, 1 << 20)),
                header_count: f.or("headerCount", d.header_count, |c| count(c, 10, 10_000)),
                path_bytes: f.or("pathBytes", d.path_bytes, |c| count(c, 256, 65_534)),
                header_timeout: f.or("headerTimeout", d.header_timeout, positive),
                detect_timeout: f.or("detectTimeout", d.detect_timeout, positive),
                handshake_timeout: f.or("handshakeTimeout", d.handshake_timeout, positive),
                body_idle: f.or("bodyIdle", d.body_idle, positive),
                idle: f.or("idle", d.idle, |c| c.duration()),
                max_connections: f.or("maxConnections", d.max_connections, |c| count(c, 1, 10_000_000)),
                max_streams: f.or("maxStreams", d.max_streams, |c| count(c, 1, 100_000)),
                drain: f.or("drain", d.drain, |c| c.duration()),
                drain_delay: f.or("drainDelay", d.drain_delay, |c| c.duration()),
            })
        })
    }
}

fn positive(c: &mut Cursor<'_, '_>) -> Option<Duration> {
    match c.duration()? {
        Duration::ZERO => c.fail("this limit cannot be switched off", "a duration above zero"),
        limit => Some(limit),
    }
}

fn by_port<T>(
    c: &mut Cursor<'_, '_>,
    mut read: impl FnMut(&mut Cursor<'_, '_>) -> Option<T>,
) -> Option<BTreeMap<u16, T>> {
    let read = |key: &str, c: &mut Cursor<'_, '_>| match key.parse::<u16>() {
        Ok(port) if port > 0 => Some((port, read(c)?)),
        _ => c.fail(format!("{key:?} is not a port"), "a whole number from 1 to 65535"),
    };
    c.entries(read).map(|entries| entries.into_iter().map(|(_, entry)| entry).collect())
}

fn read_inbound(c: &mut Cursor<'_, '_>) -> Option<InboundConfig> {
    if matches!(c.node.value, Value::Text(_)) {
        return mtls::Mode::read(c).map(|mode| InboundConfig { mode, ports: BTreeMap::new() });
    }
    c.fields(|f| {
        Some(InboundConfig {
            mode: f.opt("mode", mtls::Mode::read).unwrap_or_default(),
            ports: f.opt("ports", |c| by_port(c, mtls::Mode::read)).unwrap_or_default(),
        })
    })
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        const ADDRESS: &str = "an IP address and a port, such as 127.0.0.1:15001 or [::]:15006";
        c.fields(|f| {
            let name = f.req("name", crate::service::read_name);
            let role = f.req("role", Role::read);
            let address = f.req("address", |c| c.parse(ADDRESS));
            let original_dst = f.or("originalDst", false, |c| c.bool());
            let protocol = f.opt("protocol", Protocol::read).unwrap_or_default();
            let ports = f.opt("ports", |c| by_port(c, Protocol::read)).unwrap_or_default();
            let mtls = f.opt("mtls", read_inbound).unwrap_or_default();
            let clients = f.opt("clients", Clients::read).unwrap_or_default();
            let forward_identity = f
                .opt("forwardIdentity", |c| {
                    c.word(&[
                        ("none", ForwardIdentity::None),
                        ("xfcc", ForwardIdentity::Xfcc),
                        ("l5d", ForwardIdentity::L5d),
                    ])
                })
                .unwrap_or_default();
            let to = f.opt("to", BackendRef::read);
            let app = f.opt("app", |c| c.parse(ADDRESS));
            let app_ip = f.opt("appIp", |c| c.parse("an IP address, such as 127.0.0.1"));
            let unknown =
                f.opt("unknown", |c| c.word(&[("allow", Unknown::Allow), ("deny", Unknown::Deny)])).unwrap_or_default();
            let mesh_ranges = f
                .opt("meshRanges", |c| c.list(|c| c.parse("a range of addresses, such as 10.244.0.0/16")))
                .unwrap_or_default();
            let limits = f.opt("limits", Limits::read).unwrap_or_default();
            let config = Self {
                name: name?.into(),
                role: role?,
                address: address?,
                original_dst,
                protocol,
                ports,
                mtls,
                clients,
                forward_identity,
                to,
                app,
                app_ip,
                unknown,
                mesh_ranges,
                limits,
            };
            config.check(f);
            Some(config)
        })
    }

    pub fn is_of_mesh(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.mesh_ranges.iter().any(|range| range.contains(&ip))
    }

    /// What does not go together.
    fn check(&self, f: &mut Fields<'_, '_>) {
        let role = self.role.word();
        let misplaced: &[&str] = match self.role.is_inbound() {
            true => &["unknown", "meshRanges"],
            false => &["mtls", "clients", "app", "appIp", "forwardIdentity"],
        };
        for field in misplaced {
            if !f.has(field) {
                continue;
            }
            let side = if self.role.is_inbound() { "hop, outbound and tcp-out" } else { "inbound and tcp-in" };
            f.fail::<()>(field, format!("has no meaning for {role}"), &format!("only for {side}"));
        }
        if self.app.is_some() && self.app_ip.is_some() {
            f.fail::<()>(
                "appIp",
                "app is given too",
                "app for one address and port, appIp for the port that was dialled",
            );
        }
        if self.role.is_inbound() && self.app.is_none() && self.to.is_none() && !self.original_dst {
            f.fail::<()>("app", "is missing", "where the app listens, or originalDst: true behind a redirect rule");
        }
        if self.app.is_some() && self.to.is_some() {
            f.fail::<()>("to", "app is given too", "app for an address, to for a service with policies of its own");
        }
        let tls = self.protocol == Protocol::Tls;
        if self.role == Role::TcpOut && self.to.is_none() && !self.original_dst && !tls {
            f.fail::<()>("to", "is missing", "a service, or originalDst: true, or protocol: tls to go by server name");
        }
    }
}
