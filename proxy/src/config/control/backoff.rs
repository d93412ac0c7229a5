//! How long to wait before another attempt: anything up to a bound that doubles, so that many who lost the same peer do not
//! come back together.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

pub struct Backoff {
    first: Duration,
    most: Duration,
    bound: Duration,
}

impl Backoff {
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, bound: first }
    }

    pub fn reset(&mut self) {
        self.bound = self.first;
    }

    pub fn next(&mut self) -> Duration {
        let bound = self.bound;
        self.bound = (bound * 2).min(self.most);
        // Never at once: a peer that refuses in no time must not be asked in a loop.
        bound / 10 + bound.mul_f64(0.9 * random())
    }
}

/// From 0 to 1.
pub fn random() -> f64 {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u64(0);
    (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, most);
        let mut bound = first;
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait >= bound / 10 && wait <= bound, "{wait:?}");
            bound = (bound * 2).min(most);
        }
        assert_eq!(bound, most);
        backoff.reset();
        assert!(backoff.next() <= first);
    }
}
