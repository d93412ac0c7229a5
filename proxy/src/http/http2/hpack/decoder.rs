//! From blocks to fields. What is in the table stays ready to be handed on; what is not shares one copy of its block.

use super::table::{FIELDS, GZIP, GZIP_INDEX, Name, PSEUDO, Pseudo, STATIC, Value};
use super::{Invalid, OVERHEAD, TABLE, huffman};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use std::collections::VecDeque;

/// Where fields go.
pub trait Sink {
    fn pseudo(&mut self, name: Pseudo, value: Bytes);
    fn field(&mut self, name: HeaderName, value: HeaderValue);
    /// A name or value that no message may have.
    fn bad(&mut self);
}

#[derive(Debug, Clone)]
struct Entry {
    name: Name,
    value: Value,
    /// Bytes of the two, whatever became of them.
    name_len: usize,
    value_len: usize,
}

impl Entry {
    fn size(&self) -> usize {
        self.name_len + self.value_len + OVERHEAD
    }
}

#[derive(Debug)]
pub struct Decoder {
    /// Newest first.
    table: VecDeque<Entry>,
    size: usize,
    max: usize,
}

/// A string as it stands in its block.
#[derive(Clone, Copy)]
struct Text<'a> {
    bytes: &'a [u8],
    at: usize,
    huffman: bool,
}

struct Reader<'a> {
    block: &'a [u8],
    at: usize,
    /// A copy of the block, once something in it is handed on as it stands.
    shared: Option<Bytes>,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, Invalid> {
        let byte = *self.block.get(self.at).ok_or(Invalid)?;
        self.at += 1;
        Ok(byte)
    }

    fn integer(&mut self, first: u8, bits: u32) -> Result<usize, Invalid> {
        let mask = (1usize << bits) - 1;
        let mut value = usize::from(first) & mask;
        if value < mask {
            return Ok(value);
        }
        // Four more bytes are more than any length or index may need.
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Invalid)
    }

    fn text(&mut self) -> Result<Text<'a>, Invalid> {
        let first = self.byte()?;
        let length = self.integer(first, 7)?;
        let at = self.at;
        let end = at.checked_add(length).ok_or(Invalid)?;
        let bytes = self.block.get(at..end).ok_or(Invalid)?;
        self.at = end;
        Ok(Text { bytes, at, huffman: first & 0x80 != 0 })
    }

    /// For one message: a slice of the block's copy where that does.
    fn share(&mut self, text: Text<'_>) -> Result<Bytes, Invalid> {
        if text.huffman {
            return Ok(huffman::decode(text.bytes)?.into());
        }
        if text.bytes.is_empty() {
            return Ok(Bytes::new());
        }
        let shared = self.shared.get_or_insert_with(|| Bytes::copy_from_slice(self.block));
        Ok(shared.slice(text.at..text.at + text.bytes.len()))
    }
}

/// For the table: nothing small may keep a large block alive.
fn own(text: Text<'_>) -> Result<Bytes, Invalid> {
    match text.huffman {
        true => Ok(Bytes::copy_from_slice(&huffman::decode(text.bytes)?)),
        false => Ok(Bytes::copy_from_slice(text.bytes)),
    }
}

fn read_name(bytes: &[u8]) -> Name {
    if bytes.first() == Some(&b':') {
        return Pseudo::of(bytes).map_or(Name::Bad, Name::Pseudo);
    }
    HeaderName::from_lowercase(bytes).map_or(Name::Bad, Name::Field)
}

fn read_value(name: &Name, bytes: Bytes) -> Value {
    match name {
        Name::Pseudo(_) => Value::Pseudo(bytes),
        Name::Field(_) => HeaderValue::from_maybe_shared(bytes).map_or(Value::Bad, Value::Field),
        Name::Bad => Value::Bad,
    }
}

fn give(sink: &mut impl Sink, name: Name, value: Value) {
    match (name, value) {
        (Name::Pseudo(name), Value::Pseudo(value)) => sink.pseudo(name, value),
        (Name::Field(name), Value::Field(value)) => sink.field(name, value),
        _ => sink.bad(),
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), size: 0, max: TABLE }
    }
}

