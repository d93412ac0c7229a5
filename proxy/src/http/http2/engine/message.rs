//! Header blocks in: requests, answers, trailers.

use super::send::with_scratch;
use super::{Arrival, Engine, Fault, Goodbye, Role};
use crate::http::http2::frame::{Head, code, flag};
use crate::http::http2::head::List;
use crate::http::http2::hpack::Pseudo;
use crate::http::http2::streams::Stream;
use http::StatusCode;

/// Answers before the answer.
const INTERIM: u8 = 32;

impl Engine {
    /// A whole header block: a request, an answer or trailers.
    pub(super) fn message(&mut self, head: Head, parent: Option<u32>, block: &[u8]) -> Result<Option<Arrival>, Fault> {
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

    pub(super) fn end_remote(&mut self, key: usize, id: u32) -> Result<(), Fault> {
        let Some(stream) = self.streams.held(key, id).filter(|stream| !stream.closed) else { return Ok(()) };
        if stream.length.is_some_and(|left| left > 0) {
            return self.stream_fault(key, code::PROTOCOL_ERROR);
        }
        stream.remote_ended = true;
        stream.wake_reader();
        self.settle(key);
        Ok(())
    }
}
