//! Our own identity: a certificate chain and its key, checked when it is loaded rather than at the first handshake.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, crypto::CryptoProvider};
use weft_policy::id::SpiffeId;

use crate::config::provider;
use crate::verify::{San, hex_sha256};

/// Why certificates, keys or roots cannot be used. `what` names the file's role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("{what}: not valid PEM: {why}")]
    Pem { what: &'static str, why: String },
    #[error("{what}: holds no certificate")]
    NoCertificate { what: &'static str },
    #[error("{what}: not a usable certificate: {why}")]
    BadCertificate { what: &'static str, why: String },
    #[error("private key: the file holds none (PKCS#8, SEC1 or PKCS#1 PEM is expected)")]
    NoKey,
    #[error("private key: not usable: {0}")]
    BadKey(String),
    #[error("private key: it does not belong to the certificate")]
    KeyMismatch,
    #[error("system roots: {0}")]
    SystemRoots(String),
    #[error("server name {0:?} is neither a DNS name nor an IP address")]
    ServerName(String),
    #[error("TLS settings: {0}")]
    Config(String),
}

/// A certificate chain, leaf first, with its key. The key is only ever held inside rustls' signer.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    spiffe: Option<SpiffeId>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Identity {
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| TlsError::Pem { what: "certificate", why: e.to_string() })?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| match e {
            pem::Error::NoItemsFound => TlsError::NoKey,
            other => TlsError::Pem { what: "private key", why: other.to_string() },
        })?;
        Self::from_der(chain, key)
    }

    pub fn from_der(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        Self::build(chain, key, provider())
    }

    fn build(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<Self, TlsError> {
        let bad = |why: String| TlsError::BadCertificate { what: "certificate", why };
        let leaf = chain.first().ok_or(TlsError::NoCertificate { what: "certificate" })?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|e| bad(e.to_string()))?;
        let (not_before, not_after) = (parsed.validity().not_before, parsed.validity().not_after);
        let (not_before, not_after) = (at(not_before.timestamp()), at(not_after.timestamp()));
        let spiffe = San::read(leaf).ok().and_then(|names| names.spiffe().ok());
        let signer = provider.key_provider.load_private_key(key).map_err(|e| TlsError::BadKey(e.to_string()))?;
        let certified = CertifiedKey::new(chain, signer);
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => return Err(TlsError::KeyMismatch),
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(TlsError::BadKey("its public half is unknown".into()));
            }
            Err(e) => return Err(bad(e.to_string())),
        }
        Ok(Self { certified: Arc::new(certified), spiffe, not_before, not_after })
    }

    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The SPIFFE id, if the certificate has exactly one URI name and that is one.
    pub fn spiffe(&self) -> Option<&SpiffeId> {
        self.spiffe.as_ref()
    }

    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// SHA-256 of the leaf, lower-case hex.
    pub fn sha256(&self) -> String {
        self.certified.cert.first().map(|c| hex_sha256(c)).unwrap_or_default()
    }
}

fn at(timestamp: i64) -> SystemTime {
    let offset = Duration::from_secs(timestamp.unsigned_abs());
    let time = if timestamp >= 0 { UNIX_EPOCH.checked_add(offset) } else { UNIX_EPOCH.checked_sub(offset) };
    time.unwrap_or(UNIX_EPOCH)
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("spiffe", &self.spiffe).field("not_after", &self.not_after).finish()
    }
}
