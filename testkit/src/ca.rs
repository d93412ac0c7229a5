//! Certificates: a root per trust domain and leaves that may be wrong in every way a test wants.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::dir::TempDir;

pub struct Ca {
    pub trust_domain: String,
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    /// For an intermediate: its own certificate and those above it short of the root; goes behind each leaf.
    chain_pem: String,
}

/// Which extended key usages the leaf carries.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Eku {
    #[default]
    Both,
    Client,
    Server,
    None,
}

#[derive(Clone, Debug)]
pub struct LeafOpts {
    pub dns: Vec<String>,
    pub ips: Vec<std::net::IpAddr>,
    /// URI SANs beside the SPIFFE id.
    pub more_uris: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub eku: Eku,
    /// A certificate of an authority where a leaf belongs.
    pub is_ca: bool,
    pub common_name: Option<String>,
}

impl Default for LeafOpts {
    fn default() -> Self {
        let now = SystemTime::now();
        Self {
            dns: Vec::new(),
            ips: Vec::new(),
            more_uris: Vec::new(),
            not_before: now - Duration::from_secs(60),
            not_after: now + Duration::from_secs(24 * 3600),
            eku: Eku::Both,
            is_ca: false,
            common_name: None,
        }
    }
}

impl LeafOpts {
    pub fn dns(names: &[&str]) -> Self {
        Self { dns: names.iter().map(ToString::to_string).collect(), ..Self::default() }
    }

    pub fn expired() -> Self {
        let now = SystemTime::now();
        Self {
            not_before: now - Duration::from_secs(7200),
            not_after: now - Duration::from_secs(3600),
            ..Self::default()
        }
    }

    pub fn not_yet_valid() -> Self {
        let now = SystemTime::now();
        Self { not_before: now + Duration::from_secs(3600), ..Self::default() }
    }
}

#[derive(Clone, Debug)]
pub struct Leaf {
    /// The leaf, then intermediates if there are any.
    pub cert_pem: String,
    pub key_pem: String,
}

/// The three files an identity is given by.
#[derive(Clone, Debug)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub roots: PathBuf,
}

impl Ca {
    pub fn new(trust_domain: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let params = authority(trust_domain, "root");
        let cert = params.self_signed(&key).expect("root");
        Self {
            trust_domain: trust_domain.to_string(),
            issuer: Issuer::new(params, key),
            root_pem: cert.pem(),
            chain_pem: String::new(),
        }
    }

    /// An authority signed by this one; its leaves carry the chain, its root is ours.
    pub fn intermediate(&self) -> Self {
        let key = KeyPair::generate().expect("key");
        let params = authority(&self.trust_domain, "intermediate");
        let cert = params.signed_by(&key, &self.issuer).expect("intermediate");
        Self {
            trust_domain: self.trust_domain.clone(),
            issuer: Issuer::new(params, key),
            root_pem: self.root_pem.clone(),
            chain_pem: cert.pem() + &self.chain_pem,
        }
    }

    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// `spiffe://<trust domain>/ns/<namespace>/sa/<account>`
    pub fn id(&self, namespace: &str, account: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain)
    }

    /// A leaf for `spiffe_id` as it is given (an empty one: no URI at all), whether or not it is in our trust domain.
    pub fn leaf(&self, spiffe_id: &str, opts: &LeafOpts) -> Leaf {
        let params = leaf_params(spiffe_id, opts);
        let key = KeyPair::generate().expect("key");
        let cert = params.signed_by(&key, &self.issuer).expect("leaf");
        Leaf { cert_pem: cert.pem() + &self.chain_pem, key_pem: key.serialize_pem() }
    }

    /// A leaf for somebody else's key, from its request (DER): the chain, leaf first. Only the key is taken from it.
    pub fn sign(&self, csr: &[u8], spiffe_id: &str, opts: &LeafOpts) -> Result<Vec<Vec<u8>>, String> {
        let mut request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(|e| e.to_string())?;
        request.params = leaf_params(spiffe_id, opts);
        let cert = request.signed_by(&self.issuer).map_err(|e| e.to_string())?;
        let mut chain = vec![cert.der().to_vec()];
        chain.extend(CertificateDer::pem_slice_iter(self.chain_pem.as_bytes()).map(|c| c.expect("chain").to_vec()));
        Ok(chain)
    }

    pub fn root_der(&self) -> Vec<u8> {
        CertificateDer::from_pem_slice(self.root_pem.as_bytes()).expect("root").to_vec()
    }

    /// An ordinary leaf of this trust domain.
    pub fn workload(&self, namespace: &str, account: &str) -> Leaf {
        self.leaf(&self.id(namespace, account), &LeafOpts::default())
    }
}

/// The first URI name of a certificate (DER).
pub fn uri_of(certificate: &[u8]) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    let (_, cert) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_string()),
        _ => None,
    })
}

fn leaf_params(spiffe_id: &str, opts: &LeafOpts) -> CertificateParams {
    let mut params = CertificateParams::new(opts.dns.clone()).expect("names");
    for uri in [spiffe_id].into_iter().chain(opts.more_uris.iter().map(String::as_str)).filter(|u| !u.is_empty()) {
        params.subject_alt_names.push(SanType::URI(uri.try_into().expect("an ASCII URI")));
    }
    params.subject_alt_names.extend(opts.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = &opts.common_name {
        params.distinguished_name.push(DnType::CommonName, name.as_str());
    }
    params.not_before = opts.not_before.into();
    params.not_after = opts.not_after.into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match opts.eku {
        Eku::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Eku::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Eku::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Eku::None => Vec::new(),
    };
    if opts.is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    }
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority(trust_domain: &str, role: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    // Roots of one trust domain get the same subject, as two generations of a real one often do.
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} {role}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(24 * 3600)).into();
    params.not_after = (now + Duration::from_secs(365 * 24 * 3600)).into();
    params
}

impl Leaf {
    /// Writes `<name>.crt`, `<name>.key` and `<name>.roots` (each by rename; the certificate last, since a reader that
    /// watches takes a new certificate as the sign that the pair is complete).
    pub fn write(&self, dir: &TempDir, name: &str, roots: &[&Ca]) -> Files {
        let roots: String = roots.iter().map(|ca| ca.root_pem()).collect();
        let roots = dir.write(&format!("{name}.roots"), roots);
        let key = dir.write(&format!("{name}.key"), &self.key_pem);
        let cert = dir.write(&format!("{name}.crt"), &self.cert_pem);
        Files { cert, key, roots }
    }
}
