//! Quantiles of what was counted in buckets, as Prometheus' `histogram_quantile` makes them.

use weft_policy::telemetry::DURATIONS;

/// In seconds; `None` of nothing. Within a bucket every value is as likely; what lies beyond the last bound is taken for it.
pub fn quantile(q: f64, buckets: &[u64]) -> Option<f64> {
    let count: u64 = buckets.iter().sum();
    if count == 0 {
        return None;
    }
    let rank = q * count as f64;
    let mut below = 0;
    let mut lower = 0.0;
    for (bound, n) in DURATIONS.iter().zip(buckets) {
        let upper = *bound as f64 / 1e6;
        if *n > 0 && (below + n) as f64 >= rank {
            return Some(lower + (upper - lower) * (rank - below as f64) / *n as f64);
        }
        below += n;
        lower = upper;
    }
    Some(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(q: f64, buckets: &[u64]) -> f64 {
        (quantile(q, buckets).unwrap() * 1e9).round() / 1e6
    }

    /// Against figures of Prometheus' function.
    #[test]
    fn as_prometheus_has_them() {
        assert_eq!(quantile(0.5, &[]), None);
        assert_eq!(quantile(0.5, &[0; 18]), None);
        // All of them between 0.5 and 1 ms.
        let one = [0, 0, 100];
        assert_eq!((ms(0.5, &one), ms(0.99, &one)), (0.75, 0.995));
        // The first bucket begins at nothing.
        assert_eq!(ms(0.5, &[10]), 0.125);
        // 90 up to 5 ms, ten up to 10 ms.
        let two = [0, 0, 0, 0, 90, 10];
        assert_eq!((ms(0.5, &two), ms(0.9, &two), ms(0.95, &two), ms(0.99, &two)), (3.888889, 5.0, 7.5, 9.5));
        // Beyond every bound.
        let mut late = [0; 18];
        (late[0], late[17]) = (1, 9);
        assert_eq!(ms(0.5, &late), 60_000.0);
    }
}
