//! A TCP relay that makes a network bad: slow, in small pieces, silent, one-sided; or that adds TLS for a tool which
//! has no client certificate. Its plan can be changed while connections stand.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::raw_backend::TcpPeer;

#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Before each piece, in either direction.
    pub delay: Duration,
    /// Largest piece written at once.
    pub slice: Option<usize>,
    /// Reads on and forwards nothing: neither bytes nor ends.
    pub black_hole: bool,
    /// New connections are reset.
    pub refuse: bool,
    /// The end of one direction ends both (what a half-close is not).
    pub no_half_close: bool,
}

pub struct Relay {
    peer: TcpPeer,
    plan: Arc<Mutex<Plan>>,
    live: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    pub fn start(upstream: SocketAddr, plan: Plan) -> Self {
        let plan = Arc::new(Mutex::new(plan));
        let live: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (shared, streams) = (Arc::clone(&plan), Arc::clone(&live));
        let peer = TcpPeer::at(([127, 0, 0, 1], 0).into(), move |client, _| {
            if shared.lock().expect("plan").refuse {
                let _ = socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
                return;
            }
            let Ok(server) = TcpStream::connect(upstream) else { return };
            let _ = server.set_nodelay(true);
            let dup = |s: &TcpStream| s.try_clone().expect("clone");
            streams.lock().expect("live").extend([dup(&client), dup(&server)]);
            let (c, s, p) = (dup(&client), dup(&server), Arc::clone(&shared));
            let back = std::thread::spawn(move || pump(s, c, &p));
            pump(client, server, &shared);
            let _ = back.join();
        });
        Self { peer, plan, live }
    }

    pub fn addr(&self) -> SocketAddr {
        self.peer.addr()
    }

    pub fn connections(&self) -> u64 {
        self.peer.connections()
    }

    pub fn set(&self, plan: Plan) {
        *self.plan.lock().expect("plan") = plan;
    }

    /// Resets every connection that stands.
    pub fn reset_all(&self) {
        for stream in self.live.lock().expect("live").drain(..) {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, plan: &Mutex<Plan>) {
    let mut chunk = [0u8; 64 * 1024];
    let now = || plan.lock().expect("plan").clone();
    loop {
        let n = match from.read(&mut chunk) {
            Ok(n) if n > 0 => n,
            _ => {
                let plan = now();
                if !plan.black_hole {
                    let _ = to.shutdown(if plan.no_half_close { Shutdown::Both } else { Shutdown::Write });
                }
                return;
            }
        };
        let mut rest = &chunk[..n];
        while !rest.is_empty() {
            let plan = now();
            if plan.black_hole {
                break;
            }
            let piece = plan.slice.unwrap_or(rest.len()).clamp(1, rest.len());
            if !plan.delay.is_zero() {
                std::thread::sleep(plan.delay);
            }
            if to.write_all(&rest[..piece]).is_err() {
                let _ = from.shutdown(Shutdown::Read);
                return;
            }
            rest = &rest[piece..];
        }
    }
}

/// Takes plaintext and carries it in TLS to `upstream`: h2spec and the like against an mTLS port.
pub struct TlsWrap {
    addr: SocketAddr,
    stop: tokio::sync::watch::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TlsWrap {
    pub fn start(upstream: SocketAddr, config: Arc<rustls::ClientConfig>, sni: &str) -> Self {
        let listener = crate::backend::listen(([127, 0, 0, 1], 0).into());
        let addr = listener.local_addr().expect("address");
        let name = rustls_pki_types::ServerName::try_from(sni.to_string()).expect("a server name");
        let (stop, mut stopped) = tokio::sync::watch::channel(());
        let thread = std::thread::spawn(move || {
            crate::wait::block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
                let connector = tokio_rustls::TlsConnector::from(config);
                loop {
                    tokio::select! {
                        _ = stopped.changed() => return,
                        accepted = listener.accept() => {
                            let Ok((mut client, _)) = accepted else { continue };
                            let (connector, name) = (connector.clone(), name.clone());
                            tokio::spawn(async move {
                                let server = tokio::net::TcpStream::connect(upstream).await?;
                                server.set_nodelay(true)?;
                                let mut server = connector.connect(name, server).await?;
                                tokio::io::copy_bidirectional(&mut client, &mut server).await
                            });
                        }
                    }
                }
            });
        });
        Self { addr, stop, thread: Some(thread) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for TlsWrap {
    fn drop(&mut self) {
        self.stop.send_replace(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Ca, LeafOpts};
    use crate::client::{End, Http1, Stream, http1};

    #[test]
    fn slices_and_half_closes() {
        let echo = TcpPeer::echo();
        let relay = Relay::start(echo.addr(), Plan { slice: Some(1), ..Plan::default() });
        let mut stream = Stream::connect(relay.addr()).expect("connect");
        stream.write_all(b"hello").expect("write");
        stream.finish().expect("finish");
        assert_eq!(stream.read_all(), (b"hello".to_vec(), End::Closed));
        relay.set(Plan { black_hole: true, ..Plan::default() });
        let mut stream = Stream::connect(relay.addr()).expect("connect");
        stream.set_timeout(Duration::from_millis(100));
        stream.write_all(b"hello").expect("write");
        assert_eq!(stream.read_all().1, End::Timeout);
    }

    #[test]
    fn mutual_tls_by_client_and_by_wrap() {
        let ca = Ca::new("example.org");
        let server = ca.leaf(&ca.id("ns", "server"), &LeafOpts::dns(&["server.test"]));
        let client = ca.workload("ns", "client");
        let options = crate::backend::Options {
            tls: Some(crate::tls::server(&server, &[&ca], &["h2", "http/1.1"])),
            ..Default::default()
        };
        let backend = crate::backend::Backend::with(options, crate::backend::echo());
        let config = crate::tls::verifying_client(&[&ca], Some(&client), &["http/1.1"]);
        let mut direct = Http1::tls(backend.addr(), &config, "server.test").expect("tls");
        assert_eq!(direct.get("/").status, 200);
        let wrap = TlsWrap::start(backend.addr(), config, "server.test");
        assert_eq!(http1(wrap.addr()).get("/").status, 200);
        let stranger = Ca::new("other.org").workload("ns", "client");
        let config = crate::tls::client(Some(&stranger), &["http/1.1"]);
        let refused = Http1::tls(backend.addr(), &config, "server.test").map(|mut c| c.request("GET", "/", &[], b""));
        assert!(!matches!(refused, Ok(Ok(_))), "{:?}", refused.map(|r| r.is_ok()));
    }
}
