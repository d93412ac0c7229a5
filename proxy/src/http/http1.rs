//! HTTP/1 on our own: no task and no channel per request. Heads are read straight into the border's types, and what two
//! parsers could read differently is refused before anything is made of it.
//!
//! `head` and `body` know bytes and no sockets; `server` and `client` own a connection each. Whoever waits for a message,
//! head or body, reads the socket itself; nobody reads ahead of need, and a quiet connection holds no buffer.

pub mod body;
pub mod client;
pub mod head;
pub mod server;

#[cfg(test)]
mod differential;

use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What a read takes where no more is expected.
const PIECE: usize = 16 * 1024;
/// What it takes of a body that goes on.
const BULK: usize = 128 * 1024;

/// Bytes that were read and belong to nothing yet. Holds no memory when empty.
#[derive(Default)]
pub struct Ahead {
    pub bytes: BytesMut,
    /// The last read took all there was room for.
    full: bool,
}

impl Ahead {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The first `n` bytes.
    pub fn take(&mut self, n: usize) -> Bytes {
        if n < self.bytes.len() { self.bytes.split_to(n).freeze() } else { std::mem::take(&mut self.bytes).freeze() }
    }

    pub fn skip(&mut self, n: usize) {
        drop(self.take(n));
    }

    /// Reads once; 0 is the end. `expected`: how much of a body there is to come.
    pub fn poll_fill<T: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        expected: u64,
    ) -> Poll<io::Result<usize>> {
        // Bulk is read to where it stays; the rest is little enough to be copied to its size.
        if self.bytes.is_empty() && expected > PIECE as u64 && (self.full || expected < u64::MAX) {
            let room = expected.min(BULK as u64) as usize;
            let mut fresh = BytesMut::with_capacity(room);
            let n = ready!(pin!(io.read_buf(&mut fresh)).poll(cx))?;
            self.full = n >= room;
            self.bytes = if n < room / 4 { BytesMut::from(&fresh[..]) } else { fresh };
            return Poll::Ready(Ok(n));
        }
        let mut space = [MaybeUninit::uninit(); PIECE];
        let mut buf = ReadBuf::uninit(&mut space);
        ready!(Pin::new(io).poll_read(cx, &mut buf))?;
        let n = buf.filled().len();
        self.full = n == PIECE;
        if self.bytes.is_empty() {
            self.bytes = BytesMut::from(buf.filled());
        } else {
            self.bytes.extend_from_slice(buf.filled());
        }
        Poll::Ready(Ok(n))
    }
}

/// What is to be written: framing, pieces of a body where they lie, framing.
pub struct Outgoing {
    pub front: Vec<u8>,
    pub data: Bytes,
    /// What follows `data` without framing between.
    pub more: Vec<Bytes>,
    pub tail: &'static [u8],
    written: usize,
}

impl Outgoing {
    /// As many pieces as are written at once.
    pub const PIECES: usize = 8;

    pub fn new(front: Vec<u8>) -> Self {
        Self { front, data: Bytes::new(), more: Vec::new(), tail: &[], written: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.front.is_empty() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Of the body.
    pub fn length(&self) -> usize {
        self.data.len() + self.more.iter().map(Bytes::len).sum::<usize>()
    }

    pub fn push(&mut self, data: Bytes) {
        if self.data.is_empty() { self.data = data } else { self.more.push(data) }
    }

    /// Ready when the socket has accepted all of it.
    pub fn poll_write<T: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, io: &mut T) -> Poll<io::Result<()>> {
        let total = self.front.len() + self.length() + self.tail.len();
        while self.written < total {
            let mut skip = self.written;
            let mut bufs = [IoSlice::new(&[]); Self::PIECES + 2];
            let more = self.more.iter().map(|piece| &piece[..]);
            let parts = [&self.front[..], &self.data].into_iter().chain(more).chain([self.tail]);
            let mut used = 0;
            for (buf, part) in bufs.iter_mut().zip(parts) {
                let part_skip = skip.min(part.len());
                skip -= part_skip;
                *buf = IoSlice::new(&part[part_skip..]);
                used += 1;
            }
            match ready!(Pin::new(&mut *io).poll_write_vectored(cx, &bufs[..used]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        self.written = 0;
        self.front.clear();
        self.data = Bytes::new();
        self.more.clear();
        self.tail = &[];
        Poll::Ready(Ok(()))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        give_spare(std::mem::take(&mut self.front));
    }
}

thread_local! {
    /// Buffers for heads to be written into, which live for a moment each.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer; an `Outgoing` gives it back.
pub fn take_spare() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(1024))
}

fn give_spare(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 || buffer.capacity() > 8 * 1024 {
        return;
    }
    buffer.clear();
    let _ = SPARE.try_with(|spare| {
        if let Ok(mut spare) = spare.try_borrow_mut()
            && spare.len() < 8
        {
            spare.push(buffer);
        }
    });
}
