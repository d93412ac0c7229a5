//! Which certificates are refused, by whom and with which word. Every case runs on both sides of a handshake.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::sync::Arc;

use kit::*;
use rcgen::{
    CertificateParams, CustomExtension, ExtendedKeyUsagePurpose as Eku, GeneralSubtree, KeyPair, NameConstraints,
    date_time_ymd,
};
use rustls::AlertDescription;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use weft_policy::id::TrustDomain;
use weft_tls::verify::Verifier;
use weft_tls::{Expect, HandshakeError, Identity, Live, Reason, TlsError, TrustBundle};

struct Case {
    name: &'static str,
    identity: Identity,
    bundle: TrustBundle,
    expect: Expect,
    outcome: Result<(), Reason>,
}

fn alert_of(error: &HandshakeError) -> Option<AlertDescription> {
    match error {
        HandshakeError::Tls { source: rustls::Error::AlertReceived(alert), .. } => Some(*alert),
        _ => None,
    }
}

/// The server's verifier alone, for certificates our own loader refuses to present.
fn judged(bundle: &TrustBundle, leaf: &CertificateDer<'_>) -> Option<Reason> {
    let verifier = Verifier::new(Arc::new(bundle.clone()), Expect::Any);
    verifier.verify_client_cert(leaf, &[], UnixTime::now()).err().as_ref().map(Reason::of)
}

/// A leaf whose URI names are raw bytes, as no honest tool would write them.
fn raw_uris(uris: &[&[u8]]) -> CertificateParams {
    let mut names = Vec::new();
    for uri in uris {
        names.push(0x86);
        der_length(&mut names, uri.len());
        names.extend_from_slice(uri);
    }
    let mut content = vec![0x30];
    der_length(&mut content, names.len());
    content.extend_from_slice(&names);
    let mut params = leaf_with(vec![]);
    params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], content));
    params
}

fn der_length(out: &mut Vec<u8>, len: usize) {
    if len < 128 {
        out.push(len as u8);
    } else {
        out.push(0x82);
        out.extend_from_slice(&(len as u16).to_be_bytes());
    }
}

