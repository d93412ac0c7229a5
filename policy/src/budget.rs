//! Retry budget: how many retries a backend may get, in proportion to its requests, so that a failing backend is not
//! buried under them. It acts before each retry, after the retry policy has said yes; the first attempt is always free.
//!
//! ```yaml
//! retryBudget: { percent: 20, minPerSecond: 10, window: 10s }     # Linkerd, Gateway API
//! retryBudget: { percent: 20, minConcurrency: 3 }                 # Istio: of the requests in flight
//! ```
//!
//! The first form is a ledger of whole seconds: each request deposits `percent` hundredths of a retry, each retry takes
//! one, and both are forgotten after the window. Beside the deposits a reserve of `minPerSecond` x window may be used. So in
//! any window retries are at most `percent` of its requests plus the reserve, whatever fails. Deposits and withdrawals are
//! recorded in percent, whatever the window, so a config change keeps them all.
//!
//! The second form replaces the breaker's `maxRetries` by `max(minConcurrency, percent of the requests in flight)`.
//!
//! Exact across workers in one direction: never more than allowed. Two workers that ask for the last token at the same
//! moment may both be refused.

use crate::backend::Backend;
use crate::breaker::{Resource, RetryPermit};
use crate::doc::Cursor;
use crate::instant::nanos;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Config {
    /// At most `percent` of the requests of the last `window`, plus `min_per_second`.
    Rate { percent: u32, min_per_second: u32, window: Duration },
    /// At most `percent` of the requests in flight, or `min_concurrency`.
    Concurrent { percent: u32, min_concurrency: u32 },
}

const MAX_WINDOW: u64 = 60;
const MAX_PERCENT: u32 = 1000;

impl Default for Config {
    fn default() -> Self {
        Config::Rate { percent: 20, min_per_second: 10, window: Duration::from_secs(10) }
    }
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let percent = f.or("percent", 20, |c| c.int(0, MAX_PERCENT.into()).map(|n| n as u32));
            let per_second = f.opt("minPerSecond", |c| c.int(0, 1_000_000).map(|n| n as u32));
            let window = f.opt("window", |c| match c.duration()? {
                d if d.subsec_nanos() == 0 && (1..=MAX_WINDOW).contains(&d.as_secs()) => Some(d),
                _ => c.fail("the window is counted in whole seconds", "from 1s to 60s"),
            });
            let concurrency = f.opt("minConcurrency", |c| c.int(0, 1_000_000).map(|n| n as u32));
            match concurrency {
                Some(_) if per_second.is_some() || window.is_some() => {
                    f.fail("minConcurrency", "does not go with minPerSecond and window", "use one form or the other")
                }
                Some(min_concurrency) => Some(Config::Concurrent { percent, min_concurrency }),
                None => Some(Config::Rate {
                    percent,
                    min_per_second: per_second.unwrap_or(10),
                    window: window.unwrap_or(Duration::from_secs(10)),
                }),
            }
        })
    }

    /// In one word, so that a reader never sees half of a change: kind in 2 bits, window in 8, percent in 16, minimum in 32.
    fn pack(config: Option<&Config>) -> u64 {
        match config {
            None => 0,
            Some(Config::Rate { percent, min_per_second, window }) => {
                let window = window.as_secs().clamp(1, MAX_WINDOW);
                1 << 56 | window << 48 | u64::from(*percent.min(&MAX_PERCENT)) << 32 | u64::from(*min_per_second)
            }
            Some(Config::Concurrent { percent, min_concurrency }) => {
                2 << 56 | u64::from(*percent.min(&MAX_PERCENT)) << 32 | u64::from(*min_concurrency)
            }
        }
    }

    fn unpack(word: u64) -> Option<Config> {
        let (percent, min) = ((word >> 32 & 0xffff) as u32, word as u32);
        match word >> 56 {
            1 => Some(Config::Rate { percent, min_per_second: min, window: Duration::from_secs(word >> 48 & 0xff) }),
            2 => Some(Config::Concurrent { percent, min_concurrency: min }),
            _ => None,
        }
    }
}

/// A retry in the ledger's unit; a request deposits `percent` of it.
const RETRY: i32 = 100;
/// One more than the longest window, for the second that is still running.
const SLOTS: usize = 64;

/// Each slot is one second: its number in the upper half, its balance in the lower.
#[derive(Debug)]
pub struct State {
    config: AtomicU64,
    slots: [AtomicU64; SLOTS],
}

