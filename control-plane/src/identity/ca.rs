//! The authority: its roots, and the one of them that signs.
//!
//! `ca.json` in the state folder says which roots are trusted, which one signs and how far a rotation has come; it is written
//! last, so a crash at any point leaves either the state before or the state after. A root's key never leaves its file (0600)
//! and the signer here. Leaves carry one SPIFFE id and, as the subject's common name, the pod they were made for.

use crate::state::StateDir;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use weft_policy::id::{IdError, SpiffeId, TrustDomain};
use weft_tls::{TlsError, TrustBundle};

const STATE: &str = "ca.json";
/// The bundle as people and first-time clients want it; made from the rest.
pub const ROOT_PEM: &str = "root.pem";
const ISSUED: &str = "issued.log";
const ISSUED_BEFORE: &str = "issued.log.1";
const ISSUED_BYTES: u64 = 16 << 20;
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A certificate counts from so long before it was made: clocks differ, a leaf's users' by minutes, and the authority's own may be
/// set back after the root was made.
pub const SKEW: Duration = Duration::from_secs(15 * 60);
const ROOT_SKEW: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("state folder: {0}")]
    Io(#[from] io::Error),
    #[error("ca.json: {0}")]
    State(String),
    #[error("{0}")]
    Name(String),
    #[error("root {0}: {1}")]
    Root(String, String),
    #[error("there is no root yet: the control plane makes it when it first runs")]
    None,
    #[error("the state folder is for trust domain {0}, not {1}")]
    Domain(TrustDomain, TrustDomain),
    #[error("{0}")]
    Id(#[from] IdError),
    #[error("the clock says it is not the time of root {0} (from {1} to {2}, in seconds since 1970)")]
    Clock(String, u64, u64),
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("no randomness")]
    Random,
    #[error("{0}")]
    TooEarly(String),
    #[error("Secret weft-ca: {0}")]
    Secret(String),
    #[error("the API server: {0}")]
    Kube(String),
}

/// How far a rotation of the root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One root.
    Single,
    /// A second one is trusted and does not sign yet.
    Introduced,
    /// The second one signs; what the first one signed still counts.
    Switched,
}

impl Stage {
    const WORDS: [(Self, &str); 3] =
        [(Self::Single, "single"), (Self::Introduced, "introduced"), (Self::Switched, "switched")];

    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(s, _)| *s == self).map_or("", |(_, w)| w)
    }

    /// What the next step of a rotation does.
    pub fn next(self) -> &'static str {
        match self {
            Self::Single => "a second root is made and trusted beside the first",
            Self::Introduced => "the second root signs",
            Self::Switched => "the first root goes",
        }
    }
}

#[derive(Debug)]
pub struct Root {
    pub id: String,
    pub der: CertificateDer<'static>,
    pub pem: String,
    not_before: u64,
    not_after: u64,
}

#[derive(Debug)]
pub struct Authority {
    pub domain: TrustDomain,
    pub stage: Stage,
    /// Seconds since 1970 at which the stage began.
    pub since: u64,
    /// The older one first.
    pub roots: Vec<Root>,
    pub signing: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub id: SpiffeId,
    /// Empty for what is no pod.
    pub pod: String,
    /// Of the pod in Kubernetes, or empty: by it a later pod of the same name is another.
    pub uid: String,
}

/// `userId` of X.500, where a leaf names its pod's uid.
pub const USER_ID: [u64; 7] = [0, 9, 2342, 19200300, 100, 1, 1];

#[derive(Debug)]
pub struct Issued {
    pub der: CertificateDer<'static>,
    pub serial: String,
    pub not_after: u64,
}

/// A line of the log of what was signed.
#[derive(Debug)]
pub struct Record {
    pub identity: String,
    pub pod: String,
    pub issuer: String,
    pub not_after: u64,
}