fn cases() -> Vec<Case> {
    let ca = Ca::new("root");
    let other = Ca::new("other root");
    let namesake = Ca::new("root");
    let home = || ca.bundle(Some("cluster.local"));
    let mut cases = Vec::new();
    let mut case = |name, identity: Identity, bundle: TrustBundle, expect: Expect, outcome| {
        cases.push(Case { name, identity, bundle, expect, outcome });
    };
    let refused = |reason| Err::<(), _>(reason);
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = leaf(WEB);
        change(&mut params);
        params
    };

    // Identity.
    case("right id, any wanted", ca.id(WEB), home(), Expect::Any, Ok(()));
    case("right id wanted", ca.id(WEB), home(), ids(&[WEB]), Ok(()));
    case("one of two wanted", ca.id(WEB), home(), ids(&[API, WEB]), Ok(()));
    case("another id wanted", ca.id(WEB), home(), ids(&[API]), refused(Reason::WrongIdentity));
    case("none wanted", ca.id(WEB), home(), ids(&[]), refused(Reason::WrongIdentity));
    let longer = "spiffe://cluster.local/ns/demo/sa/web2";
    case("wanted is a prefix", ca.id(longer), home(), ids(&[WEB]), refused(Reason::WrongIdentity));
    let upper = "spiffe://cluster.local/ns/demo/sa/WEB";
    case("case of the path counts", ca.id(upper), home(), ids(&[WEB]), refused(Reason::WrongIdentity));
    let uri_dns = || ca.sign(leaf_with(vec![uri(WEB), dns("web.example")]));
    case("URI and DNS", uri_dns(), home(), ids(&[WEB]), Ok(()));
    case(
        "two SPIFFE URIs",
        ca.sign(leaf_with(vec![uri(WEB), uri(API)])),
        home(),
        ids(&[WEB]),
        refused(Reason::BadCertificate),
    );
    case(
        "SPIFFE and another URI",
        ca.sign(leaf_with(vec![uri(WEB), uri("https://x/y")])),
        home(),
        Expect::Any,
        refused(Reason::BadCertificate),
    );
    case(
        "one URI, not SPIFFE",
        ca.sign(leaf_with(vec![uri("https://x/y")])),
        home(),
        Expect::Any,
        refused(Reason::BadCertificate),
    );
    case("DNS only", ca.sign(leaf_with(vec![dns("web.example")])), home(), Expect::Any, refused(Reason::NoIdentity));
    case("no name", ca.sign(leaf_with(vec![])), home(), Expect::Any, refused(Reason::NoIdentity));
    case("no name, but an id wanted", ca.sign(leaf_with(vec![])), home(), ids(&[WEB]), refused(Reason::NoIdentity));
    for (name, text) in [
        ("CR LF in the URI", &b"spiffe://cluster.local/ns/demo/sa/web\r\nx: y"[..]),
        ("comma", b"spiffe://cluster.local/ns/demo/sa/web,x"),
        ("semicolon", b"spiffe://cluster.local/ns/demo/sa/web;x"),
        ("quote", b"spiffe://cluster.local/ns/demo/sa/web\""),
        ("NUL", b"spiffe://cluster.local/ns/demo/sa/web\0.evil"),
        ("percent", b"spiffe://cluster.local/ns/demo/sa/w%65b"),
        ("dot segments", b"spiffe://cluster.local/ns/demo/sa/../sa/web"),
        ("upper-case domain", b"spiffe://Cluster.Local/ns/demo/sa/web"),
        ("port", b"spiffe://cluster.local:1/ns/demo/sa/web"),
        ("user", b"spiffe://a@cluster.local/ns/demo/sa/web"),
        ("query", b"spiffe://cluster.local/ns/demo/sa/web?a"),
        ("no path", b"spiffe://cluster.local"),
        ("empty", b""),
        ("not ASCII", b"spiffe://cluster.local/ns/demo/sa/w\xc3\xa9b"),
        ("not UTF-8", b"spiffe://cluster.local/ns/demo/sa/w\xffb"),
    ] {
        case(name, ca.sign(raw_uris(&[text])), home(), Expect::Any, refused(Reason::BadCertificate));
    }
    let long = [b"spiffe://cluster.local/".as_slice(), &[b'a'; 8192]].concat();
    case("8 KiB of name", ca.sign(raw_uris(&[&long])), home(), Expect::Any, refused(Reason::BadCertificate));
    let hidden = ca.sign(raw_uris(&[WEB.as_bytes(), b"spiffe://\xff"]));
    case("a second URI that does not parse", hidden, home(), ids(&[WEB]), refused(Reason::BadCertificate));

    // Roots and trust domains.
    case("unknown CA", other.id(WEB), home(), Expect::Any, refused(Reason::UnknownCa));
    case("CA of the same name", namesake.id(WEB), home(), Expect::Any, refused(Reason::UnknownCa));
    let far = "spiffe://far.example/ns/demo/sa/web";
    case("trust domain without roots", ca.id(far), home(), Expect::Any, refused(Reason::WrongTrustDomain));
    let federated = || {
        let mut bundle = ca.bundle(Some("cluster.local"));
        bundle.add_pem(Some(TrustDomain::parse("far.example").unwrap()), other.pem.as_bytes()).unwrap();
        bundle
    };
    case("federated domain", other.id(far), federated(), ids(&[far]), Ok(()));
    case("federated CA speaks for us", other.id(WEB), federated(), Expect::Any, refused(Reason::WrongTrustDomain));
    case("we speak for the federated", ca.id(far), federated(), Expect::Any, refused(Reason::WrongTrustDomain));
    let two = || {
        let mut bundle = ca.bundle(Some("cluster.local"));
        bundle.add_pem(Some(TrustDomain::parse("cluster.local").unwrap()), other.pem.as_bytes()).unwrap();
        bundle
    };
    case("two roots, first", ca.id(WEB), two(), Expect::Any, Ok(()));
    case("two roots, second", other.id(WEB), two(), Expect::Any, Ok(()));
    case("plain CA file proves any domain", ca.id(far), ca.bundle(None), ids(&[far]), Ok(()));
    let no_roots = TrustBundle::default();
    case("no roots at all", ca.id(WEB), no_roots, Expect::Any, refused(Reason::WrongTrustDomain));
    let alone = KeyPair::generate().unwrap();
    let own = leaf(WEB).self_signed(&alone).unwrap();
    let own = Identity::from_pem(own.pem().as_bytes(), alone.serialize_pem().as_bytes()).unwrap();
    case("self-signed", own, home(), Expect::Any, refused(Reason::UnknownCa));

    // Chains.
    let sub = ca.sub("intermediate");
    case("intermediate sent", sub.sign_chain(leaf(WEB), &[&sub]), home(), ids(&[WEB]), Ok(()));
    case("intermediate missing", sub.id(WEB), home(), Expect::Any, refused(Reason::UnknownCa));
    let mut chain = vec![ca.sub("1")];
    for i in 2..=12 {
        let next = chain[0].sub(&i.to_string());
        chain.insert(0, next);
    }
    let all: Vec<&Ca> = chain.iter().collect();
    case("13 certificates", chain[0].sign_chain(leaf(WEB), &all), home(), Expect::Any, refused(Reason::ChainTooLong));
    let namesakes: Vec<Ca> = (0..7).map(|_| ca.sub("same")).collect();
    let all: Vec<&Ca> = namesakes.iter().collect();
    let lost = other.sub("same");
    case(
        "many intermediates of one name",
        lost.sign_chain(leaf(WEB), &all),
        home(),
        Expect::Any,
        refused(Reason::UnknownCa),
    );
    let mut constrained = ca_params("constrained");
    constrained.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("only.example".into())],
        excluded_subtrees: vec![],
    });
    let key = KeyPair::generate().unwrap();
    let cert = constrained.signed_by(&key, &ca.issuer).unwrap();
    let constrained = Ca { pem: cert.pem(), der: cert.der().clone(), issuer: rcgen::Issuer::new(constrained, key) };
    let outside = constrained.sign_chain(leaf_with(vec![uri(WEB), dns("other.example")]), &[&constrained]);
    case("outside the CA's names", outside, home(), Expect::Any, refused(Reason::BadCertificate));

    // What the certificate is for, and when.
    case(
        "CA as leaf",
        ca.sign(with(&|p| p.is_ca = ca_params("x").is_ca)),
        home(),
        Expect::Any,
        refused(Reason::CaAsLeaf),
    );
    case("no EKU", ca.sign(with(&|p| p.extended_key_usages.clear())), home(), Expect::Any, refused(Reason::WrongUsage));
    case(
        "EKU for something else",
        ca.sign(with(&|p| p.extended_key_usages = vec![Eku::CodeSigning])),
        home(),
        Expect::Any,
        refused(Reason::WrongUsage),
    );
    case(
        "expired",
        ca.sign(with(&|p| p.not_after = date_time_ymd(2020, 1, 1))),
        home(),
        Expect::Any,
        refused(Reason::Expired),
    );
    case(
        "not yet valid",
        ca.sign(with(&|p| p.not_before = date_time_ymd(4000, 1, 1))),
        home(),
        Expect::Any,
        refused(Reason::NotYetValid),
    );
    case(
        "ends before it begins",
        ca.sign(with(&|p| {
            p.not_before = date_time_ymd(2030, 1, 1);
            p.not_after = date_time_ymd(2020, 1, 1);
        })),
        home(),
        Expect::Any,
        refused(Reason::Expired),
    );

    // Plain CA files and DNS names (RFC 6125).
    let named = |names: &[&str]| ca.sign(leaf_with(names.iter().map(|n| dns(n)).collect()));
    let file = || ca.bundle(None);
    let want = |name: &str| Expect::dns(name).unwrap();
    case("no identity needed", named(&["web.example"]), file(), Expect::Chain, Ok(()));
    case(
        "no identity needed, unknown CA",
        other.sign(leaf_with(vec![])),
        file(),
        Expect::Chain,
        refused(Reason::UnknownCa),
    );
    case(
        "a domain's root proves no bare name",
        named(&["web.example"]),
        home(),
        Expect::Chain,
        refused(Reason::UnknownCa),
    );
    case("DNS name", named(&["web.example"]), file(), want("web.example"), Ok(()));
    case("DNS name, other case and dot", named(&["web.example"]), file(), want("WEB.Example."), Ok(()));
    case("second DNS name", named(&["a.example", "web.example"]), file(), want("web.example"), Ok(()));
    case("other DNS name", named(&["web.example"]), file(), want("a.example"), refused(Reason::WrongIdentity));
    case("wildcard", named(&["*.example.org"]), file(), want("a.example.org"), Ok(()));
    case(
        "wildcard is one label",
        named(&["*.example.org"]),
        file(),
        want("a.b.example.org"),
        refused(Reason::WrongIdentity),
    );
    case("wildcard is a label", named(&["*.example.org"]), file(), want("example.org"), refused(Reason::WrongIdentity));
    case(
        "wildcard inside a label",
        named(&["w*.example.org"]),
        file(),
        want("web.example.org"),
        refused(Reason::WrongIdentity),
    );
    case("wildcard not left-most", named(&["a.*.org"]), file(), want("a.example.org"), refused(Reason::WrongIdentity));
    case("IDN in its ASCII form", named(&["xn--bcher-kva.example"]), file(), want("xn--bcher-kva.example"), Ok(()));
    case(
        "the subject's name does not count",
        ca.sign(leaf_with(vec![])),
        file(),
        want("workload"),
        refused(Reason::WrongIdentity),
    );
    case("DNS name and identity", uri_dns(), file(), want("web.example"), Ok(()));
    cases
}

