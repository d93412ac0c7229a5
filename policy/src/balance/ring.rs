//! Ring hash (ketama): each endpoint stands at many places of a ring, by weight, and a key belongs to the next one. When an
//! endpoint comes or goes, only its own keys move: the number of places per weight is a power of two, so that it is the same
//! for most numbers of endpoints.

use super::{Open, hash, weights};
use crate::endpoint::Endpoint;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Ring {
    places: Vec<(u64, u32)>,
}

impl Ring {
    /// At least `min` places, and at most `max` unless there are more endpoints.
    pub fn build(endpoints: &[Arc<Endpoint>], min: u32, max: u32) -> Self {
        let weights = weights(endpoints);
        let lightest = weights.iter().copied().min().unwrap_or(1);
        // In units of the lightest endpoint.
        let total: f64 = weights.iter().map(|w| f64::from(*w) / f64::from(lightest)).sum::<f64>().max(1.0);
        let each = f64::from(((f64::from(min) / total).ceil() as u32).next_power_of_two()).min(f64::from(max) / total);
        let mut places = Vec::with_capacity((each * total) as usize + endpoints.len());
        for (i, (endpoint, weight)) in endpoints.iter().zip(&weights).enumerate() {
            let own = hash::bytes(endpoint.id.0.as_bytes());
            let share = (f64::from(*weight) / f64::from(lightest) * each).round().max(1.0) as u64;
            places.extend((0..share).map(|k| (hash::with(own, k), i as u32)));
        }
        places.sort_unstable();
        Self { places }
    }

    pub fn pick(&self, hash: u64, n: usize, open: Open<'_>) -> Option<usize> {
        let len = self.places.len();
        let from = self.places.partition_point(|(at, _)| *at < hash);
        let walk = (from..from + len.min(4 * n)).map(|i| self.places[i % len].1 as usize);
        walk.into_iter().find(|i| open(*i)).or_else(|| super::from_hash(hash, n).find(|i| open(*i)))
    }
}
