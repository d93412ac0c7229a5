//! Between a connection's socket and its engine: the one place that reads, and the connection's timers.

use super::body::Conn;
use super::engine::{Arrival, Fault, Role};
use super::streams::Why;
use crate::http::reject;
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};

const READ: usize = 128 * 1024;
/// Reads before others have their turn.
const READS: usize = 8;
/// For the last words to somebody who may not be listening.
const LAST_WORDS: Duration = Duration::from_secs(1);

thread_local! {
    /// What all connections of a worker read into. Between reads a connection keeps only the frame it has a part of.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All was said.
    Done,
    /// The peer closed it, or it broke.
    Gone,
    /// The peer did not answer a question.
    Silent,
    Fault(Fault),
}

/// Asks a quiet peer now and then whether it is still there.
struct Pulse {
    every: Duration,
    patience: Duration,
    /// Also one that is not quiet: then it is known sooner that it has become so.
    always: bool,
    asked: bool,
    timer: Pin<Box<Sleep>>,
}

pub struct Link {
    conn: Conn,
    role: Role,
    /// Of a frame whose rest has not come.
    partial: Vec<u8>,
    pulse: Pulse,
    /// How long a head may take from its first byte to its last.
    head_limit: Duration,
    head_timer: Option<Pin<Box<Sleep>>>,
}

impl Link {
    pub fn new(conn: Conn, role: Role, head_limit: Duration) -> Self {
        let (every, patience, always) = match role {
            Role::Server => (Duration::from_secs(20), Duration::from_secs(10), false),
            Role::Client => (Duration::from_secs(10), Duration::from_secs(10), true),
        };
        let pulse = Pulse { every, patience, always, asked: false, timer: Box::pin(tokio::time::sleep(every)) };
        Self { conn, role, partial: Vec::new(), pulse, head_limit, head_timer: None }
    }

    /// Reads and answers until the connection is over. Always to be polled by the same task.
    pub fn poll(&mut self, cx: &mut Context<'_>, arrive: &mut dyn FnMut(Arrival)) -> Poll<End> {
        {
            let mut engine = self.conn.borrow_mut();
            engine.out.driven_by(cx.waker());
            if engine.out.poll_flush(cx) == Poll::Ready(true) {
                engine.wake_waiting();
            }
        }
        let mut reads = 0;
        loop {
            {
                let engine = self.conn.borrow();
                if engine.out.has_failed() {
                    return Poll::Ready(End::Gone);
                }
                if engine.is_done() {
                    return Poll::Ready(End::Done);
                }
                // Whoever does not take answers may not ask. (The flush will wake us.)
                if engine.out.is_full() {
                    break;
                }
            }
            if reads == READS {
                cx.waker().wake_by_ref();
                break;
            }
            reads += 1;
            match self.poll_read(cx, arrive) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Pending => break,
            }
        }
        if self.poll_head_due(cx).is_ready() {
            return Poll::Ready(End::Fault(Fault::flood("slow_head")));
        }
        self.poll_silent(cx).map(|()| End::Silent)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, arrive: &mut dyn FnMut(Arrival)) -> Poll<Result<(), End>> {
        let mut buffer = BUFFER.take();
        let have = self.partial.len();
        if buffer.len() < have + READ {
            buffer.resize(have + READ, 0);
        }
        let (front, space) = buffer.split_at_mut(have);
        let mut read = ReadBuf::new(&mut space[..READ]);
        let polled = match self.conn.borrow_mut().out.io() {
            Some(io) => Pin::new(io).poll_read(cx, &mut read),
            None => Poll::Ready(Ok(())),
        };
        let n = read.filled().len();
        let result = match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if n > 0 => {
                front.copy_from_slice(&self.partial);
                Poll::Ready(self.take(&buffer[..have + n], arrive))
            }
            Poll::Ready(_) => Poll::Ready(Err(End::Gone)),
        };
        BUFFER.set(buffer);
        result
    }

    fn take(&mut self, mut input: &[u8], arrive: &mut dyn FnMut(Arrival)) -> Result<(), End> {
        self.conn.borrow_mut().heard = true;
        loop {
            let advanced = self.conn.borrow_mut().advance(&mut input);
            match advanced {
                Ok(Some(arrival)) => arrive(arrival),
                Ok(None) => break,
                Err(fault) => return Err(End::Fault(fault)),
            }
        }
        if input.is_empty() && self.partial.capacity() > 1024 {
            self.partial = Vec::new();
        } else {
            self.partial.clear();
            self.partial.extend_from_slice(input);
        }
        Ok(())
    }

    fn poll_head_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.head_limit.is_zero() || !self.conn.borrow().owes_head() {
            self.head_timer = None;
            return Poll::Pending;
        }
        let limit = self.head_limit;
        self.head_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx)
    }

    fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let pulse = &mut self.pulse;
        while pulse.timer.as_mut().poll(cx).is_ready() {
            let mut engine = self.conn.borrow_mut();
            let heard = std::mem::take(&mut engine.heard);
            if pulse.asked && !heard {
                return Poll::Ready(());
            }
            pulse.asked = pulse.always || !heard;
            if pulse.asked {
                engine.ping();
            }
            let next = if pulse.asked { pulse.patience } else { pulse.every };
            pulse.timer.as_mut().reset(Instant::now() + next);
        }
        Poll::Pending
    }

    /// Says what is still to be said, ends the streams and closes the socket.
    pub async fn close(self, end: End) {
        let (io, rest) = {
            let mut engine = self.conn.borrow_mut();
            match end {
                End::Fault(fault) => {
                    if let Some(word) = fault.flood {
                        metrics::counter!("weft_h2_flood_total", "kind" => word).increment(1);
                    }
                    engine.last_words(fault.code);
                    engine.end(Why::Malformed);
                }
                End::Done | End::Silent => {
                    engine.last_words(super::frame::code::NO_ERROR);
                    engine.end(Why::Gone);
                }
                End::Gone => engine.end(Why::Gone),
            }
            engine.out.take_io()
        };
        let Some(mut io) = io else { return };
        match end {
            // Answers may still be on their way to a slow client, of which others decide how slow it may be.
            End::Done if self.role == Role::Server => {
                if io.write_all(&rest).await.is_ok() {
                    let _ = io.shutdown().await;
                }
            }
            End::Fault(_) => {
                let _ = tokio::time::timeout(LAST_WORDS, io.write_all(&rest)).await;
                reject::linger(&mut io).await;
            }
            End::Done | End::Silent | End::Gone => {
                let _ = tokio::time::timeout(LAST_WORDS, io.shutdown()).await;
            }
        }
    }
}