#[test]
fn table_on_both_sides() {
    on_worker(|flusher| async move {
        let ca = Ca::new("the table's");
        let cases = cases();
        assert!(cases.len() >= 60, "{}", cases.len());
        for case in cases {
            // The certificate under test, whose owner trusts the other end's CA; the other end judges it.
            let tested = Live::new(case.identity.clone(), ca.bundle(None));
            let judge = Live::new(ca.id(API), case.bundle.clone());
            for judged_by_server in [true, false] {
                let (client, server) = if judged_by_server {
                    shake(&tested, Expect::Any, &judge, case.expect.clone(), &flusher).await
                } else {
                    shake(&judge, case.expect.clone(), &tested, Expect::Any, &flusher).await
                };
                let (of_judge, of_tested) = if judged_by_server { (server, client) } else { (client, server) };
                let got = of_judge.as_ref().map(|_| ()).map_err(HandshakeError::reason);
                assert_eq!(
                    got,
                    case.outcome,
                    "{}, judged by the server: {judged_by_server}: {:?}",
                    case.name,
                    of_judge.as_ref().err().map(ToString::to_string)
                );
                match (case.outcome, of_tested) {
                    (Ok(()), of_tested) => assert!(of_tested.is_ok(), "{}", case.name),
                    (Err(reason), Err(error)) => {
                        let wanted = match reason {
                            Reason::Expired | Reason::NotYetValid => AlertDescription::CertificateExpired,
                            Reason::UnknownCa => AlertDescription::UnknownCA,
                            _ => AlertDescription::BadCertificate,
                        };
                        assert_eq!(alert_of(&error), Some(wanted), "{}: {error}", case.name);
                    }
                    (Err(_), Ok(_)) => panic!("{}: the refused side believes that all is well", case.name),
                }
            }
        }
    });
}

