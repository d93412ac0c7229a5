//! One connection's state: what was read and not yet taken, what was written and not yet sent.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::flusher::{HEADROOM, Worker};
use super::handshake::Opened;
use super::session::{Ended, Send, Session};
use crate::reason::{HandshakeError, Reason};

/// Plaintext and ciphertext waiting to be sent, together: from here on writers wait ...
const HIGH: usize = 256 * 1024;
/// ... until it is down to this.
const LOW: usize = 64 * 1024;
/// This much does not wait for the end of the turn.
const BULK: usize = 64 * 1024;
/// What one write takes at most, in plaintext: eight full records.
const CHUNK: usize = 128 * 1024;
const RECORD: usize = 16 * 1024;
/// Readers with a buffer this large get a plain socket's bytes directly.
const DIRECT_READ: usize = 16 * 1024;

/// Bytes taken from the front one piece at a time. Holds no memory when empty.
#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    start: usize,
}

impl Queue {
    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn front(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// Returns the buffer when that emptied it.
    fn advance(&mut self, n: usize) -> Option<Vec<u8>> {
        self.start += n;
        if self.start >= self.bytes.len() {
            self.start = 0;
            return Some(std::mem::take(&mut self.bytes));
        }
        None
    }

    fn push(&mut self, bytes: &[u8]) {
        // Moving the rest down costs less than growing past what was sent already.
        if self.start > 0 && self.bytes.len() + bytes.len() > self.bytes.capacity() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }
}

pub(super) struct Inner {
    pub(super) id: u64,
    /// In the flusher's list.
    pub(super) scheduled: bool,
    pub(super) tcp: TcpStream,
    session: Session,
    /// Part of a record, at its true size. Whole records never stay here.
    incoming: Vec<u8>,
    /// Decrypted, and more than the reader had room for.
    plain: Queue,
    end: End,
    /// Not encrypted yet.
    pending: Queue,
    /// Encrypted and not accepted by the kernel. (Also for a plain socket's: nothing.)
    backlog: Queue,
    /// The kernel has no room; `waker` is registered.
    blocked: bool,
    /// Bytes the kernel took, ever.
    sent: u64,
    waker: Waker,
    writer: Option<Waker>,
    write_error: Option<io::ErrorKind>,
    closing: bool,
    said_goodbye: bool,
    /// The session failed and must not be touched again; only its alert may still go out.
    dead: bool,
    /// The peer has sent something.
    heard: bool,
    pub(super) refusal: Refusal,
}

/// Tells of a peer that ended TLS before it said anything else: it did not want us, and cannot have acted on what it was sent.
#[derive(Clone, Debug, Default)]
pub struct Refusal(Rc<Cell<Option<Reason>>>);

impl Refusal {
    pub fn get(&self) -> Option<Reason> {
        self.0.get()
    }
}

enum End {
    Open,
    Clean,
    Failed(Option<io::Error>),
}

impl Inner {
    pub(super) fn new(tcp: TcpStream, session: Session, opened: Opened, waker: Waker, id: u64) -> Self {
        Self {
            id,
            scheduled: false,
            tcp,
            session,
            incoming: opened.incoming,
            heard: !opened.plain.is_empty(),
            refusal: Refusal::default(),
            plain: Queue { bytes: opened.plain, start: 0 },
            end: if opened.closed { End::Clean } else { End::Open },
            pending: Queue::default(),
            backlog: Queue::default(),
            blocked: false,
            sent: 0,
            waker,
            writer: None,
            write_error: None,
            closing: false,
            said_goodbye: false,
            dead: false,
        }
    }

    fn is_tls(&self) -> bool {
        !matches!(self.session, Session::Plain)
    }

    pub(super) fn buffered(&self) -> usize {
        self.pending.len() + self.backlog.len()
    }

    /// What the kernel took so far, while something waits for its peer.
    pub(super) fn sent_while_blocked(&self) -> Option<u64> {
        (self.blocked && self.buffered() > 0 && self.write_error.is_none()).then_some(self.sent)
    }

    /// What the kernel took so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    pub(super) fn held(&self) -> usize {
        let queues = [&self.plain, &self.pending, &self.backlog];
        queues.iter().fold(self.incoming.capacity(), |sum, q| sum + q.bytes.capacity())
    }