impl State {
    pub fn new(config: Option<&Config>) -> Self {
        Self { config: AtomicU64::new(Config::pack(config)), slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// The ledger stands.
    pub fn adopt(&self, config: Option<&Config>) {
        self.config.store(Config::pack(config), Ordering::Relaxed);
    }

    /// Called once per request, not per attempt.
    pub fn deposit(&self, now: Instant) {
        if let Some(Config::Rate { percent, .. }) = Config::unpack(self.config.load(Ordering::Relaxed)) {
            self.add(second(now), percent as i32);
        }
    }

    /// Takes one retry. True without a budget, and for the form that does not count over time.
    pub fn try_withdraw(&self, now: Instant) -> bool {
        let Some(Config::Rate { min_per_second, window, .. }) = Config::unpack(self.config.load(Ordering::Relaxed))
        else {
            return true;
        };
        let (now, window) = (second(now), window.as_secs() as u32);
        // First taken, then counted: of two who race, the later sees both.
        self.add(now, -RETRY);
        let allowed = i64::from(min_per_second) * i64::from(window) * i64::from(RETRY) + self.balance(now, window) >= 0;
        if !allowed {
            self.add(now, RETRY);
        }
        allowed
    }

    fn add(&self, second: u32, amount: i32) {
        let slot = &self.slots[second as usize % SLOTS];
        let _ = slot.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
            let (at, balance) = ((word >> 32) as u32, word as u32 as i32);
            // A worker may come late with its moment; the newer second stands.
            let (at, balance) = if at >= second { (at, balance) } else { (second, 0) };
            Some(u64::from(at) << 32 | u64::from(balance.saturating_add(amount) as u32))
        });
    }

    /// Over the last `window` seconds and the one that runs, so that nothing is forgotten early.
    fn balance(&self, now: u32, window: u32) -> i64 {
        self.slots
            .iter()
            .map(|slot| slot.load(Ordering::SeqCst))
            .filter(|word| now.wrapping_sub((word >> 32) as u32) <= window)
            .map(|word| i64::from(word as u32 as i32))
            .sum()
    }
}

fn second(now: Instant) -> u32 {
    (nanos(now) / 1_000_000_000) as u32
}

/// Why a retry that the policy wanted may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The breaker's `maxRetries`.
    Breaker,
    Budget,
}

