//! Signing: who asks is proven by a token or by the certificate that is renewed, never by the request. Of the request, the
//! public key counts, and that its key signed it. It may name the identity it will get; one that names any other is refused, for
//! somebody believes in something that is not so.

use super::attest::{AttestError, Attested};
use super::ca::{Authority, CaError, Issued, Subject};
use super::token::{self, Binding, TokenError};
use crate::identity::Caller;
use crate::state::StateDir;
use rcgen::SubjectPublicKeyInfo;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

const MAX_CSR: usize = 8 * 1024;
const MAX_TOKEN: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("certificate request: {0}")]
    Request(String),
    #[error("{0}")]
    Token(#[from] TokenError),
    #[error("{0}")]
    Attest(#[from] AttestError),
    #[error("neither a join token nor a certificate of this mesh proves who asks")]
    Nobody,
    #[error("the certificate that would be renewed has expired: join with a new token")]
    Expired,
    #[error("the request names {asked}, and this is {proven}")]
    OtherIdentity { asked: String, proven: String },
    #[error("too many certificates for {0}: wait")]
    TooMany(String),
    #[error("{0}")]
    Ca(#[from] CaError),
}

/// What counts of a request.
#[derive(Debug)]
pub struct Csr {
    key: SubjectPublicKeyInfo,
    /// As printed; of any kind.
    names: Vec<String>,
}

impl Csr {
    pub fn read(der: &[u8]) -> Result<Self, SignError> {
        let wrong = |why: &str| SignError::Request(why.into());
        if der.len() > MAX_CSR {
            return Err(wrong("longer than 8 KiB"));
        }
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| wrong("not PKCS#10 in DER"))?;
        if !rest.is_empty() {
            return Err(wrong("something follows it"));
        }
        let spki = &csr.certification_request_info.subject_pki;
        if !matches!(spki.parsed(), Ok(PublicKey::EC(point)) if point.key_size() == 256) {
            return Err(wrong("the key has to be ECDSA P-256"));
        }
        let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| wrong("the key has to be ECDSA P-256"))?;
        if rcgen::PublicKeyData::algorithm(&key) != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(wrong("the key has to be ECDSA P-256"));
        }
        csr.verify_signature().map_err(|_| wrong("not signed by its own key"))?;
        let mut names = Vec::new();
        for extension in csr.requested_extensions().into_iter().flatten() {
            match extension {
                ParsedExtension::SubjectAlternativeName(san) => names.extend(san.general_names.iter().map(print)),
                ParsedExtension::ParseError { .. } => return Err(wrong("an extension cannot be read")),
                _ => {}
            }
        }
        Ok(Self { key, names })
    }

    fn fits(&self, subject: &Subject) -> Result<(), SignError> {
        match self.names.iter().find(|n| n.as_str() != subject.id.as_str()) {
            Some(other) => {
                Err(SignError::OtherIdentity { asked: format!("{other:.300?}"), proven: subject.id.to_string() })
            }
            None => Ok(()),
        }
    }
}

fn print(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::URI(uri) => (*uri).to_string(),
        other => other.to_string(),
    }
}

/// One signer for all.
#[derive(Debug)]
pub struct Signer {
    pub dir: StateDir,
    pub lifetime: Duration,
    limits: Limits,
}

impl Signer {
    pub fn new(dir: StateDir, lifetime: Duration) -> Self {
        Self { dir, lifetime, limits: Limits::new(lifetime) }
    }

    /// Everything but the network; touches the disk.
    pub fn sign(
        &self,
        ca: &Authority,
        csr: &[u8],
        join_token: &str,
        caller: Option<&Caller>,
        now: SystemTime,
    ) -> Result<(Subject, Issued), SignError> {
        let csr = Csr::read(csr)?;
        let subject = match (join_token, caller) {
            ("", None) => return Err(SignError::Nobody),
            ("", Some(caller)) if !caller.counts(now) => return Err(SignError::Expired),
            ("", Some(caller)) => {
                Subject { id: caller.id.clone(), pod: caller.pod.name.clone(), uid: caller.uid.clone() }
            }
            (token, _) if token.len() > MAX_TOKEN => return Err(TokenError::Refused.into()),
            (token, _) => of(ca, token::look(&self.dir, token, now)?, String::new())?,
        };
        let issued = self.issue(ca, &csr, &subject, now)?;
        // Last: what fails here costs no token, and of two callers with one token only one gets what was signed for it.
        if !join_token.is_empty() {
            token::spend(&self.dir, join_token)?;
        }
        Ok((subject, issued))
    }

