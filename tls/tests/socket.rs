//! The batching stream over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::sync::Arc;
use std::time::Duration;

use kit::*;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use weft_tls::{Expect, Flusher, HandshakeError, Live, MeshStream, Reason, mesh_client, mesh_server};

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

async fn open(flusher: &Flusher) -> (MeshStream, MeshStream) {
    let (client, server) = pair();
    let (c, s) = shake(&client, ids(&[API]), &server, ids(&[WEB]), flusher).await;
    (c.unwrap(), s.unwrap())
}

async fn plain(flusher: &Flusher) -> (MeshStream, MeshStream) {
    let (c, s) = tcp_pair().await;
    (MeshStream::plain(c, Vec::new(), flusher), MeshStream::plain(s, Vec::new(), flusher))
}

/// Passes bytes on in pieces of `size`.
async fn slicing_relay(size: usize) -> (TcpStream, TcpStream) {
    let ((client, a), (b, server)) = tokio::join!(tcp_pair(), tcp_pair());
    a.set_nodelay(true).unwrap();
    b.set_nodelay(true).unwrap();
    async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, size: usize) {
        let mut piece = vec![0; size];
        while let Ok(n @ 1..) = from.read(&mut piece).await {
            if to.write_all(&piece[..n]).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    }
    let ((ar, aw), (br, bw)) = (a.into_split(), b.into_split());
    spawn_local(pass(ar, bw, size));
    spawn_local(pass(br, aw, size));
    (client, server)
}

async fn echo(mut stream: MeshStream) {
    let mut buffer = vec![0; 5000];
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            n => stream.write_all(&buffer[..n]).await.unwrap(),
        }
    }
    stream.shutdown().await.unwrap();
}

async fn echoes(client: MeshStream, server: MeshStream, sizes: &[usize]) {
    spawn_local(echo(server));
    let (mut reader, mut writer) = split(client);
    for (i, size) in sizes.iter().enumerate() {
        let sent = pattern(*size, i as u64 + 7);
        let mut got = vec![0; *size];
        let (w, r) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut got));
        w.unwrap();
        r.unwrap();
        assert!(got == sent, "echo of {size} bytes");
    }
    writer.shutdown().await.unwrap();
    assert_eq!(reader.read(&mut [0; 10]).await.unwrap(), 0, "a clean end");
}

const SIZES: [usize; 14] = [1, 2, 100, 1000, 4096, 16383, 16384, 16385, 20000, 65535, 65536, 65537, 131_073, 1_000_000];

#[test]
fn echo_of_many_sizes() {
    on_worker(|flusher| async move {
        let (c, s) = open(&flusher).await;
        assert_eq!(c.alpn(), Some(&b"weft/h2"[..]));
        assert_eq!(c.peer().unwrap().spiffe, Some(id(API)));
        assert_eq!(s.peer().unwrap().spiffe, Some(id(WEB)));
        assert_eq!(c.local_addr(), s.peer_addr());
        echoes(c, s, &SIZES).await;
        let (c, s) = plain(&flusher).await;
        assert!(c.peer().is_none() && !c.is_tls());
        echoes(c, s, &SIZES).await;
    });
}

#[test]
fn one_byte_segments() {
    on_worker(|flusher| async move {
        let (client, server) = pair();
        for size in [1, 7, 1000] {
            let (c, s) = slicing_relay(size).await;
            let (c, s) = shake_over(c, s, &client, Expect::Any, &server, Expect::Any, &flusher).await;
            echoes(c.unwrap(), s.unwrap(), &[1, 300, 20_000]).await;
        }
        let (c, s) = slicing_relay(1).await;
        let (c, s) = (MeshStream::plain(c, Vec::new(), &flusher), MeshStream::plain(s, Vec::new(), &flusher));
        echoes(c, s, &[1, 5000]).await;
    });
}

