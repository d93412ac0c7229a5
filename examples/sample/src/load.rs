//! `mesh-sample load URL`: requests at a rate, over HTTP/1.1.
//!
//! The schedule does not wait for answers, and each answer's time counts from the moment its request was due: a service that
//! hangs for a second is seen to hang for all who would have come in that second.

use crate::call;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Load {
    /// http://HOST[:PORT][/PATH]
    #[arg(value_parser = target)]
    url: Uri,
    /// Requests per second
    #[arg(long, default_value_t = 50.0, value_parser = rate)]
    rps: f64,
    /// How long: 30s, 5m, 1h, or forever
    #[arg(long, default_value = "30s", value_parser = duration)]
    duration: Duration,
    #[arg(long, default_value = "GET")]
    method: Method,
    /// `NAME: VALUE` (repeatable)
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Connections at most; a request that finds none free waits for one, and that counts as its time
    #[arg(long, short, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Exit with 1 if a request failed: no answer, or a status of 400 and above
    #[arg(long)]
    fail_on_error: bool,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    /// A line each second, and the counts at the end
    Table,
    /// The counts at the end
    Json,
}

const EXAMPLES: &str = "\
Examples:
  mesh-sample load http://127.0.0.1:8080/ --rps 200 --duration 1m
  mesh-sample load http://users:8080/api -o json --fail-on-error";

/// Bytes that are kept of what a failed answer says.
const SAID: usize = 160;
/// Without an answer in this time a request has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests that are under way or wait; whoever is this far behind learns nothing from more.
const OUTSTANDING: usize = 20_000;
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn target(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|e| format!("{e}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => Ok(uri),
        _ => Err("http://HOST[:PORT][/PATH]".into()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a number")?;
    if (0.001..=100_000.0).contains(&rate) { Ok(rate) } else { Err("between 0.001 and 100000".into()) }
}

fn duration(text: &str) -> Result<Duration, String> {
    if text == "forever" {
        return Ok(FOREVER);
    }
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("as in 30s, 5m, 1h or forever".into()),
    };
    let seconds = number.parse::<f64>().map_err(|_| "as in 30s, 5m, 1h or forever")? * unit;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|d| !d.is_zero() && *d <= FOREVER)
        .ok_or("too short or long".into())
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("NAME: VALUE")?;
    let name = name.trim().parse::<HeaderName>().map_err(|e| e.to_string())?;
    Ok((name, value.trim().parse().map_err(|_| "no value of a header")?))
}

/// What came of some requests.
#[derive(Default)]
struct Tally {
    statuses: BTreeMap<u16, u64>,
    errors: BTreeMap<String, u64>,
    /// What answers of 400 and above said of themselves: a mesh's own word, or how their bodies begin.
    said: BTreeMap<String, u64>,
    /// Of answers, by time: bucket n holds those below 1.02^n microseconds.
    times: BTreeMap<u32, u64>,
    longest: Duration,
}

/// An answer's status, and of one of 400 and above what it says.
struct Answer {
    status: u16,
    said: Option<String>,
}

/// What an error says may differ each time; this many kinds are told apart.
const KINDS: usize = 20;

fn count(kinds: &mut BTreeMap<String, u64>, kind: Option<String>, times: u64) {
    let Some(kind) = kind else { return };
    let known = kinds.len() < KINDS || kinds.contains_key(&kind);
    *kinds.entry(if known { kind } else { "other".into() }).or_default() += times;
}

impl Tally {
    fn add(&mut self, outcome: Result<Answer, String>, took: Duration) {
        match outcome {
            Ok(Answer { status, said }) => {
                count(&mut self.said, said, 1);
                *self.statuses.entry(status).or_default() += 1;
                let bucket = (took.as_micros().max(1) as f64).ln() / 1.02f64.ln();
                *self.times.entry(bucket as u32 + 1).or_default() += 1;
                self.longest = self.longest.max(took);
            }
            Err(error) => count(&mut self.errors, Some(error), 1),
        }
    }

