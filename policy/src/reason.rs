//! Why the proxy answered by itself: one word per cause, and everything that follows from it. Exhaustive on purpose:
//! a new cause does not compile until its status, gRPC status, flag and body are decided. `docs/errors.md` is this table.

use std::fmt;

/// gRPC status codes that the proxy itself makes.
pub mod grpc {
    pub const DEADLINE_EXCEEDED: u8 = 4;
    pub const PERMISSION_DENIED: u8 = 7;
    pub const RESOURCE_EXHAUSTED: u8 = 8;
    pub const UNIMPLEMENTED: u8 = 12;
    pub const INTERNAL: u8 = 13;
    pub const UNAVAILABLE: u8 = 14;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The client's message is not valid HTTP, or ambiguous about where it ends.
    Malformed,
    UriTooLong,
    HeadersTooLarge,
    BodyTooLarge,
    /// The client did not send what it owes in time.
    ClientTimeout,
    /// The client went away before its answer.
    ClientGone,
    NoRoute,
    /// A route names a destination nobody defined (Istio's way).
    NoCluster,
    /// A route names a backend that is invalid (Gateway API's way).
    InvalidBackend,
    /// The destination is not known and unknown destinations are not allowed.
    NotAllowed,
    /// The control plane has not said what the destination is, and it may be of the mesh.
    NotDiscovered,
    /// There is no endpoint, or none that may be used.
    NoHealthyUpstream,
    ConnectFailed,
    ConnectTimeout,
    /// The endpoint's TLS or identity is not what it must be.
    TlsFailed,
    /// The connection ended before a response head.
    UpstreamClosed,
    /// The stream was reset before a response head.
    UpstreamReset,
    RefusedStream,
    /// The upstream's answer is not valid HTTP.
    UpstreamProtocol,
    /// The answer broke off after its head was forwarded.
    UpstreamBroken,
    /// A circuit breaker's cap.
    Overflow,
    RequestTimeout,
    PerTryTimeout,
    /// A stream made no progress for its idle limit.
    StreamIdle,
    FaultAbort,
    /// The request came back to where it has been.
    Loop,
    /// Out of a resource of the proxy itself.
    Overload,
    UpgradeRefused,
    Draining,
    Internal,
}

impl Reason {
    pub const ALL: [Reason; 30] = {
        use Reason::*;
        [
            Malformed,
            UriTooLong,
            HeadersTooLarge,
            BodyTooLarge,
            ClientTimeout,
            ClientGone,
            NoRoute,
            NoCluster,
            InvalidBackend,
            NotAllowed,
            NotDiscovered,
            NoHealthyUpstream,
            ConnectFailed,
            ConnectTimeout,
            TlsFailed,
            UpstreamClosed,
            UpstreamReset,
            RefusedStream,
            UpstreamProtocol,
            UpstreamBroken,
            Overflow,
            RequestTimeout,
            PerTryTimeout,
            StreamIdle,
            FaultAbort,
            Loop,
            Overload,
            UpgradeRefused,
            Draining,
            Internal,
        ]
    };

