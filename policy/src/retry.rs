//! Retries: which failed attempts are made again, how often, after what pause.
//!
//! ```yaml
//! retry:
//!   attempts: 3                        # beyond the first; 0 switches off
//!   on: 5xx,reset,connect-failure,refused-stream,503      # or a list; codes and ranges (500-504) too
//!   perTryTimeout: 2s
//!   backoff: { base: 25ms, max: 250ms }
//!   avoidPreviousHosts: true
//! ```
//!
//! The conditions are Envoy's, with its meaning: `5xx` and `gateway-error` take a reset, a failed connect and a per-try
//! timeout for the 5xx they would become. Methods are not looked at: who writes a policy asked for it. Without one there
//! is [`Config::unasked`], which repeats only what provably no app has seen, and [`Config::inbound`] towards the own app.
//!
//! It acts around attempts and has no state. What it never does: retry after a response head was forwarded, retry a body
//! that is no longer held whole ([`REPLAY_CAP`]), or retry an own overflow. The first two are the proxy's to know, it asks
//! [`Config::decide`] only while it still can. How many retries a backend bears is the budget's.

use crate::doc::{Cursor, Value};
use crate::reason::grpc;
use crate::timeout;
use std::time::Duration;

/// What a body may have for its request to be repeatable.
pub const REPLAY_CAP: usize = 64 * 1024;
/// How often a retry picks again to avoid an endpoint it has tried.
pub const REPICKS: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Retries beyond the first attempt.
    pub attempts: u32,
    pub on: Conditions,
    /// From the attempt's start to its response head.
    pub per_try_timeout: Option<Duration>,
    pub backoff: Backoff,
    /// Retries go to endpoints not tried yet, where there are any. Consistent hashing overrules it.
    pub avoid_previous_hosts: bool,
}

impl Config {
    /// Where nobody asked: what never reached an app.
    pub fn unasked() -> Self {
        let on = Conditions::CONNECT_FAILURE | Conditions::REFUSED_STREAM;
        Self { attempts: 2, on, per_try_timeout: None, backoff: Backoff::default(), avoid_previous_hosts: true }
    }

    /// Towards the own app, whose connection may have been closed while idle.
    pub fn inbound() -> Self {
        Self { on: Conditions::RESET_BEFORE_REQUEST, avoid_previous_hosts: false, ..Self::unasked() }
    }

    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        let d = Self::unasked();
        c.fields(|f| {
            Some(Self {
                attempts: f.or("attempts", d.attempts, |c| c.int(0, 100).map(|n| n as u32)),
                on: f.or("on", d.on, Conditions::read),
                per_try_timeout: f.opt("perTryTimeout", timeout::limit).flatten(),
                backoff: f.or("backoff", d.backoff, Backoff::read),
                avoid_previous_hosts: f.or("avoidPreviousHosts", d.avoid_previous_hosts, |c| c.bool()),
            })
        })
    }

    /// After `retried` retries (0 after the first attempt).
    pub fn decide(&self, outcome: &Outcome, retried: u32) -> Decision {
        match self.on.matches(outcome) {
            true if retried < self.attempts => Decision::Retry,
            true if self.attempts > 0 => Decision::Exhausted,
            _ => Decision::No,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Retry,
    /// It would be retried, had it not been often enough (`URX`).
    Exhausted,
    No,
}

/// How an attempt ended, as far as the response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Response {
        status: u16,
        /// From the head only: a gRPC answer without messages.
        grpc_status: Option<u8>,
        /// The answer carries `x-envoy-ratelimited`.
        ratelimited: bool,
    },
    /// Refused, timed out, or TLS failed.
    ConnectFailed,
    /// The connection or stream ended before a response head.
    Reset {
        /// Nothing of the request had been written.
        before_request_bytes: bool,
    },
    /// The peer said that it did not process the stream: REFUSED_STREAM, or GOAWAY below the stream's id.
    RefusedStream,
    PerTryTimeout,
    /// The peer's answer is not HTTP.
    ProtocolError,
    /// An own breaker's cap.
    Overflow,
}

