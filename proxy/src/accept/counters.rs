//! Counters of what happens to connections before any request is read. Rare enough for the `metrics` facade; what is counted per
//! connection or request is the recorder's.

/// Why a connection was not served: the `reason` of `weft_tcp_rejected_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Plaintext where only mesh TLS may come in.
    Plaintext,
    /// The mesh handshake failed; `weft_tls_handshake_failed_total` says why.
    Handshake,
    /// There is no identity to do a handshake with.
    NoIdentity,
    MaxConnections,
    /// Its destination is this proxy itself.
    Loop,
    /// It was not redirected to us, so nobody knows where it was going.
    NoDestination,
    /// Nothing could be reached where its bytes should go.
    NoUpstream,
    /// A changed policy does not let it stand any longer.
    Policy,
}

impl Rejected {
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

pub fn rejected(reason: Rejected) {
    metrics::counter!("weft_tcp_rejected_total", "reason" => reason.word()).increment(1);
}

pub fn handshake_failed(reason: weft_tls::Reason) {
    rejected(Rejected::Handshake);
    metrics::counter!("weft_tls_handshake_failed_total", "side" => "server", "reason" => reason.as_str()).increment(1);
}

/// The system had no descriptor or no memory for one more connection.
pub fn accept_failed() {
    metrics::counter!("weft_accept_errors_total").increment(1);
}

/// What a connection speaks was not clear in time.
pub fn detect_timed_out(listener: &str) {
    metrics::counter!("weft_tcp_detect_timeout_total", "listener" => listener.to_owned()).increment(1);
}

/// A client did not take what lay ready for it: `socket`, or one `stream` of an HTTP/2 connection.
pub fn stalled(what: &'static str) {
    metrics::counter!("weft_client_stalled_total", "what" => what).increment(1);
}

pub fn panicked() {
    metrics::counter!("weft_panics_total").increment(1);
}
