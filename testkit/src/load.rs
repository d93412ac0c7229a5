//! Load at a fixed rate from an open loop, whose failures are counted by the strict rule of the project: not 2xx,
//! transport error, short body, missing grpc-status, a wrong nonce in the answer, or not sent on schedule. It never
//! sends a request twice. Its counterpart is `backend::echo`, which proves by nonce, length and hash what came through.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use tokio::sync::Mutex as AsyncMutex;

use crate::backend::{fnv, grpc_frame};
use crate::client::{Http2, send_all};
use crate::io::HyperIo;

#[derive(Clone, Debug)]
pub struct Plan {
    /// HTTP/1.1 and h2c go here (it may be one port that detects).
    pub target: SocketAddr,
    pub h2_target: Option<SocketAddr>,
    /// Host and authority.
    pub host: String,
    /// Requests per second, over all kinds.
    pub rate: u32,
    /// Shares of GET and POST over HTTP/1.1, gRPC unary, gRPC streams.
    pub mix: [u32; 4],
    /// Connections that gRPC is spread over.
    pub h2_connections: usize,
    pub post_bytes: usize,
    pub stream_messages: usize,
    /// Between two messages of a stream.
    pub stream_pause: Duration,
    pub timeout: Duration,
    /// Sent later than this after its time counts as failed. Generous: the machine is shared.
    pub late: Duration,
}

impl Plan {
    pub fn new(target: SocketAddr, host: &str, rate: u32) -> Self {
        Self {
            target,
            h2_target: None,
            host: host.into(),
            rate,
            mix: [40, 20, 30, 10],
            h2_connections: 4,
            post_bytes: 2000,
            stream_messages: 5,
            stream_pause: Duration::from_millis(5),
            timeout: Duration::from_secs(10),
            late: Duration::from_secs(1),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub sent: u64,
    pub ok: u64,
    /// Reason and how often, for HTTP/1.1 and gRPC apart by their first word.
    pub failed: BTreeMap<String, u64>,
    /// Of those that were ok, from the scheduled time, microseconds, sorted.
    pub latencies: Vec<u32>,
    pub per_kind: [u64; 4],
}

impl Totals {
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    pub fn quantile(&self, q: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * q) as usize;
        Duration::from_micros(u64::from(self.latencies.get(at).copied().unwrap_or(0)))
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| self.quantile(q));
        write!(f, "sent {} ok {} failed {:?} p50 {p50:?} p99 {p99:?} max {max:?}", self.sent, self.ok, self.failed)
    }
}

/// Runs until `stop`, on a thread of its own.
pub struct LoadGen {
    stop: Arc<AtomicBool>,
    totals: Arc<Mutex<Totals>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LoadGen {
    /// In a namespace: `ns.run(|| LoadGen::start(plan))`.
    pub fn start(plan: Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let totals = Arc::new(Mutex::new(Totals::default()));
        let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&totals));
        let thread = std::thread::spawn(move || crate::wait::block_on(drive(plan, stopped, shared)));
        Self { stop, totals, thread: Some(thread) }
    }

    /// The counts so far (latencies unsorted).
    pub fn so_far(&self) -> Totals {
        self.totals.lock().expect("totals").clone()
    }

    /// Sends no more, waits for what is under way, and counts up.
    pub fn stop(mut self) -> Totals {
        self.end();
        let mut totals = self.so_far();
        totals.latencies.sort_unstable();
        totals
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for LoadGen {
    fn drop(&mut self) {
        self.end();
    }
}

struct Client {
    plan: Plan,
    /// Idle HTTP/1.1 connections.
    idle: Mutex<Vec<http1::SendRequest<Full<Bytes>>>>,
    h2: Vec<AsyncMutex<Option<Http2>>>,
}

async fn drive(plan: Plan, stop: Arc<AtomicBool>, totals: Arc<Mutex<Totals>>) {
    let h2 = (0..plan.h2_connections.max(1)).map(|_| AsyncMutex::new(None)).collect();
    let client = Arc::new(Client { idle: Mutex::default(), h2, plan });
    let shares: u32 = client.plan.mix.iter().sum();
    let mut tasks = tokio::task::JoinSet::new();
    let begun = Instant::now();
    let mut n: u64 = 0;
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        while tasks.try_join_next().is_some() {}
        let due = (begun.elapsed().as_secs_f64() * f64::from(client.plan.rate)) as u64;
        while n < due {
            let scheduled = begun + Duration::from_secs_f64(n as f64 / f64::from(client.plan.rate));
            // A stride coprime to 100 spreads the kinds evenly over time.
            let kind = pick(&client.plan.mix, ((n * 37) % u64::from(shares)) as u32);
            let (client, totals) = (Arc::clone(&client), Arc::clone(&totals));
            totals.lock().expect("totals").sent += 1;
            tasks.spawn(async move {
                let result = match scheduled.elapsed() > client.plan.late {
                    true => Err("not sent on schedule".to_string()),
                    false => match tokio::time::timeout(client.plan.timeout, client.one(kind, n)).await {
                        Ok(result) => result,
                        Err(_) => Err(format!("{} no answer in time", NAMES[kind])),
                    },
                };
                let mut totals = totals.lock().expect("totals");
                match result {
                    Ok(()) => {
                        totals.ok += 1;
                        totals.per_kind[kind] += 1;
                        totals.latencies.push(scheduled.elapsed().as_micros().min(u128::from(u32::MAX)) as u32);
                    }
                    Err(reason) => *totals.failed.entry(reason).or_insert(0) += 1,
                }
            });
            n += 1;
        }
    }
    while tasks.join_next().await.is_some() {}
}

