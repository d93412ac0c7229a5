//! What happens to connections before any request is read. Per process: one addition per connection is not worth a cell per
//! worker.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a connection was not served: the `reason` of `weft_tcp_rejected_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Plaintext where only mesh TLS may come in.
    Plaintext,
    /// The mesh handshake failed; the log says why.
    Handshake,
    /// There is no identity to do a handshake with.
    NoIdentity,
    MaxConnections,
    /// Its destination is this proxy itself.
    Loop,
    /// It was not redirected to us, and we do not know where it was going.
    NoDestination,
    /// The destination is not known, and unknown ones are not allowed; or nothing could be reached there.
    NoUpstream,
    /// A changed policy does not let it stand any longer.
    Policy,
}

impl Rejected {
    pub const ALL: [Rejected; 8] = [
        Self::Plaintext,
        Self::Handshake,
        Self::NoIdentity,
        Self::MaxConnections,
        Self::Loop,
        Self::NoDestination,
        Self::NoUpstream,
        Self::Policy,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Handshake => "handshake",
            Self::NoIdentity => "no_identity",
            Self::MaxConnections => "max_connections",
            Self::Loop => "loop",
            Self::NoDestination => "no_destination",
            Self::NoUpstream => "no_upstream",
            Self::Policy => "policy",
        }
    }
}

#[derive(Debug, Default)]
pub struct Counters {
    /// `weft_tcp_accepted_total`
    pub accepted: Counter,
    /// `weft_accept_errors_total`: the system had no descriptor or memory for one more.
    pub accept_errors: Counter,
    /// `weft_tcp_detect_timeout_total`
    pub detect_timeouts: Counter,
    /// `weft_panics_total`: each cost one connection.
    pub panics: Counter,
    rejected: [Counter; Rejected::ALL.len()],
    handshake_failures: [Counter; weft_tls::Reason::ALL.len()],
}

impl Counters {
    pub fn reject(&self, reason: Rejected) {
        if let Some(counter) = self.rejected.get(reason as usize) {
            counter.add();
        }
    }

    /// `weft_tcp_rejected_total` by reason.
    pub fn rejected(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Rejected::ALL.iter().zip(&self.rejected).map(|(reason, counter)| (reason.word(), counter.get()))
    }

    pub fn rejected_for(&self, reason: Rejected) -> u64 {
        self.rejected.get(reason as usize).map_or(0, Counter::get)
    }

    pub fn handshake_failed(&self, reason: weft_tls::Reason) {
        self.reject(Rejected::Handshake);
        let place = weft_tls::Reason::ALL.iter().position(|r| *r == reason);
        if let Some(counter) = place.and_then(|at| self.handshake_failures.get(at)) {
            counter.add();
        }
    }

    /// `weft_tls_handshake_failures_total` by reason.
    pub fn handshake_failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        weft_tls::Reason::ALL.iter().zip(&self.handshake_failures).map(|(reason, c)| (reason.as_str(), c.get()))
    }
}
