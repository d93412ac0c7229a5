//! Random by weight.

use super::{Open, Randomness};

#[derive(Debug)]
pub(super) struct Random {
    /// The sum of the weights up to and with each place.
    sums: Vec<u64>,
}

/// Draws before every endpoint is looked at.
const DRAWS: usize = 5;

impl Random {
    pub fn build(weights: &[u32]) -> Self {
        let sums = weights.iter().scan(0, |sum, w| {
            *sum += u64::from(*w);
            Some(*sum)
        });
        Self { sums: sums.collect() }
    }

    pub fn pick(&self, random: Randomness<'_>, open: Open<'_>) -> Option<usize> {
        let total = *self.sums.last()?;
        for _ in 0..DRAWS {
            let drawn = draw(total, random());
            let at = self.sums.partition_point(|sum| *sum <= drawn);
            if open(at) {
                return Some(at);
            }
        }
        // By weight among those left.
        let weight = |i: usize| self.sums[i] - if i == 0 { 0 } else { self.sums[i - 1] };
        let left: u64 = (0..self.sums.len()).filter(|i| open(*i)).map(weight).sum();
        let mut drawn = draw(left, random());
        (0..self.sums.len()).filter(|i| open(*i)).find(|i| {
            let found = drawn < weight(*i);
            drawn = drawn.saturating_sub(weight(*i));
            found
        })
    }
}

fn draw(total: u64, random: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}
