//! What the batching stream costs: handshakes a second, bulk and small messages, both ends on one thread, over loopback.
//! `cargo run --release -p weft-tls --example throughput`
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Eku, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_tls::{Expect, Flusher, Identity, Live, MeshStream, TrustBundle, mesh_client, mesh_server};

fn live() -> Live {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/ns/demo/sa/web".try_into().unwrap())];
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let identity = Identity::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    Live::new(identity, TrustBundle::from_pem(None, root.pem().as_bytes()).unwrap())
}

async fn open(listener: &TcpListener, live: &Live, flusher: &Flusher) -> (MeshStream, MeshStream) {
    let client = mesh_client(&live.load(), Expect::Any, &[b"h2"]).unwrap();
    let server = mesh_server(&live.load(), Expect::Any, &[b"h2"]).unwrap();
    let name = ServerName::try_from("web.demo.svc").unwrap();
    let connect = async {
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        MeshStream::connect(tcp, name, client, flusher).await.unwrap()
    };
    let accept = async {
        let tcp = listener.accept().await.unwrap().0;
        MeshStream::accept(tcp, Vec::new(), server, flusher).await.unwrap()
    };
    tokio::join!(connect, accept)
}

async fn measure(flusher: Flusher) {
    let live = live();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (start, rounds) = (Instant::now(), 1000);
    for _ in 0..rounds {
        open(&listener, &live, &flusher).await;
    }
    println!("handshake, both ends: {:.3} ms", start.elapsed().as_secs_f64() * 1e3 / f64::from(rounds));

    for piece in [1024, 16 * 1024, 256 * 1024] {
        let (mut client, mut server) = open(&listener, &live, &flusher).await;
        let (before, start, total) = (flusher.stats(), Instant::now(), 1 << 30);
        let writer = tokio::task::spawn_local(async move {
            let data = vec![1; piece];
            for _ in 0..total / piece {
                server.write_all(&data).await.unwrap();
            }
            server.shutdown().await.unwrap();
        });
        let mut buffer = vec![0; 128 * 1024];
        while client.read(&mut buffer).await.unwrap() > 0 {}
        writer.await.unwrap();
        let (after, took) = (flusher.stats(), start.elapsed().as_secs_f64());
        println!(
            "1 GiB in writes of {piece:>6}: {took:.2} s, {} records, {} writes, {} reads",
            after.records - before.records,
            after.writes - before.writes,
            after.reads - before.reads
        );
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let flusher = Flusher::new();
        let running = flusher.clone();
        tokio::task::spawn_local(async move { running.run().await });
        measure(flusher).await;
    });
}
