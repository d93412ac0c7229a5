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

/// The table, as the peer has it too.
#[derive(Debug)]
struct Table {
    /// Oldest first.
    entries: VecDeque<Entry>,
    /// Number of entries ever evicted: the oldest has the next number.
    gone: u64,
    size: usize,
    max: usize,
    /// By name and value.
    numbers: FxHashMap<u64, u64>,
}

#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// The table was resized: to how little, before it became what it is now.
    resized: Option<usize>,
    names: FxHashMap<u64, Known>,
}

impl Default for Encoder {
    fn default() -> Self {
        let (entries, numbers) = (VecDeque::new(), FxHashMap::default());
        let table = Table { entries, gone: 0, size: 0, max: TABLE, numbers };
        Self { table, resized: None, names: FxHashMap::default() }
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
        if max == self.table.max {
            return;
        }
        self.resized = Some(self.resized.map_or(max, |least| least.min(max)));
        self.table.max = max;
        self.table.evict(0);
    }

    /// Before a block's first field.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(least) = self.resized.take() {
            if least < self.table.max {
                integer(out, 0x20, 5, least);
            }
            integer(out, 0x20, 5, self.table.max);
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
        let table = &mut self.table;
        let known = self.names.entry(name_hash).or_insert_with(|| {
            let churn = if varies(key.text()) { ALWAYS } else { 0 };
            Known { fixed: static_name(key.text()), latest: 0, churn }
        });
        let varies = !sensitive && known.varies();
        let hash = if sensitive || varies { 0 } else { hash_of(name_hash, value) };
        if !sensitive && !varies {
            if let Some(index) = table.field_index(key, value, hash) {
                known.churn = known.churn.saturating_sub(1);
                return integer(out, INDEXED.0, INDEXED.1, index);
            }
            if known.fixed as usize == GZIP_INDEX && value == GZIP.as_bytes() {
                return integer(out, INDEXED.0, INDEXED.1, GZIP_INDEX);
            }
        }
        let index = table.name_index(key, usize::from(known.fixed), known.latest);
        let size = key.text().len() + value.len() + OVERHEAD;
        let form = match () {
            () if sensitive => NEVER,
            () if size > table.max / 4 => PLAIN,
            // Once, so that at least its name is there.
            () if varies && index != 0 => PLAIN,
            () => KEPT,
        };
        integer(out, form.0, form.1, index);
        if index == 0 {
            text(out, key.text().as_bytes());
        }
        text(out, value);
        if form == KEPT {
            known.latest = table.insert(key, value, hash, size);
            known.churn = known.churn.saturating_add(2);
        }
    }
}

impl Known {
    /// Whether it is not worth looking for its value.
    fn varies(&mut self) -> bool {
        if self.churn == ALWAYS || self.churn < VARIES {
            return self.churn == ALWAYS;
        }
        self.churn += 1;
        if self.churn > AGAIN {
            self.churn = VARIES - 2;
        }
        true
    }
}

impl Table {
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
        let number = *self.numbers.get(&hash)?;
        let entry = self.entry(number)?;
        (entry.value == value && entry.name.is(key)).then(|| self.index_of(number))
    }

    /// The new entry's number.
    fn insert(&mut self, key: Key<'_>, value: &[u8], hash: u64, size: usize) -> u64 {
        self.evict(size);
        self.size += size;
        self.entries.push_back(Entry { name: key.own(), value: Bytes::copy_from_slice(value), hash, size });
        let number = self.gone + self.entries.len() as u64;
        self.numbers.insert(hash, number);
        number
    }

    fn evict(&mut self, more: usize) {
        while self.size + more > self.max {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.gone += 1;
            self.size -= oldest.size;
            if self.numbers.get(&oldest.hash) == Some(&self.gone) {
                self.numbers.remove(&oldest.hash);
            }
        }
    }
}
