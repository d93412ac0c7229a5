//! What the tests stand on: certificates, peers that behave and peers that do not, namespaces, tools.
//!
//! Nothing here knows the proxy's insides: it runs as a real process from its binary, is configured by a file and is
//! seen through its sockets, its log and its admin port. Most peers have blocking interfaces with deadlines, so that a
//! test is an ordinary function; those that carry load run on a thread and a runtime of their own.
//!
//! A failed expectation of the kit itself panics: in a test that is the right answer.

pub mod backend;
pub mod ca;
pub mod client;
pub mod control;
pub mod dir;
pub mod dns;
pub mod io;
pub mod load;
pub mod netns;
pub mod otlp;
pub mod program;
pub mod proxy;
pub mod raw_backend;
pub mod raw_h2;
pub mod relay;
pub mod rng;
pub mod tls;
pub mod tools;
pub mod wait;
pub mod wire;