    /// The word in metrics' `reason`, the access log and `x-mesh-error`.
    pub const fn word(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed_request",
            Reason::UriTooLong => "uri_too_long",
            Reason::HeadersTooLarge => "headers_too_large",
            Reason::BodyTooLarge => "body_too_large",
            Reason::ClientTimeout => "client_timeout",
            Reason::ClientGone => "downstream_remote_disconnect",
            Reason::NoRoute => "route_not_found",
            Reason::NoCluster => "cluster_not_found",
            Reason::InvalidBackend => "invalid_backend",
            Reason::NotAllowed => "destination_not_allowed",
            Reason::NotDiscovered => "destination_not_discovered",
            Reason::NoHealthyUpstream => "no_healthy_upstream",
            Reason::ConnectFailed => "remote_connection_failure",
            Reason::ConnectTimeout => "connection_timeout",
            Reason::TlsFailed => "tls_failure",
            Reason::UpstreamClosed => "connection_termination",
            Reason::UpstreamReset => "remote_reset",
            Reason::RefusedStream => "remote_refused_stream",
            Reason::UpstreamProtocol => "protocol_error",
            Reason::UpstreamBroken => "upstream_broke_off",
            Reason::Overflow => "overflow",
            Reason::RequestTimeout => "response_timeout",
            Reason::PerTryTimeout => "upstream_per_try_timeout",
            Reason::StreamIdle => "stream_idle_timeout",
            Reason::FaultAbort => "fault_filter_abort",
            Reason::Loop => "request_loop",
            Reason::Overload => "overload",
            Reason::UpgradeRefused => "upgrade_refused",
            Reason::Draining => "draining",
            Reason::Internal => "internal_error",
        }
    }

    pub const fn status(self) -> u16 {
        match self {
            Reason::Malformed => 400,
            Reason::UriTooLong => 414,
            Reason::HeadersTooLarge => 431,
            Reason::BodyTooLarge => 413,
            Reason::ClientTimeout => 408,
            Reason::ClientGone => 499,
            Reason::NoRoute => 404,
            Reason::InvalidBackend | Reason::Internal => 500,
            Reason::NotAllowed | Reason::UpstreamProtocol | Reason::UpstreamBroken | Reason::UpgradeRefused => 502,
            Reason::NoCluster
            | Reason::NotDiscovered
            | Reason::NoHealthyUpstream
            | Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::TlsFailed
            | Reason::UpstreamClosed
            | Reason::UpstreamReset
            | Reason::RefusedStream
            | Reason::Overflow
            | Reason::FaultAbort
            | Reason::Overload
            | Reason::Draining => 503,
            Reason::RequestTimeout | Reason::PerTryTimeout | Reason::StreamIdle => 504,
            Reason::Loop => 508,
        }
    }

    pub const fn grpc_status(self) -> u8 {
        match self {
            Reason::Malformed | Reason::Internal => grpc::INTERNAL,
            Reason::UriTooLong | Reason::HeadersTooLarge | Reason::BodyTooLarge => grpc::RESOURCE_EXHAUSTED,
            Reason::ClientTimeout | Reason::RequestTimeout | Reason::PerTryTimeout | Reason::StreamIdle => {
                grpc::DEADLINE_EXCEEDED
            }
            Reason::NoRoute => grpc::UNIMPLEMENTED,
            _ => grpc::UNAVAILABLE,
        }
    }

    /// Envoy's response flag; `-` where Envoy has none.
    pub const fn flag(self) -> &'static str {
        match self {
            Reason::Malformed | Reason::UriTooLong | Reason::HeadersTooLarge => "DPE",
            Reason::BodyTooLarge | Reason::InvalidBackend | Reason::NotAllowed | Reason::UpgradeRefused => "-",
            Reason::Internal => "-",
            Reason::ClientTimeout | Reason::StreamIdle => "SI",
            Reason::ClientGone => "DC",
            Reason::NoRoute => "NR",
            Reason::NoCluster | Reason::NotDiscovered => "NC",
            Reason::NoHealthyUpstream => "UH",
            Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed => "UF",
            Reason::UpstreamClosed => "UC",
            Reason::UpstreamReset | Reason::RefusedStream | Reason::UpstreamBroken => "UR",
            Reason::UpstreamProtocol => "UPE",
            Reason::Overflow => "UO",
            Reason::RequestTimeout | Reason::PerTryTimeout => "UT",
            Reason::FaultAbort => "FI",
            Reason::Loop => "LD",
            Reason::Overload => "OM",
            Reason::Draining => "UC",
        }
    }

    /// The body clients and scripts know from Istio; `retried` is whether an earlier attempt failed.
    pub fn body(self, retried: bool) -> &'static str {
        macro_rules! reset {
            ($why:literal) => {
                if retried {
                    concat!(
                        "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: ",
                        $why
                    )
                } else {
                    concat!("upstream connect error or disconnect/reset before headers. reset reason: ", $why)
                }
            };
        }
        match self {
            Reason::Malformed => "Bad Request",
            Reason::UriTooLong => "URI Too Long",
            Reason::HeadersTooLarge => "Request Header Fields Too Large",
            Reason::BodyTooLarge => "Payload Too Large",
            Reason::ClientTimeout => "request timeout",
            Reason::NotDiscovered => "destination not discovered: no answer from the control plane",
            Reason::NoHealthyUpstream => "no healthy upstream",
            Reason::ConnectFailed => reset!("remote connection failure"),
            Reason::ConnectTimeout => reset!("connection timeout"),
            Reason::TlsFailed => reset!("remote connection failure, transport failure reason: TLS error"),
            Reason::UpstreamClosed | Reason::Draining => reset!("connection termination"),
            Reason::UpstreamReset => reset!("remote reset"),
            Reason::RefusedStream => reset!("remote refused stream reset"),
            Reason::UpstreamProtocol => reset!("protocol error"),
            Reason::Overflow => reset!("overflow"),
            Reason::RequestTimeout | Reason::PerTryTimeout => "upstream request timeout",
            Reason::StreamIdle => "stream timeout",
            Reason::FaultAbort => "fault filter abort",
            Reason::Loop => "request loop detected",
            Reason::Overload => "overloaded",
            Reason::ClientGone
            | Reason::NoRoute
            | Reason::NoCluster
            | Reason::InvalidBackend
            | Reason::NotAllowed
            | Reason::UpstreamBroken
            | Reason::UpgradeRefused
            | Reason::Internal => "",
        }
    }

    /// Whether the client's connection must be closed after this answer, because its next bytes cannot be trusted.
    pub const fn closes(self) -> bool {
        matches!(
            self,
            Reason::Malformed
                | Reason::HeadersTooLarge
                | Reason::BodyTooLarge
                | Reason::ClientTimeout
                | Reason::UriTooLong
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Everything notable about one request, as Envoy's comma-separated flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags {
    pub reason: Option<Reason>,
    pub delay_injected: bool,
    pub retries_exhausted: bool,
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut any = false;
        let mut put = |flag: &str, f: &mut fmt::Formatter<'_>| {
            let comma = if any { "," } else { "" };
            any = true;
            write!(f, "{comma}{flag}")
        };
        if self.delay_injected {
            put("DI", f)?;
        }
        if self.retries_exhausted {
            put("URX", f)?;
        }
        match self.reason.map(Reason::flag) {
            Some("-") | None => {}
            Some(flag) => put(flag, f)?,
        }
        if any { Ok(()) } else { f.write_str("-") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istio_lengths() {
        assert_eq!(Reason::RequestTimeout.body(false).len(), 24);
        assert_eq!(Reason::NoHealthyUpstream.body(false).len(), 19);
        assert_eq!(Reason::ConnectFailed.body(true).len(), 121);
        assert_eq!(Reason::UpstreamProtocol.body(false).len(), 87);
        assert_eq!(Reason::Overflow.body(false).len(), 81);
        assert_eq!(Reason::UpstreamClosed.body(false).len(), 95);
        assert_eq!(Reason::FaultAbort.body(false).len(), 18);
    }

    #[test]
    fn flags_join() {
        let flags = Flags { reason: Some(Reason::PerTryTimeout), retries_exhausted: true, delay_injected: false };
        assert_eq!(flags.to_string(), "URX,UT");
        assert_eq!(Flags::default().to_string(), "-");
        let words: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
