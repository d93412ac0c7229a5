//! One connection's way from accept to the code that serves it: where was it going, is it for the mesh's end or the app's,
//! what does it speak.

use super::counters::{self, Rejected};
use super::detect::Spoke;
use super::listener::Door;
use super::live::Ticket;
use super::sniff::{Ahead, Incoming, Place, Verdict, classify};
use super::stream;
use super::tls::{self, Inside};
use crate::http::server::{self, HttpKind};
use crate::telemetry::record::Peer;
use crate::upstream::tcp::{self, Connected};
use crate::worker::{Conn, Worker};
use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::TcpStream;
use weft_policy::listener::{Config, Protocol};
use weft_policy::meta::Workload;
use weft_policy::mtls::Mode;
use weft_policy::reason::Reason;
use weft_tls::{Hello, MeshStream};

/// What is known about a connection besides its bytes.
struct Known {
    worker: Rc<Worker>,
    door: Rc<Door>,
    ticket: Ticket,
    peer: SocketAddr,
    destination: SocketAddr,
}

/// What a connection turned out to be.
struct Found {
    stream: MeshStream,
    client: Client,
    speaks: Speaks,
}

/// Who the client is, besides what its certificate proves.
#[derive(Default)]
struct Client {
    mesh: bool,
    server_name: Option<String>,
    workload: Option<Workload>,
}

enum Speaks {
    Http(HttpKind),
    /// Bytes for whoever was dialled for them.
    Opaque(Result<Connected, Reason>),
}

pub async fn run(worker: Rc<Worker>, door: Rc<Door>, tcp: TcpStream, peer: SocketAddr, ticket: Ticket) {
    crate::sys::sockopt::tune(&tcp);
    let listener = door.config();
    let destination = match destination(&worker, &listener, &tcp, peer) {
        Ok(destination) => destination,
        Err(reason) => {
            counters::rejected(reason);
            tracing::warn!(listener = %listener.name, %peer, reason = reason.word(), "connection refused");
            crate::sys::sockopt::reset_on_close(&tcp);
            return;
        }
    };
    let known = Known { worker, door, ticket, peer, destination };
    let mesh = listener.role.is_inbound() && listener.mtls.mode_of(destination.port()) != Mode::Disable;
    if let Some(demand) = &known.worker.shared.demand
        && listener.original_dst
        && !listener.role.is_inbound()
        && !known.is_configured(&listener)
    {
        Box::pin(demand.address(destination)).await;
    }
    let found = match known.declared(&listener) {
        // Nothing to find out: the first read is already the codec's.
        protocol @ (Protocol::Http1 | Protocol::Http2) if !mesh => {
            let stream = MeshStream::plain(tcp, Vec::new(), &known.worker.flusher);
            let kind = if protocol == Protocol::Http1 { HttpKind::Http1 } else { HttpKind::Http2 };
            Some(Found { stream, client: Client::default(), speaks: Speaks::Http(kind) })
        }
        // In boxes of their own: a connection that lasts holds neither the room that finding out took nor that of what it is not.
        declared => Box::pin(known.sniff(Incoming::tcp(tcp), declared, mesh)).await,
    };
    drop(listener);
    let Some(Found { stream, client, speaks }) = found else { return };
    match speaks {
        Speaks::Http(kind) => known.http(stream, kind, client).await,
        Speaks::Opaque(upstream) => Box::pin(known.relay(stream, upstream, client)).await,
    }
}

/// Where the client wanted to go.
fn destination(worker: &Worker, listener: &Config, tcp: &TcpStream, peer: SocketAddr) -> Result<SocketAddr, Rejected> {
    let local = tcp.local_addr().map_err(|_| Rejected::NoDestination)?;
    if !listener.original_dst {
        return Ok(local);
    }
    let dialled = crate::sys::orig_dst::original_destination(tcp).map_err(|_| Rejected::NoDestination)?;
    let dialled = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
    // Passing such a connection on would bring it back here, for ever.
    let here =
        |ip: std::net::IpAddr| ip.is_loopback() || ip == local.ip().to_canonical() || ip == peer.ip().to_canonical();
    let snapshot = worker.shared.snapshot.load();
    let own = snapshot.listeners().any(|l| {
        let bound = worker.shared.bound(l).unwrap_or(l.address);
        let ip = bound.ip().to_canonical();
        bound.port() == dialled.port() && (ip == dialled.ip() || (ip.is_unspecified() && here(dialled.ip())))
    });
    if own { Err(Rejected::Loop) } else { Ok(dialled) }
}

