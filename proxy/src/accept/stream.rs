//! Bytes in both directions: opaque TCP, TLS that is passed on by server name, and what an HTTP upgrade turns into.
//!
//! Each direction closes on its own, as its sender did: an end is passed on as an end, a break as a reset. There are no idle
//! limits; quiet tunnels are what tunnels are for. A quiet connection holds no buffer: bytes go through one that the worker's
//! connections share, and only what a slow receiver has not taken yet stays with its connection, within a bound.

use super::live::Ticket;
use crate::ending;
use crate::http::exchange::Tunnel;
use crate::telemetry::record::TcpRecord;
use crate::upstream::implied::Kind;
use crate::upstream::tcp::Connected;
use crate::worker::{Conn, Worker};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_policy::balance::hash;
use weft_policy::listener::{Config, Unknown};
use weft_policy::reason::{Flags, Reason};
use weft_policy::registry::Bound;
use weft_tls::MeshStream;

/// As much as the kernel hands over at once on a fast path.
const BUFFER: usize = 128 * 1024;
/// Buffers kept for the next reads.
const SPARE: usize = 4;
/// Reads per turn and direction before others get theirs.
const ROUNDS: usize = 8;

/// Where a connection's bytes go.
pub fn destination(
    worker: &Worker,
    listener: &Config,
    destination: SocketAddr,
    server_name: Option<&str>,
) -> Result<Arc<Bound>, Reason> {
    let snapshot = worker.shared.snapshot.load();
    if let Some(bound) = snapshot.fixed(&listener.name) {
        return Ok(bound.clone());
    }
    let implied = |kind, address| worker.implied.get(kind, address, Instant::now()).ok_or(Reason::Overload);
    if listener.role.is_inbound() {
        let (kind, address) = app(listener, destination);
        return implied(kind, address);
    }
    let named = || server_name.and_then(|name| snapshot.by_sni(name, destination.port()));
    if let Some(bound) = named().or_else(|| snapshot.by_addr(destination)) {
        return Ok(bound.clone());
    }
    // Never in plaintext by accident.
    let asked =
        worker.shared.demand.as_ref().filter(|_| listener.original_dst && listener.is_of_mesh(destination.ip()));
    if asked.is_some_and(|demand| !demand.knows(destination)) {
        return Err(Reason::NotDiscovered);
    }
    match listener.unknown {
        // Without a redirect the destination is this listener itself.
        Unknown::Allow if listener.original_dst => implied(Kind::Passthrough, destination),
        Unknown::Allow | Unknown::Deny => Err(Reason::NotAllowed),
    }
}

/// Where the pod's app listens for what came to `destination`.
pub fn app(listener: &Config, destination: SocketAddr) -> (Kind, SocketAddr) {
    match (listener.app, listener.app_ip) {
        (Some(app), _) => (Kind::App, app),
        (None, Some(ip)) => (Kind::App, SocketAddr::new(ip, destination.port())),
        (None, None) => (Kind::AppHere, destination),
    }
}

pub fn source_hash(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => hash::bytes(&ip.octets()),
        IpAddr::V6(ip) => hash::bytes(&ip.octets()),
    }
}

/// Carries a client's bytes to where they go until both directions have ended.
pub async fn relay(
    worker: &Rc<Worker>,
    conn: &Conn,
    mut client: MeshStream,
    upstream: Result<Connected, Reason>,
    ticket: &Ticket,
) {
    let picked = upstream.as_ref().ok().map(|u| &u.picked);
    let record = Rc::new(TcpRecord {
        role: conn.listener.role,
        listener: conn.listener.name.clone(),
        peer: conn.peer.clone(),
        destination: conn.destination,
        backend: picked.map(|p| p.backend().id.clone()),
        endpoint: picked.map(|p| p.endpoint.clone()),
        tls_upstream: upstream.as_ref().is_ok_and(|u| u.secured),
        server_name: conn.server_name.clone(),
        started: Instant::now(),
        sent: Cell::new(0),
        received: Cell::new(0),
        counted: Cell::default(),
        flags: Flags { reason: upstream.as_ref().err().copied(), ..Flags::default() },
    });
    let report = Report { worker, record: &record };
    worker.recorder.tcp_open(&record);
    let mut upstream = match upstream {
        Ok(upstream) => upstream,
        Err(_) => return client.reset_on_close(),
    };
    ticket.watch(&record);
    if upstream.mesh {
        ticket.towards(upstream.io.peer().cloned());
    }
    let ends = Ends { near: &mut client, far: &mut upstream.io };
    copy(ends, &worker.buffers, &record.received, &record.sent).await;
    drop(report);
}

