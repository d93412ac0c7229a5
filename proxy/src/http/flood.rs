//! Counts HTTP/2 frames as they pass, and ends connections that send what only an attacker sends.
//!
//! The codec bounds resets, header lists and windows by itself; what it answers for free (PING, SETTINGS, empty DATA,
//! WINDOW_UPDATE on the connection, PRIORITY, CONTINUATION without end) is bounded here, per second. Only the nine bytes of a
//! frame's head are looked at.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Frames of a kind that one connection may send in a second.
const PINGS: u32 = 100;
const SETTINGS: u32 = 50;
const EMPTY_DATA: u32 = 100;
const RESETS: u32 = 200;
const PRIORITIES: u32 = 1000;
/// One-byte DATA and window updates come with honest traffic too, in proportion to it.
const SMALL: u32 = 20_000;
/// In one header block, whatever the time.
const CONTINUATIONS: u32 = 20;

#[derive(Debug, Default)]
pub struct Flood {
    pub tripped: Cell<Option<&'static str>>,
}

#[derive(Default)]
struct Counts {
    pings: u32,
    settings: u32,
    empty: u32,
    resets: u32,
    priorities: u32,
    small: u32,
}

pub struct Guard<T> {
    io: T,
    flood: Rc<Flood>,
    preface: usize,
    head: [u8; 9],
    have: usize,
    skip: usize,
    continuations: u32,
    counts: Counts,
    since: Option<Instant>,
}

const PREFACE: usize = 24;

impl<T> Guard<T> {
    pub fn new(io: T, flood: Rc<Flood>) -> Self {
        let (head, counts) = ([0; 9], Counts::default());
        Self { io, flood, preface: PREFACE, head, have: 0, skip: 0, continuations: 0, counts, since: None }
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
            3 => (&mut c.resets, RESETS, "rapid_reset"),
            4 => (&mut c.settings, SETTINGS, "settings"),
            6 if flags & 1 == 0 => (&mut c.pings, PINGS, "ping"),
            8 => (&mut c.small, SMALL, "window_update"),
            9 => {
                self.continuations += 1;
                return (self.continuations > CONTINUATIONS).then_some("continuation");
            }
            1 => {
                self.continuations = 0;
                return None;
            }
            _ => return None,
        };
        *count += 1;
        if *count <= limit {
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
}

impl<T: AsyncRead + Unpin> AsyncRead for Guard<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = polled
            && let Some(kind) = this.follow(&buf.filled()[before..])
        {
            this.flood.tripped.set(Some(kind));
            metrics::counter!("weft_h2_flood_total", "kind" => kind).increment(1);
            return Poll::Ready(Err(io::Error::other(kind)));
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
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
        let mut guard = Guard::new((), Rc::default());
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
            let request: Vec<u8> =
                [frame(1, 4, 120), frame(0, 0, 1000), frame(0, 1, 0), frame(8, 0, 4)].into_iter().flatten().collect();
            assert_eq!(guard.follow(&request), None);
        }
    }
}