const NAMES: [&str; 4] = ["http1-get", "http1-post", "grpc-unary", "grpc-stream"];

fn pick(mix: &[u32; 4], mut at: u32) -> usize {
    for (kind, share) in mix.iter().enumerate() {
        if at < *share {
            return kind;
        }
        at -= share;
    }
    0
}

impl Client {
    async fn one(&self, kind: usize, n: u64) -> Result<(), String> {
        let nonce = format!("{n:x}-{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let result = if kind < 2 { self.http1(kind == 1, &nonce).await } else { self.grpc(kind == 3, n, &nonce).await };
        result.map_err(|e| format!("{} {e}", NAMES[kind]))
    }

    async fn http1(&self, post: bool, nonce: &str) -> Result<(), String> {
        let mut sender = loop {
            let idle = self.idle.lock().expect("idle").pop();
            match idle {
                // A connection the peer has ended meanwhile carries nothing, so leaving it is no retry.
                Some(mut sender) => match sender.ready().await {
                    Ok(()) => break sender,
                    Err(_) => continue,
                },
                None => {
                    let stream = tokio::net::TcpStream::connect(self.plan.target).await;
                    let stream = stream.map_err(|e| format!("connect: {:?}", e.kind()))?;
                    let _ = stream.set_nodelay(true);
                    let (mut sender, connection) =
                        http1::handshake(HyperIo(stream)).await.map_err(|e| format!("handshake: {e}"))?;
                    tokio::spawn(async move {
                        let _ = connection.await;
                    });
                    sender.ready().await.map_err(|e| format!("ready: {e}"))?;
                    break sender;
                }
            }
        };
        let body = if post { filler(nonce, self.plan.post_bytes) } else { Bytes::new() };
        let request = http::Request::builder()
            .method(if post { "POST" } else { "GET" })
            .uri(format!("/load/{}", if post { "post" } else { "get" }))
            .header("host", &self.plan.host)
            .header("x-weft-nonce", nonce)
            .body(Full::new(body.clone()))
            .map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| format!("transport: {e}"))?;
        let status = response.status();
        let answer = response.into_body().collect().await.map_err(|e| format!("short body: {e}"))?.to_bytes();
        if !status.is_success() {
            return Err(format!(
                "status {}: {}",
                status.as_u16(),
                String::from_utf8_lossy(&answer[..answer.len().min(80)])
            ));
        }
        let json: serde_json::Value = serde_json::from_slice(&answer).map_err(|e| format!("body: {e}"))?;
        if json["nonce"] != nonce {
            return Err("wrong nonce".into());
        }
        if json["body_len"] != body.len() || json["body_fnv"] != fnv(&body) {
            return Err("the request's body came through changed".into());
        }
        self.idle.lock().expect("idle").push(sender);
        Ok(())
    }