#[test]
fn usage_follows_the_side() {
    on_worker(|flusher| async move {
        let ca = Ca::new("root");
        let only = |usage| {
            let mut params = leaf(WEB);
            params.extended_key_usages = vec![usage];
            Live::new(ca.sign(params), ca.bundle(None))
        };
        let full = Live::new(ca.id(API), ca.bundle(None));
        let (server, client) = (only(Eku::ServerAuth), only(Eku::ClientAuth));
        let good = shake(&client, Expect::Any, &server, Expect::Any, &flusher).await;
        assert!(good.0.is_ok() && good.1.is_ok());
        let bad = shake(&server, Expect::Any, &full, Expect::Any, &flusher).await;
        assert_eq!(bad.1.err().map(|e| e.reason()), Some(Reason::WrongUsage));
        let bad = shake(&full, Expect::Any, &client, Expect::Any, &flusher).await;
        assert_eq!(bad.0.err().map(|e| e.reason()), Some(Reason::WrongUsage));
    });
}

/// F-10 and F-11: add the new root, sign with it, drop the old one; handshakes go on all the while.
#[test]
fn rotation_of_leaves_and_roots() {
    on_worker(|flusher| async move {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let domain = Some(TrustDomain::parse("cluster.local").unwrap());
        let a = Live::new(old.id(WEB), old.bundle(Some("cluster.local")));
        let b = Live::new(old.id(API), old.bundle(Some("cluster.local")));
        let stale = Live::new(old.id(WEB), old.bundle(Some("cluster.local")));
        let mut both = old.bundle(Some("cluster.local"));
        both.add_pem(domain, new.pem.as_bytes()).unwrap();
        let mut open = Vec::new();
        for step in 0..6 {
            match step {
                1 => _ = a.store_bundle(both.clone()),
                2 => _ = b.store_bundle(both.clone()),
                3 => _ = a.store_identity(new.id(WEB)),
                4 => _ = b.store_identity(new.id(API)),
                5 => {
                    a.store_bundle(new.bundle(Some("cluster.local")));
                    b.store_bundle(new.bundle(Some("cluster.local")));
                }
                _ => {}
            }
            for _ in 0..5 {
                let (c, s) = shake(&a, ids(&[API]), &b, ids(&[WEB]), &flusher).await;
                open.push((c.unwrap(), s.unwrap()));
            }
            let sha = b.load().identity.sha256();
            assert_eq!(open.last().unwrap().0.peer().unwrap().cert_sha256(), sha, "new handshakes use the new leaf");
        }
        assert_eq!(b.generation(), 4);
        // Connections made with the old material live on; a peer that still has it gets nowhere.
        for (c, s) in &mut open {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            c.write_all(b"still here").await.unwrap();
            s.read_exact(&mut [0; 10]).await.unwrap();
        }
        let (_, server) = shake(&stale, Expect::Any, &b, Expect::Any, &flusher).await;
        assert_eq!(server.err().map(|e| e.reason()), Some(Reason::PeerRefused));
        stale.store_bundle(new.bundle(None));
        let (_, server) = shake(&stale, Expect::Any, &b, Expect::Any, &flusher).await;
        assert_eq!(server.err().map(|e| e.reason()), Some(Reason::UnknownCa));
    });
}

