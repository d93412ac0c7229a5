//! A small CA for the tests of this crate.
#![allow(dead_code)]

use std::rc::Rc;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Eku, IsCa, Issuer,
    KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use weft_policy::id::{SpiffeId, TrustDomain};
use weft_tls::{Expect, Flusher, HandshakeError, Identity, Live, MeshStream, TrustBundle, mesh_client, mesh_server};

pub struct Ca {
    pub pem: String,
    pub der: CertificateDer<'static>,
    pub issuer: Issuer<'static, KeyPair>,
}

pub fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        let cert = params.self_signed(&key).unwrap();
        Self { pem: cert.pem(), der: cert.der().clone(), issuer: Issuer::new(params, key) }
    }

    pub fn sub(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Self { pem: cert.pem(), der: cert.der().clone(), issuer: Issuer::new(params, key) }
    }

    pub fn sign(&self, params: CertificateParams) -> Identity {
        self.sign_chain(params, &[])
    }

    pub fn sign_chain(&self, params: CertificateParams, more: &[&Ca]) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        for ca in more {
            pem.push_str(&ca.pem);
        }
        Identity::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    pub fn id(&self, id: &str) -> Identity {
        self.sign(leaf(id))
    }

    pub fn bundle(&self, domain: Option<&str>) -> TrustBundle {
        TrustBundle::from_pem(domain.map(|d| TrustDomain::parse(d).unwrap()), self.pem.as_bytes()).unwrap()
    }
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

pub fn leaf(id: &str) -> CertificateParams {
    leaf_with(vec![uri(id)])
}

pub fn leaf_with(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "workload");
    params.subject_alt_names = names;
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
    params
}

pub fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

pub const WEB: &str = "spiffe://cluster.local/ns/demo/sa/web";
pub const API: &str = "spiffe://cluster.local/ns/demo/sa/api";

/// Two ends with the same CA.
pub fn pair() -> (Live, Live) {
    let ca = Ca::new("root");
    (Live::new(ca.id(WEB), ca.bundle(Some("cluster.local"))), Live::new(ca.id(API), ca.bundle(Some("cluster.local"))))
}

pub fn name() -> ServerName<'static> {
    ServerName::try_from("api.demo.svc").unwrap()
}

pub async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

pub type Shaken = (Result<MeshStream, HandshakeError>, Result<MeshStream, HandshakeError>);

pub async fn shake(client: &Live, want: Expect, server: &Live, allow: Expect, flusher: &Flusher) -> Shaken {
    let (c, s) = tcp_pair().await;
    shake_over(c, s, client, want, server, allow, flusher).await
}

pub async fn shake_over(
    c: TcpStream,
    s: TcpStream,
    client: &Live,
    want: Expect,
    server: &Live,
    allow: Expect,
    flusher: &Flusher,
) -> Shaken {
    let client = mesh_client(&client.load(), want, &[b"weft/h2", b"h2"]).unwrap();
    let server = mesh_server(&server.load(), allow, &[b"weft/h2", b"h2"]).unwrap();
    // A refused client sees it in its first read: one is made here, so that both ends' outcome is known.
    let client = async {
        let mut stream = MeshStream::connect(c, name(), client, flusher).await?;
        let mut one = [0; 1];
        match tokio::io::AsyncReadExt::read_exact(&mut stream, &mut one).await {
            Ok(_) => Ok(stream),
            Err(e) => Err(match HandshakeError::reason_of(&e) {
                Some(_) => *e.into_inner().unwrap().downcast::<HandshakeError>().unwrap(),
                None => HandshakeError::Io(e),
            }),
        }
    };
    let server = async {
        let mut stream = MeshStream::accept(s, Vec::new(), server, flusher).await?;
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"!").await?;
        Ok(stream)
    };
    tokio::join!(client, server)
}

/// Runs on one thread with a flusher beside it, and gives up after a minute.
pub fn on_worker<F: Future<Output = ()>>(test: impl FnOnce(Flusher) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let flusher = Flusher::new();
        let running = flusher.clone();
        let task = tokio::task::spawn_local(async move { running.run().await });
        tokio::time::timeout(std::time::Duration::from_secs(60), test(flusher)).await.expect("the test hangs");
        task.abort();
    });
}

pub fn shared<T>(value: T) -> Rc<T> {
    Rc::new(value)
}

pub fn ids(texts: &[&str]) -> Expect {
    Expect::Ids(texts.iter().map(|t| id(t)).collect::<Arc<[_]>>())
}
