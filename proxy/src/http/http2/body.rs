//! What one side of a stream holds: the body that is read from it, and the right to write to it.

use super::engine::Engine;
use super::streams::{Why, keep};
use crate::http::exchange::BodyError;
use crate::http::fields::Fields;
use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;
use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

pub type Conn = Rc<RefCell<Engine>>;

/// The peer's message: its head, on a client's side, and its body. Dropped, it tells the stream that nobody reads.
pub struct Http2Body {
    conn: Conn,
    key: usize,
    id: u32,
}

impl Http2Body {
    pub fn new(conn: Conn, key: usize, id: u32) -> Self {
        Self { conn, key, id }
    }

    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(StatusCode, Fields), Why>> {
        let mut engine = self.conn.borrow_mut();
        let Some(stream) = engine.streams.held(self.key, self.id) else { return Poll::Ready(Err(Why::Gone)) };
        if let Some(head) = stream.head.take() {
            return Poll::Ready(Ok(*head));
        }
        if let Some(why) = stream.why {
            return Poll::Ready(Err(why));
        }
        keep(&mut stream.read_waker, cx.waker());
        Poll::Pending
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.conn.borrow_mut().poll_body(self.key, self.id, cx)
    }

    pub fn is_end_stream(&self) -> bool {
        let mut engine = self.conn.borrow_mut();
        let Some(stream) = engine.streams.held(self.key, self.id) else { return false };
        stream.remote_ended && stream.data.is_empty() && stream.trailers.is_none()
    }

    pub fn size_hint(&self) -> http_body::SizeHint {
        let mut engine = self.conn.borrow_mut();
        let Some(stream) = engine.streams.held(self.key, self.id) else { return http_body::SizeHint::default() };
        let unread = || stream.data.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        match stream.length {
            Some(left) => http_body::SizeHint::with_exact(left + unread()),
            None => http_body::SizeHint::default(),
        }
    }
}

impl Drop for Http2Body {
    fn drop(&mut self) {
        if let Ok(mut engine) = self.conn.try_borrow_mut() {
            engine.drop_reader(self.key, self.id);
        }
    }
}

impl Engine {
    fn poll_body(
        &mut self,
        key: usize,
        id: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let alone = self.streams.open() == 1;
        let Some(stream) = self.streams.held(key, id) else { return Poll::Ready(Some(Err(BodyError::Broken))) };
        if let Some(chunk) = stream.data.pop_front() {
            let open = !stream.closed && !stream.remote_ended;
            stream.kept_up |= stream.data.is_empty();
            let back = stream.recv.take(chunk.len()).filter(|_| open);
            if back.is_some() {
                let kept_up = std::mem::take(&mut stream.kept_up);
                stream.recv.follow(alone, kept_up);
            }
            self.taken(chunk.len());
            if let Some(back) = back {
                self.update(id, back);
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk.freeze()))));
        }
        if stream.remote_ended {
            return Poll::Ready(stream.trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))));
        }
        if stream.why.is_some() {
            return Poll::Ready(Some(Err(BodyError::Broken)));
        }
        keep(&mut stream.read_waker, cx.waker());
        Poll::Pending
    }
}

/// The right to write to a stream. Dropped before the stream's end, it breaks the stream off.
pub struct Writer {
    pub conn: Conn,
    pub key: usize,
    pub id: u32,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Ok(mut engine) = self.conn.try_borrow_mut() {
            engine.drop_writer(self.key, self.id);
        }
    }
}
