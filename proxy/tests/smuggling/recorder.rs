//! The backend behind the proxy: reads strictly, keeps what it read, and answers each request with that request's own nonce.

use super::oracle::{self, End, Request};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use weft_testkit::raw_backend::TcpPeer;

/// Names the case; copied into the answer as `x-nonce`.
pub const CASE: &str = "x-case";

#[derive(Default)]
struct Store {
    whole: HashMap<String, Vec<Request>>,
    /// Requests that began and never ended.
    cut: HashMap<String, Vec<Request>>,
    /// What no strict reader takes, or what names no case.
    faults: Vec<String>,
}

pub struct Recorder {
    peer: TcpPeer,
    store: Arc<Mutex<Store>>,
}

fn case(request: &Request) -> String {
    request.field(CASE).map(|v| String::from_utf8_lossy(v).into_owned()).unwrap_or_default()
}

impl Recorder {
    pub fn start() -> Self {
        let store: Arc<Mutex<Store>> = Arc::default();
        let shared = store.clone();
        let peer = TcpPeer::at(([127, 0, 0, 1], 0).into(), move |mut stream, _| {
            let mut bytes = Vec::new();
            let mut chunk = [0u8; 64 * 1024];
            loop {
                let n = stream.read(&mut chunk).unwrap_or(0);
                bytes.extend_from_slice(&chunk[..n]);
                let reading = oracle::read(&bytes);
                let mut store = shared.lock().expect("store");
                let mut answers = Vec::new();
                for request in reading.requests {
                    let name = case(&request);
                    if name.is_empty() {
                        store.faults.push(format!("a request of no case: {request:?}"));
                    }
                    let body = format!("{} {}", request.method, request.target);
                    let body = if request.method == "HEAD" { String::new() } else { body };
                    answers.push(format!(
                        "HTTP/1.1 200 OK\r\nx-nonce: {name}\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    ));
                    store.whole.entry(name).or_default().push(request);
                }
                if let End::Malformed(why) = reading.end {
                    store.faults.push(format!("{why}: {:?}", String::from_utf8_lossy(&bytes)));
                    return;
                }
                if n == 0 {
                    match reading.begun {
                        Some(begun) => store.cut.entry(case(&begun)).or_default().push(begun),
                        None if reading.end == End::Incomplete => {
                            store
                                .faults
                                .push(format!("a head cut off: {:?}", String::from_utf8_lossy(&bytes[reading.used..])));
                        }
                        None => {}
                    }
                    return;
                }
                drop(store);
                bytes.drain(..reading.used);
                if answers.iter().any(|a| stream.write_all(a.as_bytes()).is_err()) {
                    return;
                }
            }
        });
        Self { peer, store }
    }

    pub fn addr(&self) -> SocketAddr {
        self.peer.addr()
    }

    pub fn whole(&self, case: &str) -> Vec<Request> {
        self.store.lock().expect("store").whole.get(case).cloned().unwrap_or_default()
    }

    pub fn requests(&self) -> usize {
        self.store.lock().expect("store").whole.values().map(Vec::len).sum()
    }

    pub fn faults(&self) -> Vec<String> {
        self.store.lock().expect("store").faults.clone()
    }
}
