//! Ring hash (ketama): each endpoint stands at many places of a ring, by weight, and a key belongs to the next one. When an
//! endpoint comes or goes, only its own keys move.

use super::{Open, hash, weights};
use crate::endpoint::Endpoint;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Ring {
    places: Vec<(u64, u32)>,
}

impl Ring {
    /// At least `min` places and as many as give the lightest endpoint a whole one, but about `max`.
    pub fn build(endpoints: &[Arc<Endpoint>], min: u32, max: u32) -> Self {
        let weights = weights(endpoints);
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        let lightest = f64::from(weights.iter().copied().min().unwrap_or(1)) / total.max(1) as f64;
        let size = ((lightest * f64::from(min)).ceil() / lightest).min(f64::from(max));
        let mut places = Vec::with_capacity(size.ceil() as usize + endpoints.len());
        for (i, (endpoint, weight)) in endpoints.iter().zip(&weights).enumerate() {
            let own = hash::bytes(endpoint.id.0.as_bytes());
            let share = (f64::from(*weight) / total as f64 * size).round().max(1.0) as u64;
            places.extend((0..share).map(|k| (hash::with(own, k), i as u32)));
        }
        places.sort_unstable();
        Self { places }
    }

    pub fn pick(&self, hash: u64, n: usize, open: Open<'_>) -> Option<usize> {
        let len = self.places.len();
        let from = self.places.partition_point(|(at, _)| *at < hash);
        let walk = (from..from + len.min(4 * n)).map(|i| self.places[i % len].1 as usize);
        walk.into_iter().find(|i| open(*i)).or_else(|| super::from_hash(hash, n, open))
    }
}
