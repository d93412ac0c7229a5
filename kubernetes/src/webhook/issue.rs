//! A small authority that signs one certificate and is forgotten: what a new certificate needs is a new authority, so that there
//! is no key to keep that could sign more.

use super::certificate::Unusable;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clocks of machines differ.
const SKEW: Duration = Duration::from_secs(3600);

/// All PEM.
#[derive(Debug)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
    pub authority: String,
}

/// A certificate for a server of these names and addresses.
pub fn issue(names: &[String], lifetime: Duration, now: SystemTime) -> Result<Issued, Unusable> {
    let wrong = |e: rcgen::Error| Unusable(e.to_string());
    let stamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let params = |name: String| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = ((now - SKEW).into(), (now + lifetime).into());
        params
    };
    let mut authority = params(format!("weft webhook {stamp}"));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = KeyPair::generate().map_err(wrong)?;
    let authority_certificate = authority.self_signed(&authority_key).map_err(wrong)?;

    let mut leaf = params(names.first().map_or_else(String::new, |n| n.chars().take(64).collect()));
    for name in names {
        leaf.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(wrong)?),
        });
    }
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(wrong)?;
    let signed = leaf.signed_by(&key, &Issuer::from_params(&authority, &authority_key)).map_err(wrong)?;
    Ok(Issued { certificate: signed.pem(), key: key.serialize_pem(), authority: authority_certificate.pem() })
}

/// A chain and its key as rustls takes them, and when they end.
pub fn load(certificate: &str, key: &str) -> Result<(CertifiedKey, SystemTime), Unusable> {
    let chain = certificates(certificate)?;
    let wrong = |what: &str, why: String| Unusable(format!("{what}: {why}"));
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| wrong("tls.key", e.to_string()))?;
    let first = chain.first().ok_or_else(|| Unusable("tls.crt has no certificate".into()))?;
    let (_, read) = x509_parser::parse_x509_certificate(first).map_err(|e| wrong("tls.crt", e.to_string()))?;
    let end = u64::try_from(read.validity().not_after.timestamp()).unwrap_or(0);
    let certified = CertifiedKey::from_der(chain, key, weft_tls::config::provider())
        .map_err(|e| wrong("tls.crt and tls.key", e.to_string()))?;
    Ok((certified, UNIX_EPOCH + Duration::from_secs(end)))
}

pub fn certificates(text: &str) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, Unusable> {
    let all = rustls::pki_types::CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    all.map_err(|e| Unusable(format!("a certificate: {e}")))
}
