//! Outlier detection: an endpoint that keeps failing gets no requests for a while. Two kinds, one at a time.
//!
//! ```yaml
//! outlier:
//!   ejection:                          # Istio
//!     consecutive5xx: 5                # 0: off
//!     consecutiveGatewayErrors: 0      # 502, 503, 504; off unless asked for
//!     splitExternalLocalOriginErrors: false
//!     consecutiveLocalOriginFailures: 5
//!     interval: 10s
//!     baseEjectionTime: 30s
//!     maxEjectionTime: 300s
//!     maxEjectionPercent: 10
//!     minHealthPercent: 0              # below it all endpoints are used again (panic)
//! outlier:
//!   accrual: { maxFailures: 7, minPenalty: 1s, maxPenalty: 60s, jitter: 0.5 }     # Linkerd
//! ```
//!
//! *Ejection*: the Nth failure in a row ejects at once; the first sweep after the ejection's time ends it. The time is the base
//! times the number of ejections, which falls by one for each healthy interval. One endpoint may always be ejected,
//! further ones only within the percentage. *Accrual*: the Nth failure in a row opens the circuit for a penalty; after that
//! one request is let through as a probe, whose success closes it and whose failure doubles the penalty.
//!
//! It learns from one [`Signal`] per attempt. A 4xx is a success (the endpoint answered); own overflows and clients that went
//! away are [`Signal::Nothing`]. There is no timer: sweeps happen when somebody looks, and count the intervals missed.
//!
//! A config change neither ends nor prolongs a standing ejection or penalty. Counts in a row stand too.

use crate::doc::Cursor;
use crate::endpoint::Endpoint;
use crate::instant::{moment, nanos, span};
use arc_swap::{ArcSwapOption, Guard};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    Ejection(Ejection),
    Accrual(Accrual),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    pub consecutive_5xx: Option<u32>,
    pub consecutive_gateway: Option<u32>,
    /// Failures to connect, resets and timeouts count by themselves, not as a 503 or 504.
    pub split_external_local: bool,
    pub consecutive_local_origin: Option<u32>,
    pub interval: Duration,
    pub base_ejection: Duration,
    pub max_ejection: Duration,
    pub max_ejection_percent: u32,
    pub min_health_percent: u32,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_5xx: Some(5),
            consecutive_gateway: None,
            split_external_local: false,
            consecutive_local_origin: Some(5),
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejection_percent: 10,
            min_health_percent: 0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accrual {
    pub max_failures: u32,
    pub min_penalty: Duration,
    pub max_penalty: Duration,
    /// In thousandths: up to this part of the penalty is added to it.
    pub jitter: u32,
}

impl Default for Accrual {
    fn default() -> Self {
        let (min_penalty, max_penalty) = (Duration::from_secs(1), Duration::from_secs(60));
        Self { max_failures: 7, min_penalty, max_penalty, jitter: 500 }
    }
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let ejection = f.opt("ejection", Ejection::read);
            let accrual = f.opt("accrual", Accrual::read);
            match (ejection, accrual) {
                (Some(ejection), None) => Some(Config::Ejection(ejection)),
                (None, Some(accrual)) => Some(Config::Accrual(accrual)),
                _ if f.has("ejection") != f.has("accrual") => None,
                _ => f.fail("", "one kind of outlier detection is needed", "either ejection or accrual"),
            }
        })
    }
}

impl Ejection {
    fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        let d = Self::default();
        // 0 switches a count off.
        let count = |c: &mut Cursor<'_, '_>| c.u32().map(|n| (n > 0).then_some(n));
        c.fields(|f| {
            let base_ejection = f.or("baseEjectionTime", d.base_ejection, positive);
            Some(Self {
                consecutive_5xx: f.or("consecutive5xx", d.consecutive_5xx, count),
                consecutive_gateway: f.or("consecutiveGatewayErrors", d.consecutive_gateway, count),
                split_external_local: f.or("splitExternalLocalOriginErrors", false, |c| c.bool()),
                consecutive_local_origin: f.or("consecutiveLocalOriginFailures", d.consecutive_local_origin, count),
                interval: f.or("interval", d.interval, positive),
                base_ejection,
                // As in Envoy, a base above the maximum lifts the maximum.
                max_ejection: f.or("maxEjectionTime", d.max_ejection, positive).max(base_ejection),
                max_ejection_percent: f.or("maxEjectionPercent", d.max_ejection_percent, percent),
                min_health_percent: f.or("minHealthPercent", d.min_health_percent, percent),
            })
        })
    }

    fn limit(&self, of: usize) -> Option<u32> {
        [self.consecutive_5xx, self.consecutive_gateway, self.consecutive_local_origin][of]
    }
}