#[test]
fn a_client_without_certificate_and_old_versions() {
    use tokio::io::AsyncReadExt;
    on_worker(|flusher| async move {
        let (client, server) = pair();
        for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
            let mut roots = rustls::RootCertStore::empty();
            for (_, der) in client.load().bundle.certificates() {
                roots.add(der.clone()).unwrap();
            }
            let config = rustls::ClientConfig::builder_with_provider(weft_tls::config::provider().clone())
                .with_protocol_versions(versions)
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(std::sync::Arc::new(weft_tls::verify::Verifier::new(
                    client.load().bundle.clone(),
                    Expect::Any,
                )))
                .with_no_client_auth();
            let (c, s) = tcp_pair().await;
            let ours = weft_tls::mesh_server(&server.load(), Expect::Any, &[]).unwrap();
            let theirs = async {
                match tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name(), c).await {
                    Ok(mut stream) => assert!(stream.read(&mut [0; 1]).await.is_err()),
                    Err(error) => assert!(versions[0] == &rustls::version::TLS12, "{error}"),
                }
            };
            let (result, ()) = tokio::join!(weft_tls::MeshStream::accept(s, vec![], ours, &flusher), theirs);
            let reason = result.err().map(|e| e.reason());
            let wanted = if versions[0] == &rustls::version::TLS12 { Reason::Version } else { Reason::NoCertificate };
            assert_eq!(reason, Some(wanted));
        }
    });
}