impl Known {
    /// The port's own declaration, then the service's, then the listener's.
    fn declared(&self, listener: &Config) -> Protocol {
        if listener.role.is_tcp() {
            return Protocol::Opaque;
        }
        if let Some(protocol) = listener.ports.get(&self.destination.port()) {
            return *protocol;
        }
        if !listener.role.is_inbound() {
            let snapshot = self.worker.shared.snapshot.load();
            let service = snapshot.fixed(&listener.name).or_else(|| snapshot.by_addr(self.destination));
            if let Some(protocol) = service.map(|s| s.plan.protocol).filter(|p| *p != Protocol::Detect) {
                return protocol;
            }
        }
        listener.protocol
    }

    /// By address; a Host is not known yet.
    fn is_configured(&self, listener: &Config) -> bool {
        let snapshot = self.worker.shared.snapshot.load();
        snapshot.fixed(&listener.name).is_some() || snapshot.by_addr(self.destination).is_some()
    }

    fn conn(&self, client: Client, identity: Option<Arc<weft_tls::PeerIdentity>>) -> Rc<Conn> {
        let Client { mesh, server_name, workload } = client;
        let peer = Arc::new(Peer { addr: self.peer, identity, workload });
        let (listener, destination) = (self.door.config(), self.destination);
        let conn = Rc::new(Conn { listener, peer, destination, mesh, server_name, xfcc: OnceCell::new() });
        self.ticket.admit(conn.clone());
        conn
    }

    async fn http(&self, stream: MeshStream, kind: HttpKind, client: Client) {
        let conn = self.conn(client, stream.peer().cloned());
        self.ticket.limit_stall(stream.taking(), conn.listener.limits.body_idle);
        Box::pin(server::serve(self.worker.clone(), conn, stream, kind)).await;
    }

    /// Looks at plaintext bytes, or at a TLS hello, until it is clear what to do with them.
    async fn sniff(&self, mut incoming: Incoming, declared: Protocol, mesh: bool) -> Option<Found> {
        let listener = self.door.config();
        let strict = mesh && listener.mtls.mode_of(self.destination.port()) == Mode::Strict;
        let learned = if declared == Protocol::Detect { self.worker.learned.get(self.destination) } else { None };
        let place = Place { declared, learned, mesh, strict, limits: listener.limits };
        let mut ahead = Ahead::new(self.dial(None));
        let mut phase = self.worker.shared.phase.clone();
        let late = || counters::detect_timed_out(&listener.name);
        let verdict = classify(&mut incoming, &place, &mut ahead, &mut phase, late).await;
        let learn = |spoke| {
            if declared == Protocol::Detect {
                self.worker.learned.put(self.destination, spoke);
            }
        };
        // The mode may have changed while the client was silent.
        let listener = self.door.config();
        let mode = listener.mtls.mode_of(self.destination.port());
        let plaintext = !matches!(verdict, Verdict::Tls(_) | Verdict::Gone | Verdict::UpstreamGone);
        if verdict == Verdict::Plaintext || (mesh && plaintext && mode == Mode::Strict) {
            counters::rejected(Rejected::Plaintext);
            tracing::info!(listener = %listener.name, peer = %self.peer, destination = %self.destination,
                "plaintext refused by STRICT");
            incoming.reset_on_close();
            return None;
        }
        let found = |stream, server_name, speaks| {
            Some(Found { stream, client: Client { server_name, ..Client::default() }, speaks })
        };
        let flusher = &self.worker.flusher;
        match verdict {
            Verdict::Http1 | Verdict::Http2 => {
                learn(Spoke::Http);
                drop(ahead);
                let kind = if verdict == Verdict::Http1 { HttpKind::Http1 } else { HttpKind::Http2 };
                found(incoming.into_stream(flusher), None, Speaks::Http(kind))
            }
            Verdict::Tls(hello) if mesh && self.for_us(&hello, mode) => {
                drop(ahead);
                let socket = incoming.into_tcp()?;
                let limit = listener.limits.handshake_timeout;
                let (stream, workload) = self.door.tls.accept(&self.worker, socket, &listener.clients, limit).await?;
                self.inside(stream, declared, Client { mesh: true, server_name: hello.sni, workload }).await
            }
            Verdict::Tls(hello) => {
                learn(Spoke::Opaque);
                drop(ahead);
                let upstream = self.dial(hello.sni.clone()).await;
                found(incoming.into_stream(flusher), hello.sni, Speaks::Opaque(upstream))
            }
            Verdict::Opaque | Verdict::ServerFirst => {
                learn(if verdict == Verdict::Opaque { Spoke::Opaque } else { Spoke::ServerFirst });
                let upstream = ahead.connected().await;
                found(incoming.into_stream(flusher), None, Speaks::Opaque(upstream))
            }
            Verdict::UpstreamGone => {
                counters::rejected(Rejected::NoUpstream);
                incoming.reset_on_close();
                None
            }
            Verdict::Plaintext | Verdict::Gone => None,
        }
    }

