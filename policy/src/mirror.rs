//! A copy of requests for another backend, whose answers nobody sees. Acts once per request, after the request's policies, and
//! never makes the request wait or fail: without a permit, or once the replay buffer is full, there is no copy.
//!
//! ```yaml
//! mirror:
//!   - {to: reviews-next, percent: 10}                    # 100 is the default; or fraction: {numerator: 1, denominator: 3}
//!   - {to: {service: reviews, subset: v2}, maxInFlight: 20}
//! ```
//!
//! `State` counts the copies in flight of one route and survives config changes.

use crate::doc::Cursor;
use crate::fraction::Fraction;
use crate::route::BackendRef;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub backend: BackendRef,
    pub fraction: Fraction,
    /// Copies at one time; more are not made.
    pub max_in_flight: u32,
}

const MAX_IN_FLIGHT: u32 = 100;

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let backend = f.req("to", BackendRef::read);
            let percent = f.opt("percent", Fraction::read);
            let fraction = f.opt("fraction", Fraction::read);
            let max_in_flight = f.or("maxInFlight", MAX_IN_FLIGHT, |c| c.u32());
            if percent.is_some() && fraction.is_some() {
                return f.fail("fraction", "is not needed beside `percent`", "one of the two");
            }
            Some(Self { backend: backend?, fraction: percent.or(fraction).unwrap_or(Fraction::ALWAYS), max_in_flight })
        })
    }

    pub fn decide(&self, random: u64) -> bool {
        self.fraction.takes(random)
    }
}

#[derive(Debug, Default)]
pub struct State {
    in_flight: AtomicU32,
}

impl State {
    /// A permit for one copy, given back when dropped; `None` at the cap.
    pub fn start(self: &Arc<Self>, config: &Config) -> Option<Permit> {
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < config.max_in_flight).then_some(n + 1))
            .ok()
            .map(|_| Permit(self.clone()))
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub struct Permit(Arc<State>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Xorshift, read};

    #[test]
    fn reading() {
        let config = read(Config::read, r#"{"to": "shadow.next", "percent": 25, "maxInFlight": 2}"#).unwrap();
        assert_eq!(config.backend.namespace.as_deref(), Some("next"));
        assert_eq!((config.fraction, config.max_in_flight), (Fraction::of(1, 4), 2));
        let plain = read(Config::read, r#"{"to": {"service": "a", "subset": "v2"}}"#).unwrap();
        assert_eq!((plain.fraction, plain.max_in_flight), (Fraction::ALWAYS, MAX_IN_FLIGHT));
        let third = read(Config::read, r#"{"to": "a", "fraction": {"numerator": 1, "denominator": 3}}"#).unwrap();
        assert_eq!(third.fraction, Fraction::of(1, 3));
        for bad in [
            r#"{}"#,
            r#"{"to": "a", "percent": 101}"#,
            r#"{"to": "a", "percent": 5, "fraction": 5}"#,
            r#"{"to": "A b"}"#,
        ] {
            assert!(read(Config::read, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_and_the_cap() {
        let config = read(Config::read, r#"{"to": "a", "percent": 25, "maxInFlight": 2}"#).unwrap();
        let mut random = Xorshift(3);
        let taken = (0..10_000).filter(|_| config.decide(random.next())).count();
        assert!((2300..2700).contains(&taken), "{taken}");

        let state = Arc::new(State::default());
        let first = state.start(&config).unwrap();
        let second = state.start(&config).unwrap();
        assert!(state.start(&config).is_none());
        assert_eq!(state.in_flight(), 2);
        drop(first);
        let third = state.start(&config);
        assert!(third.is_some() && state.start(&config).is_none());
        drop((second, third));
        assert_eq!(state.in_flight(), 0);
        assert!(state.start(&Config { max_in_flight: 0, ..config }).is_none());
    }
}
