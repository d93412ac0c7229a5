//! How many calls, how they ended, and how long they took, for Prometheus.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in microseconds.
const BOUNDS: [u64; 13] =
    [250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Allowed,
    Patched,
    Denied,
    /// Not a review, or too large.
    Malformed,
    /// A panic, or no answer in time.
    Failed,
    /// Too many at a time.
    Busy,
}

const ENDS: [(End, &str); 6] = [
    (End::Allowed, "allowed"),
    (End::Patched, "patched"),
    (End::Denied, "denied"),
    (End::Malformed, "malformed"),
    (End::Failed, "failed"),
    (End::Busy, "busy"),
];

#[derive(Debug, Default)]
pub struct Figures {
    ends: [AtomicU64; ENDS.len()],
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Figures {
    pub fn count(&self, end: End, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(at) = ENDS.iter().position(|(e, _)| *e == end) {
            self.ends[at].fetch_add(1, Ordering::Relaxed);
        }
        let at = BOUNDS.iter().position(|b| micros <= *b).unwrap_or(BOUNDS.len());
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// `name` is what each metric begins with: `weft_injector`.
    pub fn text(&self, name: &str) -> String {
        let mut out = format!("# HELP {name}_calls_total Calls of the webhook.\n# TYPE {name}_calls_total counter\n");
        for ((_, word), n) in ENDS.iter().zip(&self.ends) {
            let _ = writeln!(out, "{name}_calls_total{{outcome=\"{word}\"}} {}", n.load(Ordering::Relaxed));
        }
        let _ = write!(
            out,
            "# HELP {name}_call_seconds From the first byte of a call to its answer.\n# TYPE {name}_call_seconds histogram\n"
        );
        let mut sum = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            sum += bucket.load(Ordering::Relaxed);
            let bound = BOUNDS.get(i).map_or("+Inf".to_string(), |micros| (*micros as f64 / 1e6).to_string());
            let _ = writeln!(out, "{name}_call_seconds_bucket{{le=\"{bound}\"}} {sum}");
        }
        let seconds = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = write!(out, "{name}_call_seconds_sum {seconds}\n{name}_call_seconds_count {sum}\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram() {
        let figures = Figures::default();
        for micros in [100, 300, 6_000_000] {
            figures.count(End::Patched, Duration::from_micros(micros));
        }
        let text = figures.text("w");
        for line in [
            "w_calls_total{outcome=\"patched\"} 3",
            "w_call_seconds_bucket{le=\"0.00025\"} 1",
            "w_call_seconds_bucket{le=\"5\"} 2",
            "w_call_seconds_bucket{le=\"+Inf\"} 3",
            "w_call_seconds_count 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
