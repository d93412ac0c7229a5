//! Whether a peer is who it must be.
//!
//! The leaf's identity comes first: exactly one URI name, and that a SPIFFE id (DNS names beside it are fine). Its trust
//! domain picks the roots, the chain must lead to one of them, and then the expectation decides. Names are parsed
//! strictly, so whatever passed can be copied into headers and logs. The size of the chain is looked at before anything
//! is parsed. Revocation is by short lifetimes and removed roots; there are no CRLs here.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustc_hash::FxHashMap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};
use weft_policy::id::SpiffeId;
use x509_parser::prelude::{GeneralName, ParsedExtension};
use x509_parser::public_key::PublicKey;

use crate::bundle::TrustBundle;
use crate::config::provider;
use crate::identity::TlsError;
use crate::proven::{Proven, Shown};
use crate::reason::Reason;

const MAX_CHAIN: usize = 8;
const MAX_CHAIN_BYTES: usize = 64 * 1024;
const SERVER_AUTH: &[u8] = &[43, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[43, 6, 1, 5, 5, 7, 3, 2];

/// Who a peer has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Any SPIFFE id that the bundle proves.
    Any,
    Ids(Arc<[SpiffeId]>),
    /// A DNS name or IP address by RFC 6125: names of the SAN only, `*` for the whole left-most label only.
    Dns(ServerName<'static>),
    /// Any certificate that the bundle proves, with or without an identity (plain CA files).
    Chain,
}

impl Expect {
    pub fn dns(name: &str) -> Result<Self, TlsError> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))?;
        Ok(Self::Dns(name))
    }

    pub fn id(id: SpiffeId) -> Self {
        Self::Ids([id].into())
    }

    fn needs_identity(&self) -> bool {
        matches!(self, Self::Any | Self::Ids(_))
    }
}

/// The names of a leaf that matter, all URI names counted, well-formed or not.
pub(crate) struct San {
    uris: Vec<String>,
    dns: Vec<String>,
    rsa_bits: Option<usize>,
    has_usages: bool,
}

impl San {
    pub(crate) fn read(leaf: &[u8]) -> Result<Self, Reason> {
        let (rest, cert) = x509_parser::parse_x509_certificate(leaf).map_err(|_| Reason::BadCertificate)?;
        if !rest.is_empty() {
            return Err(Reason::BadCertificate);
        }
        let mut names = Self { uris: Vec::new(), dns: Vec::new(), rsa_bits: None, has_usages: false };
        for extension in cert.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => {
                    for name in &san.general_names {
                        match name {
                            GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                            GeneralName::DNSName(dns) => names.dns.push((*dns).to_owned()),
                            // A name that does not even parse must not hide a second URI.
                            GeneralName::Invalid(..) => return Err(Reason::BadCertificate),
                            _ => {}
                        }
                    }
                }
                ParsedExtension::ExtendedKeyUsage(_) => names.has_usages = true,
                ParsedExtension::ParseError { .. } => return Err(Reason::BadCertificate),
                _ => {}
            }
        }
        if let Ok(PublicKey::RSA(key)) = cert.public_key().parsed() {
            names.rsa_bits = Some(key.key_size());
        }
        Ok(names)
    }

    /// The one SPIFFE id; no URI at all is `NoIdentity`, anything else that is not exactly one id is `BadCertificate`.
    pub(crate) fn spiffe(&self) -> Result<SpiffeId, (Reason, String)> {
        match self.uris.as_slice() {
            [] => Err((Reason::NoIdentity, "the certificate has no URI name".into())),
            [uri] => SpiffeId::parse(uri).map_err(|e| (Reason::BadCertificate, format!("{uri:?}: {e}"))),
            several => Err((Reason::BadCertificate, format!("the certificate has {} URI names", several.len()))),
        }
    }
}

/// Both sides' verifier.
#[derive(Debug)]
pub struct Verifier {
    bundle: Arc<TrustBundle>,
    /// One of these; empty means the server name of the connection.
    expect: Vec<Expect>,
    mandatory: bool,
    clients: Proven,
    servers: Proven,
}

impl Verifier {
    pub fn new(bundle: Arc<TrustBundle>, expect: Expect) -> Self {
        Self::one_of(bundle, vec![expect])
    }

    pub fn one_of(bundle: Arc<TrustBundle>, expect: Vec<Expect>) -> Self {
        Self { bundle, expect, mandatory: true, clients: Proven::default(), servers: Proven::default() }
    }

