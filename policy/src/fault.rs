//! Faults on purpose: a share of requests is delayed, a share is answered with an error instead of being forwarded.
//!
//! ```yaml
//! fault:
//!   delay: {percent: 50, fixed: 2s}
//!   abort: {percent: 10, status: 503}     # or grpcStatus: UNAVAILABLE
//! ```
//!
//! Acts once per request, before the first attempt; both may hit the same request, which is then delayed first, and they are
//! drawn independently. A share that is not given is none at all, as in Istio. A delay does not count against the route's
//! timeout; an abort is never retried. Has no state.

use crate::doc::{Cursor, Fields};
use crate::fraction::Fraction;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Config {
    pub delay: Option<Delay>,
    pub abort: Option<Abort>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    pub fraction: Fraction,
    pub fixed: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    pub fraction: Fraction,
    pub with: AbortWith,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortWith {
    Http(u16),
    Grpc(u8),
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Decision {
    pub delay: Option<Duration>,
    pub abort: Option<AbortWith>,
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let config = Self {
                delay: f.opt("delay", |c| {
                    c.fields(|f| {
                        let fraction = share(f);
                        let fixed = f.req("fixed", |c| match c.duration()? {
                            zero if zero.is_zero() => c.fail("is no delay", "a duration such as 2s"),
                            fixed => Some(fixed),
                        });
                        Some(Delay { fraction, fixed: fixed? })
                    })
                }),
                abort: f.opt("abort", |c| {
                    c.fields(|f| {
                        let fraction = share(f);
                        let http = f.opt("status", |c| c.int(200, 599)).map(|s| AbortWith::Http(s as u16));
                        let grpc = f.opt("grpcStatus", grpc_status).map(AbortWith::Grpc);
                        if f.has("status") == f.has("grpcStatus") {
                            return f.fail("", "an abort has one status", "status: 503 or grpcStatus: UNAVAILABLE");
                        }
                        Some(Abort { fraction, with: http.or(grpc)? })
                    })
                }),
            };
            if !f.has("delay") && !f.has("abort") {
                return f.fail("", "a fault does something", "delay: {...} or abort: {...}");
            }
            Some(config)
        })
    }

    /// Two independent random numbers, so that the share of aborts among the delayed is that among all.
    pub fn decide(&self, delay: u64, abort: u64) -> Decision {
        Decision {
            delay: self.delay.filter(|d| d.fraction.takes(delay)).map(|d| d.fixed),
            abort: self.abort.filter(|a| a.fraction.takes(abort)).map(|a| a.with),
        }
    }
}

fn share(f: &mut Fields<'_, '_>) -> Fraction {
    let share = f.opt("percent", Fraction::read);
    if !f.has("percent") {
        f.warn("", "hits no request, because no share is given", "percent: 100 for all requests");
    }
    share.unwrap_or(Fraction::NEVER)
}

const GRPC: [(&str, u8); 17] = [
    ("OK", 0),
    ("CANCELLED", 1),
    ("UNKNOWN", 2),
    ("INVALID_ARGUMENT", 3),
    ("DEADLINE_EXCEEDED", 4),
    ("NOT_FOUND", 5),
    ("ALREADY_EXISTS", 6),
    ("PERMISSION_DENIED", 7),
    ("RESOURCE_EXHAUSTED", 8),
    ("FAILED_PRECONDITION", 9),
    ("ABORTED", 10),
    ("OUT_OF_RANGE", 11),
    ("UNIMPLEMENTED", 12),
    ("INTERNAL", 13),
    ("UNAVAILABLE", 14),
    ("DATA_LOSS", 15),
    ("UNAUTHENTICATED", 16),
];

/// By name or by number.
fn grpc_status(c: &mut Cursor<'_, '_>) -> Option<u8> {
    match c.node.value {
        crate::doc::Value::Int(_) => c.int(0, 16).map(|i| i as u8),
        _ => c.word(&GRPC),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Xorshift, read, warnings};

    #[test]
    fn shares_are_independent() {
        let json = r#"{"delay": {"percent": 50, "fixed": "2s"}, "abort": {"percent": 20, "status": 503}}"#;
        let config = read(Config::read, json).unwrap();
        let mut random = Xorshift(11);
        let (mut delayed, mut aborted, mut both) = (0, 0, 0);
        for _ in 0..100_000 {
            let decision = config.decide(random.next(), random.next());
            delayed += i32::from(decision.delay == Some(Duration::from_secs(2)));
            aborted += i32::from(decision.abort == Some(AbortWith::Http(503)));
            both += i32::from(decision.delay.is_some() && decision.abort.is_some());
        }
        assert!((delayed - 50_000).abs() < 1000 && (aborted - 20_000).abs() < 1000 && (both - 10_000).abs() < 700);
    }

    #[test]
    fn no_share_is_never() {
        let json = r#"{"delay": {"fixed": "2s"}, "abort": {"status": 503}}"#;
        let config = read(Config::read, json).unwrap();
        assert_eq!(config.decide(0, 0), Decision::default());
        assert_eq!(warnings(Config::read, json).len(), 2);
        let always = read(Config::read, r#"{"delay": {"percent": 100, "fixed": "1s"}}"#).unwrap();
        assert_eq!(always.decide(u64::MAX, 0), Decision { delay: Some(Duration::from_secs(1)), abort: None });
        let zero = read(Config::read, r#"{"abort": {"percent": 0, "status": 503}}"#).unwrap();
        assert_eq!(zero.decide(0, 0).abort, None);
    }

    #[test]
    fn reading() {
        for (status, expected) in [("\"UNAVAILABLE\"", 14), ("8", 8), ("\"OK\"", 0)] {
            let config =
                read(Config::read, &format!(r#"{{"abort": {{"percent": 100, "grpcStatus": {status}}}}}"#)).unwrap();
            assert_eq!(config.decide(0, 0).abort, Some(AbortWith::Grpc(expected)));
        }
        for bad in [
            r#"{}"#,
            r#"{"delay": {"percent": 5}}"#,
            r#"{"delay": {"percent": 5, "fixed": "0s"}}"#,
            r#"{"abort": {"percent": 5}}"#,
            r#"{"abort": {"percent": 5, "status": 503, "grpcStatus": 14}}"#,
            r#"{"abort": {"percent": 5, "status": 99}}"#,
            r#"{"abort": {"percent": 5, "grpcStatus": "DOWN"}}"#,
            r#"{"abort": {"percent": 500, "status": 503}}"#,
            r#"{"delays": {}}"#,
        ] {
            assert!(read(Config::read, bad).is_err(), "{bad}");
        }
    }
}
