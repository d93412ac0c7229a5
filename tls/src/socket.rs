//! The batching stream of a hop: TLS (or nothing) over TCP, with few and large system calls.
//!
//! Reads take up to 128 KiB at once into a buffer all sockets of a worker share, so an idle connection holds none.
//! Writes are only appended; the worker's `Flusher` waits until everything that was ready has run and then encrypts what
//! each socket has into full records and hands them over in one write. Large amounts do not wait for it. A peer that
//! does not read makes `poll_write` pend at a high-water mark. `poll_flush` is therefore always ready: like a TCP
//! socket's own buffer, accepted bytes are on their way. `poll_shutdown` waits until they are out.
//!
//! A TCP end without `close_notify` is an error on a TLS stream (truncation must be seen), and each direction closes on
//! its own. The stream stays on its worker's thread (`!Send`); a flusher must be running there.

mod flusher;
mod handshake;
mod inner;
mod session;

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::reason::HandshakeError;
use crate::verify::PeerIdentity;

pub use flusher::{Flusher, Stats};
use handshake::Opened;
use inner::Inner;
pub use inner::Refusal;
use session::Session;

pub struct MeshStream {
    inner: Rc<RefCell<Inner>>,
    flusher: Flusher,
    info: ConnInfo,
}

/// Looks at a stream from beside whoever uses it: does its peer take what is sent?
pub struct Taking(Weak<RefCell<Inner>>);

impl Taking {
    /// `None` while nothing waits for the peer. Else how many bytes it has taken so far, which only grows if it reads;
    /// `unsent` says how many of a socket's bytes the kernel still holds.
    pub fn taken(&self, unsent: impl FnOnce(&TcpStream) -> u64) -> Option<u64> {
        let inner = self.0.upgrade()?;
        let inner = inner.borrow();
        inner.sent_while_blocked().map(|sent| sent.saturating_sub(unsent(&inner.tcp)))
    }

    /// Makes the close that follows a reset: what the peer did not take it will not get.
    pub fn reset_on_close(&self) {
        if let Some(inner) = self.0.upgrade() {
            let _ = inner.borrow().tcp.set_zero_linger();
        }
    }
}

/// What is known about the connection; outlives the stream when cloned.
#[derive(Clone, Debug, Default)]
pub struct ConnInfo {
    pub peer: Option<Arc<PeerIdentity>>,
    pub alpn: Option<Arc<[u8]>>,
    pub local_addr: Option<SocketAddr>,
    pub peer_addr: Option<SocketAddr>,
    pub tls: bool,
}

impl MeshStream {
    /// A stream without TLS. `prefix` is what was already read from the socket.
    pub fn plain(tcp: TcpStream, prefix: Vec<u8>, flusher: &Flusher) -> Self {
        Self::new(tcp, Session::Plain, Opened { plain: prefix, ..Opened::default() }, flusher)
    }

    /// Bytes that the kernel took so far.
    pub fn sent(&self) -> u64 {
        self.inner.borrow().sent()
    }

    /// Of those, bytes that have arrived as far as is known; `unsent` says how many the kernel still holds.
    pub fn arrived(&self, unsent: impl FnOnce(&TcpStream) -> u64) -> u64 {
        let inner = self.inner.borrow();
        inner.sent().saturating_sub(unsent(&inner.tcp))
    }

    /// The server's handshake. `prefix` is what was already read from the socket. No time limit of its own.
    pub async fn accept(
        mut tcp: TcpStream,
        prefix: Vec<u8>,
        config: Arc<ServerConfig>,
        flusher: &Flusher,
    ) -> Result<Self, HandshakeError> {
        let mut session = Session::server(config)?;
        let opened = handshake::run(&mut tcp, &mut session, prefix).await?;
        Ok(Self::new(tcp, session, opened, flusher))
    }

    /// The client's handshake. In TLS 1.3 it ends before the server has looked at our certificate: a refusal shows in
    /// the first read, as an error of which `HandshakeError::reason_of` gives the word.
    pub async fn connect(
        mut tcp: TcpStream,
        name: ServerName<'static>,
        config: Arc<ClientConfig>,
        flusher: &Flusher,
    ) -> Result<Self, HandshakeError> {
        let mut session = Session::client(config, name)?;
        let opened = handshake::run(&mut tcp, &mut session, Vec::new()).await?;
        Ok(Self::new(tcp, session, opened, flusher))
    }

