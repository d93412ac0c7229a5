//! A tiny DNS server (UDP, A and AAAA) whose answers can be changed while it runs.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Debug)]
pub enum Answer {
    /// The addresses of the family asked for, with this TTL in seconds.
    Addrs(Vec<IpAddr>, u32),
    NxDomain,
    ServFail,
    /// No answer at all.
    Silence,
    /// An answer with another query's id.
    WrongId(IpAddr),
    /// TC set and no records, as for an answer over 512 bytes.
    Truncated,
}

#[derive(Default)]
struct State {
    names: Mutex<HashMap<String, Answer>>,
    queries: Mutex<HashMap<String, u64>>,
    total: AtomicU64,
    stop: AtomicBool,
}

pub struct Dns {
    addr: SocketAddr,
    state: Arc<State>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Default for Dns {
    fn default() -> Self {
        Self::start()
    }
}

impl Dns {
    /// On 127.0.0.1 and a free port; names not set do not exist.
    pub fn start() -> Self {
        Self::at(([127, 0, 0, 1], 0).into())
    }

    #[track_caller]
    pub fn at(addr: SocketAddr) -> Self {
        let socket = UdpSocket::bind(addr).unwrap_or_else(|e| panic!("bind {addr}: {e}"));
        let addr = socket.local_addr().expect("address");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let mut packet = [0u8; 1500];
            while !shared.stop.load(Ordering::SeqCst) {
                let Ok((n, from)) = socket.recv_from(&mut packet) else { continue };
                if let Some(answer) = answer(&packet[..n], &shared) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { addr, state, thread: Some(thread) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From the next query on.
    pub fn set(&self, name: &str, answer: Answer) {
        self.state.names.lock().expect("names").insert(key(name), answer);
    }

    /// How often this name was asked for, over both families.
    pub fn queries(&self, name: &str) -> u64 {
        self.state.queries.lock().expect("queries").get(&key(name)).copied().unwrap_or(0)
    }

    pub fn total(&self) -> u64 {
        self.state.total.load(Ordering::SeqCst)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn answer(query: &[u8], state: &State) -> Option<Vec<u8>> {
    // Header of 12 bytes, then one question: labels, type, class.
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let len = usize::from(*query.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + len)?).into_owned());
        at += len;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;
    let name = key(&labels.join("."));
    state.total.fetch_add(1, Ordering::SeqCst);
    *state.queries.lock().expect("queries").entry(name.clone()).or_insert(0) += 1;
    let answer = state.names.lock().expect("names").get(&name).cloned().unwrap_or(Answer::NxDomain);
    let mut id = [query[0], query[1]];
    let (code, truncated, addrs, ttl) = match answer {
        Answer::Silence => return None,
        Answer::Addrs(addrs, ttl) => (0u8, false, addrs, ttl),
        Answer::NxDomain => (3, false, Vec::new(), 0),
        Answer::ServFail => (2, false, Vec::new(), 0),
        Answer::Truncated => (0, true, Vec::new(), 0),
        Answer::WrongId(addr) => {
            id[0] ^= 0xff;
            (0, false, vec![addr], 60)
        }
    };
    let addrs: Vec<IpAddr> =
        addrs.into_iter().filter(|a| matches!((kind, a), (1, IpAddr::V4(_)) | (28, IpAddr::V6(_)))).collect();
    // Response, recursion desired and available.
    let mut out = vec![id[0], id[1], 0x81 | if truncated { 2 } else { 0 }, 0x80 | code, 0, 1];
    out.extend_from_slice(&(addrs.len() as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, 0]);
    out.extend_from_slice(question);
    for addr in addrs {
        // The name as a pointer to the question's.
        out.extend_from_slice(&[0xc0, 12]);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1]);
        out.extend_from_slice(&ttl.to_be_bytes());
        match addr {
            IpAddr::V4(a) => {
                out.extend_from_slice(&[0, 4]);
                out.extend_from_slice(&a.octets());
            }
            IpAddr::V6(a) => {
                out.extend_from_slice(&[0, 16]);
                out.extend_from_slice(&a.octets());
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_change_live() {
        let dns = Dns::start();
        let ask = || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
            let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x04test\x00\x00\x01\x00\x01";
            socket.send_to(query, dns.addr()).expect("send");
            let mut packet = [0u8; 512];
            let n = socket.recv(&mut packet).expect("answer");
            packet[..n].to_vec()
        };
        assert_eq!(ask()[3] & 15, 3);
        dns.set("web.test", Answer::Addrs(vec![[10, 0, 0, 7].into(), "fd00::1".parse().expect("address")], 5));
        let answer = ask();
        assert_eq!((answer[3] & 15, answer[7]), (0, 1));
        assert!(answer.ends_with(&[0, 0, 0, 5, 0, 4, 10, 0, 0, 7]));
        assert_eq!(dns.queries("web.test"), 2);
    }
}
