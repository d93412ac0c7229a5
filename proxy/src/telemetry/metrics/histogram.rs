//! One set of buckets, fine enough that every dialect's own buckets are sums of these.

use std::time::Duration;

/// Upper bounds in microseconds: the union of the three lists below.
const BOUNDS: [u64; 37] = [
    250,
    500,
    1_000,
    2_000,
    2_500,
    3_000,
    4_000,
    5_000,
    10_000,
    20_000,
    25_000,
    30_000,
    40_000,
    50_000,
    100_000,
    200_000,
    250_000,
    300_000,
    400_000,
    500_000,
    1_000_000,
    2_000_000,
    2_500_000,
    3_000_000,
    4_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    40_000_000,
    50_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
    u64::MAX,
];

pub use weft_policy::telemetry::DURATIONS as WEFT;

/// Envoy's defaults, which Istio's series have.
pub const ISTIO: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

pub const LINKERD: [u64; 25] = [
    1_000, 2_000, 3_000, 4_000, 5_000, 10_000, 20_000, 30_000, 40_000, 50_000, 100_000, 200_000, 300_000, 400_000,
    500_000, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000, 10_000_000, 20_000_000, 30_000_000, 40_000_000,
    50_000_000,
];

/// Upper bounds in bytes, Envoy's defaults again.
pub const BYTES: [u64; 18] = [
    1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000,
    3_600_000,
];

#[derive(Clone, Debug)]
pub struct Durations {
    buckets: [u64; BOUNDS.len()],
    micros: u64,
}

impl Default for Durations {
    fn default() -> Self {
        Self { buckets: [0; BOUNDS.len()], micros: 0 }
    }
}

impl Durations {
    pub fn observe(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX - 1);
        self.buckets[BOUNDS.partition_point(|bound| *bound < micros)] += 1;
        self.micros = self.micros.saturating_add(micros);
    }

    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.micros = self.micros.saturating_add(other.micros);
    }

    /// In `unit` microseconds: a million for seconds, a thousand for milliseconds.
    pub fn sum(&self, unit: u64) -> f64 {
        self.micros as f64 / unit as f64
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many fell between each two of these bounds, and last, beyond all of them.
    pub fn between(&self, bounds: &[u64]) -> Vec<u64> {
        let mut before = 0;
        let sums = self.at(bounds, 1).map(|(_, sum)| sum).chain([self.count()]);
        sums.map(|sum| sum - std::mem::replace(&mut before, sum)).collect()
    }

    /// Cumulative counts at a dialect's bounds.
    pub fn at<'a>(&'a self, bounds: &'a [u64], unit: u64) -> impl Iterator<Item = (f64, u64)> + 'a {
        let (mut next, mut sum) = (0, 0);
        bounds.iter().map(move |bound| {
            while BOUNDS[next] <= *bound {
                sum += self.buckets[next];
                next += 1;
            }
            (*bound as f64 / unit as f64, sum)
        })
    }
}

#[derive(Clone, Debug, Default)]
pub struct Sizes {
    buckets: [u64; BYTES.len() + 1],
    sum: u64,
}

impl Sizes {
    pub fn observe(&mut self, bytes: u64) {
        self.buckets[BYTES.partition_point(|bound| *bound < bytes)] += 1;
        self.sum = self.sum.saturating_add(bytes);
    }

    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    pub fn sum(&self) -> u64 {
        self.sum
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub fn at(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut sum = 0;
        BYTES.iter().zip(&self.buckets).map(move |(bound, n)| {
            sum += n;
            (*bound as f64, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialects_bounds_are_ours() {
        assert!(BOUNDS.is_sorted());
        for bound in WEFT.iter().chain(&ISTIO).chain(&LINKERD) {
            assert!(BOUNDS.contains(bound), "{bound}");
        }
    }

    #[test]
    fn upper_bounds_are_inclusive() {
        let mut d = Durations::default();
        for ms in [0, 1, 5, 6, 100_000_000] {
            d.observe(Duration::from_millis(ms));
        }
        d.observe(Duration::MAX);
        let at: Vec<_> = d.at(&ISTIO, 1000).collect();
        assert_eq!(at[..4], [(0.5, 1), (1.0, 2), (5.0, 3), (10.0, 4)]);
        assert_eq!(at.last(), Some(&(3_600_000.0, 4)));
        assert_eq!(d.between(&[1_000, 5_000]), [2, 1, 3]);
        assert_eq!(d.count(), 6);
        let mut s = Sizes::default();
        for bytes in [0, 1, 2, u64::MAX] {
            s.observe(bytes);
        }
        assert_eq!(s.at().take(2).collect::<Vec<_>>(), [(1.0, 2), (5.0, 3)]);
        assert_eq!(s.count(), 4);
    }
}