impl Accrual {
    fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        let d = Self::default();
        c.fields(|f| {
            let min_penalty = f.or("minPenalty", d.min_penalty, positive);
            let out = Self {
                max_failures: f.or("maxFailures", d.max_failures, |c| c.int(1, u32::MAX.into()).map(|n| n as u32)),
                min_penalty,
                max_penalty: f.or("maxPenalty", d.max_penalty.max(min_penalty), positive),
                jitter: f.or("jitter", d.jitter, |c| c.float(0.0, 100.0).map(|x| (x * 1000.0).round() as u32)),
            };
            match out.min_penalty <= out.max_penalty {
                true => Some(out),
                false => f.fail("maxPenalty", "is below minPenalty", "at least minPenalty"),
            }
        })
    }

    /// After `before` failed probes in a row.
    fn penalty(&self, before: u32, random: u64) -> Duration {
        let doubled = 1u32.checked_shl(before).unwrap_or(u32::MAX);
        let penalty = self.min_penalty.saturating_mul(doubled).min(self.max_penalty);
        let fraction = (random >> 11) as f64 / (1u64 << 53) as f64;
        let jitter = penalty.mul_f64(fraction * f64::from(self.jitter) / 1000.0);
        penalty.saturating_add(jitter).min(self.max_penalty)
    }
}

fn positive(c: &mut Cursor<'_, '_>) -> Option<Duration> {
    match c.duration()? {
        Duration::ZERO => c.fail("0 is no time", "a duration above 0"),
        d => Some(d),
    }
}

fn percent(c: &mut Cursor<'_, '_>) -> Option<u32> {
    c.int(0, 100).map(|n| n as u32)
}

/// What an attempt says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// For bytes that are not HTTP: the connection stood.
    Success,
    Status(u16),
    /// For gRPC, in place of the HTTP status.
    Grpc(u8),
    ConnectFailed,
    /// The connection or stream ended before its answer.
    Reset,
    /// No answer in the time one attempt has.
    Timeout,
    /// Nothing about the endpoint: an own overflow, a client that went away, a proxy that shuts down.
    Nothing,
}

const FIVE_XX: usize = 0;
const GATEWAY: usize = 1;
const LOCAL: usize = 2;

/// As a status, and whether the status is the endpoint's own.
impl Signal {
    fn reading(self) -> Option<(u16, bool)> {
        match self {
            Signal::Nothing => None,
            Signal::Success => Some((200, true)),
            Signal::Status(status) => Some((status, true)),
            Signal::Grpc(code) => Some((grpc_as_http(code), true)),
            Signal::ConnectFailed | Signal::Reset => Some((503, false)),
            Signal::Timeout => Some((504, false)),
        }
    }

    /// Whether it counts against the endpoint.
    pub fn is_failure(self) -> bool {
        self.reading().is_some_and(|(status, _)| is_5xx(status))
    }
}

fn is_5xx(status: u16) -> bool {
    (500..600).contains(&status)
}

/// The HTTP status of the same meaning.
fn grpc_as_http(code: u8) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Whether an endpoint may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usable {
    Yes,
    No,
    /// For the one request that [`State::admit`] lets through.
    Probe,
}

/// What an attempt was admitted as; it goes back with the attempt's signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Normal,
    Probe,
}

const CLOSED: u8 = 0;
/// Ejected, or in its penalty.
const OPEN: u8 = 1;
/// A probe is under way.
const PROBING: u8 = 2;

/// What is known of one endpoint. Transitions are made under the backend's lock, except the one to `PROBING`.
#[derive(Debug, Default)]
pub struct EndpointState {
    phase: AtomicU8,
    /// When the ejection or penalty ends; while probing, when the probe is given up for lost.
    until: AtomicU64,
    /// Ejection: by how much the time is multiplied. Accrual: failed probes in a row.
    times: AtomicU32,
    /// Failures in a row.
    run: [AtomicU32; 3],
    ejections: AtomicU64,
}

impl EndpointState {
    /// For people: `closed`, `open` or `half-open`.
    pub fn word(&self) -> &'static str {
        match self.phase.load(Ordering::Relaxed) {
            CLOSED => "closed",
            PROBING => "half-open",
            _ => "open",
        }
    }

    pub fn is_out(&self) -> bool {
        self.phase.load(Ordering::Acquire) != CLOSED
    }

    /// How often it was ejected, or its circuit opened, ever.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    fn forget_run(&self) {
        self.run.iter().for_each(forget);
    }

    fn close(&self) {
        self.forget_run();
        self.phase.store(CLOSED, Ordering::Release);
    }

    fn open(&self, until: u64) {
        self.forget_run();
        self.until.store(until, Ordering::Relaxed);
        self.phase.store(OPEN, Ordering::Release);
        self.ejections.fetch_add(1, Ordering::Relaxed);
    }
}