impl Authority {
    /// `None` before the first root is made.
    pub fn load(dir: &StateDir) -> Result<Option<Self>, CaError> {
        let Some(text) = dir.read(STATE)? else { return Ok(None) };
        let state: Value = serde_json::from_str(&text).map_err(|e| CaError::State(e.to_string()))?;
        let word =
            |name: &str| state[name].as_str().ok_or_else(|| CaError::State(format!("{name} is missing or no text")));
        let domain = TrustDomain::parse(word("trustDomain")?)?;
        let stage = word("stage")?;
        let stage = Stage::WORDS.iter().find(|(_, w)| *w == stage).map(|(s, _)| *s);
        let stage = stage.ok_or_else(|| CaError::State("stage is none of single, introduced, switched".into()))?;
        let since = state["since"].as_u64().ok_or_else(|| CaError::State("since is missing".into()))?;
        let ids = state["roots"].as_array().map(Vec::as_slice).unwrap_or_default();
        let roots: Vec<Root> =
            ids.iter().filter_map(Value::as_str).map(|id| Root::load(dir, id)).collect::<Result<_, _>>()?;
        let signing = word("signing")?.to_string();
        let Some(signer) = roots.iter().find(|r| r.id == signing) else {
            return Err(CaError::State(format!("the signing root {signing} is not among the roots")));
        };
        let wrong = |e: rcgen::Error| CaError::Root(signing.clone(), e.to_string());
        let key = dir.read(&key_file(&signing))?;
        let key = key.ok_or_else(|| CaError::Root(signing.clone(), "its key file is missing".into()))?;
        let key = KeyPair::from_pem(&key).map_err(wrong)?;
        let issuer = Issuer::from_ca_cert_der(&signer.der, key).map_err(wrong)?;
        Ok(Some(Self { domain, stage, since, roots, signing, issuer }))
    }

    /// The one that is there, or a first one.
    pub fn load_or_create(dir: &StateDir, domain: &TrustDomain) -> Result<Self, CaError> {
        let _lock = dir.lock()?;
        if Self::load(dir)?.is_none() {
            let id = Root::create(dir, domain)?;
            Self::store(dir, domain, Stage::Single, &[&id], &id, SystemTime::now())?;
        }
        let authority = Self::load(dir)?.ok_or(CaError::None)?;
        if authority.domain != *domain {
            return Err(CaError::Domain(authority.domain, domain.clone()));
        }
        // Made from the rest, so a crash between the two is healed here.
        dir.write(ROOT_PEM, &authority.pem())?;
        Ok(authority)
    }

    /// The step that counts: everything it names is on the disk before.
    pub fn store(
        dir: &StateDir,
        domain: &TrustDomain,
        stage: Stage,
        roots: &[&str],
        signing: &str,
        now: SystemTime,
    ) -> Result<(), CaError> {
        let state = json!({
            "trustDomain": domain.as_str(),
            "stage": stage.word(),
            "since": seconds(now),
            "roots": roots,
            "signing": signing,
        });
        Ok(dir.write_secret(STATE, &format!("{state:#}\n"))?)
    }

    pub fn file(dir: &StateDir) -> std::path::PathBuf {
        dir.path(STATE)
    }

    /// A certificate for a public key. What is asked for beside the subject has no say.
    pub fn issue(
        &self,
        subject: &Subject,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let root = self.roots.iter().find(|r| r.id == self.signing).ok_or(CaError::None)?;
        let at = seconds(now);
        if at < root.not_before || at >= root.not_after {
            return Err(CaError::Clock(root.id.clone(), root.not_before, root.not_after));
        }
        let not_after = at.saturating_add(lifetime.as_secs()).min(root.not_after);
        let not_before = at.saturating_sub(SKEW.as_secs()).max(root.not_before);
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names.push(SanType::URI(subject.id.as_str().try_into()?));
        params.distinguished_name = DistinguishedName::new();
        if !subject.pod.is_empty() {
            params.distinguished_name.push(DnType::CommonName, subject.pod.as_str());
        }
        if !subject.uid.is_empty() {
            params.distinguished_name.push(DnType::CustomDnType(USER_ID.to_vec()), subject.uid.as_str());
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (UNIX_EPOCH + Duration::from_secs(not_before)).into();
        params.not_after = (UNIX_EPOCH + Duration::from_secs(not_after)).into();
        let serial = serial()?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let cert = params.signed_by(key, &self.issuer)?;
        Ok(Issued { der: cert.der().clone(), serial: hex(&serial), not_after })
    }

    /// Every certificate is written down before it is given away.
    pub fn record(&self, dir: &StateDir, subject: &Subject, issued: &Issued) -> Result<(), CaError> {
        if std::fs::metadata(dir.path(ISSUED)).is_ok_and(|m| m.len() > ISSUED_BYTES) {
            std::fs::rename(dir.path(ISSUED), dir.path(ISSUED_BEFORE))?;
        }
        let line = json!({
            "serial": issued.serial,
            "identity": subject.id.as_str(),
            "pod": subject.pod,
            "issuer": self.signing,
            "notAfter": issued.not_after,
        });
        Ok(dir.append(ISSUED, &line.to_string())?)
    }

    /// What was signed. A line that a crash cut short was never given away.
    pub fn records(dir: &StateDir) -> Result<Vec<Record>, CaError> {
        let text = dir.read(ISSUED_BEFORE)?.unwrap_or_default() + &dir.read(ISSUED)?.unwrap_or_default();
        let read = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            let text = |name: &str| Some(line[name].as_str()?.to_string());
            let (identity, pod, issuer) = (text("identity")?, text("pod")?, text("issuer")?);
            Some(Record { identity, pod, issuer, not_after: line["notAfter"].as_u64()? })
        };
        Ok(text.lines().filter_map(read).collect())
    }

