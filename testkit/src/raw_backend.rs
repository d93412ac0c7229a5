//! TCP peers: one that records every byte and answers from a script, an echo, and one that speaks first.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A thread per connection around `f(stream, number of the connection)`; ends accepting when dropped.
pub struct TcpPeer {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TcpPeer {
    #[track_caller]
    pub fn at(addr: SocketAddr, f: impl Fn(TcpStream, u64) + Send + Sync + 'static) -> Self {
        let listener: TcpListener = crate::backend::listen(addr);
        listener.set_nonblocking(false).expect("blocking");
        let addr = listener.local_addr().expect("address");
        let stop = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicU64::new(0));
        let (f, stopped, count) = (Arc::new(f), Arc::clone(&stop), Arc::clone(&connections));
        // Waits in slices instead of being woken by a connection: the peer may live in another namespace than its owner.
        let poll = socket2::SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(50)));
        poll.expect("timeout");
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let Ok((stream, _)) = listener.accept() else { continue };
                let n = count.fetch_add(1, Ordering::SeqCst) + 1;
                let _ = stream.set_nodelay(true);
                // What is accepted inherits the listener's slice.
                let _ = stream.set_read_timeout(None);
                let f = Arc::clone(&f);
                std::thread::spawn(move || f(stream, n));
            }
        });
        Self { addr, stop, connections, thread: Some(thread) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Sends back what comes; closes its direction when the other does.
    pub fn echo() -> Self {
        Self::echo_at(([127, 0, 0, 1], 0).into())
    }

    pub fn echo_at(addr: SocketAddr) -> Self {
        Self::at(addr, |mut stream, _| {
            let mut chunk = [0u8; 64 * 1024];
            while let Ok(n) = stream.read(&mut chunk) {
                if n == 0 || stream.write_all(&chunk[..n]).is_err() {
                    break;
                }
            }
            let _ = stream.shutdown(std::net::Shutdown::Write);
        })
    }

    /// Sends `banner` before it reads anything, then echoes.
    pub fn server_first(banner: &'static str) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), move |mut stream, _| {
            if stream.write_all(banner.as_bytes()).is_err() {
                return;
            }
            let mut chunk = [0u8; 4096];
            while let Ok(n) = stream.read(&mut chunk) {
                if n == 0 || stream.write_all(&chunk[..n]).is_err() {
                    break;
                }
            }
        })
    }
}

impl Drop for TcpPeer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One step of a scripted connection.
#[derive(Clone, Debug)]
pub enum Step {
    /// Read until the bytes so far contain this (after what earlier steps consumed).
    Until(&'static [u8]),
    /// Read exactly so many further bytes.
    Take(usize),
    Send(Vec<u8>),
    Sleep(Duration),
    /// FIN in our direction.
    Finish,
    /// RST.
    Reset,
}

/// Records the bytes of each connection and answers by `script(number of the connection)`; when a script has no steps
/// left it goes on reading and recording until the peer closes, unless it ended with `Reset`.
pub struct RawBackend {
    peer: TcpPeer,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl RawBackend {
    pub fn start(script: impl Fn(u64) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let store = Arc::clone(&received);
        let peer = TcpPeer::at(([127, 0, 0, 1], 0).into(), move |stream, n| {
            let at = {
                let mut all = store.lock().expect("received");
                all.push(Vec::new());
                all.len() - 1
            };
            play(stream, script(n), |bytes| store.lock().expect("received")[at].extend_from_slice(bytes));
        });
        Self { peer, received }
    }

    /// Answers every request head (it must have no body) with these bytes.
    pub fn answering(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        // As many rounds as any test asks for on one connection.
        Self::start(move |_| (0..64).flat_map(|_| [Step::Until(b"\r\n\r\n"), Step::Send(bytes.clone())]).collect())
    }

    /// Answers the first head with these bytes and closes.
    pub fn answering_once(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |_| vec![Step::Until(b"\r\n\r\n"), Step::Send(bytes.clone()), Step::Finish])
    }

    pub fn addr(&self) -> SocketAddr {
        self.peer.addr()
    }

    pub fn connections(&self) -> u64 {
        self.peer.connections()
    }

    /// What each connection received, in order of arrival.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.received.lock().expect("received").clone()
    }

    /// Everything received, for "does it contain" questions.
    pub fn all(&self) -> String {
        self.received().iter().map(|b| String::from_utf8_lossy(b).into_owned()).collect::<Vec<_>>().join("\n---\n")
    }
}

fn play(mut stream: TcpStream, script: Vec<Step>, mut record: impl FnMut(&[u8])) {
    let mut pending = Vec::new();
    let mut chunk = [0u8; 64 * 1024];
    for step in script {
        match step {
            Step::Until(_) | Step::Take(_) => loop {
                let end = match &step {
                    Step::Until(needle) => {
                        pending.windows(needle.len()).position(|w| w == *needle).map(|i| i + needle.len())
                    }
                    Step::Take(n) => (pending.len() >= *n).then_some(*n),
                    _ => unreachable!(),
                };
                if let Some(end) = end {
                    pending.drain(..end);
                    break;
                }
                match stream.read(&mut chunk) {
                    Ok(n) if n > 0 => {
                        record(&chunk[..n]);
                        pending.extend_from_slice(&chunk[..n]);
                    }
                    _ => return,
                }
            },
            Step::Send(bytes) => {
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Step::Sleep(time) => std::thread::sleep(time),
            Step::Finish => drop(stream.shutdown(std::net::Shutdown::Write)),
            Step::Reset => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
        }
    }
    while let Ok(n) = stream.read(&mut chunk) {
        if n == 0 {
            break;
        }
        record(&chunk[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::http1;

    #[test]
    fn records_and_answers() {
        let backend = RawBackend::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        let mut client = http1(backend.addr());
        assert_eq!(client.get("/a").text(), "ok");
        assert_eq!(client.get("/b").text(), "ok");
        assert!(backend.all().contains("GET /b HTTP/1.1"));
        let mailer = TcpPeer::server_first("220 hi\r\n");
        let mut client = http1(mailer.addr());
        let mut banner = [0u8; 8];
        client.stream.read_exact(&mut banner).expect("banner");
        assert_eq!(&banner, b"220 hi\r\n");
    }
}
