//! What either side told the other at the beginning.

use super::engine::{Fault, Role};
use super::frame::code;

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The protocol's own, until the peer has said otherwise.
pub const WINDOW: u32 = 65_535;
pub const FRAME: usize = 16_384;
pub const MAX_WINDOW: i64 = 0x7fff_ffff;

/// What we say.
#[derive(Debug, Clone, Copy)]
pub struct Ours {
    pub stream_window: u32,
    pub connection_window: u32,
    pub max_frame: usize,
    /// Of field lists, as HPACK counts.
    pub list_bytes: usize,
    /// And as anybody counts. The peer cannot be told this one.
    pub list_fields: usize,
    /// Streams the peer may have open.
    pub max_streams: usize,
}

impl Ours {
    pub fn payload(&self, role: Role) -> Vec<u8> {
        let mut payload = Vec::with_capacity(30);
        let mut put = |id: u16, value: u32| {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        };
        match role {
            Role::Client => put(ENABLE_PUSH, 0),
            Role::Server => put(MAX_CONCURRENT_STREAMS, self.max_streams as u32),
        }
        put(INITIAL_WINDOW_SIZE, self.stream_window);
        put(MAX_FRAME_SIZE, self.max_frame as u32);
        put(MAX_HEADER_LIST_SIZE, self.list_bytes as u32);
        payload
    }
}

/// What the peer says.
#[derive(Debug, Clone, Copy)]
pub struct Theirs {
    pub window: u32,
    pub max_frame: usize,
    pub table: Option<usize>,
    pub max_streams: Option<u32>,
}

impl Default for Theirs {
    fn default() -> Self {
        Self { window: WINDOW, max_frame: FRAME, table: None, max_streams: None }
    }
}

impl Theirs {
    /// One SETTINGS frame's payload.
    pub fn read(&mut self, payload: &[u8], role: Role) -> Result<(), Fault> {
        let (items, []) = payload.as_chunks::<6>() else { return Err(Fault::new(code::FRAME_SIZE_ERROR)) };
        for [a, b, w, x, y, z] in items {
            let value = u32::from_be_bytes([*w, *x, *y, *z]);
            match u16::from_be_bytes([*a, *b]) {
                HEADER_TABLE_SIZE => self.table = Some(value as usize),
                // A server never says that it takes pushes.
                ENABLE_PUSH if value > 1 || (value == 1 && role == Role::Client) => {
                    return Err(Fault::new(code::PROTOCOL_ERROR));
                }
                MAX_CONCURRENT_STREAMS => self.max_streams = Some(value),
                INITIAL_WINDOW_SIZE if i64::from(value) > MAX_WINDOW => {
                    return Err(Fault::new(code::FLOW_CONTROL_ERROR));
                }
                INITIAL_WINDOW_SIZE => self.window = value,
                MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
                    return Err(Fault::new(code::PROTOCOL_ERROR));
                }
                MAX_FRAME_SIZE => self.max_frame = value as usize,
                _ => {}
            }
        }
        Ok(())
    }
}