/// Reports the end also of a connection that is cut.
struct Report<'a> {
    worker: &'a Worker,
    record: &'a TcpRecord,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        self.worker.recorder.tcp_close(self.record);
    }
}

/// Carries bytes after an upgrade; the request that led to it has its own record.
pub async fn relay_tunnel(worker: &Worker, near: Tunnel, far: Tunnel, _: &ending::Ticket) {
    let (mut near_io, mut far_io) = (near.io, far.io);
    near_io.unread(&near.read);
    far_io.unread(&far.read);
    let ends = Ends { near: &mut near_io, far: &mut far_io };
    copy(ends, &worker.buffers, &Cell::new(0), &Cell::new(0)).await;
}

/// Buffers that one worker's connections take turns with.
#[derive(Default)]
pub struct Buffers(RefCell<Vec<Box<[u8]>>>);

impl Buffers {
    fn take(&self) -> Box<[u8]> {
        self.0.borrow_mut().pop().unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        let mut spare = self.0.borrow_mut();
        if spare.len() < SPARE {
            spare.push(buffer);
        }
    }
}

struct Ends<'a> {
    near: &'a mut MeshStream,
    far: &'a mut MeshStream,
}

/// One direction's progress.
#[derive(Default)]
struct Flow {
    /// What the receiver has not taken yet, in a borrowed buffer.
    held: Option<(Box<[u8]>, std::ops::Range<usize>)>,
    /// The sender will send no more; the receiver has yet to be told.
    drained: bool,
    end: Option<End>,
}

/// How a direction came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Clean,
    /// Its receiver would take no more. What that has sent before may still be on its way.
    Refused,
    /// Its sender broke off: a reset ends both directions.
    Broken,
}

/// Copies until both directions have ended, or one end broke off. Where not all went well, both connections are closed by reset.
async fn copy(ends: Ends<'_>, buffers: &Buffers, forth: &Cell<u64>, back: &Cell<u64>) {
    let Ends { near, far } = ends;
    let mut there = Flow::default();
    let mut here = Flow::default();
    poll_fn(|cx| {
        there.poll(cx, near, far, buffers, forth);
        here.poll(cx, far, near, buffers, back);
        let broken = [there.end, here.end].contains(&Some(End::Broken));
        if broken || (there.end.is_some() && here.end.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    if [there.end, here.end] != [Some(End::Clean); 2] {
        near.reset_on_close();
        far.reset_on_close();
    }
}

impl Flow {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut MeshStream,
        to: &mut MeshStream,
        buffers: &Buffers,
        count: &Cell<u64>,
    ) {
        if self.end.is_none()
            && let Poll::Ready(end) = self.poll_copy(cx, from, to, buffers, count)
        {
            self.end = Some(end);
            if let Some((buffer, _)) = self.held.take() {
                buffers.give(buffer);
            }
        }
    }

    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut MeshStream,
        to: &mut MeshStream,
        buffers: &Buffers,
        count: &Cell<u64>,
    ) -> Poll<End> {
        for _ in 0..ROUNDS {
            while let Some((buffer, range)) = &mut self.held {
                let Ok(taken) =
                    ready!(Pin::new(&mut *to).poll_write(cx, buffer.get(range.clone()).unwrap_or_default()))
                else {
                    return Poll::Ready(End::Refused);
                };
                if taken == 0 {
                    return Poll::Ready(End::Refused);
                }
                range.start += taken;
                if range.start >= range.end
                    && let Some((buffer, _)) = self.held.take()
                {
                    buffers.give(buffer);
                }
            }
            if self.drained {
                let shut = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                return Poll::Ready(if shut.is_ok() { End::Clean } else { End::Refused });
            }
            let mut buffer = buffers.take();
            let mut read = ReadBuf::new(&mut buffer);
            let polled = Pin::new(&mut *from).poll_read(cx, &mut read);
            let n = read.filled().len();
            match polled {
                Poll::Ready(Ok(())) if n > 0 => {
                    count.set(count.get() + n as u64);
                    self.held = Some((buffer, 0..n));
                    continue;
                }
                Poll::Ready(Ok(())) => self.drained = true,
                Poll::Ready(Err(_)) => {
                    buffers.give(buffer);
                    return Poll::Ready(End::Broken);
                }
                Poll::Pending => {
                    buffers.give(buffer);
                    return Poll::Pending;
                }
            }
            buffers.give(buffer);
        }
        // More is ready, but others wait as well.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