#[test]
fn a_prefix_counts() {
    on_worker(|flusher| async move {
        let (mut c, s) = tcp_pair().await;
        let mut s = MeshStream::plain(s, b"GET ".to_vec(), &flusher);
        c.write_all(b"/ HTTP").await.unwrap();
        let mut got = [0; 10];
        s.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"GET / HTTP");

        let (client, server) = pair();
        let (c, mut s) = tcp_pair().await;
        let config = mesh_client(&client.load(), Expect::Any, &[]).unwrap();
        let accept = async {
            let mut prefix = vec![0; 50];
            s.read_exact(&mut prefix).await.unwrap();
            let config = mesh_server(&server.load(), Expect::Any, &[]).unwrap();
            MeshStream::accept(s, prefix, config, &flusher).await.unwrap()
        };
        let (c, s) = tokio::join!(MeshStream::connect(c, name(), config, &flusher), accept);
        echoes(c.unwrap(), s, &[1000]).await;
    });
}

async fn pushes_back(c: MeshStream, mut s: MeshStream, flusher: &Flusher) {
    let total = 32 * 1024 * 1024;
    let (reader, mut writer) = split(c);
    let sent = std::rc::Rc::new(std::cell::Cell::new(0));
    let counter = sent.clone();
    let task = spawn_local(async move {
        let piece = pattern(10_000, 3);
        while counter.get() < total {
            let n = writer.write(&piece[..piece.len().min(total - counter.get())]).await.unwrap();
            counter.set(counter.get() + n);
        }
        writer.shutdown().await.unwrap();
        drop(reader);
    });
    // Until it gets no further: what the kernel's two buffers and ours hold.
    let mut last = usize::MAX;
    while last != sent.get() {
        last = sent.get();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(sent.get() < total / 2, "the writer was never stopped: {}", sent.get());
    let stats = flusher.stats();
    assert!(stats.blocked > 0 && stats.most_buffered <= 300 * 1024, "{stats:?}");
    let mut got = 0;
    let mut buffer = vec![0; 100_000];
    loop {
        match s.read(&mut buffer).await.unwrap() {
            0 => break,
            n => got += n,
        }
    }
    assert_eq!(got, total);
    task.await.unwrap();
}

#[test]
fn a_slow_reader_stops_the_writer() {
    on_worker(|flusher| async move {
        let (c, s) = open(&flusher).await;
        pushes_back(c, s, &flusher).await;
    });
    on_worker(|flusher| async move {
        let (c, s) = plain(&flusher).await;
        pushes_back(c, s, &flusher).await;
    });
}

#[test]
fn half_close_and_truncation() {
    on_worker(|flusher| async move {
        for tls in [true, false] {
            let (mut c, mut s) = if tls { open(&flusher).await } else { plain(&flusher).await };
            c.write_all(b"request").await.unwrap();
            c.shutdown().await.unwrap();
            assert!(c.write_all(b"more").await.is_err(), "nothing after the end");
            let mut got = Vec::new();
            s.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"request");
            // The other direction is still open.
            s.write_all(b"answer").await.unwrap();
            s.shutdown().await.unwrap();
            let mut got = Vec::new();
            c.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"answer");
        }
        let (c, mut s) = open(&flusher).await;
        drop(c);
        let error = s.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        // What was accepted before a drop still goes out.
        let (mut c, mut s) = open(&flusher).await;
        c.write_all(b"last words").await.unwrap();
        drop(c);
        let mut got = [0; 10];
        s.read_exact(&mut got).await.unwrap();
        assert_eq!(s.read(&mut got).await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    });
}

async fn bulk(mut c: MeshStream, mut s: MeshStream, piece: usize) {
    let total = 64 * 1024 * 1024;
    let data = pattern(1 << 20, 11);
    let expected = data.clone();
    let writer = spawn_local(async move {
        for _ in 0..total / data.len() {
            for part in data.chunks(piece) {
                s.write_all(part).await.unwrap();
            }
        }
        s.shutdown().await.unwrap();
    });
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..total / buffer.len() {
        c.read_exact(&mut buffer).await.unwrap();
        assert!(buffer == expected);
    }
    assert_eq!(c.read(&mut buffer).await.unwrap(), 0);
    writer.await.unwrap();
}

