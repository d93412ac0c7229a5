//! rustls configs, all with the provider chosen here.
//!
//! Between proxies: TLS 1.3 only, AES-128-GCM first, X25519 first (a hybrid group costs 20 % more CPU per handshake; a
//! peer that offers nothing else still gets it), client certificate required, no resumption and no early data, so a
//! removed root or a rotated leaf counts for the very next handshake. Origination (TLS to something that is not of the
//! mesh) speaks 1.2 as well and may trust the system's roots.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::bundle::TrustBundle;
use crate::ciphers;
use crate::identity::{Identity, TlsError};
use crate::material::{Live, Material};
use crate::verify::{AcceptAny, Expect, Verifier};

/// The provider of every config made here.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        let mut provider = aws_lc_rs::default_provider();
        let preferred = ciphers::preferred();
        provider.cipher_suites.retain(|s| preferred.iter().all(|p| p.suite() != s.suite()));
        provider.cipher_suites.splice(0..0, preferred);
        provider.kx_groups = vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1, kx_group::X25519MLKEM768];
        Arc::new(provider)
    })
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Fixed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn wrong(error: rustls::Error) -> TlsError {
    TlsError::Config(error.to_string())
}

/// The server side of a mesh hop.
pub fn mesh_server(material: &Material, expect: Expect, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    server(material, Verifier::new(material.bundle.clone(), expect), alpn)
}

/// A server of the mesh that also takes clients without a certificate: who wants to join has none yet.
pub fn open_server(material: &Material, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    server(material, Verifier::new(material.bundle.clone(), Expect::Any).optional(), alpn)
}

fn server(material: &Material, verifier: Verifier, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(wrong)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(Fixed(material.identity.certified().clone())));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// The client side of a mesh hop. Cheap to build, yet worth keeping per (generation, expectation).
pub fn mesh_client(material: &Material, expect: Expect, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = Arc::new(Verifier::new(material.bundle.clone(), expect));
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(wrong)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Fixed(material.identity.certified().clone())));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// The mesh server config of the current material, rebuilt once after each rotation.
pub struct MeshServer {
    live: Live,
    /// `None`: clients may also come without a certificate.
    expect: Option<Expect>,
    alpn: Vec<Vec<u8>>,
    built: ArcSwapOption<(u64, Arc<ServerConfig>)>,
}

impl MeshServer {
    pub fn new(live: Live, expect: Expect, alpn: &[&[u8]]) -> Self {
        Self::build(live, Some(expect), alpn)
    }

    /// See `open_server`.
    pub fn open(live: Live, alpn: &[&[u8]]) -> Self {
        Self::build(live, None, alpn)
    }

    fn build(live: Live, expect: Option<Expect>, alpn: &[&[u8]]) -> Self {
        Self { live, expect, alpn: alpn.iter().map(|p| p.to_vec()).collect(), built: ArcSwapOption::empty() }
    }

    pub fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let generation = self.live.generation();
        if let Some(built) = &*self.built.load()
            && built.0 == generation
        {
            return Ok(built.1.clone());
        }
        let material = self.live.load();
        let alpn: Vec<&[u8]> = self.alpn.iter().map(Vec::as_slice).collect();
        let config = match &self.expect {
            Some(expect) => mesh_server(&material, expect.clone(), &alpn)?,
            None => open_server(&material, &alpn)?,
        };
        self.built.store(Some(Arc::new((material.generation, config.clone()))));
        Ok(config)
    }
}

/// Whom TLS origination trusts.
#[derive(Clone, Debug)]
pub enum Roots {
    System,
    Bundle(Arc<TrustBundle>),
    /// Any certificate at all. Only where the configuration says so in as many words.
    InsecureSkipVerify,
}

/// TLS to a destination that is not of the mesh (DestinationRule SIMPLE and MUTUAL, BackendTLSPolicy).
#[derive(Clone, Debug)]
pub struct Origination {
    pub roots: Roots,
    /// Names of which the certificate must carry one. Empty: the server name of the connection.
    pub expect: Vec<Expect>,
    pub identity: Option<Identity>,
    pub alpn: Vec<Vec<u8>>,
    /// Whether the server name is sent; it is needed as a value in any case.
    pub send_sni: bool,
}

pub fn origination_client(settings: &Origination) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(wrong)?
        .dangerous();
    let builder = match &settings.roots {
        Roots::InsecureSkipVerify => builder.with_custom_certificate_verifier(Arc::new(AcceptAny)),
        Roots::Bundle(bundle) => builder
            .with_custom_certificate_verifier(Arc::new(Verifier::one_of(bundle.clone(), settings.expect.clone()))),
        Roots::System => builder
            .with_custom_certificate_verifier(Arc::new(Verifier::one_of(system_roots()?, settings.expect.clone()))),
    };
    let mut config = match &settings.identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(Fixed(identity.certified().clone()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = settings.alpn.clone();
    config.resumption = Resumption::disabled();
    config.enable_sni = settings.send_sni;
    Ok(Arc::new(config))
}

/// Read once a process; a certificate the platform holds but nobody can parse is skipped.
fn system_roots() -> Result<Arc<TrustBundle>, TlsError> {
    static ROOTS: OnceLock<Result<Arc<TrustBundle>, TlsError>> = OnceLock::new();
    ROOTS
        .get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            let mut bundle = TrustBundle::default();
            for der in found.certs {
                let _ = bundle.add_der(None, der);
            }
            if bundle.is_empty() {
                let why = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
                return Err(TlsError::SystemRoots(why));
            }
            Ok(Arc::new(bundle))
        })
        .clone()
}