#[test]
fn alpn_must_agree() {
    on_worker(|flusher| async move {
        let (client, server) = pair();
        let (c, s) = tcp_pair().await;
        let ours = weft_tls::mesh_server(&server.load(), Expect::Any, &[b"h2"]).unwrap();
        let theirs = weft_tls::mesh_client(&client.load(), Expect::Any, &[b"smtp"]).unwrap();
        let (c, s) = tokio::join!(
            weft_tls::MeshStream::connect(c, name(), theirs, &flusher),
            weft_tls::MeshStream::accept(s, vec![], ours, &flusher)
        );
        assert_eq!(s.err().map(|e| e.reason()), Some(Reason::Alpn));
        assert_eq!(c.err().map(|e| e.reason()), Some(Reason::Alpn));
    });
}

#[test]
fn identities_are_checked_when_loaded() {
    let ca = Ca::new("root");
    let (key, wrong) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let pem = leaf(WEB).signed_by(&key, &ca.issuer).unwrap().pem();
    let load = |cert: &str, key: &str| Identity::from_pem(cert.as_bytes(), key.as_bytes());
    let good = load(&pem, &key.serialize_pem()).unwrap();
    assert_eq!(good.spiffe(), Some(&id(WEB)));
    assert!(good.not_before() < good.not_after());
    assert_eq!(load(&pem, &wrong.serialize_pem()), Err(TlsError::KeyMismatch));
    assert_eq!(load("", &key.serialize_pem()), Err(TlsError::NoCertificate { what: "certificate" }));
    assert_eq!(load(&pem, ""), Err(TlsError::NoKey));
    assert_eq!(load(&pem, &pem), Err(TlsError::NoKey));
    assert!(matches!(load(&pem.replace("MII", "M*I"), &key.serialize_pem()), Err(TlsError::Pem { .. })));
    let hollow = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(load(hollow, &key.serialize_pem()), Err(TlsError::BadCertificate { .. })));
    let broken = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert!(matches!(load(&pem, broken), Err(TlsError::BadKey(_))));
    let mut critical = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
    critical.set_criticality(true);
    let mut params = leaf(WEB);
    params.custom_extensions.push(critical);
    let cert = params.signed_by(&key, &ca.issuer).unwrap();
    assert!(matches!(load(&cert.pem(), &key.serialize_pem()), Err(TlsError::BadCertificate { .. })));
    assert_eq!(judged(&ca.bundle(None), cert.der()), Some(Reason::BadCertificate));
    assert!(!format!("{good:?}").contains("PRIVATE"));
    assert!(matches!(TrustBundle::from_pem(None, b""), Err(TlsError::NoCertificate { .. })));
    assert!(matches!(TrustBundle::from_pem(None, hollow.as_bytes()), Err(TlsError::BadCertificate { .. })));
    let mut twice = ca.bundle(None);
    twice.add_pem(None, ca.pem.as_bytes()).unwrap();
    assert_eq!(twice.len(), 1, "the same root counts once");
}

