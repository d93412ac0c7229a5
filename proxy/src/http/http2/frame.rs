//! Frames as they stand on the wire.

pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const HEAD: usize = 9;

pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub mod flag {
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 32;
}

pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// The nine bytes before each payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Head {
    pub fn new(kind: u8, flags: u8, stream: u32, length: usize) -> Self {
        Self { length, kind, flags, stream }
    }

    pub fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, w, x, y, z] = *bytes.first_chunk::<HEAD>()?;
        Some(Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([w, x, y, z]) & 0x7fff_ffff,
        })
    }

    pub fn bytes(self) -> [u8; HEAD] {
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        let [w, x, y, z] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, w, x, y, z]
    }

    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A number of four bytes at the front.
pub fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Why a HEADERS frame's payload is no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHeaders {
    Length,
    Padding,
}

/// A HEADERS frame's block, and the stream it says it depends on.
pub fn block(head: Head, payload: &[u8]) -> Result<(&[u8], Option<u32>), BadHeaders> {
    let (mut rest, mut padding, mut parent) = (payload, 0, None);
    if head.has(flag::PADDED) {
        let (length, after) = rest.split_first().ok_or(BadHeaders::Length)?;
        (padding, rest) = (usize::from(*length), after);
    }
    if head.has(flag::PRIORITY) {
        parent = Some(number(rest).ok_or(BadHeaders::Length)? & 0x7fff_ffff);
        rest = rest.get(5..).ok_or(BadHeaders::Length)?;
    }
    let end = rest.len().checked_sub(padding).ok_or(BadHeaders::Padding)?;
    Ok((&rest[..end], parent))
}