    /// Clients may come without a certificate; one that is shown is verified all the same.
    pub fn optional(self) -> Self {
        Self { mandatory: false, ..self }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        server_name: Option<&ServerName<'_>>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let (proven, usage) = match server_name {
            Some(_) => (&self.servers, SERVER_AUTH),
            None => (&self.clients, CLIENT_AUTH),
        };
        // The whole proof is in what was shown and in what this verifier was made with: no name of this connection alone.
        let lasting = server_name.is_none() || !self.expect.is_empty();
        let shown = if lasting { Shown::of(leaf, chain) } else { None };
        if shown.as_ref().is_some_and(|shown| proven.holds(shown, now)) {
            return Ok(());
        }
        let bytes = chain.iter().fold(leaf.len(), |sum, c| sum.saturating_add(c.len()));
        if chain.len() >= MAX_CHAIN || bytes > MAX_CHAIN_BYTES {
            let text = format!("{} certificates, {bytes} bytes", chain.len() + 1);
            return Err(Reason::ChainTooLong.refuse(text));
        }
        let cert = EndEntityCert::try_from(leaf).map_err(of_webpki)?;
        let names = San::read(leaf).map_err(|r| r.refuse("the certificate's names cannot be read".into()))?;
        if let Some(bits) = names.rsa_bits.filter(|bits| *bits < 2048) {
            return Err(Reason::WeakCertificate.refuse(format!("RSA key of {bits} bits")));
        }
        let strict =
            self.expect.iter().any(Expect::needs_identity) || (self.expect.is_empty() && server_name.is_none());
        let id = match names.spiffe() {
            Ok(id) => Some(id),
            Err((reason, text)) if strict => return Err(reason.refuse(text)),
            Err(_) => None,
        };
        // RFC 5280 lets a certificate without key usages serve any; a mesh identity must say what it is for (PI-44).
        if strict && !names.has_usages {
            return Err(Reason::WrongUsage.refuse("the certificate has no extended key usage".into()));
        }
        let usage = KeyUsage::required_if_present(usage);
        let domain = id.as_ref().map(SpiffeId::trust_domain);
        let anchors = self.bundle.anchors_for(domain);
        if let Err(error) = chains(&cert, chain, &anchors, now, usage) {
            // Proven by a root that may not speak for this domain? That is another mistake than an unknown CA.
            let elsewhere = match &id {
                Some(_) => unknown(&error) && chains(&cert, chain, &self.bundle.all_anchors(), now, usage).is_ok(),
                None => false,
            };
            if let (true, Some(id)) = (elsewhere, &id) {
                return Err(
                    Reason::WrongTrustDomain.refuse(format!("{id} is proven by the CA of another trust domain"))
                );
            }
            if let (true, Some(id)) = (anchors.is_empty(), &id) {
                return Err(Reason::WrongTrustDomain.refuse(format!("no roots for the trust domain of {id}")));
            }
            return Err(of_webpki(error));
        }
        self.expected(&cert, id.as_ref(), &names, server_name)?;
        if let Some(shown) = shown {
            proven.keep(shown, leaf, chain);
        }
        Ok(())
    }

    fn expected(
        &self,
        cert: &EndEntityCert<'_>,
        id: Option<&SpiffeId>,
        names: &San,
        server_name: Option<&ServerName<'_>>,
    ) -> Result<(), Error> {
        let has = |name: &ServerName<'_>| cert.verify_is_valid_for_subject_name(name).is_ok();
        let met = match (self.expect.as_slice(), server_name) {
            ([], Some(name)) => has(name),
            ([], None) => id.is_some(),
            (several, _) => several.iter().any(|expect| match expect {
                Expect::Any => id.is_some(),
                Expect::Ids(ids) => id.is_some_and(|id| ids.contains(id)),
                Expect::Dns(name) => has(name),
                Expect::Chain => true,
            }),
        };
        if met {
            return Ok(());
        }
        let presented = match id {
            Some(id) => id.to_string(),
            None => format!("{:?}", names.dns),
        };
        Err(Reason::WrongIdentity.refuse(format!("the peer is {presented}")))
    }

    fn tls12(
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn tls13(
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn schemes() -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn chains(
    cert: &EndEntityCert<'_>,
    chain: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    now: UnixTime,
    usage: KeyUsage,
) -> Result<(), webpki::Error> {
    let algorithms = provider().signature_verification_algorithms.all;
    cert.verify_for_usage(algorithms, anchors, chain, now, usage, None, None).map(|_| ())
}

fn unknown(error: &webpki::Error) -> bool {
    matches!(error, webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey)
}

fn of_webpki(error: webpki::Error) -> Error {
    use webpki::Error as E;
    match error {
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after }.into(),
        E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before }.into(),
        E::InvalidCertValidity => CertificateError::Expired.into(),
        // A CA of the same name with another key: still a CA we do not know.
        ref e if unknown(e) => CertificateError::UnknownIssuer.into(),
        E::CaUsedAsEndEntity => Reason::CaAsLeaf.refuse("a CA certificate was presented as the peer's own".into()),
        E::RequiredEkuNotFoundContext(_) => {
            Reason::WrongUsage.refuse("the certificate's extended key usage does not allow this".into())
        }
        E::UnsupportedSignatureAlgorithmContext(_) | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            Reason::WeakCertificate.refuse("signed with an algorithm that is not accepted".into())
        }
        E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded
        | E::MaximumNameConstraintComparisonsExceeded
        | E::PathLenConstraintViolated => Reason::ChainTooLong.refuse(error.to_string()),
        other => Reason::BadCertificate.refuse(other.to_string()),
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, chain, Some(name), now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// Hints are left out: our clients have one certificate, and the names of many roots would fill the first flight.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, chain, None, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

/// `insecure_skip_verify`: the certificate is not looked at; the peer still proves that it holds its key.
#[derive(Debug)]
pub(crate) struct AcceptAny;

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Verifier::tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Verifier::tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Verifier::schemes()
    }
}