    /// For a pod that the API server knows.
    pub fn sign_attested(
        &self,
        ca: &Authority,
        csr: &[u8],
        pod: Attested,
        now: SystemTime,
    ) -> Result<(Subject, Issued), SignError> {
        let csr = Csr::read(csr)?;
        let subject = of(ca, pod.binding, pod.uid)?;
        let issued = self.issue(ca, &csr, &subject, now)?;
        Ok((subject, issued))
    }

    fn issue(&self, ca: &Authority, csr: &Csr, subject: &Subject, now: SystemTime) -> Result<Issued, SignError> {
        csr.fits(subject)?;
        let uid = if subject.uid.is_empty() { String::new() } else { format!(" ({})", subject.uid) };
        let instance = format!("{}{uid} of {}", subject.pod, subject.id);
        if !self.limits.admit(&instance, Instant::now()) {
            return Err(SignError::TooMany(instance));
        }
        let issued = ca.issue(subject, &csr.key, self.lifetime, now)?;
        ca.record(&self.dir, subject, &issued)?;
        Ok(issued)
    }
}

fn of(ca: &Authority, binding: Binding, uid: String) -> Result<Subject, CaError> {
    Ok(Subject { id: ca.id(&binding.namespace, &binding.service_account)?, pod: binding.pod, uid })
}

/// Per workload instance: a few at once, then one in a while that is in proportion to the lifetime (10 s for a day's).
#[derive(Debug)]
struct Limits {
    every: Duration,
    seen: Mutex<BTreeMap<String, (f64, Instant)>>,
}

const BURST: f64 = 5.0;
const INSTANCES: usize = 100_000;

impl Limits {
    fn new(lifetime: Duration) -> Self {
        Self { every: (lifetime / 8640).max(Duration::from_millis(1)), seen: Mutex::default() }
    }

    fn admit(&self, instance: &str, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let refill = |left: f64, at: Instant| {
            (left + now.saturating_duration_since(at).as_secs_f64() / self.every.as_secs_f64()).min(BURST)
        };
        if seen.len() >= INSTANCES {
            seen.retain(|_, (left, at)| refill(*left, *at) < BURST);
        }
        if seen.len() >= INSTANCES && !seen.contains_key(instance) {
            return false;
        }
        let (left, at) = seen.get(instance).copied().unwrap_or((BURST, now));
        let left = refill(left, at);
        let admitted = left >= 1.0;
        seen.insert(instance.into(), (if admitted { left - 1.0 } else { left }, now));
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CustomExtension, IsCa, KeyPair, SanType};
    use weft_policy::id::TrustDomain;
    use weft_testkit::dir::TempDir;
    use x509_parser::parse_x509_certificate;

