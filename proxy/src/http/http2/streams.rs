//! The streams of one connection: their states, what lies in them unread, who waits for them.

use super::flow::{Receiving, Sending};
use crate::http::fields::Fields;
use bytes::BytesMut;
use http::{HeaderMap, StatusCode};
use rustc_hash::FxHashMap;
use slab::Slab;
use std::collections::VecDeque;
use std::task::Waker;
use tokio::task::AbortHandle;

/// Pieces that wait to be read are put together up to this, so that a peer cannot make many of little.
const MERGE: usize = 4096;
/// Streams we have reset whose late frames are still told from faults.
const REMEMBERED: usize = 256;

/// Why a stream ended otherwise than by both sides having said all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// By the peer, with its code.
    Reset(u32),
    /// The peer said goodbye and that it had not looked at it.
    Refused,
    /// By us: what the peer sent breaks the protocol.
    Malformed,
    /// By us: nobody wants it any more.
    Cancelled,
    /// The connection under it ended.
    Gone,
}

#[derive(Debug)]
pub struct Stream {
    pub id: u32,
    pub send: Sending,
    pub recv: Receiving,
    /// Its reader has taken all there was, since something was last given back.
    pub kept_up: bool,
    pub local_ended: bool,
    pub remote_ended: bool,
    pub why: Option<Why>,
    /// Over on the wire; it stays for who still holds it.
    pub closed: bool,
    /// What is left of the announced length.
    pub length: Option<u64>,
    pub data: VecDeque<BytesMut>,
    pub trailers: Option<Box<HeaderMap>>,
    /// An answer's head that nobody has taken yet.
    pub head: Option<Box<(StatusCode, Fields)>>,
    pub head_seen: bool,
    /// The request was HEAD: its answer's length is of what does not come.
    pub bodiless: bool,
    pub interim: u8,
    /// Somebody reads, somebody writes.
    pub reader: bool,
    pub writer: bool,
    pub read_waker: Option<Waker>,
    pub write_waker: Option<Waker>,
    /// In the connection's list of those that wait for it.
    pub queued: bool,
    /// What makes the answer.
    pub task: Option<AbortHandle>,
}

impl Stream {
    pub fn new(id: u32, send: u32, recv: u32) -> Self {
        Self {
            id,
            send: Sending::new(send),
            recv: Receiving::new(recv),
            kept_up: false,
            local_ended: false,
            remote_ended: false,
            why: None,
            closed: false,
            length: None,
            data: VecDeque::new(),
            trailers: None,
            head: None,
            head_seen: false,
            bodiless: false,
            interim: 0,
            reader: false,
            writer: false,
            read_waker: None,
            write_waker: None,
            queued: false,
            task: None,
        }
    }

    pub fn push(&mut self, chunk: &[u8]) {
        match self.data.back_mut() {
            Some(last) if last.len() + chunk.len() <= MERGE => last.extend_from_slice(chunk),
            _ => self.data.push_back(BytesMut::from(chunk)),
        }
    }

    /// Forgets what lies here unread; how much it was.
    pub fn clear(&mut self) -> usize {
        self.trailers = None;
        self.data.drain(..).map(|chunk| chunk.len()).sum()
    }

    pub fn wake_reader(&mut self) {
        if let Some(waker) = self.read_waker.take() {
            waker.wake();
        }
    }

    pub fn wake_writer(&mut self) {
        if let Some(waker) = self.write_waker.take() {
            waker.wake();
        }
    }

    pub fn wake_all(&mut self) {
        self.wake_reader();
        self.wake_writer();
    }
}

pub fn keep(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(kept) => kept.clone_from(waker),
        None => *place = Some(waker.clone()),
    }
}

#[derive(Debug, Default)]
pub struct Streams {
    slab: Slab<Stream>,
    /// Those that are open on the wire.
    ids: FxHashMap<u32, usize>,
    /// We reset these lately.
    reset: VecDeque<u32>,
    /// The highest that is not remembered any more.
    forgotten: u32,
}

impl Streams {
    pub fn open(&self) -> usize {
        self.ids.len()
    }

    pub fn insert(&mut self, stream: Stream) -> usize {
        let id = stream.id;
        let key = self.slab.insert(stream);
        self.ids.insert(id, key);
        key
    }

    pub fn find(&self, id: u32) -> Option<usize> {
        self.ids.get(&id).copied()
    }

    pub fn get(&mut self, key: usize) -> Option<&mut Stream> {
        self.slab.get_mut(key)
    }

    /// By whoever holds it: the place may be another's by now.
    pub fn held(&mut self, key: usize, id: u32) -> Option<&mut Stream> {
        self.slab.get_mut(key).filter(|stream| stream.id == id)
    }

    /// What has just come to an end is marked, and what nobody holds any more is removed. Says whether it was just closed, and
    /// how many bytes had not been read.
    pub fn settle(&mut self, key: usize) -> (bool, usize) {
        let Some(stream) = self.slab.get_mut(key) else { return (false, 0) };
        let over = stream.why.is_some() || (stream.local_ended && stream.remote_ended);
        let now = over && !stream.closed;
        if now {
            stream.closed = true;
            self.ids.remove(&stream.id);
        }
        if !stream.closed || stream.reader || stream.writer {
            return (now, 0);
        }
        let mut stream = self.slab.remove(key);
        (now, stream.clear())
    }

    pub fn remember_reset(&mut self, id: u32) {
        if self.reset.len() >= REMEMBERED
            && let Some(oldest) = self.reset.pop_front()
        {
            self.forgotten = self.forgotten.max(oldest);
        }
        self.reset.push_back(id);
    }

    /// Late frames of it are no fault: we had reset it, or may have.
    pub fn may_come_late(&self, id: u32) -> bool {
        id <= self.forgotten || self.reset.contains(&id)
    }

    pub fn each(&mut self, mut visit: impl FnMut(usize, &mut Stream)) {
        for (key, stream) in &mut self.slab {
            visit(key, stream);
        }
    }

    pub fn keys(&self) -> Vec<usize> {
        self.slab.iter().map(|(key, _)| key).collect()
    }
}