    fn merge(&mut self, other: Self) {
        other.statuses.into_iter().for_each(|(k, n)| *self.statuses.entry(k).or_default() += n);
        other.errors.into_iter().for_each(|(k, n)| count(&mut self.errors, Some(k), n));
        other.said.into_iter().for_each(|(k, n)| count(&mut self.said, Some(k), n));
        other.times.into_iter().for_each(|(k, n)| *self.times.entry(k).or_default() += n);
        self.longest = self.longest.max(other.longest);
    }

    fn answered(&self) -> u64 {
        self.statuses.values().sum()
    }

    fn failed(&self) -> u64 {
        let bad: u64 = self.statuses.range(400..).map(|(_, n)| n).sum();
        bad + self.errors.values().sum::<u64>()
    }

    fn total(&self) -> u64 {
        self.answered() + self.errors.values().sum::<u64>()
    }

    /// In milliseconds, 1 % more than it was at most.
    fn quantile(&self, q: f64) -> f64 {
        let wanted = (self.answered() as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (bucket, n) in &self.times {
            seen += n;
            if seen >= wanted {
                return (1.02f64.powf(f64::from(*bucket) - 0.5) / 1000.0).min(self.longest.as_secs_f64() * 1000.0);
            }
        }
        0.0
    }

    fn times(&self) -> String {
        let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|q| self.quantile(q));
        format!("p50 {p50:.1} ms   p95 {p95:.1} ms   p99 {p99:.1} ms")
    }

    fn document(&self, url: &Uri, took: Duration) -> Value {
        let statuses: BTreeMap<String, u64> = self.statuses.iter().map(|(k, n)| (k.to_string(), *n)).collect();
        let round = |x: f64| (x * 1000.0).round() / 1000.0;
        json!({
            "url": url.to_string(),
            "seconds": round(took.as_secs_f64()),
            "requests": self.total(),
            "rps": round(self.total() as f64 / took.as_secs_f64().max(0.001)),
            "failed": self.failed(),
            "statuses": statuses,
            "errors": self.errors,
            "said": self.said,
            "milliseconds": {
                "p50": round(self.quantile(0.5)), "p95": round(self.quantile(0.95)), "p99": round(self.quantile(0.99)),
                "max": round(self.longest.as_secs_f64() * 1000.0),
            },
        })
    }
}

struct Client {
    load: Load,
    authority: String,
    target: String,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    /// Since it was last looked at.
    recent: Mutex<Tally>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    pub async fn run(self) -> ExitCode {
        let host = self.url.host().unwrap_or_default();
        let authority = format!("{host}:{}", self.url.port_u16().unwrap_or(80));
        let path = self.url.path_and_query().map_or("/", |p| p.as_str());
        let client = Arc::new(Client {
            target: call::target(&authority, path),
            authority,
            idle: Mutex::default(),
            recent: Mutex::default(),
            load: self,
        });
        client.run().await
    }
}

