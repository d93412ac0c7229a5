//! Frames in. Bodies are handed on as they come; every other frame is looked at once it is whole.

use super::{Arrival, Engine, Fault, GOODBYE, Goodbye, LAST_STREAM, Role};
use crate::http::http2::floods::CONTINUATIONS;
use crate::http::http2::frame::{self, BadHeaders, Head, code, flag, kind};
use crate::http::http2::streams::Why;
use bytes::Buf;

/// All of one header block's frames. Honest ones are smaller than the list they make.
const BLOCK: usize = 256 * 1024;

#[derive(Debug, Clone, Copy)]
pub(super) struct Data {
    /// `None`: nobody wants it.
    stream: Option<(usize, u32)>,
    left: usize,
    padding: usize,
    ends: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Reading {
    Preface,
    Head,
    Payload(Head),
    Data(Data),
    Skip(usize),
}

/// A header block that goes on.
#[derive(Debug)]
pub(super) struct Block {
    head: Head,
    parent: Option<u32>,
    bytes: Vec<u8>,
    frames: u32,
}

impl Engine {
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
        if around > 0
            && let Some(back) = stream.recv.take(around).filter(|_| !data.ends)
        {
            self.update(head.stream, back);
        }
        data.stream = Some((key, head.stream));
        Ok(data)
    }

    fn deliver(&mut self, data: Data, chunk: &[u8]) {
        let held = data.stream.and_then(|(key, id)| self.streams.held(key, id));
        let Some(stream) = held else { return self.taken(chunk.len()) };
        // As it arrives, not as its frame begins: whoever asks for the body's length in between must be told all of it.
        stream.length = stream.length.map(|length| length.saturating_sub(chunk.len() as u64));
        if stream.reader && !stream.closed {
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
    pub(super) fn is_idle(&self, id: u32) -> bool {
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
}