/// The one door for retries: the breaker's cap and the budget together. The permit is held until the retry's response
/// head or failure.
pub fn retry(backend: &Arc<Backend>, now: Instant) -> Result<RetryPermit, Refused> {
    let (breaker, budget) = (&backend.breaker, &backend.budget);
    if let Some(Config::Concurrent { percent, min_concurrency }) = Config::unpack(budget.config.load(Ordering::Relaxed))
    {
        let active = u64::from(breaker.count(Resource::Request)) + u64::from(breaker.count(Resource::Pending));
        let share = (active * u64::from(percent) / 100).min(u32::MAX.into()) as u32;
        return match breaker.try_retry_within(share.max(min_concurrency)) {
            true => Ok(RetryPermit::hold(backend)),
            false => Err(Refused::Budget),
        };
    }
    let permit = RetryPermit::take(backend).ok_or(Refused::Breaker)?;
    if budget.try_withdraw(now) { Ok(permit) } else { Err(Refused::Budget) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::{self, RequestPermit};
    use crate::{backend, trial};
    use std::sync::atomic::AtomicU32;

    fn rate(percent: u32, min_per_second: u32, window: u64) -> Config {
        Config::Rate { percent, min_per_second, window: Duration::from_secs(window) }
    }

    #[test]
    fn reads_both_forms() {
        let percent = ("percent", trial::int(25));
        let node = trial::map([percent.clone(), ("minConcurrency", trial::int(3))]);
        assert_eq!(trial::read(&node, Config::read), Ok(Config::Concurrent { percent: 25, min_concurrency: 3 }));
        assert_eq!(trial::read(&trial::map([]), Config::read), Ok(Config::default()));
        let node = trial::map([percent, ("minConcurrency", trial::int(3)), ("window", trial::text("5s"))]);
        assert!(trial::read(&node, Config::read).unwrap_err().contains("does not go with"));
        for bad in ["0s", "500ms", "61s"] {
            assert!(trial::read(&trial::map([("window", trial::text(bad))]), Config::read).is_err(), "{bad}");
        }
        for config in [rate(1000, 1_000_000, 60), rate(0, 0, 1), Config::Concurrent { percent: 7, min_concurrency: 0 }]
        {
            assert_eq!(Config::unpack(Config::pack(Some(&config))), Some(config));
        }
        assert_eq!(Config::unpack(Config::pack(None)), None);
    }

    /// As observed of Linkerd: 10/s over 10 s are 100 at once, then none until they are forgotten.
    #[test]
    fn a_reserve_without_traffic() {
        let start = Instant::now();
        let state = State::new(Some(&Config::default()));
        assert_eq!((0..500).filter(|_| state.try_withdraw(start)).count(), 100);
        assert!(!state.try_withdraw(start + Duration::from_secs(9)));
        let later = start + Duration::from_secs(12);
        assert_eq!((0..500).filter(|_| state.try_withdraw(later)).count(), 100);
    }

    #[test]
    fn deposits_buy_retries_and_are_forgotten() {
        let start = Instant::now();
        let state = State::new(Some(&rate(20, 0, 10)));
        assert!(!state.try_withdraw(start));
        (0..14).for_each(|_| state.deposit(start));
        assert_eq!((0..10).filter(|_| state.try_withdraw(start)).count(), 2, "2.8 are 2");
        state.deposit(start);
        assert!(state.try_withdraw(start), "the rest was kept");
        (0..500).for_each(|_| state.deposit(start));
        assert!(!state.try_withdraw(start + Duration::from_secs(12)));
    }

    #[test]
    fn a_config_change_keeps_the_ledger() {
        let start = Instant::now();
        let state = State::new(Some(&rate(20, 0, 10)));
        (0..50).for_each(|_| state.deposit(start));
        assert_eq!((0..4).filter(|_| state.try_withdraw(start)).count(), 4);
        state.adopt(Some(&rate(50, 0, 30)));
        assert_eq!((0..100).filter(|_| state.try_withdraw(start)).count(), 6, "10 in all");
        state.adopt(None);
        assert!(state.try_withdraw(start), "no budget");
        state.adopt(Some(&rate(20, 0, 10)));
        assert!(!state.try_withdraw(start), "spent as before");
    }

    /// PO-09: everything fails, and every failure wants another retry at once.
    #[test]
    fn total_failure_is_amplified_by_a_fifth() {
        let start = Instant::now();
        let state = State::new(Some(&Config::default()));
        let mut per_second = vec![0u64; 60];
        for ms in 0..60_000u64 {
            let now = start + Duration::from_millis(ms);
            state.deposit(now);
            per_second[ms as usize / 1000] += (0..5).filter(|_| state.try_withdraw(now)).count() as u64;
        }
        let total: u64 = per_second.iter().sum();
        // 20 % of 60 000, 10/s, and the reserve of the first window.
        assert!(total <= 12_000 + 600 + 100, "{total}");
        assert!(total >= 12_000 + 400, "{total}");
        for window in per_second.windows(10) {
            let used: u64 = window.iter().sum();
            // The deposits of the window and of the seconds it touches, and one reserve.
            assert!(used <= 12 * 200 + 100, "{used}");
        }
    }

    #[test]
    fn threads_never_overdraw() {
        let now = Instant::now();
        let state = State::new(Some(&Config::default()));
        let taken = AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..2_000 {
                        taken.fetch_add(state.try_withdraw(now) as u32, Ordering::Relaxed);
                    }
                });
            }
        });
        let rest = (0..200).filter(|_| state.try_withdraw(now)).count() as u32;
        assert_eq!(taken.into_inner() + rest, 100);
    }

    #[test]
    fn the_door_knows_both_caps() {
        let now = Instant::now();
        let breaker = breaker::Config { max_retries: Some(1), ..Default::default() };
        let config = |budget| backend::Config { breaker: breaker.clone(), budget, ..Default::default() };
        let b = trial::backend(config(Some(rate(0, 1, 2))));
        let held = retry(&b, now).unwrap();
        assert_eq!(retry(&b, now).unwrap_err(), Refused::Breaker);
        drop(held);
        drop(retry(&b, now).unwrap());
        assert_eq!(retry(&b, now).unwrap_err(), Refused::Budget);
        assert_eq!(b.breaker.count(Resource::Retry), 0, "a refusal holds nothing");

        let b = trial::backend(config(Some(Config::Concurrent { percent: 20, min_concurrency: 3 })));
        let held: Vec<_> = (0..3).map(|_| retry(&b, now).unwrap()).collect();
        assert_eq!(retry(&b, now).unwrap_err(), Refused::Budget);
        let requests: Vec<_> = (0..20).map(|_| RequestPermit::take(&b).unwrap()).collect();
        let fourth = retry(&b, now).unwrap();
        assert_eq!(retry(&b, now).unwrap_err(), Refused::Budget, "4 of 20");
        drop((held, requests, fourth));
    }
}
