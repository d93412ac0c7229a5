//! The ClientHello peek: real hellos, cut and bent in every way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::ConnectionState;
use weft_tls::config::provider;
use weft_tls::{Hello, Origination, Peek, Roots, TrustBundle, origination_client};

/// What a client sends first.
fn first_flight(name: &str, alpn: &[&[u8]], send_sni: bool) -> Vec<u8> {
    let settings = Origination {
        roots: Roots::Bundle(Arc::new(TrustBundle::default())),
        expect: vec![],
        identity: None,
        alpn: alpn.iter().map(|p| p.to_vec()).collect(),
        send_sni,
    };
    flight_of(origination_client(&settings).unwrap(), name)
}

fn flight_of(config: Arc<rustls::ClientConfig>, name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = UnbufferedClientConnection::new(config, name).unwrap();
    let mut out = vec![0; 64 * 1024];
    match client.process_tls_records(&mut []).state.unwrap() {
        ConnectionState::EncodeTlsData(mut data) => {
            let n = data.encode(&mut out).unwrap();
            out.truncate(n);
            out
        }
        other => panic!("{other:?}"),
    }
}

fn hello(sni: Option<&str>, alpn: &[&[u8]]) -> Peek {
    Peek::Hello(Hello { sni: sni.map(str::to_owned), alpn: alpn.iter().map(|p| p.to_vec()).collect() })
}

/// The same handshake message in records of `size` bytes.
fn in_records(flight: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in flight[5..].chunks(size) {
        out.extend_from_slice(&[22, 3, 1]);
        out.extend_from_slice(&(piece.len() as u16).to_be_bytes());
        out.extend_from_slice(piece);
    }
    out
}

/// A hello with these extensions and nothing else of interest.
fn made(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, data) in extensions {
        list.extend_from_slice(&kind.to_be_bytes());
        list.extend_from_slice(&(data.len() as u16).to_be_bytes());
        list.extend_from_slice(data);
    }
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]);
    body.extend_from_slice(&(list.len() as u16).to_be_bytes());
    body.extend_from_slice(&list);
    let mut message = vec![0, 0, 0, 0, 0, 1];
    message.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend_from_slice(&body);
    in_records(&message, 16 * 1024)
}

fn sni(names: &[&[u8]]) -> (u16, Vec<u8>) {
    let mut list = Vec::new();
    for name in names {
        list.push(0);
        list.extend_from_slice(&(name.len() as u16).to_be_bytes());
        list.extend_from_slice(name);
    }
    (0, [&(list.len() as u16).to_be_bytes()[..], &list].concat())
}

#[test]
fn real_hellos() {
    let alpn: &[&[u8]] = &[b"h2", b"http/1.1"];
    assert_eq!(Hello::parse(&first_flight("Web.Example", alpn, true)), hello(Some("web.example"), alpn));
    assert_eq!(Hello::parse(&first_flight("web.example", &[], false)), hello(None, &[]));
    assert_eq!(Hello::parse(&first_flight("127.0.0.1", &[], true)), hello(None, &[]));
    // A hybrid key share makes the hello larger than a packet.
    let mut pq = (**provider()).clone();
    pq.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768];
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(pq))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let flight = flight_of(Arc::new(config), "web.example");
    assert!(flight.len() > 1250);
    assert_eq!(Hello::parse(&flight[..1200]), Peek::NeedMore);
    assert_eq!(Hello::parse(&flight), hello(Some("web.example"), &[]));
}

#[test]
fn every_truncation_needs_more_and_every_fragmentation_is_the_same() {
    let flight = first_flight("web.example", &[b"h2"], true);
    let wanted = hello(Some("web.example"), &[b"h2"]);
    for size in [1, 2, 3, 4, 5, 17, 100, 16_384] {
        let records = in_records(&flight, size);
        for cut in 0..records.len() {
            assert_eq!(Hello::parse(&records[..cut]), Peek::NeedMore, "{size} {cut}");
        }
        assert_eq!(Hello::parse(&records), wanted);
        let more = [&records[..], &[1, 2, 3]].concat();
        assert_eq!(Hello::parse(&more), wanted, "what follows does not matter");
    }
}

#[test]
fn others_are_known_by_their_first_bytes() {
    let texts: [&[u8]; 9] = [
        b"G",
        b"PRI * HTTP/2.0",
        b"SSH-2.0",
        b"\x16\x02",
        b"\x16\x03\x01\0\0",
        b"\x16\x03\x09\0\x05",
        b"\x80\x2e\x01",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\0\x04\x02\0\0\x01",
    ];
    for bytes in texts {
        assert_eq!(Hello::parse(bytes), Peek::NotTls, "{bytes:?}");
    }
    assert_eq!(Hello::parse(b""), Peek::NeedMore);
    assert_eq!(Hello::parse(b"\x16"), Peek::NeedMore);
}

#[test]
fn odd_names_and_sizes() {
    for (names, wanted) in [
        (&[&b"a.example."[..]][..], Some("a.example")),
        (&[b"a.example", b"b.example"], None),
        (&[b"10.0.0.1"], None),
        (&[b"a\r\nb"], None),
        (&[b"a\x1b[1m"], None),
        (&["b\u{fc}cher.example".as_bytes()], None),
        (&[b""], None),
        (&[&[b'a'; 300]], None),
        (&[], None),
    ] {
        assert_eq!(Hello::parse(&made(&[sni(names)])), hello(wanted, &[]), "{names:?}");
    }
    // 40 KiB of extensions over three records.
    let big = made(&[(0x1234, vec![0; 40_000]), sni(&[b"a.example"])]);
    assert_eq!(Hello::parse(&big), hello(Some("a.example"), &[]));
    assert_eq!(Hello::parse(&big[..20_000]), Peek::NeedMore);
    // A length beyond the bound is refused at once, not waited for.
    assert_eq!(Hello::parse(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), Peek::NeedMore);
    assert_eq!(Hello::parse(&[22, 3, 1, 0, 4, 1, 1, 0, 1]), Peek::NotTls);
    // Lengths that point outside.
    assert_eq!(Hello::parse(&made(&[(0, vec![0, 9, 0, 0, 3, b'a'])])), Peek::NotTls);
    assert_eq!(Hello::parse(&made(&[(16, vec![0, 3, 9, b'h', b'2'])])), Peek::NotTls);
}

/// Bent bytes may be anything, but never a panic, and never an answer that more of the same bytes would take back.
#[test]
fn mutations() {
    let flights =
        [first_flight("web.example", &[b"h2", b"http/1.1"], true), in_records(&first_flight("a.b", &[], true), 9)];
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as usize
    };
    let mut seen = [0; 3];
    for round in 0..20_000 {
        let mut bytes = flights[round % 2].clone();
        for _ in 0..1 + random() % 4 {
            let at = random() % bytes.len();
            match random() % 4 {
                0 => bytes[at] ^= 1 << (random() % 8),
                1 => bytes[at] = random() as u8,
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random() as u8),
            }
        }
        let whole = Hello::parse(&bytes);
        seen[match whole {
            Peek::NeedMore => 0,
            Peek::NotTls => 1,
            Peek::Hello(_) => 2,
        }] += 1;
        let part = Hello::parse(&bytes[..random() % (bytes.len() + 1)]);
        assert!(part == Peek::NeedMore || part == whole, "{part:?} then {whole:?}");
    }
    assert!(seen.iter().all(|n| *n > 100), "{seen:?}");
}
