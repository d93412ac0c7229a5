//! What is known of an endpoint's load: requests in flight, and a moving average of latency that believes bad news at once.
//!
//! A latency above the average replaces it, one below is blended in by the time since the last sample (peak EWMA); without
//! samples the average sinks, so that a slow endpoint is tried again. A failure counts as an answer that took at least
//! thirty times the default latency, blended in at any height: an endpoint that fails fast must not look fast, while one
//! failure in a thousand must not look like an outage.

use crate::doc::Fields;
use crate::instant::{nanos, span};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ewma {
    pub decay: Duration,
    pub default_rtt: Duration,
}

impl Default for Ewma {
    fn default() -> Self {
        Self { decay: Duration::from_secs(10), default_rtt: Duration::from_millis(30) }
    }
}

/// In default latencies.
const FAILURE: u32 = 30;

impl Ewma {
    pub(super) fn read(f: &mut Fields<'_, '_>) -> Self {
        let d = Self::default();
        Self {
            decay: f.or("decay", d.decay, |c| c.duration()),
            default_rtt: f.or("defaultRtt", d.default_rtt, |c| c.duration()),
        }
    }

    /// What is left of the old after `elapsed` nanoseconds.
    fn keeps(&self, elapsed: u64) -> f64 {
        (-(elapsed as f64) / span(self.decay).max(1) as f64).exp()
    }
}

/// How an attempt went, as far as its latency (up to the response head) is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    Took(Duration),
    /// Failed by the endpoint's fault: see [`crate::outlier::Signal::is_failure`].
    Failed(Duration),
    /// Nothing learned.
    Nothing,
}

#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU32,
    /// Nanoseconds, as the bits of an f64; negative while only assumed.
    average: AtomicU64,
    /// When it was last updated; 0 before the first request.
    at: AtomicU64,
}

impl Load {
    /// An endpoint nobody has tried looks free for one request, or peers faster than the default would keep it idle. From
    /// then on it is taken for the default until it has answered.
    pub fn begin(&self, now: Instant, ewma: Ewma) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if self.at.load(Ordering::Relaxed) == 0 {
            self.average.store((-(span(ewma.default_rtt) as f64)).to_bits(), Ordering::Relaxed);
            self.at.store(nanos(now), Ordering::Relaxed);
        }
    }

    /// Ends what `begin` began; what it taught is `learn`'s.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Two workers at once may lose one of two samples; nothing worse.
    pub fn learn(&self, now: Instant, sample: Sample, ewma: Ewma) {
        let (rtt, failed) = match sample {
            Sample::Took(rtt) => (rtt, false),
            Sample::Failed(rtt) => (rtt.max(ewma.default_rtt.saturating_mul(FAILURE)), true),
            Sample::Nothing => return,
        };
        let (now, rtt) = (nanos(now), span(rtt) as f64);
        let last = self.at.fetch_max(now, Ordering::Relaxed);
        let old = f64::from_bits(self.average.load(Ordering::Relaxed));
        let assumed = old.is_sign_negative() || last == 0;
        // What is only assumed is as good as a tenth of the decay old.
        let elapsed = if assumed { span(ewma.decay) / 10 } else { now.saturating_sub(last) };
        let keeps = ewma.keeps(elapsed);
        let new = match failed {
            false if assumed || rtt > old => rtt,
            _ => old.abs() * keeps + rtt * (1.0 - keeps),
        };
        self.average.store(new.to_bits(), Ordering::Relaxed);
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What a request may expect; zero where nobody has tried.
    pub fn latency(&self, now: Instant, ewma: Ewma) -> Duration {
        Duration::from_nanos(self.estimate(nanos(now), ewma) as u64)
    }

    fn estimate(&self, now: u64, ewma: Ewma) -> f64 {
        match self.at.load(Ordering::Relaxed) {
            0 => 0.0,
            at => f64::from_bits(self.average.load(Ordering::Relaxed)).abs() * ewma.keeps(now.saturating_sub(at)),
        }
    }

    /// For P2C: the latency a new request may expect behind those in flight.
    pub(super) fn cost(&self, now: u64, ewma: Ewma) -> f64 {
        // At least a nanosecond, so that requests in flight count where latencies have sunk to nothing.
        self.estimate(now, ewma).max(1.0) * (f64::from(self.in_flight()) + 1.0)
    }
}
