//! Power of two choices: of two endpoints drawn at random the one with the lower expected wait, so load evens out without
//! everybody running to the one that looks best.

use super::{Ewma, Open, Randomness, below, better_open, weight};
use crate::endpoint::Endpoint;
use crate::instant::nanos;
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug)]
pub(super) struct P2c {
    pub ewma: Ewma,
}

/// Pairs drawn before every endpoint is looked at.
const DRAWS: usize = 5;

impl P2c {
    pub fn pick(
        &self,
        endpoints: &[Arc<Endpoint>],
        random: Randomness<'_>,
        now: Instant,
        open: Open<'_>,
    ) -> Option<usize> {
        let now = nanos(now);
        let cost = |i: usize| endpoints[i].load.cost(now, self.ewma) / f64::from(weight(&endpoints[i]));
        for _ in 0..DRAWS {
            let (a, b) = pair(endpoints.len(), random());
            match (open(a), open(b)) {
                (true, true) => return Some(if cost(b) < cost(a) { b } else { a }),
                (true, false) => return Some(a),
                (false, true) => return Some(b),
                (false, false) => {}
            }
        }
        better_open(endpoints.len(), random(), open, cost)
    }
}

/// Two different places of at least two.
pub(super) fn pair(n: usize, random: u64) -> (usize, usize) {
    let a = below(n, random << 32);
    let b = below(n - 1, random & !0xffff_ffff);
    (a, if b >= a { b + 1 } else { b })
}
