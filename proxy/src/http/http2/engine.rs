//! One connection's state, either role: frames in, frames out, and nothing that waits. Whoever drives it hands it bytes; the
//! requests that come of them go to the driver, everything else to the streams and their wakers.
//!
//! A `Fault` ends the connection; what is wrong with a stream alone is dealt with here.

mod message;
mod receive;
mod send;

use super::floods::Floods;
use super::flow::{Receiving, Sending};
use super::frame::{self, Head, code, kind};
use super::hpack::{Decoder, Encoder};
use super::out::Out;
use super::settings::{self, Ours, Theirs};
use super::streams::{Streams, Why};
use crate::http::exchange;
use http::uri::Authority;
use receive::{Block, Reading};
use std::collections::VecDeque;
use std::task::{Context, Waker};

pub use send::Sent;

const LAST_STREAM: u32 = 0x7fff_ffff;
/// Streams towards a peer that has not told its settings yet.
const UNTOLD: usize = 100;
const GOODBYE: [u8; 8] = *b"weft bye";
const PULSE: [u8; 8] = *b"weft hey";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

/// The peer broke the protocol, or floods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub code: u32,
    pub flood: Option<&'static str>,
}

impl Fault {
    pub const fn new(code: u32) -> Self {
        Self { code, flood: None }
    }

    pub const fn flood(word: &'static str) -> Self {
        Self { code: code::ENHANCE_YOUR_CALM, flood: Some(word) }
    }
}

/// A request has come.
pub struct Arrival {
    pub key: usize,
    pub id: u32,
    pub head: exchange::Head,
    /// Without a body.
    pub ends: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    No,
    /// New streams are still taken until the peer has heard of it.
    Announced,
    /// None after this one.
    Said(u32),
}

pub struct Engine {
    role: Role,
    pub out: Out,
    pub streams: Streams,
    decoder: Decoder,
    encoder: Encoder,
    ours: Ours,
    theirs: Theirs,
    told: bool,
    send: Sending,
    recv: Receiving,
    floods: Floods,
    reading: Reading,
    block: Option<Block>,
    /// The peer's highest stream; a client's: our own.
    highest: u32,
    goodbye: Goodbye,
    /// The peer's: the last of our streams that it looks at.
    farewell: Option<u32>,
    ended: Option<Why>,
    authority: Option<Authority>,
    /// Fields of a usual head.
    usual: usize,
    /// Streams that wait for the connection: its window, or its socket.
    waiting: VecDeque<(usize, u32)>,
    /// Requests that wait for a stream.
    opening: VecDeque<(u64, Waker)>,
    tickets: u64,
    /// Nobody will send another request.
    pub unwanted: bool,
    /// Something was read since this was last asked.
    pub heard: bool,
}

