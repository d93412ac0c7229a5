//! Weft's own kinds: what no other dialect can say.

pub mod traffic_policy;