impl Decoder {
    /// Reads one whole block. `false`: its fields are more than `limit`, and those past it were not handed on.
    pub fn decode(&mut self, block: &[u8], limit: usize, sink: &mut impl Sink) -> Result<bool, Invalid> {
        let mut reader = Reader { block, at: 0, shared: None };
        let mut total = 0usize;
        let mut begun = false;
        while reader.at < block.len() {
            let first = reader.byte()?;
            if first & 0xe0 == 0x20 {
                let max = reader.integer(first, 5)?;
                if begun || max > TABLE {
                    return Err(Invalid);
                }
                self.max = max;
                self.evict(0);
                continue;
            }
            begun = true;
            if first & 0x80 != 0 {
                let index = reader.integer(first, 7)?;
                self.indexed(index, limit, &mut total, sink)?;
                continue;
            }
            let (kept, bits) = if first & 0x40 != 0 { (true, 6) } else { (false, 4) };
            let index = reader.integer(first, bits)?;
            let (name, name_len) = match index {
                0 => {
                    let text = reader.text()?;
                    match text.huffman {
                        true => {
                            let bytes = huffman::decode(text.bytes)?;
                            (read_name(&bytes), bytes.len())
                        }
                        false => (read_name(text.bytes), text.bytes.len()),
                    }
                }
                index => self.name(index)?,
            };
            let text = reader.text()?;
            if kept {
                let bytes = own(text)?;
                let value_len = bytes.len();
                let value = read_value(&name, bytes);
                total = total.saturating_add(name_len + value_len + OVERHEAD);
                if total <= limit {
                    give(sink, name.clone(), value.clone());
                }
                self.insert(Entry { name, value, name_len, value_len });
                continue;
            }
            if total > limit {
                continue;
            }
            let bytes = reader.share(text)?;
            total = total.saturating_add(name_len + bytes.len() + OVERHEAD);
            if total <= limit {
                let mut value = read_value(&name, bytes);
                if let (Value::Field(value), 0x10) = (&mut value, first & 0xf0) {
                    value.set_sensitive(true);
                }
                give(sink, name, value);
            }
        }
        Ok(total <= limit)
    }

    fn indexed(&mut self, index: usize, limit: usize, total: &mut usize, sink: &mut impl Sink) -> Result<(), Invalid> {
        let Some(position) = index.checked_sub(STATIC + 1) else {
            let (name_len, value) = match index {
                0 => return Err(Invalid),
                1..=14 => {
                    let (name, value) = PSEUDO[index - 1];
                    *total = total.saturating_add(name.text().len() + value.len() + OVERHEAD);
                    if *total <= limit {
                        sink.pseudo(name, Bytes::from_static(value.as_bytes()));
                    }
                    return Ok(());
                }
                GZIP_INDEX => (FIELDS[1].as_str().len(), GZIP),
                _ => (FIELDS[index - 15].as_str().len(), ""),
            };
            *total = total.saturating_add(name_len + value.len() + OVERHEAD);
            if *total <= limit {
                sink.field(FIELDS[index - 15].clone(), HeaderValue::from_static(value));
            }
            return Ok(());
        };
        let entry = self.table.get(position).ok_or(Invalid)?;
        *total = total.saturating_add(entry.size());
        if *total <= limit {
            match (&entry.name, &entry.value) {
                (Name::Pseudo(name), Value::Pseudo(value)) => sink.pseudo(*name, value.clone()),
                (Name::Field(name), Value::Field(value)) => sink.field(name.clone(), value.clone()),
                _ => sink.bad(),
            }
        }
        Ok(())
    }

    fn name(&self, index: usize) -> Result<(Name, usize), Invalid> {
        match index {
            1..=14 => {
                let name = PSEUDO[index - 1].0;
                Ok((Name::Pseudo(name), name.text().len()))
            }
            15..=STATIC => {
                let name = FIELDS[index - 15].clone();
                let length = name.as_str().len();
                Ok((Name::Field(name), length))
            }
            _ => {
                let entry = self.table.get(index - STATIC - 1).ok_or(Invalid)?;
                Ok((entry.name.clone(), entry.name_len))
            }
        }
    }

    fn insert(&mut self, entry: Entry) {
        let size = entry.size();
        self.evict(size);
        // One that does not fit at all leaves the table empty.
        if size <= self.max {
            self.size += size;
            self.table.push_front(entry);
        }
    }

    fn evict(&mut self, more: usize) {
        while self.size + more > self.max {
            let Some(oldest) = self.table.pop_back() else { return };
            self.size -= oldest.size();
        }
    }

    #[cfg(test)]
    pub fn size(&self) -> usize {
        self.size
    }
}
