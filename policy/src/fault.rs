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