    /// A connection that takes new streams; a new one in its place if it no longer does.
    async fn h2(&self, n: u64) -> Result<Http2, String> {
        let mut slot = self.h2[(n % self.h2.len() as u64) as usize].lock().await;
        if let Some(h2) = slot.as_ref()
            && h2.usable().await
        {
            return Ok(h2.clone());
        }
        let target = self.plan.h2_target.unwrap_or(self.plan.target);
        let h2 = Http2::connect(target).await.map_err(|e| format!("connect: {:?}", e.kind()))?;
        let h2 = h2.authority(&self.plan.host);
        *slot = Some(h2.clone());
        Ok(h2)
    }

    async fn grpc(&self, stream: bool, n: u64, nonce: &str) -> Result<(), String> {
        let h2 = self.h2(n).await?;
        let path = if stream { "/weft.test.Load/Stream" } else { "/weft.test.Load/Unary" };
        let head =
            h2.head("POST", path, &[("content-type", "application/grpc"), ("te", "trailers"), ("x-weft-nonce", nonce)]);
        let (response, mut send) = h2.open(head, false).await.map_err(|e| format!("transport: {e}"))?;
        let messages = if stream { self.plan.stream_messages } else { 1 };
        let transport = |e: h2::Error| format!("transport: {e}");
        let frame = |i: usize| grpc_frame(format!("{nonce}/{i}").as_bytes());
        send_all(&mut send, frame(0), messages == 1).await.map_err(transport)?;
        let response = response.await.map_err(transport)?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status().as_u16()));
        }
        // An answer of trailers only: what went wrong is in its head.
        if let Some(status) = response.headers().get("grpc-status").filter(|s| *s != "0") {
            return Err(format!("grpc-status {status:?} {:?}", response.headers().get("grpc-message")));
        }
        let mut recv = response.into_body();
        let mut got = Vec::new();
        for i in 0..messages {
            let want = frame(i);
            if i > 0 {
                // Ping-pong: the next message goes out when the last one is back.
                tokio::time::sleep(self.plan.stream_pause).await;
                send_all(&mut send, want.clone(), i + 1 == messages).await.map_err(transport)?;
            }
            while got.len() < want.len() {
                let Some(data) = recv.data().await else {
                    let status = recv.trailers().await.ok().flatten().and_then(|t| t.get("grpc-status").cloned());
                    return Err(format!("short body, grpc-status {status:?}"));
                };
                let data = data.map_err(transport)?;
                let _ = recv.flow_control().release_capacity(data.len());
                got.extend_from_slice(&data);
            }
            if got != want {
                return Err("wrong nonce".into());
            }
            got.clear();
        }
        while let Some(data) = recv.data().await {
            if !data.map_err(transport)?.is_empty() {
                return Err("bytes behind the last message".into());
            }
        }
        match recv.trailers().await.map_err(transport)?.as_ref().and_then(|t| t.get("grpc-status")) {
            Some(status) if status == "0" => Ok(()),
            Some(status) => Err(format!("grpc-status {status:?}")),
            None => Err("no grpc-status".into()),
        }
    }
}

fn filler(nonce: &str, len: usize) -> Bytes {
    nonce.bytes().cycle().take(len).collect::<Vec<u8>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Reply, echo, fail_first};

    #[test]
    fn counts_what_goes_through_and_what_fails() {
        let backend = Backend::start(echo());
        let load = LoadGen::start(Plan::new(backend.addr(), "load.test", 200));
        crate::wait::until("150 requests", Duration::from_secs(20), || load.so_far().ok >= 150);
        let totals = load.stop();
        println!("{totals}");
        assert_eq!((totals.failures(), totals.ok), (0, totals.sent), "{totals}");
        assert_eq!(backend.requests(), totals.sent);
        assert!(totals.per_kind.iter().all(|n| *n > 0), "{:?}", totals.per_kind);
        backend.clear();
        backend.set(fail_first(3, Reply::new(503)));
        let load = LoadGen::start(Plan { mix: [1, 1, 0, 0], ..Plan::new(backend.addr(), "load.test", 100) });
        crate::wait::until("20 requests", Duration::from_secs(20), || load.so_far().sent >= 20);
        let totals = load.stop();
        assert_eq!((totals.failures(), totals.sent), (3, backend.requests()), "{totals}");
    }
}