impl Outcome {
    /// Whether provably no app has seen the request.
    pub fn unprocessed(&self) -> bool {
        matches!(
            self,
            Outcome::ConnectFailed
                | Outcome::RefusedStream
                | Outcome::Overflow
                | Outcome::Reset { before_request_bytes: true }
        )
    }
}

/// A set of conditions and of status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Conditions {
    bits: u16,
    statuses: Statuses,
}

impl Conditions {
    const fn bit(n: u32) -> Self {
        Self { bits: 1 << n, statuses: Statuses([0; 8]) }
    }

    pub const NONE: Self = Self { bits: 0, statuses: Statuses([0; 8]) };
    pub const FIVE_XX: Self = Self::bit(0);
    /// 502, 503, 504.
    pub const GATEWAY_ERROR: Self = Self::bit(1);
    pub const RESET: Self = Self::bit(2);
    pub const RESET_BEFORE_REQUEST: Self = Self::bit(3);
    pub const CONNECT_FAILURE: Self = Self::bit(4);
    pub const REFUSED_STREAM: Self = Self::bit(5);
    /// 409.
    pub const RETRIABLE_4XX: Self = Self::bit(6);
    pub const ENVOY_RATELIMITED: Self = Self::bit(7);
    pub const CANCELLED: Self = Self::bit(8);
    pub const DEADLINE_EXCEEDED: Self = Self::bit(9);
    pub const INTERNAL: Self = Self::bit(10);
    pub const RESOURCE_EXHAUSTED: Self = Self::bit(11);
    pub const UNAVAILABLE: Self = Self::bit(12);

    const WORDS: [(&'static str, Self); 13] = [
        ("5xx", Self::FIVE_XX),
        ("gateway-error", Self::GATEWAY_ERROR),
        ("reset", Self::RESET),
        ("reset-before-request", Self::RESET_BEFORE_REQUEST),
        ("connect-failure", Self::CONNECT_FAILURE),
        ("refused-stream", Self::REFUSED_STREAM),
        ("retriable-4xx", Self::RETRIABLE_4XX),
        ("envoy-ratelimited", Self::ENVOY_RATELIMITED),
        ("cancelled", Self::CANCELLED),
        ("deadline-exceeded", Self::DEADLINE_EXCEEDED),
        ("internal", Self::INTERNAL),
        ("resource-exhausted", Self::RESOURCE_EXHAUSTED),
        ("unavailable", Self::UNAVAILABLE),
    ];

    /// What a VirtualService retries that names no conditions.
    pub fn istio() -> Self {
        Self::CONNECT_FAILURE | Self::REFUSED_STREAM | Self::UNAVAILABLE | Self::CANCELLED
    }

    /// A list of words, codes and ranges of codes, separated by commas, as Istio and Linkerd write it. The error is the word
    /// that is not known.
    pub fn parse(list: &str) -> Result<Self, String> {
        let words = list.split(',').map(str::trim).filter(|w| !w.is_empty());
        words.map(|w| Self::word(w).ok_or_else(|| w.to_string())).try_fold(Self::NONE, |all, one| Ok(all | one?))
    }

    fn word(word: &str) -> Option<Self> {
        if let Some((_, found)) = Self::WORDS.iter().find(|(w, _)| *w == word) {
            return Some(*found);
        }
        // The codes stand in the list itself, so the word adds nothing.
        if word == "retriable-status-codes" {
            return Some(Self::NONE);
        }
        let (from, to) = word.split_once('-').unwrap_or((word, word));
        let code = |s: &str| s.parse::<u16>().ok().filter(|c| (100..600).contains(c));
        Some(Self { bits: 0, statuses: Statuses::range(code(from)?, code(to)?)? })
    }

    fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        let one = |c: &mut Cursor<'_, '_>| {
            let text = c.text()?;
            match Self::parse(&text) {
                Ok(found) => Some(found),
                Err(word) => {
                    let words = Self::WORDS.map(|(w, _)| w).join(", ");
                    c.fail(
                        format!("{word:?} is not a retry condition"),
                        &format!("a status code, a range as 500-504, or {words}"),
                    )
                }
            }
        };
        match &c.node.value {
            Value::List(_) => Some(c.list(one)?.into_iter().fold(Self::NONE, |all, one| all | one)),
            _ => one(c),
        }
    }

