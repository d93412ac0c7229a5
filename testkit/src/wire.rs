//! Protobuf by hand, for what a peer of another version says and today's types cannot; and recorded sessions.

use std::path::{Path, PathBuf};

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

/// A field with a number in it.
pub fn number(field: u32, value: u64) -> Vec<u8> {
    [varint(u64::from(field) << 3), varint(value)].concat()
}

/// A field with bytes in it: text, or a message.
pub fn bytes(field: u32, content: &[u8]) -> Vec<u8> {
    [varint(u64::from(field) << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded").join(name)
}

/// One side's messages of a session that was recorded when a release was made.
pub fn recorded(name: &str) -> Vec<Vec<u8>> {
    let all = std::fs::read(path(name)).expect("a recorded session");
    let mut rest = all.as_slice();
    let mut messages = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (message, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        messages.push(message.to_vec());
        rest = after;
    }
    assert!(rest.is_empty() && !messages.is_empty(), "{name} is whole");
    messages
}

/// Each message with its length in front.
pub fn record(name: &str, messages: &[Vec<u8>]) {
    let framed = messages.iter().flat_map(|m| [(m.len() as u32).to_be_bytes().to_vec(), m.clone()].concat());
    std::fs::create_dir_all(path(name).parent().expect("a folder")).expect("recorded/");
    std::fs::write(path(name), framed.collect::<Vec<u8>>()).expect("a recorded session");
}
