//! Both libraries that may encrypt records make the same of them, and how fast each is on this machine.
//! `cargo test --release -p weft-tls --test ciphers -- --nocapture` prints it; docs/decisions/0008 quotes it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{Ca, dns, leaf_with, name, uri};
use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};
use rustls::{CipherSuite, ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls::{SupportedCipherSuite, sign::SingleCertAndKey};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Instant;

const RECORD: usize = 16 * 1024;

/// The same two suites of each library, by its name.
fn libraries() -> [(&'static str, [SupportedCipherSuite; 2]); 2] {
    use aws_lc_rs::cipher_suite as aws;
    use ring::cipher_suite as ring;
    [
        ("aws-lc", [aws::TLS13_AES_128_GCM_SHA256, aws::TLS13_AES_256_GCM_SHA384]),
        ("ring", [ring::TLS13_AES_128_GCM_SHA256, ring::TLS13_AES_256_GCM_SHA384]),
    ]
}

/// A connection in memory whose ends encrypt with a library each.
struct Pair {
    client: ClientConnection,
    server: ServerConnection,
    wire: Vec<u8>,
}

impl Pair {
    fn new(client: SupportedCipherSuite, server: SupportedCipherSuite) -> Self {
        let provider = |suite| {
            let usual = CryptoProvider::clone(weft_tls::config::provider());
            Arc::new(CryptoProvider { cipher_suites: vec![suite], ..usual })
        };
        let ca = Ca::new("root");
        let identity = ca.sign(leaf_with(vec![uri("spiffe://a.b/ns/x/sa/y"), dns("api.demo.svc")]));
        let mut roots = RootCertStore::empty();
        roots.add(ca.der.clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider(client)).with_safe_default_protocol_versions();
        let client = client.unwrap().with_root_certificates(roots).with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider(server)).with_safe_default_protocol_versions();
        let resolver = Arc::new(SingleCertAndKey::from(identity.certified().clone()));
        let server = server.unwrap().with_no_client_auth().with_cert_resolver(resolver);
        let mut pair = Self {
            client: ClientConnection::new(Arc::new(client), name()).unwrap(),
            server: ServerConnection::new(Arc::new(server)).unwrap(),
            wire: Vec::new(),
        };
        while pair.client.is_handshaking() || pair.server.is_handshaking() {
            pair.flush_client();
            pair.flush_server();
        }
        pair
    }

    fn flush_client(&mut self) {
        self.wire.clear();
        while self.client.wants_write() {
            self.client.write_tls(&mut self.wire).unwrap();
        }
        let mut left = &self.wire[..];
        while !left.is_empty() {
            self.server.read_tls(&mut left).unwrap();
            self.server.process_new_packets().unwrap();
        }
    }

    fn flush_server(&mut self) {
        self.wire.clear();
        while self.server.wants_write() {
            self.server.write_tls(&mut self.wire).unwrap();
        }
        let mut left = &self.wire[..];
        while !left.is_empty() {
            self.client.read_tls(&mut left).unwrap();
            self.client.process_new_packets().unwrap();
        }
    }

    /// From the client to the server.
    fn carry(&mut self, plain: &[u8], got: &mut [u8]) {
        self.client.writer().write_all(plain).unwrap();
        self.flush_client();
        self.server.reader().read_exact(got).unwrap();
    }
}

#[test]
fn what_one_seals_the_other_opens() {
    for (sealer, seals) in libraries() {
        for (opener, opens) in libraries() {
            for (seal, open) in seals.into_iter().zip(opens) {
                let mut pair = Pair::new(seal, open);
                for length in [1, 15, 16, 17, 1000, RECORD] {
                    let plain: Vec<u8> = (0..length).map(|n| n as u8).collect();
                    let mut got = vec![0; length];
                    pair.carry(&plain, &mut got);
                    assert!(got == plain, "{sealer} to {opener}, {:?}, {length} bytes", seal.suite());
                }
                assert_eq!(pair.client.negotiated_cipher_suite().map(|s| s.suite()), Some(seal.suite()));
                // And what was changed on its way is refused, by either.
                pair.client.writer().write_all(b"hello").unwrap();
                let mut wire = Vec::new();
                pair.client.write_tls(&mut wire).unwrap();
                *wire.last_mut().unwrap() ^= 1;
                pair.server.read_tls(&mut &wire[..]).unwrap();
                assert!(pair.server.process_new_packets().is_err(), "{opener}");
            }
        }
    }
}

#[test]
fn aes_128_comes_first_and_nothing_twice() {
    let suites = &weft_tls::config::provider().cipher_suites;
    let order: Vec<CipherSuite> = suites.iter().map(SupportedCipherSuite::suite).collect();
    assert_eq!(order[..2], [CipherSuite::TLS13_AES_128_GCM_SHA256, CipherSuite::TLS13_AES_256_GCM_SHA384]);
    let mut once: Vec<u16> = order.iter().map(|s| u16::from(*s)).collect();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), order.len(), "{order:?}");
}

/// Sealed, copied about by rustls, and opened. No assertion: which library is used is told by the CPU's features.
#[test]
fn how_fast_they_are() {
    for (name, suites) in libraries() {
        for suite in suites {
            let mut pair = Pair::new(suite, suite);
            for length in [64, 1024, RECORD] {
                let rounds = if cfg!(debug_assertions) { 100 } else { 400_000_000 / (length + 4000) };
                let (plain, mut got) = (vec![1; length], vec![0; length]);
                let begun = Instant::now();
                (0..rounds).for_each(|_| pair.carry(&plain, &mut got));
                let gigabytes = (length * rounds) as f64 / 1e9;
                let speed = gigabytes / begun.elapsed().as_secs_f64();
                println!("{name:8} {:?} {length:6} bytes: {speed:.2} GB/s", suite.suite());
            }
        }
    }
}