#[test]
fn bulk_transfers() {
    on_worker(|flusher| async move {
        let (c, s) = open(&flusher).await;
        let before = flusher.stats();
        bulk(c, s, 16 * 1024).await;
        let after = flusher.stats();
        let records = after.records - before.records;
        assert!(records <= 4096 + 512, "records are full: {records}");
        let (c, s) = open(&flusher).await;
        bulk(c, s, 200_000).await;
        let (c, s) = plain(&flusher).await;
        bulk(c, s, 16 * 1024).await;
        let (c, s) = plain(&flusher).await;
        bulk(c, s, 200_000).await;
    });
}

/// A frame's head and its payload are encrypted where they lie, and leave in one write.
#[test]
fn what_is_large_is_not_collected_first() {
    on_worker(|flusher| async move {
        let (mut c, mut s) = open(&flusher).await;
        let (head, payload) = (pattern(9, 1), pattern(64 * 1024, 2));
        let before = flusher.stats();
        let bufs = [std::io::IoSlice::new(&head), std::io::IoSlice::new(&payload)];
        assert_eq!(c.write_vectored(&bufs).await.unwrap(), head.len() + payload.len());
        let after = flusher.stats();
        assert_eq!((after.records - before.records, after.writes - before.writes), (5, 1));
        assert_eq!((after.most_buffered, c.held()), (before.most_buffered, 0));
        let mut got = vec![0; head.len() + payload.len()];
        s.read_exact(&mut got).await.unwrap();
        assert!(got == [head, payload].concat());
    });
}

#[test]
fn small_writes_of_many_tasks_become_few() {
    on_worker(|flusher| async move {
        let (c, mut s) = open(&flusher).await;
        let before = flusher.stats();
        let c = std::rc::Rc::new(tokio::sync::Mutex::new(c));
        for i in 0..1000_u32 {
            let c = c.clone();
            spawn_local(async move {
                let mut c = c.lock().await;
                c.write_all(&i.to_be_bytes()).await.unwrap();
                c.flush().await.unwrap();
            });
        }
        let mut got = vec![0; 4000];
        s.read_exact(&mut got).await.unwrap();
        let after = flusher.stats();
        let (records, writes) = (after.records - before.records, after.writes - before.writes);
        assert!(records <= 100 && writes <= 100, "{records} records, {writes} writes");
    });
}

fn stock_client(live: &Live, root: &CertificateDer<'static>) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(weft_tls::config::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
            live.load().identity.certified().clone(),
        )));
    Arc::new(config).into()
}

#[test]
fn interop_with_stock_rustls() {
    on_worker(|flusher| async move {
        let ca = Ca::new("root");
        let both = |id: &str| ca.sign(leaf_with(vec![uri(id), dns("api.demo.svc")]));
        let web = Live::new(both(WEB), ca.bundle(Some("cluster.local")));
        let api = Live::new(both(API), ca.bundle(None));

        // Their client, our server.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = mesh_server(&api.load(), Expect::Any, &[b"h2"]).unwrap();
        let connect = async {
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            stock_client(&web, &ca.der).connect(name(), tcp).await.unwrap()
        };
        let accept = async {
            let tcp = listener.accept().await.unwrap().0;
            MeshStream::accept(tcp, Vec::new(), config, &flusher).await.unwrap()
        };
        let (theirs, ours) = tokio::join!(connect, accept);
        spawn_local(echo(ours));
        let (mut reader, mut writer) = split(theirs);
        let sent = pattern(3_000_000, 5);
        let mut got = Vec::new();
        let write = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let ((), read) = tokio::join!(write, reader.read_to_end(&mut got));
        read.unwrap();
        assert!(got == sent);

        // Our client, their server.
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der.clone()).unwrap();
        let provider = weft_tls::config::provider().clone();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.unwrap())
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                api.load().identity.certified().clone(),
            )));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let (c, s) = tcp_pair().await;
        let client = mesh_client(&web.load(), ids(&[API]), &[]).unwrap();
        let (ours, theirs) = tokio::join!(MeshStream::connect(c, name(), client, &flusher), acceptor.accept(s));
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        spawn_local(async move {
            let mut buffer = vec![0; 3000];
            while let Ok(n @ 1..) = theirs.read(&mut buffer).await {
                theirs.write_all(&buffer[..n]).await.unwrap();
            }
            theirs.shutdown().await.unwrap();
        });
        ours.write_all(&sent[..100_000]).await.unwrap();
        ours.shutdown().await.unwrap();
        let mut got = Vec::new();
        ours.read_to_end(&mut got).await.unwrap();
        assert!(got == sent[..100_000]);
    });
}

