//! One connection's state, either role: frames in, frames out, and nothing that waits. Whoever drives it hands it bytes; the
//! requests that come of them go to the driver, everything else to the streams and their wakers.
//!
//! A `Fault` ends the connection; what is wrong with a stream alone is dealt with here.

use super::floods::{CONTINUATIONS, Floods};
use super::flow::{Receiving, Sending};
use super::frame::{self, BadHeaders, Head, code, flag, kind};
use super::head::{List, is_hop};
use super::hpack::{Decoder, Encoder, Pseudo};
use super::out::Out;
use super::settings::{self, Ours, Theirs};
use super::streams::{Stream, Streams, Why, keep};
use crate::http::exchange;
use crate::http::fields::Fields;
use bytes::{Buf, Bytes};
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::cell::Cell;
use std::collections::VecDeque;
use std::task::{Context, Waker};

/// All of one header block's frames. Honest ones are smaller than the list they make.
const BLOCK: usize = 256 * 1024;
/// Answers before the answer.
const INTERIM: u8 = 32;
/// A frame of ours is no larger, whatever the peer takes: streams take turns.
const PIECE: usize = 64 * 1024;
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

#[derive(Debug, Clone, Copy)]
struct Data {
    /// `None`: nobody wants it.
    stream: Option<(usize, u32)>,
    left: usize,
    padding: usize,
    ends: bool,
}

#[derive(Debug, Clone, Copy)]
enum Reading {
    Preface,
    Head,
    Payload(Head),
    Data(Data),
    Skip(usize),
}

/// A header block that goes on.
#[derive(Debug)]
struct Block {
    head: Head,
    parent: Option<u32>,
    bytes: Vec<u8>,
    frames: u32,
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

thread_local! {
    /// Where blocks are encoded.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn with_scratch<R>(f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let result = f(&mut scratch);
    SCRATCH.set(scratch);
    result
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

    // What is read.

    /// Takes what it can from the front of `input`, up to and including one request.
    pub fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Arrival>, Fault> {
        loop {
            match self.reading {
                Reading::Preface => {
                    let seen = input.len().min(frame::PREFACE.len());
                    if input[..seen] != frame::PREFACE[..seen] {
                        return Err(Fault::new(code::PROTOCOL_ERROR));
                    }
                    if seen < frame::PREFACE.len() {
                        return Ok(None);
                    }
                    input.advance(seen);
                    self.reading = Reading::Head;
                }
                Reading::Head => {
                    let Some(head) = Head::read(input) else { return Ok(None) };
                    self.check(head)?;
                    input.advance(frame::HEAD);
                    self.reading = Reading::Payload(head);
                }
                Reading::Payload(head) if head.kind == kind::DATA => {
                    let padded = head.has(flag::PADDED);
                    if padded && input.is_empty() && head.length > 0 {
                        return Ok(None);
                    }
                    let padding = match padded {
                        true if head.length == 0 => return Err(Fault::new(code::FRAME_SIZE_ERROR)),
                        true => Some(usize::from(input.get_u8())),
                        false => None,
                    };
                    self.reading = Reading::Data(self.begin_data(head, padding)?);
                }
                Reading::Payload(head) => {
                    if input.len() < head.length {
                        return Ok(None);
                    }
                    let (payload, rest) = input.split_at(head.length);
                    *input = rest;
                    self.reading = Reading::Head;
                    if let Some(arrival) = self.whole(head, payload)? {
                        return Ok(Some(arrival));
                    }
                }
                Reading::Data(mut data) => {
                    if data.left > 0 {
                        if input.is_empty() {
                            return Ok(None);
                        }
                        let (chunk, rest) = input.split_at(data.left.min(input.len()));
                        *input = rest;
                        data.left -= chunk.len();
                        self.reading = Reading::Data(data);
                        self.deliver(data, chunk);
                        continue;
                    }
                    self.reading = Reading::Skip(data.padding);
                    if let Some((key, id)) = data.stream.filter(|_| data.ends) {
                        self.end_remote(key, id)?;
                    }
                }
                Reading::Skip(0) => self.reading = Reading::Head,
                Reading::Skip(left) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let n = left.min(input.len());
                    input.advance(n);
                    self.reading = Reading::Skip(left - n);
                }
            }
        }
    }

    /// A head has begun and its end has not come.
    pub fn owes_head(&self) -> bool {
        let begun = matches!(self.reading, Reading::Payload(Head { kind: kind::HEADERS | kind::CONTINUATION, .. }));
        self.block.is_some() || begun
    }

