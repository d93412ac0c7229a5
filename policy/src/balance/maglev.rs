//! Maglev: consistent hashing by a table that endpoints fill in turns, each by its own permutation. Lookup is one index, shares
//! are even to a percent, and when an endpoint comes or goes little more than its own keys move.

use super::{Open, hash, weights};
use crate::endpoint::Endpoint;
use std::sync::Arc;

pub(super) const DEFAULT_TABLE: u32 = 65537;

#[derive(Debug)]
pub(super) struct Maglev {
    table: Vec<u32>,
}

const EMPTY: u32 = u32::MAX;

/// Steps from a key's place before every endpoint is looked at.
const STEPS: u64 = 32;

impl Maglev {
    /// `size` is a prime, so that each step width visits every place.
    pub fn build(endpoints: &[Arc<Endpoint>], size: u32) -> Self {
        if endpoints.is_empty() {
            return Self { table: Vec::new() };
        }
        let size = u64::from(size.max(2));
        let weights = weights(endpoints);
        let heaviest = f64::from(weights.iter().copied().max().unwrap_or(1));
        struct Turn {
            at: u64,
            step: u64,
            /// Takes a place whenever this reaches the round's number.
            due: f64,
            every: f64,
        }
        let mut turns: Vec<Turn> = endpoints
            .iter()
            .zip(&weights)
            .map(|(endpoint, weight)| {
                let own = hash::bytes(endpoint.id.0.as_bytes());
                let every = heaviest / f64::from(*weight);
                Turn { at: own % size, step: hash::with(own, 1) % (size - 1) + 1, due: 0.0, every }
            })
            .collect();
        let mut table = vec![EMPTY; size as usize];
        let mut filled = 0;
        let mut round = 0.0;
        'fill: loop {
            for (i, turn) in turns.iter_mut().enumerate() {
                if turn.due > round {
                    continue;
                }
                turn.due += turn.every;
                while table[turn.at as usize] != EMPTY {
                    turn.at = (turn.at + turn.step) % size;
                }
                table[turn.at as usize] = i as u32;
                filled += 1;
                if filled == size {
                    break 'fill;
                }
            }
            round += 1.0;
        }
        Self { table }
    }

    pub fn pick(&self, hash: u64, n: usize, open: Open<'_>) -> Option<usize> {
        let len = self.table.len() as u64;
        if len == 0 {
            return None;
        }
        let place = |k: u64| self.table[(if k == 0 { hash } else { hash::with(hash, k) } % len) as usize] as usize;
        (0..STEPS).map(place).find(|i| open(*i)).or_else(|| super::from_hash(hash, n).find(|i| open(*i)))
    }
}

pub(super) fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| *d <= n / *d).all(|d| !n.is_multiple_of(d))
}