#[test]
fn key_updates_are_followed() {
    on_worker(|flusher| async move {
        let ca = Ca::new("root");
        let both = |id: &str| ca.sign(leaf_with(vec![uri(id), dns("api.demo.svc")]));
        let web = Live::new(both(WEB), ca.bundle(None));
        let api = Live::new(both(API), ca.bundle(None));
        let (c, s) = tcp_pair().await;
        let config = mesh_server(&api.load(), Expect::Any, &[]).unwrap();
        let connector = stock_client(&web, &ca.der);
        let (theirs, ours) =
            tokio::join!(connector.connect(name(), c), MeshStream::accept(s, vec![], config, &flusher));
        spawn_local(echo(ours.unwrap()));
        let mut theirs = theirs.unwrap();
        for round in 0..20_u8 {
            theirs.get_mut().1.refresh_traffic_keys().unwrap();
            theirs.write_all(&[round; 1000]).await.unwrap();
            theirs.flush().await.unwrap();
            let mut got = [0; 1000];
            theirs.read_exact(&mut got).await.unwrap();
            assert_eq!(got, [round; 1000]);
        }
    });
}

#[test]
fn garbage_is_refused() {
    on_worker(|flusher| async move {
        let (_, server) = pair();
        for bytes in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[22, 3, 1, 0, 5, 1, 0, 0, 1, 9], &[0; 100], &[22, 3, 1, 255, 255]]
        {
            let (mut c, s) = tcp_pair().await;
            let config = mesh_server(&server.load(), Expect::Any, &[]).unwrap();
            c.write_all(bytes).await.unwrap();
            c.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let (result, _) = tokio::join!(MeshStream::accept(s, vec![], config, &flusher), c.read_to_end(&mut answer));
            let reason = result.err().map(|e| e.reason());
            assert!(matches!(reason, Some(Reason::Protocol | Reason::Closed)), "{bytes:?}: {reason:?}");
        }
        // A record broken on the way: an error with a word for us, an alert for the peer, and no panic afterwards.
        let (client, server) = pair();
        let ((c, mut a), (b, s)) = tokio::join!(tcp_pair(), tcp_pair());
        let (mut br, mut bw) = b.into_split();
        let spoil = std::rc::Rc::new(std::cell::Cell::new(false));
        let spoiling = spoil.clone();
        spawn_local(async move {
            let (mut ar, mut aw) = a.split();
            let there = async {
                let mut piece = [0; 4096];
                while let Ok(n @ 1..) = ar.read(&mut piece).await {
                    if spoiling.get() {
                        piece[n - 1] ^= 1;
                    }
                    bw.write_all(&piece[..n]).await.unwrap();
                }
            };
            let _ = tokio::join!(there, tokio::io::copy(&mut br, &mut aw));
        });
        let (c, s) = shake_over(c, s, &client, Expect::Any, &server, Expect::Any, &flusher).await;
        let (mut c, mut s) = (c.unwrap(), s.unwrap());
        spoil.set(true);
        c.write_all(b"spoilt").await.unwrap();
        let error = s.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(HandshakeError::reason_of(&error), Some(Reason::Protocol));
        let error = c.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(HandshakeError::reason_of(&error), Some(Reason::PeerRefused));
        for _ in 0..3 {
            let _ = s.write(b"x").await;
            let _ = s.flush().await;
            assert!(s.read(&mut [0; 10]).await.is_err());
            tokio::task::yield_now().await;
        }
        let _ = s.shutdown().await;
        assert!(s.write_all(b"x").await.is_err());
    });
}

#[test]
fn idle_streams_hold_no_buffers() {
    on_worker(|flusher| async move {
        let (mut c, mut s) = open(&flusher).await;
        let sent = pattern(500_000, 9);
        let mut got = vec![0; sent.len()];
        let (w, r) = tokio::join!(c.write_all(&sent), s.read_exact(&mut got));
        w.unwrap();
        r.unwrap();
        while c.buffered() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((c.held(), s.held()), (0, 0));
    });
}
