//! rustls configurations for test peers, made from the kit's certificates.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::ca::{Ca, Leaf};

pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn pair(leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(leaf.cert_pem.as_bytes()).map(|c| c.expect("certificate")).collect();
    (chain, PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).expect("key"))
}

fn store(roots: &[&Ca]) -> Arc<RootCertStore> {
    let mut store = RootCertStore::empty();
    for ca in roots {
        for cert in CertificateDer::pem_slice_iter(ca.root_pem().as_bytes()) {
            store.add(cert.expect("certificate")).expect("root");
        }
    }
    Arc::new(store)
}

/// A client that shows `leaf` (None: no certificate) and takes whatever the server shows. It looks at the proxy's side
/// of the bargain only: what the *proxy* refuses is what such a test is about.
pub fn client(leaf: Option<&Leaf>, alpn: &[&str]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    finish_client(builder, leaf, alpn)
}

/// A client that verifies the server's chain and name against `roots`.
pub fn verifying_client(roots: &[&Ca], leaf: Option<&Leaf>, alpn: &[&str]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(store(roots));
    finish_client(builder, leaf, alpn)
}

fn finish_client(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    leaf: Option<&Leaf>,
    alpn: &[&str],
) -> Arc<ClientConfig> {
    let mut config = match leaf {
        Some(leaf) => {
            let (chain, key) = pair(leaf);
            builder.with_client_auth_cert(chain, key).expect("client certificate")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A server that shows `leaf` and, if `client_roots` has any, demands a certificate that chains to one of them.
pub fn server(leaf: &Leaf, client_roots: &[&Ca], alpn: &[&str]) -> Arc<ServerConfig> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().expect("versions");
    let builder = if client_roots.is_empty() {
        builder.with_no_client_auth()
    } else {
        let verifier = WebPkiClientVerifier::builder_with_provider(store(client_roots), provider());
        builder.with_client_cert_verifier(verifier.build().expect("verifier"))
    };
    let (chain, key) = pair(leaf);
    let mut config = builder.with_single_cert(chain, key).expect("server certificate");
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A server that shows `leaf`, and asks for a certificate that chains to one of `client_roots` without demanding one.
pub fn server_asking(leaf: &Leaf, client_roots: &[&Ca], alpn: &[&str]) -> Arc<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder_with_provider(store(client_roots), provider());
    let verifier = verifier.allow_unauthenticated().build().expect("verifier");
    let (chain, key) = pair(leaf);
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().expect("versions");
    let mut config =
        builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).expect("server certificate");
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
