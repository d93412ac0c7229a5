//! Why a handshake failed, in one word.
//!
//! The word goes to a counter and to the log on our side; the peer only learns the TLS alert. rustls picks the alert from
//! the certificate error a verifier returns and offers no variant for "right CA, wrong identity". The verifier therefore
//! wraps such refusals in `NotValidForNameContext` (alert `bad_certificate`), with the word as the name; `Reason::of`
//! reads it back. Nothing else in this crate produces names under that suffix.

use std::fmt;
use std::io;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, Error};

const SUFFIX: &str = ".refused.invalid";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    Expired,
    NotYetValid,
    UnknownCa,
    WrongIdentity,
    WrongTrustDomain,
    NoIdentity,
    BadCertificate,
    BadSignature,
    CaAsLeaf,
    WrongUsage,
    WeakCertificate,
    ChainTooLong,
    NoCertificate,
    /// The peer refused our certificate because it is out of date by its clock.
    PeerSaysExpired,
    /// The peer refused our certificate for another reason, or does not know our CA.
    PeerRefused,
    Version,
    Alpn,
    Protocol,
    /// The peer closed before the handshake was done.
    Closed,
    Io,
}

impl Reason {
    pub const ALL: [Reason; 20] = [
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownCa,
        Self::WrongIdentity,
        Self::WrongTrustDomain,
        Self::NoIdentity,
        Self::BadCertificate,
        Self::BadSignature,
        Self::CaAsLeaf,
        Self::WrongUsage,
        Self::WeakCertificate,
        Self::ChainTooLong,
        Self::NoCertificate,
        Self::PeerSaysExpired,
        Self::PeerRefused,
        Self::Version,
        Self::Alpn,
        Self::Protocol,
        Self::Closed,
        Self::Io,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownCa => "unknown_ca",
            Self::WrongIdentity => "wrong_identity",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::NoIdentity => "no_identity",
            Self::BadCertificate => "bad_certificate",
            Self::BadSignature => "bad_signature",
            Self::CaAsLeaf => "ca_as_leaf",
            Self::WrongUsage => "wrong_usage",
            Self::WeakCertificate => "weak_certificate",
            Self::ChainTooLong => "chain_too_long",
            Self::NoCertificate => "no_certificate",
            Self::PeerSaysExpired => "peer_says_expired",
            Self::PeerRefused => "peer_refused",
            Self::Version => "version",
            Self::Alpn => "alpn",
            Self::Protocol => "protocol",
            Self::Closed => "closed",
            Self::Io => "io",
        }
    }

    /// The word for any rustls error, whoever's verifier made it.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(alert) => match alert {
                AlertDescription::CertificateExpired => Self::PeerSaysExpired,
                AlertDescription::ProtocolVersion => Self::Version,
                AlertDescription::NoApplicationProtocol => Self::Alpn,
                _ => Self::PeerRefused,
            },
            Error::NoApplicationProtocol => Self::Alpn,
            Error::PeerIncompatible(_) => Self::Version,
            _ => Self::Protocol,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        use CertificateError as E;
        match error {
            E::NotValidForNameContext { expected, .. } => Self::unwrap_name(expected).unwrap_or(Self::WrongIdentity),
            E::NotValidForName => Self::WrongIdentity,
            E::Expired | E::ExpiredContext { .. } => Self::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => Self::NotYetValid,
            E::UnknownIssuer => Self::UnknownCa,
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => Self::WrongUsage,
            E::BadSignature => Self::BadSignature,
            E::UnsupportedSignatureAlgorithmContext { .. }
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Self::WeakCertificate,
            _ => Self::BadCertificate,
        }
    }

    fn unwrap_name(name: &ServerName<'_>) -> Option<Self> {
        let ServerName::DnsName(name) = name else { return None };
        let word = name.as_ref().strip_suffix(SUFFIX)?;
        Self::ALL.into_iter().find(|r| r.as_str() == word)
    }

    /// The rustls error for a refusal that rustls has no variant for: alert `bad_certificate`.
    pub(crate) fn refuse(self, detail: String) -> Error {
        let error = match ServerName::try_from(format!("{}{SUFFIX}", self.as_str())) {
            Ok(expected) => CertificateError::NotValidForNameContext { expected, presented: vec![detail] },
            Err(_) => CertificateError::NotValidForName,
        };
        error.into()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed handshake, or a failure of an established connection's TLS (a TLS 1.3 client learns only then that the
/// server refused its certificate). It travels inside `io::Error`; `reason_of` finds it there.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("TLS: {reason}: {}", text(.source))]
    Tls { reason: Reason, source: Error },
    #[error("TLS: the peer closed the connection before the handshake was done")]
    Closed,
    #[error("TLS: {0}")]
    Io(#[from] io::Error),
}

impl HandshakeError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tls { reason, .. } => *reason,
            Self::Closed => Reason::Closed,
            Self::Io(_) => Reason::Io,
        }
    }

    /// The reason inside an error that a read or write of a `MeshStream` gave.
    pub fn reason_of(error: &io::Error) -> Option<Reason> {
        error.get_ref()?.downcast_ref::<Self>().map(Self::reason)
    }
}

impl From<Error> for HandshakeError {
    fn from(source: Error) -> Self {
        Self::Tls { reason: Reason::of(&source), source }
    }
}

fn text(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented })
            if Reason::unwrap_name(expected).is_some() =>
        {
            presented.join(", ")
        }
        other => other.to_string(),
    }
}