/// Who a verified peer is. Made once per connection; what only some logs need is worked out when asked for.
#[derive(Debug)]
pub struct PeerIdentity {
    pub spiffe: Option<SpiffeId>,
    /// The first DNS name, for peers of a plain CA; only letters, digits, `.`, `-`, `_` and `*`.
    pub dns: Option<Arc<str>>,
    leaf: Box<[u8]>,
    sha256: OnceLock<Box<str>>,
    subject: OnceLock<Box<str>>,
}

thread_local! {
    /// Peers come again, and many connections are of one peer.
    static KNOWN: RefCell<FxHashMap<Box<[u8]>, Arc<PeerIdentity>>> = RefCell::default();
}

/// Beyond so many, knowing begins anew.
const MOST_KNOWN: usize = 256;

impl PeerIdentity {
    /// The one of this thread for a verified certificate.
    pub(crate) fn known(leaf: &CertificateDer<'_>) -> Arc<Self> {
        KNOWN.with_borrow_mut(|known| {
            if let Some(found) = known.get(leaf.as_ref()) {
                return found.clone();
            }
            if known.len() >= MOST_KNOWN {
                known.clear();
            }
            let new = Arc::new(Self::of(leaf));
            known.insert(leaf.as_ref().into(), new.clone());
            new
        })
    }

    pub fn of(leaf: &CertificateDer<'_>) -> Self {
        let names = San::read(leaf).ok();
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'*');
        Self {
            spiffe: names.as_ref().and_then(|n| n.spiffe().ok()),
            dns: names.and_then(|n| n.dns.into_iter().find(|d| d.bytes().all(plain))).map(Into::into),
            leaf: leaf.as_ref().into(),
            sha256: OnceLock::new(),
            subject: OnceLock::new(),
        }
    }

    /// Whether one of these roots has signed the certificate; its time is another matter. What stood between it and a root is not
    /// kept, so one that needs that is not proven here, and who shows it has to come again.
    pub fn is_proven_by(&self, bundle: &TrustBundle) -> bool {
        let leaf = CertificateDer::from(self.leaf.as_ref());
        let (Ok(cert), Ok((_, read))) = (EndEntityCert::try_from(&leaf), x509_parser::parse_x509_certificate(&leaf))
        else {
            return false;
        };
        let began = u64::try_from(read.validity().not_before.timestamp()).unwrap_or(0);
        let began = UnixTime::since_unix_epoch(Duration::from_secs(began));
        let anchors = bundle.anchors_for(self.spiffe.as_ref().map(SpiffeId::trust_domain));
        [SERVER_AUTH, CLIENT_AUTH]
            .iter()
            .any(|usage| chains(&cert, &[], &anchors, began, KeyUsage::required_if_present(usage)).is_ok())
    }

    /// SHA-256 of the certificate, lower-case hex.
    pub fn cert_sha256(&self) -> &str {
        self.sha256.get_or_init(|| hex_sha256(&self.leaf).into())
    }

    /// The subject, most specific part first as Envoy prints it; printable ASCII only, others become `?`.
    pub fn subject(&self) -> &str {
        self.subject.get_or_init(|| {
            let Ok((_, cert)) = x509_parser::parse_x509_certificate(&self.leaf) else { return "".into() };
            let mut parts: Vec<String> = cert.subject().to_string().split(", ").map(str::to_owned).collect();
            parts.reverse();
            let clean = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
            parts.join(",").chars().map(clean).collect::<String>().into()
        })
    }

    /// One element of `x-forwarded-client-cert` in Envoy's format: By= our own id, Hash, Subject and URI of the peer.
    pub fn xfcc(&self, own: Option<&SpiffeId>) -> String {
        let mut text = String::with_capacity(256);
        if let Some(own) = own {
            let _ = write!(text, "By={own};");
        }
        let _ = write!(text, "Hash={};Subject=\"", self.cert_sha256());
        for c in self.subject().chars() {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push_str("\";URI=");
        if let Some(id) = &self.spiffe {
            text.push_str(id.as_str());
        }
        text
    }
}

/// Lower-case hex.
pub fn hex_sha256(bytes: &[u8]) -> String {
    let Some(suite) = TLS13_AES_128_GCM_SHA256.tls13() else { return String::new() };
    let mut text = String::with_capacity(64);
    for byte in suite.common.hash_provider.hash(bytes).as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