    fn request(change: impl FnOnce(&mut CertificateParams), key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        change(&mut params);
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn requests_that_are_none() {
        let key = KeyPair::generate().unwrap();
        let good = request(|_| {}, &key);
        Csr::read(&good).unwrap();
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        let mut longer = good.clone();
        longer.push(0);
        for bad in [
            Vec::new(),
            vec![0x30; 100],
            vec![0; 1 << 20],
            request(|_| {}, &p384),
            request(|_| {}, &ed25519),
            forged,
            longer,
        ] {
            assert!(matches!(Csr::read(&bad), Err(SignError::Request(_))), "{} bytes", bad.len());
        }
        for cut in 0..good.len() {
            assert!(Csr::read(&good[..cut]).is_err());
        }
    }

    #[test]
    fn only_the_key_counts() {
        let temp = TempDir::new();
        let dir = StateDir::open(temp.path()).unwrap();
        let ca = Authority::load_or_create(&dir, &TrustDomain::parse("a.b").unwrap()).unwrap();
        let signer = Signer::new(dir.clone(), Duration::from_secs(3600));
        let now = SystemTime::now();
        let caller = Caller {
            id: ca.id("demo", "web").unwrap(),
            pod: weft_dialects::world::PodId { namespace: "demo".into(), name: "web-1".into() },
            uid: String::new(),
            not_after: now + Duration::from_secs(10),
        };
        let key = KeyPair::generate().unwrap();
        let greedy = request(
            |p| {
                p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                p.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
                p.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]));
                p.distinguished_name.push(rcgen::DnType::CommonName, "admin");
                p.subject_alt_names.push(SanType::URI("spiffe://a.b/ns/demo/sa/web".try_into().unwrap()));
            },
            &key,
        );
        let (_, issued) = signer.sign(&ca, &greedy, "", Some(&caller), now).unwrap();
        let (_, cert) = parse_x509_certificate(&issued.der).unwrap();
        assert!(!cert.is_ca());
        assert_eq!(cert.subject().to_string(), "CN=web-1");
        assert_eq!(cert.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        assert!(!cert.key_usage().unwrap().unwrap().value.key_cert_sign());
        assert_eq!(Caller::of(&issued.der).unwrap().pod, caller.pod);
        assert_eq!(Caller::of(&issued.der).unwrap().id, caller.id);

        for other in [
            SanType::URI("spiffe://a.b/ns/demo/sa/db".try_into().unwrap()),
            SanType::DnsName("*.example.com".try_into().unwrap()),
            SanType::IpAddress([10, 0, 0, 1].into()),
        ] {
            let asked = request(|p| p.subject_alt_names.push(other), &key);
            let refused = signer.sign(&ca, &asked, "", Some(&caller), now);
            assert!(matches!(refused, Err(SignError::OtherIdentity { .. })), "{refused:?}");
        }
        let plain = request(|_| {}, &key);
        assert!(matches!(signer.sign(&ca, &plain, "", None, now), Err(SignError::Nobody)));
        let late = caller.not_after;
        assert!(matches!(signer.sign(&ca, &plain, "", Some(&caller), late), Err(SignError::Expired)));
    }

    #[test]
    fn nothing_outlives_its_root_and_serials_differ() {
        let temp = TempDir::new();
        let dir = StateDir::open(temp.path()).unwrap();
        let ca = Authority::load_or_create(&dir, &TrustDomain::parse("a.b").unwrap()).unwrap();
        let subject = Subject { id: ca.id("demo", "web").unwrap(), pod: "web-1".into(), uid: String::new() };
        let key = KeyPair::generate().unwrap();
        let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
        let root = parse_x509_certificate(&ca.roots[0].der).unwrap().1.validity().not_after.timestamp();
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(root as u64);
        let last = ca.issue(&subject, &key, day, end - Duration::from_secs(100)).unwrap();
        assert_eq!(last.not_after, root as u64);
        assert!(matches!(ca.issue(&subject, &key, day, end), Err(CaError::Clock(..))));
        assert!(matches!(ca.issue(&subject, &key, day, now - 2 * day), Err(CaError::Clock(..))));
        let serials: std::collections::BTreeSet<String> =
            (0..50).map(|_| ca.issue(&subject, &key, day, now).unwrap().serial).collect();
        assert_eq!(serials.len(), 50);
    }

    #[test]
    fn a_few_at_once_then_slowly() {
        let limits = Limits::new(Duration::from_secs(24 * 3600));
        let now = Instant::now();
        assert_eq!((0..9).filter(|_| limits.admit("a", now)).count(), 5);
        assert!(limits.admit("b", now));
        assert!(!limits.admit("a", now + Duration::from_secs(9)));
        assert!(limits.admit("a", now + Duration::from_secs(10)));
    }
}
