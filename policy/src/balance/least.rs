//! Least request: of a few endpoints drawn at random the one with the fewest requests in flight for its weight.

use super::{Open, Randomness, below, better_open, weight};
use crate::endpoint::Endpoint;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Least {
    pub choices: u32,
}

impl Least {
    pub fn pick(&self, endpoints: &[Arc<Endpoint>], random: Randomness<'_>, open: Open<'_>) -> Option<usize> {
        let n = endpoints.len();
        let cost = |i: usize| (f64::from(endpoints[i].load.in_flight()) + 1.0) / f64::from(weight(&endpoints[i]));
        // Draws without repetition for the usual two; with more, repetition costs little.
        let drawn: Option<usize> = if self.choices == 2 {
            let (a, b) = super::p2c::pair(n, random());
            [a, b].into_iter().filter(|i| open(*i)).min_by(|a, b| cost(*a).total_cmp(&cost(*b)))
        } else {
            let draws = (0..self.choices).map(|_| below(n, random()));
            draws.filter(|i| open(*i)).min_by(|a, b| cost(*a).total_cmp(&cost(*b)))
        };
        drawn.or_else(|| better_open(n, random(), open, cost))
    }
}
