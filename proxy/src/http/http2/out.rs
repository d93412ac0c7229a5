//! The connection's way out. Whoever has something to send appends it at once; the stream under it batches. Only what that
//! does not take, once its peer is slow, is kept here, and it is little: bodies and heads wait for room.

use bytes::Buf;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::io::AsyncWrite;
use weft_tls::MeshStream;

/// Of answers to what the peer asks (settings, pings, updates). From here on it is not read any more.
const FULL: usize = 64 * 1024;

pub struct Out {
    /// `None` in tests of the engine alone: then all of it stays in `rest`.
    io: Option<MeshStream>,
    rest: Vec<u8>,
    sent: usize,
    /// The connection's task, which alone waits for the socket.
    waker: Waker,
    failed: bool,
    freed: Option<Instant>,
}

impl Out {
    pub fn new(io: Option<MeshStream>) -> Self {
        Self { io, rest: Vec::new(), sent: 0, waker: Waker::noop().clone(), failed: false, freed: None }
    }

    pub fn io(&mut self) -> Option<&mut MeshStream> {
        self.io.as_mut()
    }

    pub fn take_io(&mut self) -> (Option<MeshStream>, Vec<u8>) {
        let rest = std::mem::take(&mut self.rest);
        let rest = rest.get(std::mem::take(&mut self.sent)..).unwrap_or_default().to_vec();
        (self.io.take(), rest)
    }

    pub fn driven_by(&mut self, waker: &Waker) {
        self.waker.clone_from(waker);
    }

    pub fn wake(&self) {
        self.waker.wake_by_ref();
    }

    /// Bodies and heads may be written.
    pub fn has_room(&self) -> bool {
        self.rest.is_empty() || self.io.is_none()
    }

    pub fn is_full(&self) -> bool {
        self.rest.len() - self.sent > FULL
    }

    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// When the socket last had room again.
    pub fn freed(&self) -> Option<Instant> {
        self.freed
    }

    pub fn write(&mut self, mut first: &[u8], mut second: &[u8]) {
        if self.failed {
            return;
        }
        if self.rest.is_empty()
            && let Some(io) = &mut self.io
        {
            let mut cx = Context::from_waker(&self.waker);
            while !first.is_empty() || !second.is_empty() {
                let both = [IoSlice::new(first), IoSlice::new(second)];
                let bufs = if second.is_empty() { &both[..1] } else { &both[..] };
                match Pin::new(&mut *io).poll_write_vectored(&mut cx, bufs) {
                    Poll::Ready(Ok(n @ 1..)) => {
                        let of_first = n.min(first.len());
                        first.advance(of_first);
                        second.advance((n - of_first).min(second.len()));
                    }
                    Poll::Ready(_) => {
                        self.failed = true;
                        self.waker.wake_by_ref();
                        return;
                    }
                    Poll::Pending => break,
                }
            }
        }
        self.rest.extend_from_slice(first);
        self.rest.extend_from_slice(second);
    }

    /// Ready once nothing is left here; `true` if there had been something.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.rest.is_empty() {
            return Poll::Ready(false);
        }
        let Some(io) = &mut self.io else { return Poll::Ready(false) };
        while let Some(left) = self.rest.get(self.sent..).filter(|left| !left.is_empty()) {
            match Pin::new(&mut *io).poll_write(cx, left) {
                Poll::Ready(Ok(n @ 1..)) => self.sent += n,
                Poll::Ready(_) => {
                    self.failed = true;
                    break;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        self.rest = Vec::new();
        self.sent = 0;
        self.freed = Some(Instant::now());
        Poll::Ready(true)
    }

    #[cfg(test)]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rest)
    }
}
