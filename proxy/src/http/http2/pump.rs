//! Sends a body into its stream, as the windows and the socket allow.
//!
//! A peer that opens no window keeps the body's bytes, its stream and everything upstream of it for as long as it likes. So
//! while a piece waits for a window its time runs, and at its end the stream alone is given up. A body that has nothing to
//! send is quiet, and may be for ever. Sockets that take nothing at all are the connection's matter (`accept::live`), and
//! while one is full no stream is blamed.

use super::body::Writer;
use super::engine::Sent;
use crate::http::exchange::{Body, BodyError};
use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as _;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Who takes less of a piece than this in a second takes nothing ...
const SLOWEST: usize = 1000;
/// ... a piece being no more than this.
const PIECE: usize = 64 * 1024;
/// After so much others have their turn, and sooner where they wait for the same.
const TURN: usize = 128 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The stream ended under it.
    Stream,
    /// The body broke off.
    Source(BodyError),
    /// The peer took too little for too long.
    Stalled,
}

pub struct Pump {
    writer: Writer,
    body: Body,
    rest: Bytes,
    trailers: Option<HeaderMap>,
    /// How long a piece may lie ready; zero is for ever.
    limit: Duration,
    stall: Option<Box<Stall>>,
}

/// A piece that has to wait.
struct Stall {
    owed: usize,
    since: Instant,
    timer: Pin<Box<Sleep>>,
    size: usize,
}

impl Pump {
    pub fn new(writer: Writer, body: Body, limit: Duration) -> Self {
        Self { writer, body, rest: Bytes::new(), trailers: None, limit, stall: None }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        let (key, id) = (self.writer.key, self.writer.id);
        let mut turn = TURN;
        loop {
            if !self.rest.is_empty() {
                if turn == 0 {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let over = self.body.is_end_stream();
                let sent = self.writer.conn.borrow_mut().send_data(key, id, &mut self.rest, over, cx);
                match sent {
                    Sent::Bytes(n) => {
                        turn = turn.saturating_sub(n);
                        if let Some(stall) = &mut self.stall {
                            // What had to wait takes turns frame by frame.
                            turn = 0;
                            stall.owed = stall.owed.saturating_sub(n);
                            if stall.owed == 0 {
                                stall.size = 0;
                            }
                        }
                        if over && self.rest.is_empty() {
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Sent::Window => return self.poll_stalled(cx).map(|()| Err(Stopped::Stalled)),
                    Sent::Room => return Poll::Pending,
                    Sent::Gone => return Poll::Ready(Err(Stopped::Stream)),
                }
                continue;
            }
            if let Some(trailers) = &self.trailers {
                let mut engine = self.writer.conn.borrow_mut();
                if !engine.is_open(key, id) {
                    return Poll::Ready(Err(Stopped::Stream));
                }
                if !engine.has_room(key, id, cx) {
                    return Poll::Pending;
                }
                engine.send_trailers(key, id, trailers);
                return Poll::Ready(Ok(()));
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    self.rested();
                    let open = self.writer.conn.borrow_mut().watch(key, id, cx);
                    return if open { Poll::Pending } else { Poll::Ready(Err(Stopped::Stream)) };
                }
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() && self.body.is_end_stream() => return self.poll_end(cx),
                    Ok(data) => self.rest = data,
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
                None => return self.poll_end(cx),
                Some(Err(error)) => return Poll::Ready(Err(Stopped::Source(error))),
            }
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        let (key, id) = (self.writer.key, self.writer.id);
        let sent = self.writer.conn.borrow_mut().send_data(key, id, &mut Bytes::new(), true, cx);
        match sent {
            Sent::Bytes(_) => Poll::Ready(Ok(())),
            // An end needs no window; for a socket that is full it is asked for again.
            Sent::Window | Sent::Room => Poll::Pending,
            Sent::Gone => Poll::Ready(Err(Stopped::Stream)),
        }
    }

    /// Nothing lies ready.
    fn rested(&mut self) {
        if let Some(stall) = &mut self.stall {
            stall.size = 0;
        }
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.limit.is_zero() {
            return Poll::Pending;
        }
        let now = Instant::now();
        let piece = self.rest.len().min(PIECE);
        let limit = self.limit;
        let stall = self.stall.get_or_insert_with(|| {
            Box::new(Stall { owed: 0, since: now, timer: Box::pin(tokio::time::sleep(limit)), size: 0 })
        });
        if stall.size == 0 {
            (stall.size, stall.owed, stall.since) = (piece, piece, now);
        }
        let engine = self.writer.conn.borrow();
        if !engine.out.has_room() {
            stall.since = now;
        } else if let Some(freed) = engine.out.freed() {
            stall.since = stall.since.max(freed.into());
        }
        drop(engine);
        let due = stall.since + limit + Duration::from_secs((stall.size / SLOWEST) as u64);
        if now >= due {
            return Poll::Ready(());
        }
        if stall.timer.is_elapsed() || stall.timer.deadline() > due {
            stall.timer.as_mut().reset(due);
        }
        // It may fire early, set for an older piece: then the task looks again.
        ready!(stall.timer.as_mut().poll(cx));
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