    fn new(tcp: TcpStream, session: Session, opened: Opened, flusher: &Flusher) -> Self {
        // Writes are batched here; Nagle's algorithm would only add the peer's delayed acknowledgement.
        let _ = tcp.set_nodelay(true);
        let info = ConnInfo {
            peer: session.peer(),
            alpn: session.alpn().map(Into::into),
            local_addr: tcp.local_addr().ok(),
            peer_addr: tcp.peer_addr().ok(),
            tls: !matches!(session, Session::Plain),
        };
        let worker = flusher.worker();
        let id = worker.next_id();
        let inner = Rc::new(RefCell::new(Inner::new(tcp, session, opened, worker.waker_of(id), id)));
        worker.register(id, &inner);
        Self { inner, flusher: flusher.clone(), info }
    }

    /// Gives back bytes that were read to find out what they are; the next read starts with them.
    pub fn unread(&mut self, bytes: &[u8]) {
        self.inner.borrow_mut().unread(bytes);
    }

    /// A second handle, for whoever must hear that the peer broke off while the stream's owner is not reading.
    pub fn ear(&self) -> Ear {
        Ear { inner: self.inner.clone(), flusher: self.flusher.clone(), ended: false }
    }

    /// Makes the close that follows a reset, so that the peer cannot take a break for an end.
    pub fn reset_on_close(&self) {
        let _ = self.inner.borrow().tcp.set_zero_linger();
    }

    /// Outlives the stream. A client asks it when its first request fails.
    pub fn refusal(&self) -> Refusal {
        self.inner.borrow().refusal.clone()
    }

    pub fn taking(&self) -> Taking {
        Taking(Rc::downgrade(&self.inner))
    }

    pub fn info(&self) -> &ConnInfo {
        &self.info
    }

    /// Who the peer proved to be; `None` without TLS or when it showed no certificate.
    pub fn peer(&self) -> Option<&Arc<PeerIdentity>> {
        self.info.peer.as_ref()
    }

    pub fn alpn(&self) -> Option<&[u8]> {
        self.info.alpn.as_deref()
    }

    pub fn is_tls(&self) -> bool {
        self.info.tls
    }

    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.info.peer_addr
    }

    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.info.local_addr
    }

    /// Accepted but not yet handed to the kernel, in bytes.
    pub fn buffered(&self) -> usize {
        self.inner.borrow().buffered()
    }

    /// Memory of this stream's buffers, in bytes; 0 when idle.
    pub fn held(&self) -> usize {
        self.inner.borrow().held()
    }
}

/// Listens for a break. What it hears instead stays in the stream, for the next read.
pub struct Ear {
    inner: Rc<RefCell<Inner>>,
    flusher: Flusher,
    /// The peer has ended its direction cleanly: there is nothing more to hear.
    ended: bool,
}

impl Ear {
    /// Reads ahead once at most: a peer that goes on sending lives.
    const AHEAD: usize = 16 * 1024;

    /// The peer has ended its direction, as far as this has listened.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Ready when the connection is broken. A clean end is none: the peer may still be listening.
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.inner.borrow_mut();
        if self.ended || inner.has_read() {
            return Poll::Pending;
        }
        let mut space = [MaybeUninit::uninit(); Self::AHEAD];
        let mut buf = ReadBuf::uninit(&mut space);
        let result = std::task::ready!(inner.poll_read(cx, &mut buf, self.flusher.worker()));
        match (result, buf.filled()) {
            (Err(_), _) => return Poll::Ready(()),
            (Ok(()), []) => self.ended = true,
            (Ok(()), bytes) => {
                inner.unread(bytes);
                // The owner may have begun to wait for just this.
                cx.waker().wake_by_ref();
            }
        }
        drop(inner);
        self.flusher.worker().mark_if_needed(&self.inner);
        Poll::Pending
    }
}

impl Drop for MeshStream {
    /// What was accepted gets one more turn of the flusher if it waits for one; a blocked socket just closes.
    fn drop(&mut self) {
        let id = self.inner.borrow().id;
        self.flusher.worker().forget(id);
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let worker = this.flusher.worker();
        let result = this.inner.borrow_mut().poll_read(cx, buf, worker);
        worker.mark_if_needed(&this.inner);
        result
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let worker = this.flusher.worker();
        let result = this.inner.borrow_mut().poll_write(cx, bufs, worker);
        worker.mark_if_needed(&this.inner);
        result
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().inner.borrow().failed())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.inner.borrow_mut().poll_shutdown(cx, this.flusher.worker())
    }
}
