//! The configuration file: what is refused and how it is said, what a change touches, and what a running proxy does when its
//! files change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod apply;
mod docs;
mod errors;
mod files;
mod reload;