impl Client {
    async fn run(self: Arc<Self>) -> ExitCode {
        let load = &self.load;
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            eprintln!("mesh-sample: no signals");
            return ExitCode::from(1);
        };
        let people = load.output == Output::Table;
        let begun = Instant::now();
        let sending = tokio::spawn(self.clone().send_all(begun));
        let mut sending = std::pin::pin!(sending);
        let mut total = Tally::default();
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        tick.tick().await;
        let mut last = begun;
        loop {
            let over = tokio::select! {
                _ = &mut sending => true,
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                _ = tick.tick() => false,
            };
            let recent = std::mem::take(&mut *locked(&self.recent));
            if people && !over {
                let rate = recent.total() as f64 / last.elapsed().as_secs_f64();
                println!(
                    "{:>5.0} s   {rate:>7.1} rps   failed {:<5}   {}",
                    begun.elapsed().as_secs_f64(),
                    recent.failed(),
                    recent.times()
                );
            }
            last = Instant::now();
            total.merge(recent);
            if over {
                break;
            }
        }
        let took = begun.elapsed();
        if people {
            summary(&total, took)
        } else {
            println!("{:#}", total.document(&load.url, took))
        }
        ExitCode::from(u8::from(load.fail_on_error && total.failed() > 0))
    }

    async fn send_all(self: Arc<Self>, begun: Instant) {
        let connections = Arc::new(Semaphore::new(self.load.connections as usize));
        let room = Arc::new(Semaphore::new(OUTSTANDING));
        let end = begun + self.load.duration;
        for n in 0u64.. {
            let due = begun + Duration::from_secs_f64(n as f64 / self.load.rps);
            if due >= end {
                break;
            }
            sleep_until(due).await;
            let Ok(place) = room.clone().try_acquire_owned() else {
                locked(&self.recent).add(Err(format!("{OUTSTANDING} requests wait already")), Duration::ZERO);
                continue;
            };
            let (client, connections) = (self.clone(), connections.clone());
            tokio::spawn(async move {
                let _place = place;
                let limit = due + PATIENCE;
                let sent = async {
                    // It is never closed.
                    let _connection = connections.acquire().await.map_err(|e| e.to_string())?;
                    client.send().await
                };
                let outcome = match tokio::time::timeout_at(limit, sent).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
                };
                locked(&client.recent).add(outcome, due.elapsed());
            });
        }
        // Every place is given back when the last one is done.
        let _ = room.acquire_many(OUTSTANDING as u32).await;
    }

    async fn send(&self) -> Result<Answer, String> {
        loop {
            let kept = locked(&self.idle).pop();
            let reused = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => {
                    let stream = call::dial(&self.authority).await.map_err(|e| format!("connect: {e}"))?;
                    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
                    tokio::spawn(connection);
                    sender
                }
            };
            if let Err(error) = sender.ready().await {
                // It was closed while nobody used it.
                if reused {
                    continue;
                }
                return Err(error.to_string());
            }
            let mut request = Request::builder().method(self.load.method.clone()).uri(&self.target);
            request = request.header(HOST, &self.authority);
            for (name, value) in &self.load.headers {
                request = request.header(name, value);
            }
            let request = request.body(Empty::new()).map_err(|e| e.to_string())?;
            match sender.send_request(request).await {
                Ok(response) => {
                    let status = response.status().as_u16();
                    let word = response.headers().get("x-mesh-error").map(|w| format!("x-mesh-error: {w:?} "));
                    let mut text = word.unwrap_or_default().into_bytes();
                    let mut body = response.into_body();
                    while let Some(frame) = body.frame().await {
                        let frame = frame.map_err(|e| e.to_string())?;
                        let data = frame.data_ref().map(|d| &d[..]).unwrap_or_default();
                        text.extend(&data[..data.len().min(SAID.saturating_sub(text.len()))]);
                    }
                    locked(&self.idle).push(sender);
                    let said = (status >= 400).then(|| String::from_utf8_lossy(&text).into_owned());
                    return Ok(Answer { status, said });
                }
                // Nothing of it was sent.
                Err(error) if reused && error.is_canceled() => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

fn summary(total: &Tally, took: Duration) {
    let rate = total.total() as f64 / took.as_secs_f64().max(0.001);
    println!("\n{} requests in {:.1} s, {rate:.1} rps, {} failed", total.total(), took.as_secs_f64(), total.failed());
    println!("  {}   max {:.1} ms", total.times(), total.longest.as_secs_f64() * 1000.0);
    for (status, n) in &total.statuses {
        println!("  {status}   {n}");
    }
    for (error, n) in total.said.iter().chain(&total.errors) {
        println!("  {error}   {n}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_quantiles() {
        let mut tally = Tally::default();
        for ms in 1..=1000u64 {
            let status = if ms > 990 { 503 } else { 200 };
            tally.add(Ok(Answer { status, said: None }), Duration::from_millis(ms));
        }
        tally.add(Err("no".into()), Duration::from_secs(1));
        assert_eq!((tally.total(), tally.failed(), tally.answered()), (1001, 11, 1000));
        for (q, wanted) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = tally.quantile(q);
            assert!((got / wanted - 1.0).abs() < 0.021, "{q}: {got} for {wanted}");
        }
        assert_eq!(Tally::default().quantile(0.5), 0.0);
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("forever"), Ok(FOREVER));
        for bad in ["", "5", "s", "-1s", "0s", "5d", "nans", "1e300h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