    pub fn with_status(mut self, status: u16) -> Self {
        self.statuses.set(status);
        self
    }

    /// Whether it asks for retries of requests that were sent, which then have to be kept.
    pub fn follows_sending(&self) -> bool {
        let unsent = Self::CONNECT_FAILURE | Self::REFUSED_STREAM | Self::RESET_BEFORE_REQUEST;
        self.bits & !unsent.bits != 0 || self.statuses != Statuses::default()
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    fn has(&self, any: Self) -> bool {
        self.bits & any.bits != 0
    }

    pub fn matches(&self, outcome: &Outcome) -> bool {
        // What would reach the client as a 502, 503 or 504.
        let broken = Self::FIVE_XX | Self::GATEWAY_ERROR | Self::RESET;
        match *outcome {
            Outcome::Overflow => false,
            // Somebody said "not now": only who asked for these retries gets them.
            Outcome::Response { ratelimited: true, .. } => self.has(Self::ENVOY_RATELIMITED),
            Outcome::Response { status, grpc_status, .. } => {
                self.statuses.has(status)
                    || (self.has(Self::FIVE_XX) && (500..600).contains(&status))
                    || (self.has(Self::GATEWAY_ERROR) && (502..=504).contains(&status))
                    || (self.has(Self::RETRIABLE_4XX) && status == 409)
                    || grpc_status.is_some_and(|code| self.grpc(code))
            }
            Outcome::ConnectFailed => self.has(broken | Self::CONNECT_FAILURE | Self::RESET_BEFORE_REQUEST),
            Outcome::RefusedStream => self.has(broken | Self::REFUSED_STREAM),
            Outcome::Reset { before_request_bytes } => {
                self.has(broken) || (before_request_bytes && self.has(Self::RESET_BEFORE_REQUEST))
            }
            Outcome::PerTryTimeout | Outcome::ProtocolError => self.has(broken),
        }
    }

    fn grpc(&self, code: u8) -> bool {
        match code {
            1 => self.has(Self::CANCELLED),
            grpc::DEADLINE_EXCEEDED => self.has(Self::DEADLINE_EXCEEDED),
            grpc::INTERNAL => self.has(Self::INTERNAL),
            grpc::RESOURCE_EXHAUSTED => self.has(Self::RESOURCE_EXHAUSTED),
            grpc::UNAVAILABLE => self.has(Self::UNAVAILABLE),
            _ => false,
        }
    }
}

impl std::ops::BitOr for Conditions {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        let mut statuses = self.statuses;
        statuses.0.iter_mut().zip(other.statuses.0).for_each(|(a, b)| *a |= b);
        Self { bits: self.bits | other.bits, statuses }
    }
}

/// A set of the codes from 100 to 611.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Statuses([u64; 8]);

impl Statuses {
    fn range(from: u16, to: u16) -> Option<Self> {
        let mut out = Self::default();
        (from..=to).for_each(|status| out.set(status));
        (from <= to).then_some(out)
    }

    fn set(&mut self, status: u16) {
        let at = status.wrapping_sub(100);
        if let Some(word) = self.0.get_mut(usize::from(at / 64)) {
            *word |= 1 << (at % 64);
        }
    }

    fn has(&self, status: u16) -> bool {
        let at = status.wrapping_sub(100);
        self.0.get(usize::from(at / 64)).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }
}

/// The pause before a retry: between nothing and `base`, then between nothing and twice that, at most `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

