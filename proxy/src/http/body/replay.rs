//! A request body that can be sent again: what was sent is kept until it is too much, or until no retry can follow.

use crate::http::exchange::{Body, BodyError};
use crate::http::normalise;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use weft_policy::retry::REPLAY_CAP;

#[derive(Debug)]
struct Kept {
    source: Body,
    data: Vec<Bytes>,
    size: u64,
    trailers: Option<HeaderMap>,
    /// The source has ended.
    ended: bool,
    /// Too much was sent, or nothing is kept any more.
    lost: bool,
    /// An attempt read an error from the client: there is nothing to send again.
    failed: Option<BodyError>,
    /// Only the newest attempt may read the source.
    turn: u32,
    /// How long the client may owe bytes it has announced.
    stall: Option<Duration>,
    /// Somebody asks when the client last sent something.
    clocked: bool,
    timer: Option<Pin<Box<Sleep>>>,
    last: Option<Instant>,
}

impl Kept {
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.stall else { return Poll::Pending };
        let now = Instant::now();
        let due = *self.last.get_or_insert(now) + limit;
        if now >= due {
            return Poll::Ready(());
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.is_elapsed() {
            timer.as_mut().reset(due);
        }
        // It may fire early, set for an older byte: then the task looks again.
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// The body of a request, across its attempts.
#[derive(Clone, Debug)]
pub struct Replayable(Rc<RefCell<Kept>>);

/// One attempt's body.
#[derive(Debug)]
pub struct Replay {
    kept: Rc<RefCell<Kept>>,
    turn: u32,
    next: usize,
    trailers_sent: bool,
}

impl Replayable {
    pub fn new(source: Body, stall: Option<Duration>, clocked: bool) -> Self {
        // A body that says it is too large is not worth a single copy of a handle.
        let lost = source.length().is_some_and(|n| n > REPLAY_CAP as u64);
        Self(Rc::new(RefCell::new(Kept {
            source,
            data: Vec::new(),
            size: 0,
            trailers: None,
            ended: false,
            lost,
            failed: None,
            turn: 0,
            stall,
            clocked: clocked || stall.is_some(),
            timer: None,
            last: None,
        })))
    }

    /// The body for the next attempt; the previous one reads no more.
    pub fn attempt(&self) -> Body {
        let mut kept = self.0.borrow_mut();
        kept.turn += 1;
        let turn = kept.turn;
        drop(kept);
        Body::replay(Replay { kept: self.0.clone(), turn, next: 0, trailers_sent: false })
    }

    /// Whether another attempt would send the whole body.
    pub fn can_repeat(&self) -> bool {
        let kept = self.0.borrow();
        kept.failed.is_none() && (!kept.lost || (kept.size == 0 && kept.data.is_empty() && kept.turn == 0))
    }

    /// No retry can follow: what was kept is let go, and nothing more is.
    pub fn settle(&self) {
        let mut kept = self.0.borrow_mut();
        kept.lost = true;
        kept.data = Vec::new();
    }

    /// How the client's side failed, if it did.
    pub fn client_failed(&self) -> Option<BodyError> {
        self.0.borrow().failed
    }

    /// When the client last sent something, where that is watched.
    pub fn last(&self) -> Option<std::time::Instant> {
        self.0.borrow().last.map(Instant::into_std)
    }

    /// Bytes the client sent.
    pub fn bytes(&self) -> u64 {
        self.0.borrow().size
    }

    pub fn ended(&self) -> bool {
        self.0.borrow().ended
    }

    /// The whole body, where it has come and was kept.
    pub fn copy(&self) -> Option<Body> {
        let kept = self.0.borrow();
        if !kept.ended || kept.lost {
            return None;
        }
        Some(match &kept.data[..] {
            [] => Body::empty(),
            [one] => Body::full(one.clone()),
            many => Body::full(many.concat()),
        })
    }
}

impl Replay {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut kept = self.kept.borrow_mut();
        let kept = &mut *kept;
        if kept.turn != self.turn {
            return Poll::Ready(Some(Err(BodyError::Ended)));
        }
        if let Some(data) = kept.data.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if kept.ended {
            return match &kept.trailers {
                Some(trailers) if !self.trailers_sent => {
                    self.trailers_sent = true;
                    Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))))
                }
                _ => Poll::Ready(None),
            };
        }
        let frame = match Pin::new(&mut kept.source).poll_frame(cx) {
            Poll::Pending => {
                if kept.poll_stall(cx).is_pending() {
                    return Poll::Pending;
                }
                kept.failed = Some(BodyError::Idle);
                return Poll::Ready(Some(Err(BodyError::Idle)));
            }
            Poll::Ready(None) => {
                kept.ended = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => {
                kept.failed = Some(error);
                return Poll::Ready(Some(Err(error)));
            }
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        match frame.into_data() {
            Ok(data) => {
                // Whoever knows the length does not ask for the end after the last byte.
                kept.ended = kept.source.is_end_stream();
                kept.last = kept.clocked.then(Instant::now);
                if !kept.lost {
                    kept.size += data.len() as u64;
                    if kept.size > REPLAY_CAP as u64 {
                        kept.lost = true;
                        kept.data = Vec::new();
                    } else {
                        kept.data.push(data.clone());
                        self.next += 1;
                    }
                } else {
                    kept.size += data.len() as u64;
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Err(frame) => {
                if let Ok(mut trailers) = frame.into_trailers() {
                    normalise::request_trailers(&mut trailers);
                    kept.ended = true;
                    self.trailers_sent = true;
                    kept.trailers = Some(trailers.clone());
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Poll::Ready(None)
            }
        }
    }

    pub fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        kept.turn == self.turn && kept.ended && self.next >= kept.data.len() && kept.trailers.is_none()
    }

    pub fn size_hint(&self) -> http_body::SizeHint {
        let kept = self.kept.borrow();
        let rest: u64 = kept.data.iter().skip(self.next).map(|d| d.len() as u64).sum();
        let source = if kept.ended { http_body::SizeHint::with_exact(0) } else { kept.source.size_hint() };
        match source.exact() {
            Some(n) => http_body::SizeHint::with_exact(rest + n),
            None => http_body::SizeHint::default(),
        }
    }
}
