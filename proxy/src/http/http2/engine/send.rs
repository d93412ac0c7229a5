//! Frames out: heads, bodies as far as the windows allow, trailers.

use super::Engine;
use crate::http::exchange;
use crate::http::fields::Fields;
use crate::http::http2::frame::{flag, kind};
use crate::http::http2::head::is_hop;
use crate::http::http2::hpack::Pseudo;
use crate::http::http2::streams::{Stream, keep};
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::cell::Cell;
use std::task::Context;

/// A frame of ours is no larger, whatever the peer takes: streams take turns.
const PIECE: usize = 64 * 1024;

/// What became of a piece of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    Bytes(usize),
    /// The peer must open a window.
    Window,
    /// The socket is full.
    Room,
    Gone,
}

thread_local! {
    /// Where blocks are encoded.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

pub(super) fn with_scratch<R>(f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let result = f(&mut scratch);
    SCRATCH.set(scratch);
    result
}

impl Engine {
    /// Opens a stream with a request's head.
    pub fn open(&mut self, head: &exchange::Head, ends: bool) -> (usize, u32) {
        let id = if self.highest == 0 { 1 } else { self.highest + 2 };
        self.highest = id;
        let mut stream = Stream::new(id, self.theirs.window, self.ours.stream_window);
        (stream.local_ended, stream.reader, stream.writer) = (ends, true, !ends);
        stream.bodiless = head.method == Method::HEAD;
        let key = self.streams.insert(stream);
        with_scratch(|block| {
            let encoder = &mut self.encoder;
            encoder.begin(block);
            encoder.pseudo(Pseudo::Method, head.method.as_str().as_bytes(), block);
            if head.method != Method::CONNECT {
                encoder.pseudo(Pseudo::Scheme, b"http", block);
            }
            if let Some(authority) = &head.authority {
                encoder.pseudo(Pseudo::Authority, authority.as_str().as_bytes(), block);
            }
            if head.method != Method::CONNECT {
                let path = if head.asterisk { "*" } else { head.path.as_str() };
                encoder.pseudo(Pseudo::Path, path.as_bytes(), block);
            }
            if head.authority.is_none() {
                // That there is none has to be said.
                encoder.field(&HOST, &HeaderValue::from_static(""), block);
            }
            for (name, value) in head.fields.0.iter().filter(|(name, _)| !is_hop(name)) {
                encoder.field(name, value, block);
            }
            self.headers(id, ends, block);
        });
        (key, id)
    }

    pub(super) fn headers(&mut self, id: u32, ends: bool, block: &[u8]) {
        let mut flags = if ends { flag::END_STREAM } else { 0 };
        let mut kind = kind::HEADERS;
        let mut rest = block;
        loop {
            let (piece, after) = rest.split_at(rest.len().min(self.theirs.max_frame));
            rest = after;
            if rest.is_empty() {
                return self.frame(kind, flags | flag::END_HEADERS, id, piece);
            }
            self.frame(kind, flags, id, piece);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
    }

    /// `false`: the socket is full, and the stream will be woken.
    pub fn has_room(&mut self, key: usize, id: u32, cx: &mut Context<'_>) -> bool {
        if self.out.has_room() {
            return true;
        }
        self.wait_for_connection(key, id, cx);
        false
    }

    fn wait_for_connection(&mut self, key: usize, id: u32, cx: &mut Context<'_>) {
        let Some(stream) = self.streams.held(key, id) else { return };
        keep(&mut stream.write_waker, cx.waker());
        if !std::mem::replace(&mut stream.queued, true) {
            self.waiting.push_back((key, id));
        }
    }

    /// The connection's window or socket has room again. In the order in which they came; who cannot go on comes back.
    pub fn wake_waiting(&mut self) {
        for (key, id) in std::mem::take(&mut self.waiting) {
            if let Some(stream) = self.streams.held(key, id) {
                stream.queued = false;
                stream.wake_writer();
            }
        }
    }

    pub fn is_open(&mut self, key: usize, id: u32) -> bool {
        self.streams.held(key, id).is_some_and(|stream| !stream.closed)
    }

    pub fn send_answer(&mut self, key: usize, id: u32, status: StatusCode, fields: &Fields, ends: bool) {
        if !self.is_open(key, id) {
            return;
        }
        with_scratch(|block| {
            self.encoder.begin(block);
            self.encoder.pseudo(Pseudo::Status, status.as_str().as_bytes(), block);
            for (name, value) in fields.iter().filter(|(name, _)| !is_hop(name)) {
                self.encoder.field(name, value, block);
            }
            self.headers(id, ends, block);
        });
        if ends {
            self.end_local(key, id);
        }
    }

    pub fn send_trailers(&mut self, key: usize, id: u32, fields: &HeaderMap) {
        if !self.is_open(key, id) {
            return;
        }
        with_scratch(|block| {
            self.encoder.begin(block);
            for (name, value) in fields {
                self.encoder.field(name, value, block);
            }
            self.headers(id, true, block);
        });
        self.end_local(key, id);
    }

    fn end_local(&mut self, key: usize, id: u32) {
        if let Some(stream) = self.streams.held(key, id) {
            stream.local_ended = true;
        }
        self.settle(key);
    }

    /// Sends from the front of `data` what the windows allow, at most one frame.
    pub fn send_data(&mut self, key: usize, id: u32, data: &mut Bytes, ends: bool, cx: &mut Context<'_>) -> Sent {
        let Some(stream) = self.streams.held(key, id).filter(|stream| !stream.closed && !stream.local_ended) else {
            return Sent::Gone;
        };
        if !self.out.has_room() {
            self.wait_for_connection(key, id, cx);
            return Sent::Room;
        }
        let most = self.theirs.max_frame.min(PIECE).min(data.len());
        let n = stream.send.room().min(most);
        if n == 0 && !data.is_empty() {
            keep(&mut stream.write_waker, cx.waker());
            return Sent::Window;
        }
        let n = n.min(self.send.room());
        if n == 0 && !data.is_empty() {
            self.wait_for_connection(key, id, cx);
            return Sent::Window;
        }
        stream.send.spend(n);
        self.send.spend(n);
        let piece = data.split_to(n);
        let last = ends && data.is_empty();
        self.frame(kind::DATA, if last { flag::END_STREAM } else { 0 }, id, &piece);
        if last {
            self.end_local(key, id);
        }
        Sent::Bytes(n)
    }

    /// Wakes who sends when the stream ends under it.
    pub fn watch(&mut self, key: usize, id: u32, cx: &mut Context<'_>) -> bool {
        match self.streams.held(key, id).filter(|stream| !stream.closed) {
            Some(stream) => {
                keep(&mut stream.write_waker, cx.waker());
                true
            }
            None => false,
        }
    }
}
