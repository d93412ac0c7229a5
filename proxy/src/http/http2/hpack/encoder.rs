//! From fields to blocks. What repeats is put into the table once and then named by a byte; what differs on every message is
//! written as it is and never put there. Which is which is partly known and otherwise learned, name by name.
//!
//! Strings are not Huffman coded: a repeated one is sent once, and for the others bytes on a mesh hop are cheaper than time.

use super::table::{FIELDS, GZIP, GZIP_INDEX, PSEUDO, Pseudo, STATIC, static_name};
use super::{OVERHEAD, TABLE};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use rustc_hash::{FxHashMap, FxHasher};
use std::collections::VecDeque;
use std::hash::Hasher;

#[derive(Debug, Clone, Copy)]
enum Key<'a> {
    Pseudo(Pseudo),
    Field(&'a HeaderName),
}

impl Key<'_> {
    fn text(&self) -> &str {
        match self {
            Key::Pseudo(name) => name.text(),
            Key::Field(name) => name.as_str(),
        }
    }

    fn own(&self) -> Owned {
        match self {
            Key::Pseudo(name) => Owned::Pseudo(*name),
            Key::Field(name) => Owned::Field((*name).clone()),
        }
    }
}

#[derive(Debug)]
enum Owned {
    Pseudo(Pseudo),
    Field(HeaderName),
}

impl Owned {
    fn is(&self, key: Key<'_>) -> bool {
        match (self, key) {
            (Owned::Pseudo(a), Key::Pseudo(b)) => *a == b,
            (Owned::Field(a), Key::Field(b)) => a == b,
            _ => false,
        }
    }
}

#[derive(Debug)]
struct Entry {
    name: Owned,
    value: Bytes,
    hash: u64,
    size: usize,
}

/// What is known of a name on this connection.
#[derive(Debug, Clone, Copy)]
struct Known {
    fixed: u8,
    /// Number of the newest entry that has it, from 1.
    latest: u64,
    /// Rises with each value that was new and falls with each that was not.
    churn: u16,
}

/// From here on a name's values are not worth a place in the table ...
const VARIES: u16 = 8;
/// ... until this much later.
const AGAIN: u16 = VARIES + 64;
/// Never worth it.
const ALWAYS: u16 = u16::MAX;
/// Names to remember; more than an honest connection has.
const NAMES: usize = 256;

#[derive(Debug)]
pub struct Encoder {
    /// Oldest first.
    entries: VecDeque<Entry>,
    /// Number of entries ever evicted: the oldest has the next number.
    gone: u64,
    size: usize,
    max: usize,
    /// The table was resized: to how little, before it became what it is now.
    resized: Option<usize>,
    /// By name and value.
    fields: FxHashMap<u64, u64>,
    names: FxHashMap<u64, Known>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            gone: 0,
            size: 0,
            max: TABLE,
            resized: None,
            fields: FxHashMap::default(),
            names: FxHashMap::default(),
        }
    }
}

/// Different on every request, or nearly.
fn varies(name: &str) -> bool {
    matches!(
        name,
        ":path"
            | "x-request-id"
            | "traceparent"
            | "x-b3-traceid"
            | "x-b3-spanid"
            | "x-b3-parentspanid"
            | "b3"
            | "content-length"
            | "x-envoy-upstream-service-time"
            | "etag"
            | "last-modified"
            | "if-none-match"
            | "if-modified-since"
            | "content-range"
            | "range"
            | "grpc-timeout"
            | "age"
    )
}

fn hash_of(seed: u64, bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write_u64(seed);
    hasher.write(bytes);
    hasher.finish()
}

