//! Ends answers that their client does not take.
//!
//! An HTTP/2 client that opens no window keeps the answer's bytes, its stream and everything upstream of it for as long as it
//! likes, and the codec waits with it. So each stream's task looks at its own answer whenever it has to wait: if the codec
//! has no room, but the body has something to send, the client's time runs. At its end the task is dropped, which resets the
//! stream alone. A body that has nothing to send is quiet, not stalled, and may be so for ever.
//!
//! Sockets that take nothing at all are the connection's matter (`accept::live`), and while one is full no stream is blamed.

use super::exchange::{Body, BodyError};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// The codec may hold this much of an answer behind a stream's end; ends of larger pieces wait until they are taken.
const SMALL: usize = 16 * 1024;
/// The codec takes a piece before it has room for it: pieces are no larger than this.
const PIECE: usize = 64 * 1024;
/// Who takes less of a piece than this in a second takes nothing.
const SLOWEST: usize = 1000;

/// Whether the connection's socket has room.
#[derive(Debug, Default)]
pub struct Link {
    full: Cell<bool>,
    freed: Cell<Option<Instant>>,
}

impl Link {
    pub fn is_full(&self, full: bool) {
        if self.full.replace(full) && !full {
            self.freed.set(Some(Instant::now()));
        }
    }
}

struct Offer {
    body: Body,
    /// What was taken from the body to see whether there is anything.
    ahead: Option<Option<Result<Frame<Bytes>, BodyError>>>,
    /// It is the codec that waits for the body.
    asked: bool,
    /// Size of the piece the codec took last.
    last: usize,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// An answer's body as the codec gets it.
pub struct Offered(Rc<RefCell<Offer>>);

impl http_body::Body for Offered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let offer = &mut *self.0.borrow_mut();
        let polled = match offer.ahead.take() {
            Some(frame) => Poll::Ready(frame),
            None => Pin::new(&mut offer.body).poll_frame(cx),
        };
        let polled = match polled {
            Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(|data| data.len() > PIECE) => {
                let mut rest = frame.into_data().unwrap_or_default();
                let piece = rest.split_to(PIECE);
                offer.ahead = Some(Some(Ok(Frame::data(rest))));
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            other => other,
        };
        offer.since = None;
        offer.asked = !matches!(polled, Poll::Ready(Some(Ok(_))));
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            offer.last = frame.data_ref().map_or(0, Bytes::len);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let offer = self.0.borrow();
        offer.ahead.is_none() && offer.last <= SMALL && offer.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let offer = self.0.borrow();
        if offer.ahead.is_some() { SizeHint::default() } else { offer.body.size_hint() }
    }
}

impl Offer {
    fn poll_stalled(&mut self, cx: &mut Context<'_>, link: &Link, limit: Duration) -> Poll<()> {
        if self.asked {
            return Poll::Pending;
        }
        if self.ahead.is_none() {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                self.since = None;
                return Poll::Pending;
            };
            self.ahead = Some(frame);
        }
        let now = Instant::now();
        let since = match self.since {
            Some(since) if !link.full.get() => link.freed.get().map_or(since, |freed| freed.max(since)),
            _ => now,
        };
        self.since = Some(since);
        let due = since + limit + Duration::from_secs((self.last / SLOWEST) as u64);
        if now >= due {
            return Poll::Ready(());
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.is_elapsed() || timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        // It may fire early, set for an older piece: then the task looks again.
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// Runs the streams of one connection.
#[derive(Clone)]
pub struct Streams {
    link: Rc<Link>,
    limit: Duration,
    /// The answer that the stream being polled has just made.
    made: Rc<RefCell<Option<Rc<RefCell<Offer>>>>>,
}

impl Streams {
    /// `limit`: how long an answer may lie ready; zero is for ever.
    pub fn new(link: Rc<Link>, limit: Duration) -> Self {
        Self { link, limit, made: Rc::default() }
    }

    /// To be called from within the stream's own task.
    pub fn offer(&self, body: Body) -> Offered {
        let offer = Offer { asked: body.is_empty(), body, ahead: None, last: 0, since: None, timer: None };
        let offer = Rc::new(RefCell::new(offer));
        if !self.limit.is_zero() {
            *self.made.borrow_mut() = Some(offer.clone());
        }
        Offered(offer)
    }
}

impl<F: Future + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let this = self.clone();
        tokio::task::spawn_local(async move {
            let mut stream = pin!(stream);
            let mut offer = None;
            poll_fn(|cx| {
                if stream.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                if let Some(made) = this.made.take() {
                    offer = Some(made);
                }
                let Some(offer) = &offer else { return Poll::Pending };
                let stalled = offer.borrow_mut().poll_stalled(cx, &this.link, this.limit);
                if stalled.is_ready() {
                    crate::accept::counters::stalled("stream");
                }
                stalled
            })
            .await;
        });
    }
}