    pub(super) fn wants_flush(&self) -> bool {
        !self.blocked && self.write_error.is_none() && self.buffered() > 0
    }

    pub(super) fn failed(&self) -> io::Result<()> {
        self.write_error.map_or(Ok(()), |kind| Err(kind.into()))
    }

    pub(super) fn unblocked(&mut self) {
        self.blocked = false;
    }

    /// The waiting writer, once it can go on.
    pub(super) fn take_writer(&mut self) -> Option<Waker> {
        let low = if self.closing { 0 } else { LOW };
        if self.buffered() <= low || self.write_error.is_some() { self.writer.take() } else { None }
    }

    // Reading.

    /// Something was read that nobody has taken yet.
    pub(super) fn has_read(&self) -> bool {
        !self.plain.is_empty()
    }

    pub(super) fn unread(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        bytes.extend_from_slice(self.plain.front());
        self.plain = Queue { bytes, start: 0 };
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        worker: &Worker,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        loop {
            if !self.plain.is_empty() {
                let n = self.plain.len().min(buf.remaining());
                buf.put_slice(self.plain.front().get(..n).unwrap_or_default());
                self.plain.advance(n);
                return Poll::Ready(Ok(()));
            }
            match &mut self.end {
                End::Open => {}
                End::Clean => return Poll::Ready(Ok(())),
                // The cause is told once; whoever asks again gets its kind.
                End::Failed(error) => {
                    let again = error.as_ref().map_or(io::ErrorKind::ConnectionAborted, io::Error::kind);
                    let told = error.replace(again.into());
                    return Poll::Ready(Err(told.unwrap_or_else(|| again.into())));
                }
            }
            if !self.is_tls() && buf.remaining() >= DIRECT_READ {
                let result = Pin::new(&mut self.tcp).poll_read(cx, buf);
                let n = buf.filled().len() - before;
                if n > 0 {
                    worker.count(|s| {
                        s.reads += 1;
                        s.bytes_read += n as u64;
                    });
                }
                return result;
            }
            let mut scratch = worker.take_read();
            let result = self.fill(cx, &mut scratch, buf, worker);
            worker.give_read(scratch);
            match result {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => self.end = End::Failed(Some(error)),
                Poll::Ready(Ok(())) => {}
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// One read, and all that it brought decrypted: into `buf`, and into `plain` what does not fit.
    fn fill(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        buf: &mut ReadBuf<'_>,
        worker: &Worker,
    ) -> Poll<io::Result<()>> {
        let (headroom, space) = scratch.split_at_mut(HEADROOM);
        let mut read = ReadBuf::new(space);
        match Pin::new(&mut self.tcp).poll_read(cx, &mut read) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {}
        }
        let n = read.filled().len();
        if n == 0 {
            if self.is_tls() {
                let text = "the peer ended the connection without saying so in TLS";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
            }
            self.end = End::Clean;
            return Poll::Ready(Ok(()));
        }
        worker.count(|s| {
            s.reads += 1;
            s.bytes_read += n as u64;
        });
        let old = self.incoming.len();
        if !self.is_tls() {
            let bytes = space.get(..n).unwrap_or_default();
            let (now, later) = bytes.split_at(n.min(buf.remaining()));
            buf.put_slice(now);
            self.plain.push(later);
            return Poll::Ready(Ok(()));
        }
        if old > HEADROOM {
            // A long handshake message in many small records; rare enough to be slow.
            let mut all = std::mem::take(&mut self.incoming);
            all.extend_from_slice(space.get(..n).unwrap_or_default());
            let (consumed, result) = self.decrypt(&mut all, buf, worker);
            all.drain(..consumed);
            self.incoming = all;
            return Poll::Ready(result);
        }
        let from = HEADROOM - old;
        if let Some(front) = headroom.get_mut(from..) {
            front.copy_from_slice(&self.incoming);
        }
        let all = scratch.get_mut(from..HEADROOM + n).unwrap_or_default();
        let (consumed, result) = self.decrypt(all, buf, worker);
        let rest = all.get(consumed..).unwrap_or_default();
        if rest.is_empty() {
            self.incoming = Vec::new();
        } else {
            self.incoming.clear();
            self.incoming.reserve_exact(rest.len());
            self.incoming.extend_from_slice(rest);
        }
        Poll::Ready(result)
    }

    fn decrypt(&mut self, bytes: &mut [u8], buf: &mut ReadBuf<'_>, worker: &Worker) -> (usize, io::Result<()>) {
        let mut out = worker.take_out();
        let (plain, heard) = (&mut self.plain, &mut self.heard);
        let mut room_for = bytes.len();
        let (consumed, result) = self.session.pump(bytes, Send::Nothing, &mut out, |payload| {
            *heard |= !payload.is_empty();
            let (now, later) = payload.split_at(payload.len().min(buf.remaining()));
            buf.put_slice(now);
            if !later.is_empty() {
                // Once for the whole read, not once per record.
                if plain.bytes.capacity() == 0 {
                    plain.bytes.reserve_exact(room_for);
                }
                plain.push(later);
            }
            room_for = room_for.saturating_sub(payload.len());
        });
        let result = match result {
            Ok(Ended::Idle) => Ok(()),
            Ok(Ended::PeerClosed) => {
                self.end = End::Clean;
                Ok(())
            }
            Err(error) => {
                self.dead = true;
                if !self.heard {
                    self.refusal.0.set(Some(Reason::of(&error)));
                }
                self.session.last_words(bytes.get_mut(consumed..).unwrap_or_default(), &mut out);
                Err(io::Error::new(io::ErrorKind::InvalidData, HandshakeError::from(error)))
            }
        };
        // Answers to key updates, or an alert.
        self.backlog.push(out.filled());
        worker.give_out(out);
        if self.buffered() > 2 * HIGH {
            // Only a peer that keeps asking for new keys and reads none of the answers gets here.
            return (consumed, Err(io::Error::new(io::ErrorKind::InvalidData, "the peer asks but does not read")));
        }
        (consumed, result)
    }

    // Writing.

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
        worker: &Worker,
    ) -> Poll<io::Result<usize>> {
        self.failed()?;
        if self.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let total = bufs.iter().fold(0, |n, b| n + b.len());
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        if self.buffered() >= HIGH {
            self.flush(worker);
            self.failed()?;
            if self.buffered() >= HIGH {
                self.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        if self.buffered() == 0 && !self.blocked && total >= BULK {
            let taken = self.write_through(bufs, worker);
            self.failed()?;
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
        }
        let mut room = HIGH.saturating_sub(self.buffered());
        let mut taken = 0;
        if self.pending.bytes.capacity() == 0 {
            self.pending.bytes = worker.take_spare();
        }
        for buf in bufs {
            let piece = buf.get(..buf.len().min(room)).unwrap_or_default();
            self.pending.push(piece);
            room -= piece.len();
            taken += piece.len();
        }
        let buffered = self.buffered();
        worker.count(|s| s.most_buffered = s.most_buffered.max(buffered));
        if self.pending.len() >= BULK {
            self.flush(worker);
            self.failed()?;
        }
        Poll::Ready(Ok(taken))
    }

    /// Straight from the caller's buffers. What this takes of TLS is sent or kept encrypted; of a plain socket it takes what the
    /// kernel does.
    fn write_through(&mut self, bufs: &[io::IoSlice<'_>], worker: &Worker) -> usize {
        if !self.is_tls() {
            return self.send_vectored(bufs, worker);
        }
        let mut left = CHUNK;
        let chunks = bufs.iter().filter_map(|buf| {
            let n = buf.len().min(left);
            left -= n;
            buf.get(..n).filter(|chunk| !chunk.is_empty())
        });
        self.seal(chunks, worker);
        CHUNK - left
    }

    /// Sends what there is until the kernel has no more room.
    pub(super) fn flush(&mut self, worker: &Worker) {
        while self.wants_flush() {
            if !self.backlog.is_empty() {
                let bytes = std::mem::take(&mut self.backlog);
                let written = self.send(bytes.front(), worker);
                self.backlog = bytes;
                self.backlog.advance(written);
            } else if self.is_tls() {
                let queue = std::mem::take(&mut self.pending);
                let front = queue.front();
                let chunk = front.get(..front.len().min(CHUNK)).unwrap_or_default();
                let sealed = self.seal([chunk].into_iter(), worker).then_some(chunk.len());
                self.pending = queue;
                self.consumed(sealed.unwrap_or(0), worker);
            } else {
                let bytes = std::mem::take(&mut self.pending);
                let written = self.send(bytes.front(), worker);
                self.pending = bytes;
                self.consumed(written, worker);
            }
        }
        if self.write_error.is_some() {
            self.pending = Queue::default();
            self.backlog = Queue::default();
        }
    }

    fn consumed(&mut self, n: usize, worker: &Worker) {
        if let Some(empty) = self.pending.advance(n) {
            worker.give_spare(empty);
        }
    }

    /// Encrypts chunks, which are records of their own, and sends them together; `false` if the session failed over it.
    fn seal<'a>(&mut self, chunks: impl Iterator<Item = &'a [u8]>, worker: &Worker) -> bool {
        if self.dead {
            self.write_error = Some(io::ErrorKind::ConnectionAborted);
            return false;
        }
        let mut out = worker.take_out();
        for chunk in chunks {
            // What was read of a record goes along: rustls resumes where it was. Whole records never lie here.
            let plain = &mut self.plain;
            let (consumed, result) =
                self.session.pump(&mut self.incoming, Send::Data(chunk), &mut out, |late| plain.push(late));
            self.incoming.drain(..consumed);
            if result.is_err() {
                self.dead = true;
                self.write_error = Some(io::ErrorKind::ConnectionAborted);
                worker.give_out(out);
                return false;
            }
            worker.count(|s| s.records += chunk.len().div_ceil(RECORD) as u64);
        }
        let written = self.send(out.filled(), worker);
        self.backlog.push(out.filled().get(written..).unwrap_or_default());
        worker.give_out(out);
        true
    }

    /// Returns how much the kernel took. Less than all of it means blocked, or an error.
    fn send(&mut self, bytes: &[u8], worker: &Worker) -> usize {
        let waker = self.waker.clone();
        let mut cx = Context::from_waker(&waker);
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.tcp).poll_write(&mut cx, rest) {
                Poll::Ready(Ok(0)) => {
                    self.write_error = Some(io::ErrorKind::WriteZero);
                    break;
                }
                Poll::Ready(Ok(n)) => {
                    written += n;
                    self.sent += n as u64;
                    worker.count(|s| {
                        s.writes += 1;
                        s.bytes_written += n as u64;
                    });
                }
                Poll::Ready(Err(error)) => {
                    self.write_error = Some(error.kind());
                    break;
                }
                Poll::Pending => {
                    self.blocked = true;
                    worker.count(|s| s.blocked += 1);
                    break;
                }
            }
        }
        written
    }

    /// One call for a plain socket; what it does not take stays with the caller.
    fn send_vectored(&mut self, bufs: &[io::IoSlice<'_>], worker: &Worker) -> usize {
        let waker = self.waker.clone();
        match Pin::new(&mut self.tcp).poll_write_vectored(&mut Context::from_waker(&waker), bufs) {
            Poll::Ready(Ok(n)) => {
                self.sent += n as u64;
                worker.count(|s| {
                    s.writes += 1;
                    s.bytes_written += n as u64;
                });
                return n;
            }
            Poll::Ready(Err(error)) => self.write_error = Some(error.kind()),
            Poll::Pending => {
                self.blocked = true;
                worker.count(|s| s.blocked += 1);
            }
        }
        0
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<io::Result<()>> {
        self.closing = true;
        self.flush(worker);
        self.failed()?;
        if self.buffered() == 0 && !self.said_goodbye {
            self.said_goodbye = true;
            if self.is_tls() && !self.dead {
                let mut out = worker.take_out();
                let plain = &mut self.plain;
                let (consumed, _) =
                    self.session.pump(&mut self.incoming, Send::CloseNotify, &mut out, |late| plain.push(late));
                self.incoming.drain(..consumed);
                self.backlog.push(out.filled());
                worker.give_out(out);
                self.flush(worker);
                self.failed()?;
            }
        }
        if self.buffered() > 0 {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match Pin::new(&mut self.tcp).poll_shutdown(cx) {
            // The peer is gone already: nothing is lost by it.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            other => other,
        }
    }
}
