//! Counts HTTP/2 frames as they pass, and ends connections that send what only an attacker sends.
//!
//! The codec bounds resets, header lists and windows by itself; what it answers for free (PING, SETTINGS, empty DATA,
//! WINDOW_UPDATE on the connection, PRIORITY, CONTINUATION without end) is bounded here, per second. Only the nine bytes of a
//! frame's head are looked at.

use super::stall::Link;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Frames of a kind that one connection may send in a second.
const PINGS: u32 = 100;
const SETTINGS: u32 = 50;
const EMPTY_DATA: u32 = 100;
const RESETS: u32 = 200;
const PRIORITIES: u32 = 1000;
/// One-byte DATA comes with honest traffic too.
const SMALL: u32 = 20_000;
/// Window updates come in proportion to what they were given for: one for so many bytes, and some more.
const UPDATES: u32 = 1000;
const BYTES_PER_UPDATE: u64 = 256;
/// In one header block, whatever the time.
const CONTINUATIONS: u32 = 20;

#[derive(Default)]
struct Counts {
    pings: u32,
    settings: u32,
    empty: u32,
    resets: u32,
    priorities: u32,
    small: u32,
    updates: u32,
    /// Bytes sent to the peer.
    written: u64,
}

pub struct Guard<T> {
    io: T,
    link: Rc<Link>,
    /// How long a head may take from its first byte to its last.
    head_limit: Duration,
    /// Limits times this.
    patience: u32,
    preface: usize,
    head: [u8; 9],
    have: usize,
    skip: usize,
    continuations: u32,
    /// Inside a header block.
    in_block: bool,
    timer: Option<Pin<Box<Sleep>>>,
    counts: Counts,
    since: Option<Instant>,
    highest: u32,
    /// The last write ended somewhere in a frame.
    mid_frame: bool,
}

const PREFACE: usize = 24;

impl<T> Guard<T> {
    pub fn new(io: T, link: Rc<Link>, head_limit: Duration, patience: u32) -> Self {
        Self {
            io,
            link,
            head_limit,
            patience,
            preface: PREFACE,
            head: [0; 9],
            have: 0,
            skip: 0,
            continuations: 0,
            in_block: false,
            timer: None,
            counts: Counts::default(),
            since: None,
            highest: 0,
            mid_frame: false,
        }
    }

    fn follow(&mut self, mut bytes: &[u8]) -> Option<&'static str> {
        let skip = self.preface.min(bytes.len());
        self.preface -= skip;
        bytes = &bytes[skip..];
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skip = self.skip.min(bytes.len());
                self.skip -= skip;
                bytes = &bytes[skip..];
                continue;
            }
            let take = (9 - self.have).min(bytes.len());
            self.head[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            self.have += take;
            bytes = &bytes[take..];
            if self.have == 9 {
                self.have = 0;
                self.skip =
                    usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2]);
                if let Some(kind) = self.frame() {
                    return Some(kind);
                }
            }
        }
        None
    }

    fn frame(&mut self) -> Option<&'static str> {
        let (kind, flags, length) = (self.head[3], self.head[4], self.skip);
        let c = &mut self.counts;
        let (count, limit, word) = match kind {
            0 if length == 0 && flags & 1 == 0 => (&mut c.empty, EMPTY_DATA, "empty_data"),
            0 if length <= 1 => (&mut c.small, SMALL, "small_data"),
            2 => (&mut c.priorities, PRIORITIES, "priority"),
            3 => {
                self.link.reset();
                (&mut c.resets, RESETS, "rapid_reset")
            }
            4 => (&mut c.settings, SETTINGS, "settings"),
            6 if flags & 1 == 0 => (&mut c.pings, PINGS, "ping"),
            8 => {
                let earned = (c.written / BYTES_PER_UPDATE).min(u64::from(u32::MAX / 2)) as u32;
                (&mut c.updates, UPDATES + earned / self.patience, "window_update")
            }
            9 => {
                self.in_block = flags & 4 == 0;
                self.continuations += 1;
                return (self.continuations > CONTINUATIONS).then_some("continuation");
            }
            1 => {
                let [.., a, b, c, d] = self.head;
                self.highest = self.highest.max(u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff);
                self.in_block = flags & 4 == 0;
                self.continuations = 0;
                return None;
            }
            _ => return None,
        };
        *count += 1;
        if *count <= limit * self.patience {
            return None;
        }
        // The clock is only asked when something is suspicious: a full count that took longer than a second is fine.
        let now = Instant::now();
        match self.since.replace(now) {
            Some(since) if now - since < Duration::from_secs(1) => Some(word),
            _ => {
                self.counts = Counts::default();
                None
            }
        }
    }

    /// A head has begun and its end has not come.
    fn owes_head(&self) -> bool {
        self.in_block || (matches!(self.head[3], 1 | 9) && self.skip > 0)
    }

    fn poll_head_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.head_limit.is_zero() || !self.owes_head() {
            self.timer = None;
            return Poll::Pending;
        }
        let limit = self.head_limit;
        self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx)
    }
}

