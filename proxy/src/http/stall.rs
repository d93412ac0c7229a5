//! Ends answers that their client does not take.
//!
//! An HTTP/2 client that opens no window keeps the answer's bytes, its stream and everything upstream of it for as long as it
//! likes, and the codec waits with it. So each stream's task looks at its own answer whenever it has to wait: if the codec
//! took a piece of it and does not ask for the next, there is no room for the first, and the client's time runs. At its end
//! the task is dropped, which resets the stream alone. A body that was asked and has nothing is quiet, and may be for ever.
//!
//! Sockets that take nothing at all are the connection's matter (`accept::live`), and while one is full no stream is blamed.

use super::exchange::{Body, BodyError};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
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

/// What the connection knows and its streams want to: has the socket room, are requests meant.
#[derive(Debug, Default)]
pub struct Link {
    full: Cell<bool>,
    freed: Cell<Option<Instant>>,
    resets: Cell<u32>,
}

/// Honest clients change their mind now and then; from here on it is looked at twice.
const RESETS: u32 = 20;

impl Link {
    pub fn reset(&self) {
        self.resets.set(self.resets.get().saturating_add(1));
    }

    /// The client takes back so much that a request had better wait a turn before it is passed on: a reset that came right
    /// behind it is seen then, and the endpoint never learns of either.
    pub fn is_fickle(&self) -> bool {
        self.resets.get() > RESETS
    }

    pub fn is_full(&self, full: bool) {
        if self.full.replace(full) && !full {
            self.freed.set(Some(Instant::now()));
        }
    }
}

struct Offer {
    body: Body,
    /// What is left of a piece that was too large.
    rest: Bytes,
    /// The codec has a piece that it could not send.
    taken: bool,
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
        let polled = match offer.rest.is_empty() {
            true => Pin::new(&mut offer.body).poll_frame(cx),
            false => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut offer.rest))))),
        };
        let polled = polled.map_ok(|frame| match frame.into_data() {
            Ok(mut data) => {
                if data.len() > PIECE {
                    offer.rest = data.split_off(PIECE);
                }
                Frame::data(data)
            }
            Err(frame) => frame,
        });
        offer.since = None;
        offer.taken = matches!(polled, Poll::Ready(Some(Ok(_))));
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            offer.last = frame.data_ref().map_or(0, Bytes::len);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let offer = self.0.borrow();
        offer.rest.is_empty() && offer.last <= SMALL && offer.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let offer = self.0.borrow();
        if offer.rest.is_empty() { offer.body.size_hint() } else { SizeHint::default() }
    }
}

impl Offer {
    fn poll_stalled(&mut self, cx: &mut Context<'_>, link: &Link, limit: Duration) -> Poll<()> {
        if !self.taken {
            return Poll::Pending;
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
        let offer = Offer { body, rest: Bytes::new(), taken: false, last: 0, since: None, timer: None };
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