    /// Under STRICT every hello is, because nothing else may come in.
    fn for_us(&self, hello: &Hello, mode: Mode) -> bool {
        match (&self.worker.shared.identity, mode) {
            (_, Mode::Strict) => true,
            (Some(identity), _) => tls::is_mesh(hello, identity),
            (None, _) => false,
        }
    }

    /// What came out of mesh TLS: ALPN says what it is, else the declaration, else its bytes.
    async fn inside(&self, stream: MeshStream, declared: Protocol, client: Client) -> Option<Found> {
        let listener = self.door.config();
        let inside = if listener.role.is_tcp() { Inside::Opaque } else { Inside::of(stream.alpn()) };
        let speaks = match (inside, declared) {
            (Inside::Http1, _) | (Inside::Unknown, Protocol::Http1) => Speaks::Http(HttpKind::Http1),
            (Inside::Http2, _) | (Inside::Unknown, Protocol::Http2) => Speaks::Http(HttpKind::Http2),
            (Inside::Opaque, _) | (Inside::Unknown, Protocol::Opaque | Protocol::Tls) => {
                Speaks::Opaque(self.dial(None).await)
            }
            (Inside::Unknown, _) => return Box::pin(self.sniff_inside(stream, declared, client)).await,
        };
        Some(Found { stream, client, speaks })
    }

    async fn sniff_inside(&self, stream: MeshStream, declared: Protocol, client: Client) -> Option<Found> {
        let listener = self.door.config();
        let place = Place {
            declared,
            learned: self.worker.learned.get(self.destination),
            mesh: false,
            strict: false,
            limits: listener.limits,
        };
        let mut ahead = Ahead::new(self.dial(None));
        let mut incoming = Incoming::mesh(stream);
        let mut phase = self.worker.shared.phase.clone();
        let late = || counters::detect_timed_out(&listener.name);
        let verdict = classify(&mut incoming, &place, &mut ahead, &mut phase, late).await;
        let speaks = match verdict {
            Verdict::Http1 => Speaks::Http(HttpKind::Http1),
            Verdict::Http2 => Speaks::Http(HttpKind::Http2),
            Verdict::Opaque | Verdict::ServerFirst | Verdict::Tls(_) => Speaks::Opaque(ahead.connected().await),
            Verdict::Gone | Verdict::UpstreamGone | Verdict::Plaintext => return None,
        };
        if matches!(speaks, Speaks::Http(_)) {
            self.worker.learned.put(self.destination, Spoke::Http);
        }
        let stream = incoming.into_stream(&self.worker.flusher);
        Some(Found { stream, client, speaks })
    }

    /// A future that dials where this connection's bytes go, when and if it is polled.
    fn dial(&self, server_name: Option<String>) -> impl Future<Output = Result<Connected, Reason>> + use<> {
        let (worker, door, peer, destination) = (self.worker.clone(), self.door.clone(), self.peer, self.destination);
        async move {
            let bound = stream::destination(&worker, &door.config(), destination, server_name.as_deref())?;
            let target = bound.plan.default_route.pick(worker.random()).ok_or(Reason::InvalidBackend)?;
            let index = target.backend.ok_or(Reason::InvalidBackend)?;
            let backend = bound.backends.get(index).and_then(Option::as_ref).ok_or(Reason::NoCluster)?;
            tcp::connect(&worker, backend, Some(stream::source_hash(peer.ip()))).await
        }
    }

    async fn relay(&self, stream: MeshStream, upstream: Result<Connected, Reason>, client: Client) {
        let conn = self.conn(client, stream.peer().cloned());
        if upstream.is_err() {
            counters::rejected(Rejected::NoUpstream);
        }
        stream::relay(&self.worker, &conn, stream, upstream, &self.ticket).await;
    }
}
