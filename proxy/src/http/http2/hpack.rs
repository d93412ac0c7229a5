//! HPACK (RFC 7541), for what a proxy does with it: most fields of most messages are references into the dynamic table, and
//! those are handed on as ready `HeaderName`s and `HeaderValue`s.

mod decoder;
mod encoder;
mod huffman;
mod table;
#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Sink};
pub use encoder::Encoder;
pub use table::Pseudo;

/// Of the dynamic table in either direction: the protocol's default, which nobody needs to be told.
pub const TABLE: usize = 4096;
/// What a field costs besides its bytes, in tables and in lists.
pub const OVERHEAD: usize = 32;

/// The block cannot be read, and nor can any that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid;
