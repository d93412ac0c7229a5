//! What every program of ours needs to talk to a Kubernetes API server.

pub mod client;
pub mod lease;
pub mod watch;
pub mod webhook;