impl Backoff {
    fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let base = f.or("base", Self::default().base, |c| c.duration());
            let max = f.or("max", base.saturating_mul(10), |c| c.duration());
            match base <= max {
                true => Some(Self { base, max }),
                false => f.fail("max", "is below base", "at least base"),
            }
        })
    }

    /// Before the `n`th retry, counted from 1.
    pub fn pause(&self, n: u32, random: u64) -> Duration {
        let doubled = 1u32.checked_shl(n.saturating_sub(1)).unwrap_or(u32::MAX);
        let bound = self.base.saturating_mul(doubled).min(self.max);
        // The upper 53 bits as a fraction: exact in f64, and below 1.
        bound.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial;

    fn status(status: u16) -> Outcome {
        Outcome::Response { status, grpc_status: None, ratelimited: false }
    }

    fn grpc_status(code: u8) -> Outcome {
        Outcome::Response { status: 200, grpc_status: Some(code), ratelimited: false }
    }

    const EARLY: Outcome = Outcome::Reset { before_request_bytes: true };
    const LATE: Outcome = Outcome::Reset { before_request_bytes: false };

    #[test]
    fn what_each_condition_takes() {
        use Outcome::*;
        let ratelimited = Response { status: 429, grpc_status: None, ratelimited: true };
        let all = [
            status(200),
            status(404),
            status(409),
            status(429),
            status(500),
            status(501),
            status(502),
            status(503),
            status(504),
            status(599),
            ratelimited,
            ConnectFailed,
            RefusedStream,
            EARLY,
            LATE,
            PerTryTimeout,
            ProtocolError,
            Overflow,
            grpc_status(0),
            grpc_status(1),
            grpc_status(2),
            grpc_status(4),
            grpc_status(8),
            grpc_status(13),
            grpc_status(14),
        ];
        let broken = [ConnectFailed, RefusedStream, EARLY, LATE, PerTryTimeout, ProtocolError];
        let and = |statuses: &[u16]| [statuses.iter().map(|s| status(*s)).collect(), broken.to_vec()].concat();
        let table: Vec<(&str, Vec<Outcome>)> = vec![
            ("5xx", and(&[500, 501, 502, 503, 504, 599])),
            ("gateway-error", and(&[502, 503, 504])),
            ("reset", broken.to_vec()),
            ("reset-before-request", vec![ConnectFailed, EARLY]),
            ("connect-failure", vec![ConnectFailed]),
            ("refused-stream", vec![RefusedStream]),
            ("retriable-4xx", vec![status(409)]),
            ("envoy-ratelimited", vec![ratelimited]),
            ("cancelled", vec![grpc_status(1)]),
            ("deadline-exceeded", vec![grpc_status(4)]),
            ("internal", vec![grpc_status(13)]),
            ("resource-exhausted", vec![grpc_status(8)]),
            ("unavailable", vec![grpc_status(14)]),
            ("503,429", vec![status(503), status(429)]),
            ("500-502", vec![status(500), status(501), status(502)]),
            ("retriable-status-codes", vec![]),
            ("", vec![]),
        ];
        for (on, takes) in table {
            let on_set = Conditions::parse(on).unwrap();
            for outcome in all {
                assert_eq!(on_set.matches(&outcome), takes.contains(&outcome), "{on}: {outcome:?}");
            }
        }
    }

    #[test]
    fn lists_as_people_write_them() {
        let istio = Conditions::parse("5xx, reset,connect-failure , refused-stream,503,").unwrap();
        let (five, reset) = (Conditions::FIVE_XX, Conditions::RESET);
        let safe = Conditions::CONNECT_FAILURE | Conditions::REFUSED_STREAM;
        assert_eq!(istio, (five | reset | safe).with_status(503));
        for bad in ["bogus", "5xx,99", "600", "504-500", "5XX", "-", "1e2", "503-"] {
            assert!(Conditions::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Conditions::parse("5xx,nope,503"), Err("nope".into()));
        let both = trial::list([trial::text("5xx,reset"), trial::int(418)]);
        assert_eq!(trial::read(&both, Conditions::read), Ok((five | reset).with_status(418)));
        assert_eq!(trial::read(&trial::int(503), Conditions::read), Ok(Conditions::NONE.with_status(503)));
        assert!(trial::read(&trial::text("gateway-eror"), Conditions::read).unwrap_err().contains("gateway-error"));
    }

    #[test]
    fn reads() {
        let node = trial::map([
            ("attempts", trial::int(3)),
            ("on", trial::text("gateway-error")),
            ("perTryTimeout", trial::text("2s")),
            ("backoff", trial::map([("base", trial::text("100ms"))])),
        ]);
        let config = trial::read(&node, Config::read).unwrap();
        assert_eq!(config.per_try_timeout, Some(Duration::from_secs(2)));
        assert_eq!(config.backoff.max, Duration::from_secs(1));
        assert_eq!(trial::read(&trial::map([]), Config::read), Ok(Config::unasked()));
        let node = trial::map([("base", trial::text("1s")), ("max", trial::text("1ms"))]);
        assert!(trial::read(&node, Backoff::read).is_err());
    }

    /// Counted attempts, as `istio-observed.md` has them; PO-10 for what nobody asked for.
    #[test]
    fn attempts() {
        let of = |attempts, on: &str| Config { attempts, on: Conditions::parse(on).unwrap(), ..Config::unasked() };
        let count = |config: &Config, outcome: Outcome| {
            let mut retried = 0;
            loop {
                match config.decide(&outcome, retried) {
                    Decision::Retry => retried += 1,
                    last => return (retried + 1, last == Decision::Exhausted),
                }
            }
        };
        let lab = "5xx,reset,connect-failure,refused-stream,503";
        assert_eq!(count(&of(3, lab), status(500)), (4, true));
        assert_eq!(count(&of(3, lab), status(429)), (1, false));
        assert_eq!(count(&of(3, lab), Outcome::PerTryTimeout), (4, true));
        assert_eq!(count(&of(2, "gateway-error,reset"), Outcome::PerTryTimeout), (3, true));
        assert_eq!(count(&of(2, "gateway-error,reset"), status(500)), (1, false));
        assert_eq!(count(&of(2, "gateway-error,reset"), status(502)), (3, true));
        assert_eq!(count(&of(2, "503,418"), status(418)), (3, true));
        assert_eq!(count(&of(0, lab), status(503)), (1, false));
        let istio = Config { on: Conditions::istio(), ..of(3, "") };
        assert_eq!((count(&istio, status(503)).0, count(&istio, grpc_status(14)).0), (1, 4));

        let unasked = Config::unasked();
        assert_eq!(count(&unasked, Outcome::ConnectFailed).0, 3);
        assert_eq!(count(&unasked, Outcome::RefusedStream).0, 3);
        for other in [status(503), LATE, Outcome::PerTryTimeout, Outcome::Overflow, grpc_status(14)] {
            assert_eq!(count(&unasked, other), (1, false), "{other:?}");
        }
        assert_eq!((count(&Config::inbound(), EARLY).0, count(&Config::inbound(), LATE).0), (3, 1));
        assert!(Outcome::ConnectFailed.unprocessed() && EARLY.unprocessed() && !LATE.unprocessed());
    }

    #[test]
    fn pauses_grow_to_their_bound() {
        let backoff = Backoff::default();
        for (n, bound) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (40, 250), (u32::MAX, 250)] {
            let bound = Duration::from_millis(bound);
            assert_eq!(backoff.pause(n, 0), Duration::ZERO);
            assert!(backoff.pause(n, u64::MAX) <= bound && backoff.pause(n, u64::MAX) > bound.mul_f64(0.999), "{n}");
            assert_eq!(backoff.pause(n, 1 << 63), bound / 2);
        }
    }
}