    fn check(&mut self, head: Head) -> Result<(), Fault> {
        if head.length > self.ours.max_frame {
            return Err(Fault::new(code::FRAME_SIZE_ERROR));
        }
        let first = !self.told && (head.kind != kind::SETTINGS || head.has(flag::ACK));
        let elsewhere =
            self.block.as_ref().is_some_and(|b| head.kind != kind::CONTINUATION || head.stream != b.head.stream);
        if first || elsewhere {
            return Err(Fault::new(code::PROTOCOL_ERROR));
        }
        match self.floods.frame(head) {
            Some(word) => Err(Fault::flood(word)),
            None => Ok(()),
        }
    }

    fn begin_data(&mut self, head: Head, padding: Option<usize>) -> Result<Data, Fault> {
        let around = padding.map_or(0, |n| n + 1);
        let left = head.length.checked_sub(around).ok_or(Fault::new(code::PROTOCOL_ERROR))?;
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(Fault::new(code::PROTOCOL_ERROR));
        }
        if !self.recv.spend(head.length) {
            return Err(Fault::new(code::FLOW_CONTROL_ERROR));
        }
        let mut data = Data { stream: None, left, padding: padding.unwrap_or(0), ends: head.has(flag::END_STREAM) };
        self.taken(around);
        let Some(key) = self.streams.find(head.stream) else {
            if !self.streams.may_come_late(head.stream) {
                self.refuse(head.stream, code::STREAM_CLOSED)?;
            }
            return Ok(data);
        };
        let Some(stream) = self.streams.get(key) else { return Ok(data) };
        let early = self.role == Role::Client && !stream.head_seen;
        let fault = if stream.remote_ended {
            Some(code::STREAM_CLOSED)
        } else if early {
            Some(code::PROTOCOL_ERROR)
        } else if !stream.recv.spend(head.length) {
            Some(code::FLOW_CONTROL_ERROR)
        } else if stream.length.is_some_and(|length| length < left as u64) {
            Some(code::PROTOCOL_ERROR)
        } else {
            None
        };
        if let Some(code) = fault {
            self.stream_fault(key, code)?;
            return Ok(data);
        }
        stream.length = stream.length.map(|length| length - left as u64);
        if around > 0
            && let Some(back) = stream.recv.take(around).filter(|_| !data.ends)
        {
            self.update(head.stream, back);
        }
        data.stream = Some((key, head.stream));
        Ok(data)
    }

    fn deliver(&mut self, data: Data, chunk: &[u8]) {
        if let Some((key, id)) = data.stream
            && let Some(stream) = self.streams.held(key, id)
            && stream.reader
            && !stream.closed
        {
            stream.push(chunk);
            stream.wake_reader();
        } else {
            self.taken(chunk.len());
        }
    }

    /// Bytes have been read, or were not wanted: the connection's window opens again.
    pub fn taken(&mut self, n: usize) {
        if let Some(back) = self.recv.take(n) {
            self.update(0, back);
        }
    }

    pub fn update(&mut self, stream: u32, by: u32) {
        self.frame(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    }

    /// Nothing was ever sent on it. (Even ones never are: we take no pushes.)
    fn is_idle(&self, id: u32) -> bool {
        id.is_multiple_of(2) || id > self.highest
    }

    fn whole(&mut self, head: Head, payload: &[u8]) -> Result<Option<Arrival>, Fault> {
        const PROTOCOL: Fault = Fault::new(code::PROTOCOL_ERROR);
        const SIZE: Fault = Fault::new(code::FRAME_SIZE_ERROR);
        let id = head.stream;
        match head.kind {
            kind::HEADERS if id == 0 => return Err(PROTOCOL),
            kind::HEADERS => {
                let (block, parent) = frame::block(head, payload).map_err(|bad| match bad {
                    BadHeaders::Length => SIZE,
                    BadHeaders::Padding => PROTOCOL,
                })?;
                if head.has(flag::END_HEADERS) {
                    return self.message(head, parent, block);
                }
                self.block = Some(Block { head, parent, bytes: block.to_vec(), frames: 0 });
            }
            kind::CONTINUATION => {
                let mut block = self.block.take().ok_or(PROTOCOL)?;
                block.frames += 1;
                if block.frames > CONTINUATIONS || block.bytes.len() + payload.len() > BLOCK {
                    return Err(Fault::flood("continuation"));
                }
                block.bytes.extend_from_slice(payload);
                if head.has(flag::END_HEADERS) {
                    return self.message(block.head, block.parent, &block.bytes);
                }
                self.block = Some(block);
            }
            kind::PRIORITY if id == 0 => return Err(PROTOCOL),
            kind::PRIORITY => {
                let bad = match frame::number(payload) {
                    _ if payload.len() != 5 => Some(code::FRAME_SIZE_ERROR),
                    Some(parent) if parent & LAST_STREAM == id => Some(code::PROTOCOL_ERROR),
                    _ => None,
                };
                match (bad, self.streams.find(id)) {
                    (None, _) => {}
                    (Some(code), Some(key)) => self.stream_fault(key, code)?,
                    (Some(code), None) => return Err(Fault::new(code)),
                }
            }
            kind::RST_STREAM => {
                let &[a, b, c, d] = payload else { return Err(SIZE) };
                if id == 0 || self.is_idle(id) {
                    return Err(PROTOCOL);
                }
                if let Some(key) = self.streams.find(id) {
                    self.close(key, Why::Reset(u32::from_be_bytes([a, b, c, d])));
                }
            }
            kind::SETTINGS if id != 0 => return Err(PROTOCOL),
            kind::SETTINGS if head.has(flag::ACK) && !payload.is_empty() => return Err(SIZE),
            kind::SETTINGS if head.has(flag::ACK) => {}
            kind::SETTINGS => self.settings(payload)?,
            kind::PUSH_PROMISE => return Err(PROTOCOL),
            kind::PING => {
                if id != 0 {
                    return Err(PROTOCOL);
                }
                let payload: [u8; 8] = payload.try_into().map_err(|_| SIZE)?;
                if !head.has(flag::ACK) {
                    self.frame(kind::PING, flag::ACK, 0, &payload);
                } else if payload == GOODBYE && self.goodbye == Goodbye::Announced {
                    self.say_goodbye();
                }
            }
            kind::GOAWAY => {
                if id != 0 {
                    return Err(PROTOCOL);
                }
                let last = frame::number(payload).filter(|_| payload.len() >= 8).ok_or(SIZE)? & LAST_STREAM;
                self.hear_goodbye(last);
            }
            kind::WINDOW_UPDATE => {
                let &[a, b, c, d] = payload else { return Err(SIZE) };
                self.window_update(id, u32::from_be_bytes([a, b, c, d]) & LAST_STREAM)?;
            }
            _ => {}
        }
        Ok(None)
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), Fault> {
        let before = self.theirs.window;
        self.theirs.read(payload, self.role)?;
        let more = i64::from(self.theirs.window) - i64::from(before);
        let mut fits = true;
        if more != 0 {
            self.streams.each(|_, stream| {
                fits &= stream.send.add(more);
                if more > 0 {
                    stream.wake_writer();
                }
            });
        }
        if !fits {
            return Err(Fault::new(code::FLOW_CONTROL_ERROR));
        }
        if let Some(table) = self.theirs.table {
            self.encoder.resize(table);
        }
        self.frame(kind::SETTINGS, flag::ACK, 0, &[]);
        self.told = true;
        self.wake_opening();
        Ok(())
    }

    fn window_update(&mut self, id: u32, by: u32) -> Result<(), Fault> {
        if id == 0 {
            if by == 0 {
                return Err(Fault::new(code::PROTOCOL_ERROR));
            }
            if !self.send.add(i64::from(by)) {
                return Err(Fault::new(code::FLOW_CONTROL_ERROR));
            }
            self.wake_waiting();
            return Ok(());
        }
        if self.is_idle(id) {
            return Err(Fault::new(code::PROTOCOL_ERROR));
        }
        let Some(key) = self.streams.find(id) else { return Ok(()) };
        let Some(stream) = self.streams.get(key) else { return Ok(()) };
        if by == 0 {
            return self.stream_fault(key, code::PROTOCOL_ERROR);
        }
        if !stream.send.add(i64::from(by)) {
            return self.stream_fault(key, code::FLOW_CONTROL_ERROR);
        }
        stream.wake_writer();
        Ok(())
    }

    /// A whole header block: a request, an answer or trailers.
    fn message(&mut self, head: Head, parent: Option<u32>, block: &[u8]) -> Result<Option<Arrival>, Fault> {
        let id = head.stream;
        let key = self.streams.find(id);
        let trailing = match key.and_then(|key| self.streams.get(key)) {
            Some(stream) => self.role == Role::Server || stream.head_seen,
            None => false,
        };
        let mut fields = List::new(if trailing { 0 } else { self.usual }, self.ours.list_fields);
        // Whatever becomes of the stream, the tables on both sides must stay the same.
        let fits = self.decoder.decode(block, self.ours.list_bytes, &mut fields);
        let fits = fits.map_err(|_| Fault::new(code::COMPRESSION_ERROR))? && !fields.is_too_long();
        if !trailing {
            // What the request path adds finds room as well.
            self.usual = (fields.len() + 6).min(48);
        }
        let ends = head.has(flag::END_STREAM);
        let Some(key) = key else {
            return match self.role {
                Role::Server => self.request(id, parent, ends, fits, fields),
                Role::Client => self.late_headers(id).map(|()| None),
            };
        };
        if parent == Some(id) {
            self.stream_fault(key, code::PROTOCOL_ERROR)?;
        } else if !fits {
            self.stream_fault(key, code::ENHANCE_YOUR_CALM)?;
        } else if trailing {
            self.trailers(key, id, ends, fields)?;
        } else {
            self.answer(key, id, ends, fields)?;
        }
        Ok(None)
    }

    fn late_headers(&self, id: u32) -> Result<(), Fault> {
        if self.is_idle(id) {
            return Err(Fault::new(code::PROTOCOL_ERROR));
        }
        if self.streams.may_come_late(id) { Ok(()) } else { Err(Fault::new(code::STREAM_CLOSED)) }
    }

    fn request(
        &mut self,
        id: u32,
        parent: Option<u32>,
        ends: bool,
        fits: bool,
        fields: List,
    ) -> Result<Option<Arrival>, Fault> {
        if id.is_multiple_of(2) {
            return Err(Fault::new(code::PROTOCOL_ERROR));
        }
        if !self.is_idle(id) {
            return self.late_headers(id).map(|()| None);
        }
        if matches!(self.goodbye, Goodbye::Said(_)) {
            // The peer sends it again elsewhere.
            self.highest = id;
            self.streams.remember_reset(id);
            return Ok(None);
        }
        self.highest = id;
        if parent == Some(id) {
            return self.refuse(id, code::PROTOCOL_ERROR).map(|()| None);
        }
        if self.streams.open() >= self.ours.max_streams {
            // No fault: it may not have heard of the limit yet.
            self.write_reset(id, code::REFUSED_STREAM);
            return Ok(None);
        }
        if !fits {
            self.answer_too_large(id);
            if !ends {
                self.write_reset(id, code::NO_ERROR);
            }
            return self.floods.fault().map_or(Ok(None), |word| Err(Fault::flood(word)));
        }
        let length = fields.length();
        let Ok(head) = fields.request(&mut self.authority) else {
            return self.refuse(id, code::PROTOCOL_ERROR).map(|()| None);
        };
        if ends && length.is_some_and(|length| length > 0) {
            return self.refuse(id, code::PROTOCOL_ERROR).map(|()| None);
        }
        let mut stream = Stream::new(id, self.theirs.window, self.ours.stream_window);
        (stream.remote_ended, stream.reader, stream.writer) = (ends, !ends, true);
        stream.length = length;
        let key = self.streams.insert(stream);
        Ok(Some(Arrival { key, id, head, ends }))
    }

    fn answer_too_large(&mut self, id: u32) {
        with_scratch(|block| {
            self.encoder.begin(block);
            self.encoder.pseudo(Pseudo::Status, b"431", block);
            self.headers(id, true, block);
        });
    }

    fn answer(&mut self, key: usize, id: u32, ends: bool, fields: List) -> Result<(), Fault> {
        let length = fields.length();
        let answer = fields.response();
        let Some(stream) = self.streams.get(key) else { return Ok(()) };
        let Ok((status, fields)) = answer else { return self.stream_fault(key, code::PROTOCOL_ERROR) };
        if status.is_informational() {
            stream.interim += 1;
            // Switching protocols has no meaning here.
            if ends || status == StatusCode::SWITCHING_PROTOCOLS || stream.interim > INTERIM {
                return self.stream_fault(key, code::PROTOCOL_ERROR);
            }
            return Ok(());
        }
        let bodiless = stream.bodiless || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        stream.length = if bodiless { Some(0) } else { length };
        stream.head_seen = true;
        stream.head = Some(Box::new((status, fields)));
        if ends {
            self.end_remote(key, id)
        } else {
            stream.wake_reader();
            Ok(())
        }
    }

    fn trailers(&mut self, key: usize, id: u32, ends: bool, fields: List) -> Result<(), Fault> {
        let trailers = fields.trailers();
        let Some(stream) = self.streams.get(key) else { return Ok(()) };
        if stream.remote_ended {
            return self.stream_fault(key, code::STREAM_CLOSED);
        }
        match trailers {
            Ok(trailers) if ends => {
                if stream.reader {
                    stream.trailers = Some(Box::new(trailers));
                }
                self.end_remote(key, id)
            }
            _ => self.stream_fault(key, code::PROTOCOL_ERROR),
        }
    }

    fn end_remote(&mut self, key: usize, id: u32) -> Result<(), Fault> {
        let Some(stream) = self.streams.held(key, id).filter(|stream| !stream.closed) else { return Ok(()) };
        if stream.length.is_some_and(|left| left > 0) {
            return self.stream_fault(key, code::PROTOCOL_ERROR);
        }
        stream.remote_ended = true;
        stream.wake_reader();
        self.settle(key);
        Ok(())
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

    // What is sent.

    fn headers(&mut self, id: u32, ends: bool, block: &[u8]) {
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
