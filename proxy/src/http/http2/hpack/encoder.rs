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
    /// What stood in each place of the last block: most messages are like the one before.
    guesses: Vec<Guess>,
    /// Fields of this block so far.
    at: usize,
}

/// Only where to look first: what it says is compared.
#[derive(Debug, Clone, Copy)]
struct Guess {
    fixed: u8,
    number: u64,
    /// The name's values are never looked for.
    varies: bool,
}

/// Fields of a block that are guessed.
const GUESSES: usize = 48;

impl Default for Encoder {
    fn default() -> Self {
        let (entries, numbers) = (VecDeque::new(), FxHashMap::default());
        let table = Table { entries, gone: 0, size: 0, max: TABLE, numbers };
        Self { table, resized: None, names: FxHashMap::default(), guesses: Vec::new(), at: 0 }
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

/// The index of what the static table has whole.
fn fixed(name: Pseudo, value: &[u8]) -> Option<u8> {
    Some(match (name, value) {
        (Pseudo::Method, b"GET") => 2,
        (Pseudo::Method, b"POST") => 3,
        (Pseudo::Path, b"/") => 4,
        (Pseudo::Path, b"/index.html") => 5,
        (Pseudo::Scheme, b"http") => 6,
        (Pseudo::Scheme, b"https") => 7,
        (Pseudo::Status, b"200") => 8,
        (Pseudo::Status, b"204") => 9,
        (Pseudo::Status, b"206") => 10,
        (Pseudo::Status, b"304") => 11,
        (Pseudo::Status, b"400") => 12,
        (Pseudo::Status, b"404") => 13,
        (Pseudo::Status, b"500") => 14,
        _ => return None,
    })
}

#[inline]
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
        self.at = 0;
        if let Some(least) = self.resized.take() {
            if least < self.table.max {
                integer(out, 0x20, 5, least);
            }
            integer(out, 0x20, 5, self.table.max);
        }
    }

    pub fn pseudo(&mut self, name: Pseudo, value: &[u8], out: &mut Vec<u8>) {
        match fixed(name, value) {
            Some(index) => out.push(0x80 | index),
            None => self.encode(Key::Pseudo(name), value, false, out),
        }
    }

    pub fn field(&mut self, name: &HeaderName, value: &HeaderValue, out: &mut Vec<u8>) {
        self.encode(Key::Field(name), value.as_bytes(), value.is_sensitive(), out);
    }

    fn encode(&mut self, key: Key<'_>, value: &[u8], sensitive: bool, out: &mut Vec<u8>) {
        let at = self.at;
        self.at += 1;
        if !sensitive
            && let Some(guess) = self.guesses.get(at)
            && self.table.repeat(*guess, key, value, out)
        {
            return;
        }
        let guess = self.search(key, value, sensitive, out);
        if at < GUESSES {
            let nothing = Guess { fixed: 0, number: 0, varies: false };
            self.guesses.resize(self.guesses.len().max(at + 1), nothing);
            self.guesses[at] = guess;
        }
    }

    /// Says where it was found, or put.
    fn search(&mut self, key: Key<'_>, value: &[u8], sensitive: bool, out: &mut Vec<u8>) -> Guess {
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
            if let Some(number) = table.find(key, value, hash) {
                known.churn = known.churn.saturating_sub(1);
                integer(out, INDEXED.0, INDEXED.1, table.index_of(number));
                return Guess { fixed: known.fixed, number, varies: false };
            }
            if usize::from(known.fixed) == GZIP_INDEX && value == GZIP.as_bytes() {
                integer(out, INDEXED.0, INDEXED.1, GZIP_INDEX);
                return Guess { fixed: known.fixed, number: 0, varies: false };
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
        Guess { fixed: known.fixed, number: known.latest, varies: known.churn == ALWAYS }
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

    fn find(&self, key: Key<'_>, value: &[u8], hash: u64) -> Option<u64> {
        let number = *self.numbers.get(&hash)?;
        self.holds(number, key, value).then_some(number)
    }

    fn holds(&self, number: u64, key: Key<'_>, value: &[u8]) -> bool {
        self.entry(number).is_some_and(|entry| entry.value == value && entry.name.is(key))
    }

    /// Writes the field if it is what stood in this place before.
    fn repeat(&self, guess: Guess, key: Key<'_>, value: &[u8], out: &mut Vec<u8>) -> bool {
        if !guess.varies {
            let same = self.holds(guess.number, key, value);
            if same {
                integer(out, INDEXED.0, INDEXED.1, self.index_of(guess.number));
            }
            return same;
        }
        let index = self.name_index(key, usize::from(guess.fixed), guess.number);
        if index != 0 {
            integer(out, PLAIN.0, PLAIN.1, index);
            text(out, value);
        }
        index != 0
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
