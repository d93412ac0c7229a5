//! Endpoints given by name: one task per name asks again when the answer's time is over.
//!
//! A slow or dead server for one name delays no other name and no request. Answers are refreshed by their TTL, at least 5 s
//! and at most 5 min after the last; a failed attempt is repeated after 5 s. The last good answer is served for as long as
//! nobody can say anything else; if the server says that the name does not exist any more, for 5 min more. At most 256
//! addresses of a name are used.

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const MAX_ADDRESSES: usize = 256;

/// When to ask again.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub min: Duration,
    pub max: Duration,
    /// How long one attempt may take, all servers and searched domains included.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { min: Duration::from_secs(5), max: Duration::from_secs(300), patience: Duration::from_secs(10) }
    }
}

/// What a name stands for, sent on every change, and once after the first attempt even if that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub host: Arc<str>,
    pub addresses: Vec<IpAddr>,
}

/// The names that are being kept up to date.
pub struct Names {
    resolver: Arc<TokioResolver>,
    pace: Pace,
    tx: mpsc::Sender<Answer>,
    tasks: FxHashMap<Arc<str>, Task>,
}

struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Names {
    /// Must be called on the runtime that is to do the work. Without servers the system's settings are used.
    pub fn new(servers: &[SocketAddr], pace: Pace) -> Result<(Self, mpsc::Receiver<Answer>), NetError> {
        let mut builder = match servers {
            [] => Resolver::builder_tokio()?,
            _ => {
                let servers = servers.iter().map(|s| server(*s)).collect();
                let config = ResolverConfig::from_name_servers(servers);
                Resolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        let options = builder.options_mut();
        // The answers are kept here, with their own rules.
        options.cache_size = 0;
        options.edns0 = true;
        options.attempts = 2;
        options.timeout = options.timeout.min(Duration::from_secs(2));
        let (tx, rx) = mpsc::channel(64);
        Ok((Self { resolver: Arc::new(builder.build()?), pace, tx, tasks: FxHashMap::default() }, rx))
    }

    /// Starts what is new in `names` and stops what is gone; the others go on undisturbed.
    pub fn want(&mut self, names: &BTreeSet<Arc<str>>) {
        self.tasks.retain(|name, _| names.contains(name));
        for name in names {
            if !self.tasks.contains_key(name) {
                let task = refresh(self.resolver.clone(), name.clone(), self.pace, self.tx.clone());
                self.tasks.insert(name.clone(), Task(tokio::spawn(task)));
            }
        }
    }
}

fn server(addr: SocketAddr) -> NameServerConfig {
    let on = |protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = addr.port();
        connection
    };
    NameServerConfig::new(addr.ip(), true, vec![on(ProtocolConfig::Udp), on(ProtocolConfig::Tcp)])
}

async fn refresh(resolver: Arc<TokioResolver>, host: Arc<str>, pace: Pace, tx: mpsc::Sender<Answer>) {
    let mut known = Known::default();
    let mut told: Option<Vec<IpAddr>> = None;
    loop {
        let ask = |kind| ask(&resolver, &host, kind, pace.patience);
        let (v4, v6) = tokio::join!(ask(RecordType::A), ask(RecordType::AAAA));
        for failure in [&v4, &v6].into_iter().filter_map(|r| match r {
            Found::Failed(why) => Some(why),
            _ => None,
        }) {
            metrics::counter!("weft_dns_failures_total").increment(1);
            tracing::warn!(name = %host, error = %failure, "name not resolved, the last answer stays");
        }
        let wait = known.learn(v4, v6, Instant::now(), &pace);
        let now = known.addresses();
        if told.as_ref() != Some(&now) {
            tracing::info!(name = %host, addresses = now.len(), "name resolved");
            if tx.send(Answer { host: host.clone(), addresses: now.clone() }).await.is_err() {
                return;
            }
            told = Some(now);
        }
        tokio::time::sleep(wait).await;
    }
}

/// What one question brought.
#[derive(Debug)]
enum Found {
    Addresses(Vec<IpAddr>, Duration),
    /// The server says that there are none.
    Nothing,
    Failed(String),
}

async fn ask(resolver: &TokioResolver, host: &str, kind: RecordType, patience: Duration) -> Found {
    match tokio::time::timeout(patience, resolver.lookup(host, kind)).await {
        Err(_) => Found::Failed(format!("no answer within {} s", patience.as_secs_f32())),
        Ok(Err(e)) if e.is_no_records_found() => Found::Nothing,
        Ok(Err(e)) => Found::Failed(e.to_string()),
        Ok(Ok(lookup)) => {
            let mut addresses = Vec::new();
            let mut ttl = u32::MAX;
            for record in lookup.answers() {
                match &record.data {
                    RData::A(a) => addresses.push(IpAddr::V4(a.0)),
                    RData::AAAA(a) => addresses.push(IpAddr::V6(a.0)),
                    RData::CNAME(_) => {}
                    _ => continue,
                }
                ttl = ttl.min(record.ttl);
            }
            match addresses.is_empty() {
                true => Found::Nothing,
                false => Found::Addresses(addresses, Duration::from_secs(ttl.into())),
            }
        }
    }
}

/// What is known of a name: the last good answer of each family.
#[derive(Debug, Default)]
struct Known {
    families: [Family; 2],
}

#[derive(Debug, Default)]
struct Family {
    addresses: Vec<IpAddr>,
    /// Since when the server says that there are none.
    denied: Option<Instant>,
}

impl Known {
    /// Takes the answers for both families, and says how long to wait before asking again.
    fn learn(&mut self, v4: Found, v6: Found, now: Instant, pace: &Pace) -> Duration {
        let found_any = matches!(v4, Found::Addresses(..)) || matches!(v6, Found::Addresses(..));
        let mut wait = pace.max;
        for (family, found) in self.families.iter_mut().zip([v4, v6]) {
            match found {
                Found::Addresses(addresses, ttl) => {
                    *family = Family { addresses, denied: None };
                    wait = wait.min(ttl);
                }
                // The other family has moved there: nothing to hold on to.
                Found::Nothing if found_any => *family = Family::default(),
                Found::Nothing => {
                    let since = *family.denied.get_or_insert(now);
                    if now.duration_since(since) >= pace.max {
                        family.addresses.clear();
                    }
                    wait = pace.min;
                }
                Found::Failed(_) => wait = pace.min,
            }
        }
        wait.clamp(pace.min, pace.max)
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = self.families.iter().flat_map(|f| f.addresses.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all.truncate(MAX_ADDRESSES);
        all
    }
}