    pub fn pem(&self) -> String {
        self.roots.iter().map(|r| r.pem.as_str()).collect()
    }

    pub fn bundle(&self) -> Result<TrustBundle, TlsError> {
        let mut bundle = TrustBundle::default();
        for root in &self.roots {
            bundle.add_der(Some(self.domain.clone()), root.der.clone())?;
        }
        Ok(bundle)
    }

    /// As the resource `trust` has it.
    pub fn document(&self) -> Value {
        let roots: Vec<&str> = self.roots.iter().map(|r| r.pem.as_str()).collect();
        json!([{"domain": self.domain.as_str(), "roots": roots}])
    }

    /// The id of a workload of this mesh; the names are checked by being one.
    pub fn id(&self, namespace: &str, account: &str) -> Result<SpiffeId, IdError> {
        SpiffeId::parse(&format!("spiffe://{}/ns/{namespace}/sa/{account}", self.domain))
    }
}

fn key_file(id: &str) -> String {
    format!("root-{id}.key")
}

impl Root {
    fn load(dir: &StateDir, id: &str) -> Result<Self, CaError> {
        let wrong = |why: String| CaError::Root(id.into(), why);
        let pem = dir.read(&format!("root-{id}.pem"))?.ok_or_else(|| wrong("its certificate is missing".into()))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| wrong(e.to_string()))?;
        let (_, cert) = x509_parser::parse_x509_certificate(&der).map_err(|e| wrong(e.to_string()))?;
        let at = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let (not_before, not_after) = (at(cert.validity().not_before), at(cert.validity().not_after));
        Ok(Self { id: id.into(), der: der.clone(), pem, not_before, not_after })
    }

    /// A new key and its certificate; of no effect until `ca.json` names it.
    pub fn create(dir: &StateDir, domain: &TrustDomain) -> Result<String, CaError> {
        let serial = serial()?;
        let id = hex(serial.get(..4).unwrap_or_default());
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
        params.distinguished_name.push(DnType::CommonName, format!("{domain} root {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let now = SystemTime::now();
        params.not_before = (now - ROOT_SKEW).into();
        params.not_after = (now + ROOT_LIFETIME).into();
        let key = KeyPair::generate()?;
        let cert = params.self_signed(&key)?;
        dir.write_secret(&key_file(&id), &key.serialize_pem())?;
        dir.write(&format!("root-{id}.pem"), &cert.pem())?;
        Ok(id)
    }

    /// Its key is of no more use to anybody.
    pub fn remove_key(dir: &StateDir, id: &str) -> Result<(), CaError> {
        dir.remove(&key_file(id))?;
        Ok(())
    }
}

/// 128 random bits, positive as a DER integer has to be.
fn serial() -> Result<[u8; 16], CaError> {
    let mut bytes = random::<16>()?;
    bytes[0] &= 0x7f;
    bytes[0] |= 0x40;
    Ok(bytes)
}

pub fn random<const N: usize>() -> Result<[u8; N], CaError> {
    let mut bytes = [0; N];
    weft_tls::config::provider().secure_random.fill(&mut bytes).map_err(|_| CaError::Random)?;
    Ok(bytes)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
