//! From a TCP connection to a protocol: accept, find out where it was going and what it speaks, secure it, hand it on.
//!
//! Read `listener.rs` first (who is let in and when it ends), then `connection.rs` (one connection's way).

pub mod connection;
pub mod counters;
pub mod detect;
pub mod listener;
pub mod live;
pub mod sniff;
pub mod stream;
pub mod tls;
