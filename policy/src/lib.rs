//! The internal model of the mesh, and the state machine of every policy.
//!
//! Pure: no runtime, no sockets, no HTTP library. Time, randomness and load are arguments. The proxy, admission and
//! `explain` share this crate, so they cannot disagree.
//!
//! One policy, one file. A policy file holds, in this order: what it is, `Config` (plain data), `State` where there is
//! any (atomics, with `adopt` saying what survives a config change), decisions, tests.

pub mod diag;
pub mod doc;
pub mod id;
pub mod view;
