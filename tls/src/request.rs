//! A key of our own and the request for a certificate for it. The key is made here and goes to no one; what the request claims
//! about its subject is left empty, since a CA signs what the caller has proven.

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::identity::{Identity, TlsError};

pub struct Request {
    key: KeyPair,
    csr: Vec<u8>,
}

impl Request {
    /// P-256, as every verifier takes it and as it costs least per handshake.
    pub fn new() -> Result<Self, TlsError> {
        let wrong = |e: rcgen::Error| TlsError::Config(format!("a certificate cannot be asked for: {e}"));
        let key = KeyPair::generate().map_err(wrong)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(wrong)?;
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(wrong)?.der().to_vec();
        Ok(Self { key, csr })
    }

    /// PKCS#10, DER.
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// The key, for a file only its owner reads.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The key with the chain that was signed for it (DER, leaf first).
    pub fn answered(&self, chain: Vec<Vec<u8>>) -> Result<Identity, TlsError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        Identity::from_der(chain.into_iter().map(CertificateDer::from).collect(), key)
    }
}

/// A certificate as PEM.
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    pem::encode_config(
        &pem::Pem::new("CERTIFICATE", certificate.to_vec()),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}
