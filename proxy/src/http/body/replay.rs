//! A request body that can be sent again: what was sent is kept until it is too much, or until no retry can follow.

use crate::http::exchange::{Body, BodyError};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use weft_policy::retry::REPLAY_CAP;

#[derive(Debug)]
struct Kept {
    source: Body,
    data: Vec<Bytes>,
    size: usize,
    trailers: Option<HeaderMap>,
    /// The source has ended.
    ended: bool,
    /// Too much was sent, or nothing is kept any more.
    lost: bool,
    /// An attempt read an error from the client: there is nothing to send again.
    failed: bool,
    /// Only the newest attempt may read the source.
    turn: u32,
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
    pub fn new(source: Body) -> Self {
        // A body that says it is too large is not worth a single copy of a handle.
        let lost = source.length().is_some_and(|n| n > REPLAY_CAP as u64);
        Self(Rc::new(RefCell::new(Kept {
            source,
            data: Vec::new(),
            size: 0,
            trailers: None,
            ended: false,
            lost,
            failed: false,
            turn: 0,
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
        !kept.failed && (!kept.lost || (kept.size == 0 && kept.data.is_empty() && kept.turn == 0))
    }

    /// No retry can follow: what was kept is let go, and nothing more is.
    pub fn settle(&self) {
        let mut kept = self.0.borrow_mut();
        kept.lost = true;
        kept.data = Vec::new();
    }

    pub fn client_failed(&self) -> bool {
        self.0.borrow().failed
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
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => {
                kept.ended = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => {
                kept.failed = true;
                return Poll::Ready(Some(Err(error)));
            }
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        match frame.into_data() {
            Ok(data) => {
                if !kept.lost {
                    kept.size += data.len();
                    if kept.size > REPLAY_CAP {
                        kept.lost = true;
                        kept.data = Vec::new();
                    } else {
                        kept.data.push(data.clone());
                        self.next += 1;
                    }
                } else {
                    kept.size += data.len();
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
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
