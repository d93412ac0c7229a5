//! The internal model of the mesh, and the state machine of every policy.
//!
//! Pure: no runtime, no sockets, no HTTP library. Time, randomness and load are arguments. The proxy, admission and
//! `explain` share this crate, so they cannot disagree.
//!
//! One policy, one file. A policy file holds, in this order: what it is, `Config` (plain data), `State` where there is
//! any (atomics, with `adopt` saying what survives a config change), decisions, tests.

pub mod backend;
pub mod balance;
pub mod breaker;
pub mod budget;
pub mod cors;
pub mod destinations;
pub mod diag;
pub mod direct;
pub mod doc;
pub mod endpoint;
pub mod fault;
pub mod fraction;
pub mod headers;
pub mod id;
mod instant;
pub mod listener;
pub mod matcher;
pub mod meta;
pub mod mirror;
pub mod mtls;
pub mod outlier;
pub mod path;
pub mod plan;
pub mod reason;
pub mod redirect;
pub mod registry;
pub mod retry;
pub mod rewrite;
pub mod route;
pub mod service;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod timeout;
#[cfg(test)]
mod trial;
pub mod view;
pub mod yaml;
