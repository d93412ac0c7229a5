//! One upstream connection's sending side, whatever it speaks.

use super::exchange::{Reply, Request};
use super::http1::client::Http1;
use super::http2::Client;
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use weft_policy::reason::Reason;
use weft_tls::Refusal;

#[derive(Clone)]
pub enum Sender {
    Http1(Rc<RefCell<Http1>>),
    Http2(Client),
}

/// Why an attempt got no response head.
pub struct SendFailed {
    pub reason: Reason,
    /// The upstream cannot have begun to process the request.
    pub unprocessed: bool,
    /// The request itself, where not a byte of it was sent, or it may be sent once more all the same. Its body is there in the
    /// first case only.
    pub request: Option<Box<Request>>,
}

impl SendFailed {
    pub fn new(reason: Reason, unprocessed: bool) -> Self {
        Self { reason, unprocessed, request: None }
    }
}

impl Sender {
    /// Whether a request may be tried on it at all.
    pub fn is_closed(&self) -> bool {
        match self {
            Sender::Http1(one) => one.borrow_mut().is_closed(),
            Sender::Http2(client) => client.is_closed(),
        }
    }

    pub fn is_http2(&self) -> bool {
        matches!(self, Sender::Http2(_))
    }

    /// Streams the peer lets us open.
    pub fn max_streams(&self) -> usize {
        match self {
            Sender::Http1(_) => 1,
            Sender::Http2(client) => client.max_streams(),
        }
    }

    /// Waits until the codec takes a request.
    pub async fn ready(&mut self) -> bool {
        match self {
            Sender::Http1(one) => one.borrow().is_ready(),
            Sender::Http2(client) => !client.is_closed(),
        }
    }

    /// Sends a request and waits for the response head.
    ///
    /// The request is handed over at once, so the future that waits for the answer is small.
    pub fn send(&mut self, request: Request, leaving: bool) -> impl Future<Output = Result<Reply, SendFailed>> + use<> {
        let sent = match self {
            Sender::Http1(one) => Sending::One(Http1::send(one, request, leaving)),
            Sender::Http2(client) => Sending::Two(client.send(request)),
        };
        async move {
            match sent {
                Sending::One(sending) => sending.await,
                Sending::Two(sending) => sending.await,
            }
        }
    }
}

enum Sending<A, B> {
    One(A),
    Two(B),
}

/// Under TLS 1.3 a client learns after its own handshake that its certificate was refused.
pub fn tell_refused(refusal: &Refusal) {
    if let Some(reason) = refusal.get() {
        crate::upstream::dial::handshake_failed(reason);
    }
}