impl Engine {
    pub fn new(role: Role, out: Out, ours: Ours, patience: u32) -> Self {
        let mut engine = Self {
            role,
            out,
            streams: Streams::default(),
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            ours,
            theirs: Theirs::default(),
            told: false,
            send: Sending::new(settings::WINDOW),
            recv: Receiving::new(ours.connection_window),
            floods: Floods::new(patience),
            reading: if role == Role::Server { Reading::Preface } else { Reading::Head },
            block: None,
            highest: 0,
            goodbye: Goodbye::No,
            farewell: None,
            ended: None,
            authority: None,
            usual: 4,
            waiting: VecDeque::new(),
            opening: VecDeque::new(),
            tickets: 0,
            unwanted: false,
            heard: false,
        };
        if role == Role::Client {
            engine.out.write(frame::PREFACE, &[]);
        }
        engine.frame(kind::SETTINGS, 0, 0, &ours.payload(role));
        let more = ours.connection_window.saturating_sub(settings::WINDOW);
        if more > 0 {
            engine.frame(kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
        engine
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.floods.wrote(frame::HEAD + payload.len());
        self.out.write(&Head::new(kind, flags, stream, payload.len()).bytes(), payload);
    }

    // How streams end.

    fn settle(&mut self, key: usize) {
        let (closed, unread) = self.streams.settle(key);
        if unread > 0 {
            self.taken(unread);
        }
        if closed {
            self.wake_opening();
            if self.is_done() {
                self.out.wake();
            }
        }
    }

    fn close(&mut self, key: usize, why: Why) {
        if let Some(stream) = self.streams.get(key) {
            stream.why = Some(why);
            stream.wake_all();
            if let Some(task) = stream.task.take() {
                task.abort();
            }
        }
        self.settle(key);
    }

    fn write_reset(&mut self, id: u32, code: u32) {
        self.frame(kind::RST_STREAM, 0, id, &code.to_be_bytes());
        self.streams.remember_reset(id);
    }

    /// Ends a stream for what the peer did in it.
    fn stream_fault(&mut self, key: usize, code: u32) -> Result<(), Fault> {
        if let Some(stream) = self.streams.get(key) {
            let id = stream.id;
            self.write_reset(id, code);
            self.close(key, Why::Malformed);
        }
        self.floods.fault().map_or(Ok(()), |word| Err(Fault::flood(word)))
    }

    /// The same, of a stream that is not there.
    fn refuse(&mut self, id: u32, code: u32) -> Result<(), Fault> {
        self.write_reset(id, code);
        self.floods.fault().map_or(Ok(()), |word| Err(Fault::flood(word)))
    }

    /// Ends a stream of our own accord.
    pub fn reset(&mut self, key: usize, id: u32, code: u32) {
        if let Some(stream) = self.streams.held(key, id).filter(|stream| !stream.closed) {
            // Whoever calls this is what makes the answer, or wants none.
            stream.task = None;
            self.write_reset(id, code);
            self.close(key, Why::Cancelled);
        }
    }

    /// Nobody reads any more.
    pub fn drop_reader(&mut self, key: usize, id: u32) {
        let Some(stream) = self.streams.held(key, id) else { return };
        stream.reader = false;
        stream.read_waker = None;
        let unread = stream.clear();
        if unread > 0 {
            self.taken(unread);
        }
        if self.role == Role::Client
            && let Some(stream) = self.streams.held(key, id)
            && !stream.closed
            && !stream.remote_ended
        {
            return self.reset(key, id, code::CANCEL);
        }
        self.settle(key);
    }

    /// Nobody writes any more. What was not ended is broken off.
    pub fn drop_writer(&mut self, key: usize, id: u32) {
        let Some(stream) = self.streams.held(key, id) else { return };
        stream.writer = false;
        stream.write_waker = None;
        stream.task = None;
        let open = !stream.closed;
        match self.role {
            Role::Server if open && stream.local_ended => self.reset(key, id, code::NO_ERROR),
            Role::Server if open => self.reset(key, id, code::INTERNAL_ERROR),
            Role::Client if open && !stream.local_ended => self.reset(key, id, code::CANCEL),
            _ => self.settle(key),
        }
    }

    // The client's side.

    /// Streams the peer lets us open.
    pub fn max_streams(&self) -> usize {
        match (self.told, self.theirs.max_streams) {
            (_, Some(max)) => max as usize,
            (false, None) => UNTOLD,
            (true, None) => usize::MAX,
        }
    }

    /// No new stream will succeed.
    pub fn is_closed(&self) -> bool {
        self.ended.is_some()
            || self.farewell.is_some()
            || self.goodbye != Goodbye::No
            || self.out.has_failed()
            || self.highest >= LAST_STREAM - 2
    }

    pub fn may_open(&self) -> bool {
        self.streams.open() < self.max_streams()
    }

    /// A place in the line of requests that wait for a stream.
    pub fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    pub fn wait_to_open(&mut self, ticket: u64, cx: &mut Context<'_>) {
        match self.opening.iter_mut().find(|(other, _)| *other == ticket) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => self.opening.push_back((ticket, cx.waker().clone())),
        }
    }

    /// It waits no more, whether it got a stream or gave up. A stream that it was woken for is the next one's.
    pub fn leave_line(&mut self, ticket: u64) {
        self.opening.retain(|(other, _)| *other != ticket);
        self.wake_opening();
    }

    fn wake_opening(&mut self) {
        if self.opening.is_empty() {
            return;
        }
        let free = match self.is_closed() {
            true => usize::MAX,
            false => self.max_streams().saturating_sub(self.streams.open()),
        };
        for (_, waker) in self.opening.iter().take(free) {
            waker.wake_by_ref();
        }
    }

    // How connections end.

    /// Tells the peer that no more streams are welcome, once it has heard of it.
    pub fn announce_goodbye(&mut self) {
        if self.goodbye == Goodbye::No {
            self.goodbye = Goodbye::Announced;
            self.go_away(LAST_STREAM, code::NO_ERROR);
            self.frame(kind::PING, 0, 0, &GOODBYE);
        }
    }

    fn say_goodbye(&mut self) {
        self.goodbye = Goodbye::Said(self.highest);
        self.go_away(self.highest, code::NO_ERROR);
        if self.is_done() {
            self.out.wake();
        }
    }

    pub fn go_away(&mut self, last: u32, code: u32) {
        let [a, b, c, d] = last.to_be_bytes();
        let [w, x, y, z] = code.to_be_bytes();
        self.frame(kind::GOAWAY, 0, 0, &[a, b, c, d, w, x, y, z]);
    }

    /// The last words to a peer that broke the protocol, or of a client that leaves.
    pub fn last_words(&mut self, code: u32) {
        if code == code::NO_ERROR && matches!(self.goodbye, Goodbye::Said(_)) {
            return;
        }
        let last = if self.role == Role::Server { self.highest } else { 0 };
        self.go_away(last, code);
    }

    fn hear_goodbye(&mut self, last: u32) {
        let last = self.farewell.map_or(last, |before| before.min(last));
        self.farewell = Some(last);
        if self.role == Role::Client {
            for key in self.streams.keys() {
                if self.streams.get(key).is_some_and(|stream| !stream.closed && stream.id > last) {
                    self.close(key, Why::Refused);
                }
            }
        }
        self.wake_opening();
        if self.is_done() {
            self.out.wake();
        }
    }

    /// Nothing more will happen here.
    pub fn is_done(&self) -> bool {
        // A peer that has not even begun will not hear the first half of a goodbye.
        let said = matches!(self.goodbye, Goodbye::Said(_)) || (self.goodbye == Goodbye::Announced && !self.told);
        let leaving = self.unwanted || self.farewell.is_some() || said;
        leaving && self.streams.open() == 0 && (self.role == Role::Server || self.opening.is_empty())
    }

    pub fn is_fickle(&self) -> bool {
        self.floods.is_fickle()
    }

    pub fn ping(&mut self) {
        self.frame(kind::PING, 0, 0, &PULSE);
    }

    pub fn ended(&self) -> Option<Why> {
        self.ended
    }

    /// The connection is over, and with it every stream.
    pub fn end(&mut self, why: Why) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why);
        for key in self.streams.keys() {
            if self.streams.get(key).is_some_and(|stream| !stream.closed) {
                self.close(key, why);
            }
        }
        self.waiting.clear();
        for (_, waker) in self.opening.drain(..) {
            waker.wake();
        }
    }
}