#[test]
fn weak_certificates() {
    on_worker(|flusher| async move {
        let dir = std::env::temp_dir().join(format!("weft-weak-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("ext"), format!("subjectAltName=URI:{WEB}\nextendedKeyUsage=serverAuth,clientAuth\n"))
            .unwrap();
        let openssl = |args: &str| {
            let run = std::process::Command::new("openssl").args(args.split(' ')).current_dir(&dir).output();
            let run = run.expect("openssl is needed to make weak certificates");
            assert!(run.status.success(), "{args}: {}", String::from_utf8_lossy(&run.stderr));
        };
        let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
        openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 30 -sha256");
        let ca = Ca::new("judge");
        let judge = Live::new(ca.id(API), TrustBundle::from_pem(None, &read("ca.pem")).unwrap());
        for (bits, digest, wanted) in
            [("2048", "sha256", None), ("1024", "sha256", Some(())), ("2048", "sha1", Some(()))]
        {
            openssl(&format!("req -newkey rsa:{bits} -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf"));
            openssl(&format!(
                "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -{digest} -extfile ext -out leaf.pem"
            ));
            // Our own loader may refuse such a key already; then nobody can present it with our code.
            let identity = match Identity::from_pem(&read("leaf.pem"), &read("leaf.key")) {
                Ok(identity) => identity,
                Err(TlsError::BadKey(_)) if bits == "1024" => {
                    let leaf = CertificateDer::from_pem_slice(&read("leaf.pem")).unwrap();
                    assert_eq!(judged(&judge.load().bundle, &leaf), Some(Reason::WeakCertificate));
                    continue;
                }
                Err(other) => panic!("{other}"),
            };
            let tested = Live::new(identity, ca.bundle(None));
            let (_, server) = shake(&tested, Expect::Any, &judge, Expect::Any, &flusher).await;
            assert_eq!(server.err().map(|e| e.reason()), wanted.map(|()| Reason::WeakCertificate), "{bits} {digest}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    });
}

#[test]
fn forwarded_client_cert() {
    use rcgen::DnType;
    let ca = Ca::new("root");
    let mut params = leaf_with(vec![uri(WEB), dns("web.example")]);
    params.distinguished_name.push(DnType::OrganizationName, "A \"quoted\", \\ and\r\nsplit; name");
    let identity = ca.sign(params);
    let peer = weft_tls::PeerIdentity::of(&identity.chain()[0]);
    assert_eq!(peer.spiffe, Some(id(WEB)));
    assert_eq!(peer.dns.as_deref(), Some("web.example"));
    assert_eq!(peer.cert_sha256(), identity.sha256());
    assert_eq!(peer.cert_sha256().len(), 64);
    let text = peer.xfcc(Some(&id(API)));
    assert!(text.starts_with(&format!("By={API};Hash={};Subject=\"", peer.cert_sha256())), "{text}");
    assert!(text.ends_with(&format!("\";URI={WEB}")), "{text}");
    assert!(text.contains("CN=workload") && text.contains("\\\"quoted\\\"") && !text.contains('\r'), "{text}");
    assert!(text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()));
}

/// What was proven is remembered, and only that: not beyond its time, not for another certificate, not for another use.
#[test]
fn remembered_proofs_end_where_the_proof_does() {
    let ca = Ca::new("root");
    let sub = ca.sub("in between");
    for (signer, chain) in [(&ca, vec![]), (&ca, vec![ca.der.clone()]), (&sub, vec![sub.der.clone()])] {
        let (judge, identity) = once_proven(&ca, signer);
        let leaf = &identity.chain()[0];
        for _ in 0..3 {
            assert_eq!(judge(leaf, &chain, 2025, 12), Some(Reason::NotYetValid));
            assert_eq!(judge(leaf, &chain, 2026, 2), None);
            assert_eq!(judge(leaf, &chain, 2026, 4), Some(Reason::Expired));
        }
        // One bit of the signature.
        let mut forged = leaf.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(judge(&forged.into(), &chain, 2026, 2), Some(Reason::UnknownCa));
        // The same leaf beside something else is verified for itself.
        let elsewhere = Ca::new("root").der;
        let expected = if std::ptr::eq(signer, &sub) { Some(Reason::UnknownCa) } else { None };
        assert_eq!(judge(leaf, &[elsewhere], 2026, 2), expected);
    }
}

type Judge = Box<dyn Fn(&CertificateDer<'_>, &[CertificateDer<'_>], i32, u8) -> Option<Reason>>;

/// A verifier that trusts `ca`, and a client's certificate valid in the first two months of 2026.
fn once_proven(ca: &Ca, signer: &Ca) -> (Judge, Identity) {
    let mut params = leaf(WEB);
    (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2026, 3, 1));
    params.extended_key_usages = vec![Eku::ClientAuth];
    let identity = signer.sign(params);
    let verifier = Verifier::new(Arc::new(ca.bundle(Some("cluster.local"))), Expect::Any);
    let at = |year, month| {
        let seconds = date_time_ymd(year, month, 1).unix_timestamp();
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(seconds).unwrap()))
    };
    // As a server's it is good for nothing, whatever was proven of it as a client's.
    let server = || verifier.verify_server_cert(&identity.chain()[0], &[], &name(), &[], at(2026, 2)).err();
    assert!(server().is_some());
    let _ = verifier.verify_client_cert(&identity.chain()[0], &[], at(2026, 2));
    assert!(server().is_some());
    let judge = move |leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>], year, month| {
        verifier.verify_client_cert(leaf, chain, at(year, month)).err().as_ref().map(Reason::of)
    };
    (Box::new(judge), identity)
}