/// Most of the time there is nothing to forget, and the line stays shared between workers.
fn forget(count: &AtomicU32) {
    if count.load(Ordering::Relaxed) != 0 {
        count.store(0, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub struct State {
    config: ArcSwapOption<Config>,
    /// 0 before the first look.
    next_sweep: AtomicU64,
    ejections: AtomicU64,
    /// Makes transitions one at a time, so that the percentage holds. Never held while anything waits.
    change: Mutex<()>,
}

impl State {
    pub fn new(config: Option<&Config>) -> Self {
        Self {
            config: ArcSwapOption::from_pointee(config.cloned()),
            next_sweep: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            change: Mutex::new(()),
        }
    }

    /// Standing ejections and penalties keep their end; new ones go by the new config.
    pub fn adopt(&self, config: Option<&Config>) {
        self.config.store(config.cloned().map(Arc::new));
    }

    /// How often endpoints were ejected, ever.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// Sweeps where it is time, and says who may be picked. One look serves one pick.
    pub fn look(&self, endpoints: &[Arc<Endpoint>], now: Instant) -> Look {
        let config = self.config.load();
        if let Some(Config::Ejection(ejection)) = config.as_deref() {
            self.sweep(ejection, endpoints, now);
        }
        let panic = match config.as_deref() {
            Some(Config::Ejection(e)) if e.min_health_percent > 0 => {
                let out = out(endpoints);
                out > 0 && (endpoints.len() - out) * 100 < e.min_health_percent as usize * endpoints.len()
            }
            _ => false,
        };
        Look { config, panic, now: nanos(now) }
    }

    /// Asks to send a request to the endpoint that was picked; `None` means that another request is its probe: pick again.
    pub fn admit(&self, look: &Look, endpoint: &Endpoint) -> Option<Pass> {
        let Some(Config::Accrual(accrual)) = look.config.as_deref() else { return Some(Pass::Normal) };
        let (health, now) = (&endpoint.health, look.now);
        match health.phase.load(Ordering::Acquire) {
            CLOSED => Some(Pass::Normal),
            _ => {
                // `until` is the ticket: who moves it is the probe, from either phase, and is so alone.
                let until = health.until.load(Ordering::Acquire);
                let lost = now.saturating_add(span(accrual.max_penalty));
                let mine = now >= until
                    && health.until.compare_exchange(until, lost, Ordering::AcqRel, Ordering::Relaxed).is_ok();
                if mine {
                    let _ = health.phase.compare_exchange(OPEN, PROBING, Ordering::AcqRel, Ordering::Relaxed);
                }
                mine.then_some(Pass::Probe)
            }
        }
    }

    /// Learns from an attempt; call it exactly once for each one admitted, whatever became of it. `random` is drawn only where
    /// a circuit opens.
    pub fn record(
        &self,
        endpoints: &[Arc<Endpoint>],
        endpoint: &Endpoint,
        pass: Pass,
        signal: Signal,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) {
        let config = self.config.load();
        let health = &endpoint.health;
        match (config.as_deref(), signal.reading()) {
            (Some(Config::Accrual(accrual)), reading) if pass == Pass::Probe => {
                let _one = self.changing();
                if health.phase.load(Ordering::Acquire) != PROBING {
                    return;
                }
                match reading {
                    // Nothing learned: the next request may try.
                    None => {
                        health.until.store(nanos(now), Ordering::Relaxed);
                        health.phase.store(OPEN, Ordering::Release);
                    }
                    Some((status, _)) if is_5xx(status) => {
                        let times = health.times.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                        self.open(health, nanos(now), accrual.penalty(times, random()));
                    }
                    Some(_) => {
                        health.times.store(0, Ordering::Relaxed);
                        health.close();
                    }
                }
            }
            (Some(Config::Accrual(accrual)), Some((status, _))) => {
                if !is_5xx(status) {
                    return health.forget_run();
                }
                if health.run[FIVE_XX].fetch_add(1, Ordering::Relaxed) + 1 < accrual.max_failures || health.is_out() {
                    return;
                }
                let _one = self.changing();
                if !health.is_out() {
                    health.times.store(0, Ordering::Relaxed);
                    self.open(health, nanos(now), accrual.penalty(0, random()));
                }
            }
            (Some(Config::Ejection(ejection)), Some((status, own))) => {
                self.sweep(ejection, endpoints, now);
                if count(ejection, health, status, own) && !health.is_out() {
                    self.eject(ejection, endpoints, health, now);
                }
            }
            _ => {}
        }
    }

    fn eject(&self, config: &Ejection, endpoints: &[Arc<Endpoint>], health: &EndpointState, now: Instant) {
        let _one = self.changing();
        if health.is_out() {
            return;
        }
        let out = out(endpoints);
        if out > 0 && (out + 1) * 100 > config.max_ejection_percent as usize * endpoints.len() {
            return;
        }
        let times = health.times.load(Ordering::Relaxed);
        // Counting on where the time no longer grows would only delay the way back.
        let grown = match times {
            0 => 1,
            _ if config.base_ejection.saturating_mul(times) < config.max_ejection => times + 1,
            _ => times,
        };
        health.times.store(grown, Ordering::Relaxed);
        self.open(health, nanos(now), config.base_ejection.saturating_mul(grown).min(config.max_ejection));
    }

    fn open(&self, health: &EndpointState, now: u64, time: Duration) {
        health.open(now.saturating_add(span(time)));
        self.ejections.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends ejections whose time is over, if an interval is. Cheap in between.
    fn sweep(&self, ejection: &Ejection, endpoints: &[Arc<Endpoint>], now: Instant) {
        let (now, interval) = (nanos(now), span(ejection.interval).max(1));
        let due = self.next_sweep.load(Ordering::Relaxed);
        // Not begun, or the interval was made shorter.
        if due == 0 || due > now.saturating_add(interval) {
            let _ = self.next_sweep.compare_exchange(due, now + interval, Ordering::Relaxed, Ordering::Relaxed);
            return;
        }
        if now < due {
            return;
        }
        let _one = self.changing();
        let missed = (now - due) / interval;
        let next = due + (missed + 1) * interval;
        if self.next_sweep.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        for health in endpoints.iter().map(|e| &e.health) {
            // How many of the sweeps at due, due + interval, ... found it healthy.
            let healthy = match health.is_out() {
                false => missed + 1,
                true => {
                    let until = health.until.load(Ordering::Relaxed);
                    let ends_at = until.saturating_sub(due).div_ceil(interval);
                    if ends_at > missed {
                        continue;
                    }
                    health.close();
                    missed - ends_at
                }
            };
            let times = health.times.load(Ordering::Relaxed);
            if times > 0 {
                health.times.store(times.saturating_sub(healthy.min(u32::MAX.into()) as u32), Ordering::Relaxed);
            }
        }
    }

    /// Where no endpoint is usable: when one may become so, for a request that can wait. `None`: waiting is not the way.
    pub fn next_probe(&self, endpoints: &[Arc<Endpoint>], now: Instant) -> Option<Instant> {
        let config = self.config.load();
        let Some(Config::Accrual(_)) = config.as_deref() else { return None };
        let next = |e: &Arc<Endpoint>| match e.health.phase.load(Ordering::Acquire) {
            CLOSED => now,
            OPEN => moment(e.health.until.load(Ordering::Relaxed)).max(now),
            _ => now + PROBE_POLL,
        };
        endpoints.iter().map(next).min()
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A probe's answer may come at any time, and wakes nobody.
const PROBE_POLL: Duration = Duration::from_millis(10);

fn out(endpoints: &[Arc<Endpoint>]) -> usize {
    endpoints.iter().filter(|e| e.health.is_out()).count()
}

/// Counts one answer; whether a limit is reached.
fn count(config: &Ejection, health: &EndpointState, status: u16, own: bool) -> bool {
    let fails = |of: usize| {
        let run = health.run[of].fetch_add(1, Ordering::Relaxed) + 1;
        let reached = config.limit(of).is_some_and(|limit| run >= limit);
        if reached {
            // It takes a full run again, should this one not be allowed to eject.
            forget(&health.run[of]);
        }
        reached
    };
    if config.split_external_local && !own {
        return fails(LOCAL);
    }
    // An answer of its own shows that it can be reached.
    forget(&health.run[LOCAL]);
    if !is_5xx(status) {
        health.forget_run();
        return false;
    }
    let gateway = match status {
        502..=504 => fails(GATEWAY),
        _ => {
            forget(&health.run[GATEWAY]);
            false
        }
    };
    fails(FIVE_XX) || gateway
}

/// Who may be picked, at one moment.
pub struct Look {
    config: Guard<Option<Arc<Config>>>,
    /// Too few are left: all are used.
    pub panic: bool,
    now: u64,
}

impl Look {
    pub fn usable(&self, endpoint: &Endpoint) -> Usable {
        let health = &endpoint.health;
        if self.panic || !health.is_out() {
            return Usable::Yes;
        }
        match self.config.as_deref() {
            None => Usable::Yes,
            Some(Config::Ejection(_)) => Usable::No,
            Some(Config::Accrual(_)) if self.now >= health.until.load(Ordering::Acquire) => Usable::Probe,
            Some(Config::Accrual(_)) => Usable::No,
        }
    }
}

#[cfg(test)]
mod tests;