impl<T: AsyncWrite + Unpin> Guard<T> {
    /// Says why, if that can be said between two frames; the codec only sees that reading failed.
    fn trip(&mut self, cx: &mut Context<'_>, kind: &'static str) -> io::Error {
        metrics::counter!("weft_h2_flood_total", "kind" => kind).increment(1);
        if !self.mid_frame {
            const ENHANCE_YOUR_CALM: u32 = 11;
            let mut goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            goaway[9..13].copy_from_slice(&self.highest.to_be_bytes());
            goaway[13..17].copy_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
            let _ = Pin::new(&mut self.io).poll_write(cx, &goaway);
        }
        io::Error::other(kind)
    }

    fn wrote(&mut self, polled: Poll<io::Result<usize>>, offered: usize) -> Poll<io::Result<usize>> {
        self.link.is_full(polled.is_pending());
        if let Poll::Ready(Ok(n)) = polled {
            self.mid_frame = n < offered;
            self.counts.written += n as u64;
        }
        polled
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        match polled {
            Poll::Pending if this.poll_head_due(cx).is_ready() => Poll::Ready(Err(this.trip(cx, "slow_head"))),
            Poll::Ready(Ok(())) => match this.follow(&buf.filled()[before..]) {
                Some(kind) => Poll::Ready(Err(this.trip(cx, kind))),
                None => polled,
            },
            _ => polled,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(polled, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(polled, bufs.iter().map(|b| b.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![(length >> 16) as u8, (length >> 8) as u8, length as u8, kind, flags, 0, 0, 0, 1];
        bytes.resize(9 + length, 0);
        bytes
    }

    fn guard() -> Guard<()> {
        let mut guard = Guard::new((), Rc::default(), Duration::ZERO, 1);
        assert_eq!(guard.follow(&[0; PREFACE]), None);
        guard
    }

    #[test]
    fn floods_trip_in_any_segmentation() {
        for (kind, flags, length, word) in [
            (6, 0, 8, "ping"),
            (4, 0, 0, "settings"),
            (0, 0, 0, "empty_data"),
            (3, 0, 4, "rapid_reset"),
            (9, 0, 3, "continuation"),
        ] {
            for piece in [1, 7, 1000] {
                let mut guard = guard();
                let stream: Vec<u8> = (0..600).flat_map(|_| frame(kind, flags, length)).collect();
                let tripped = stream.chunks(piece).find_map(|c| guard.follow(c));
                assert_eq!(tripped, Some(word), "{piece}");
            }
        }
    }

    #[test]
    fn honest_traffic_passes() {
        let mut guard = guard();
        for _ in 0..5000 {
            // The answer's bytes pay for the updates of their window.
            guard.counts.written += 1000;
            let request: Vec<u8> =
                [frame(1, 4, 120), frame(0, 0, 1000), frame(0, 1, 0), frame(8, 0, 4)].into_iter().flatten().collect();
            assert_eq!(guard.follow(&request), None);
        }
    }
}
