//! Round robin by weight: a schedule in which heavy endpoints come more often, evenly spread, walked by a shared counter.
//!
//! Each picker begins at a random place. Many proxies that get the same endpoints at once, or one that gets new endpoints every
//! second, would otherwise all favour the first.

use super::{Open, Randomness, below};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub(super) struct RoundRobin {
    schedule: Vec<u32>,
    begin: OnceLock<usize>,
    next: AtomicUsize,
}

/// Weights that need a longer schedule are rounded to fit.
const LONGEST: u64 = 4096;

impl RoundRobin {
    pub fn build(weights: &[u32]) -> Self {
        let unit = u64::from(weights.iter().copied().fold(0, gcd).max(1));
        let total: u64 = weights.iter().map(|w| u64::from(*w) / unit).sum();
        let longest = LONGEST.max(weights.len() as u64);
        let turns = |w: u32| {
            let turns = u64::from(w) / unit;
            if total <= longest { turns } else { (turns * longest / total).max(1) }
        };
        // The k-th of n turns is due at (k + 1/2) / n of the round.
        let mut due: Vec<(f64, u32)> = Vec::new();
        for (i, w) in weights.iter().enumerate() {
            let n = turns(*w);
            due.extend((0..n).map(|k| ((k as f64 + 0.5) / n as f64, i as u32)));
        }
        due.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let schedule = due.into_iter().map(|(_, i)| i).collect();
        Self { schedule, begin: OnceLock::new(), next: AtomicUsize::new(0) }
    }

    pub fn pick(&self, n: usize, random: Randomness<'_>, open: Open<'_>) -> Option<usize> {
        let len = self.schedule.len();
        if len == 0 {
            return None;
        }
        let begin = *self.begin.get_or_init(|| below(len, random()));
        // Passing over an endpoint uses its turn up, or its neighbour would get two.
        for _ in 0..len.min(2 * n) {
            let turn = begin.wrapping_add(self.next.fetch_add(1, Ordering::Relaxed));
            let at = self.schedule[turn % len] as usize;
            if open(at) {
                return Some(at);
            }
        }
        (0..n).find(|i| open(*i))
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
