//! HTTP/2 of our own, both sides: few instructions per message, and only what a proxy needs of the protocol.
//!
//! One task per connection reads and hands frames to the `engine`. Everything else appends to the connection's way out
//! directly: each answer's task, whoever reads a body and so opens its window. Nothing is sent through a channel, and the
//! connection's task is not woken for what is written.

mod body;
mod client;
mod engine;
mod floods;
mod flow;
mod frame;
mod head;
mod hpack;
mod link;
mod out;
mod pump;
mod server;
mod settings;
mod streams;
#[cfg(test)]
mod tests;

pub use body::Http2Body;
pub use client::{Client, connect};
pub use server::serve_http2;