fn integer(out: &mut Vec<u8>, first: u8, bits: u32, value: usize) {
    let mask = (1usize << bits) - 1;
    if value < mask {
        out.push(first | value as u8);
        return;
    }
    out.push(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    integer(out, 0, 7, bytes.len());
    out.extend_from_slice(bytes);
}

const INDEXED: (u8, u32) = (0x80, 7);
const KEPT: (u8, u32) = (0x40, 6);
const PLAIN: (u8, u32) = (0, 4);
const NEVER: (u8, u32) = (0x10, 4);

impl Encoder {
    /// As the peer's settings have it; never more than our own bound.
    pub fn resize(&mut self, max: usize) {
        let max = max.min(TABLE);
        if max == self.max {
            return;
        }
        self.resized = Some(self.resized.map_or(max, |least| least.min(max)));
        self.max = max;
        self.evict(0);
    }

    /// Before a block's first field.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(least) = self.resized.take() {
            if least < self.max {
                integer(out, 0x20, 5, least);
            }
            integer(out, 0x20, 5, self.max);
        }
    }

    pub fn pseudo(&mut self, name: Pseudo, value: &[u8], out: &mut Vec<u8>) {
        for (i, (fixed, text)) in PSEUDO.iter().enumerate() {
            if *fixed == name && text.as_bytes() == value {
                return integer(out, INDEXED.0, INDEXED.1, i + 1);
            }
        }
        self.encode(Key::Pseudo(name), value, false, out);
    }

    pub fn field(&mut self, name: &HeaderName, value: &HeaderValue, out: &mut Vec<u8>) {
        self.encode(Key::Field(name), value.as_bytes(), value.is_sensitive(), out);
    }

    fn encode(&mut self, key: Key<'_>, value: &[u8], sensitive: bool, out: &mut Vec<u8>) {
        let name_hash = hash_of(0, key.text().as_bytes());
        if self.names.len() >= NAMES && !self.names.contains_key(&name_hash) {
            self.names.clear();
        }
        let known = self.names.entry(name_hash).or_insert_with(|| {
            let churn = if varies(key.text()) { ALWAYS } else { 0 };
            Known { fixed: static_name(key.text()), latest: 0, churn }
        });
        let (fixed, latest) = (usize::from(known.fixed), known.latest);
        let index = self.name_index(key, fixed, latest);
        if sensitive {
            return self.literal(NEVER, index, key, value, out);
        }
        let varying = known_varies(self.names.get_mut(&name_hash));
        let size = key.text().len() + value.len() + OVERHEAD;
        let fits = size <= self.max / 4;
        if varying {
            // Once, so that at least its name is there.
            let keep = index == 0 && fits;
            if keep {
                self.insert(key, value, hash_of(name_hash, value), name_hash, size);
            }
            return self.literal(if keep { KEPT } else { PLAIN }, index, key, value, out);
        }
        let hash = hash_of(name_hash, value);
        if let Some(index) = self.field_index(key, value, hash) {
            if let Some(known) = self.names.get_mut(&name_hash) {
                known.churn = known.churn.saturating_sub(1);
            }
            return integer(out, INDEXED.0, INDEXED.1, index);
        }
        if fixed == GZIP_INDEX && value == GZIP.as_bytes() {
            return integer(out, INDEXED.0, INDEXED.1, GZIP_INDEX);
        }
        if !fits {
            return self.literal(PLAIN, index, key, value, out);
        }
        self.literal(KEPT, index, key, value, out);
        self.insert(key, value, hash, name_hash, size);
        if let Some(known) = self.names.get_mut(&name_hash) {
            known.churn += 2;
        }
    }

    fn literal(&self, (first, bits): (u8, u32), index: usize, key: Key<'_>, value: &[u8], out: &mut Vec<u8>) {
        integer(out, first, bits, index);
        if index == 0 {
            text(out, key.text().as_bytes());
        }
        text(out, value);
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        let position = number.checked_sub(self.gone + 1)?;
        self.entries.get(usize::try_from(position).ok()?)
    }

    fn index_of(&self, number: u64) -> usize {
        let newest = self.gone + self.entries.len() as u64;
        STATIC + 1 + newest.saturating_sub(number) as usize
    }

    /// Where the name is, or 0. Both places are compared: a hash may be anybody's.
    fn name_index(&self, key: Key<'_>, fixed: usize, latest: u64) -> usize {
        let is_fixed = match (key, fixed) {
            (_, 0) => false,
            (Key::Pseudo(name), 1..=14) => PSEUDO[fixed - 1].0 == name,
            (Key::Field(name), 15..=STATIC) => FIELDS[fixed - 15] == *name,
            _ => false,
        };
        if is_fixed {
            return fixed;
        }
        match self.entry(latest) {
            Some(entry) if entry.name.is(key) => self.index_of(latest),
            _ => 0,
        }
    }

    fn field_index(&self, key: Key<'_>, value: &[u8], hash: u64) -> Option<usize> {
        let number = *self.fields.get(&hash)?;
        let entry = self.entry(number)?;
        (entry.name.is(key) && entry.value == value).then(|| self.index_of(number))
    }

    fn insert(&mut self, key: Key<'_>, value: &[u8], hash: u64, name_hash: u64, size: usize) {
        self.evict(size);
        self.size += size;
        self.entries.push_back(Entry { name: key.own(), value: Bytes::copy_from_slice(value), hash, size });
        let number = self.gone + self.entries.len() as u64;
        self.fields.insert(hash, number);
        if let Some(known) = self.names.get_mut(&name_hash) {
            known.latest = number;
        }
    }

    fn evict(&mut self, more: usize) {
        while self.size + more > self.max {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.gone += 1;
            self.size -= oldest.size;
            if self.fields.get(&oldest.hash) == Some(&self.gone) {
                self.fields.remove(&oldest.hash);
            }
        }
    }
}

fn known_varies(known: Option<&mut Known>) -> bool {
    let Some(known) = known else { return false };
    if known.churn == ALWAYS {
        return true;
    }
    if known.churn < VARIES {
        return false;
    }
    known.churn += 1;
    if known.churn > AGAIN {
        known.churn = VARIES - 2;
    }
    true
}
