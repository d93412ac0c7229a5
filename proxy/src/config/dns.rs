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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, UdpSocket};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const PACE: Pace =
        Pace { min: Duration::from_secs(5), max: Duration::from_secs(300), patience: Duration::from_secs(10) };

    fn found(addresses: &[&str], ttl: u64) -> Found {
        Found::Addresses(addresses.iter().map(|a| a.parse().unwrap()).collect(), Duration::from_secs(ttl))
    }

    fn failed() -> Found {
        Found::Failed("refused".into())
    }

    #[test]
    fn when_to_ask_again() {
        let now = Instant::now();
        for (v4, v6, seconds) in [
            (found(&["10.0.0.1"], 60), Found::Nothing, 60),
            (found(&["10.0.0.1"], 60), found(&["fd00::1"], 20), 20),
            (found(&["10.0.0.1"], 0), Found::Nothing, 5),
            (found(&["10.0.0.1"], 1_000_000), Found::Nothing, 300),
            (found(&["10.0.0.1"], 60), failed(), 5),
            (failed(), failed(), 5),
            (Found::Nothing, Found::Nothing, 5),
        ] {
            let text = format!("{v4:?} {v6:?}");
            assert_eq!(Known::default().learn(v4, v6, now, &PACE), Duration::from_secs(seconds), "{text}");
        }
    }

    #[test]
    fn the_last_good_answer_stays() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut known = Known::default();
        known.learn(found(&["10.0.0.2", "10.0.0.1"], 5), found(&["fd00::1"], 5), at(0), &PACE);
        let all = known.addresses();
        assert_eq!(all.len(), 3);
        // Nobody can say anything: for ever.
        known.learn(failed(), failed(), at(100_000), &PACE);
        assert_eq!(known.addresses(), all);
        // One family fails, the other has moved.
        known.learn(found(&["10.0.0.3"], 5), failed(), at(100_005), &PACE);
        assert_eq!(known.addresses().len(), 2);
        // One family has gone, the other is there.
        known.learn(found(&["10.0.0.3"], 5), Found::Nothing, at(100_010), &PACE);
        assert_eq!(known.addresses().len(), 1);
        // The name does not exist: five minutes more, whatever fails meanwhile.
        known.learn(Found::Nothing, Found::Nothing, at(100_020), &PACE);
        known.learn(failed(), failed(), at(100_200), &PACE);
        known.learn(Found::Nothing, Found::Nothing, at(100_319), &PACE);
        assert_eq!(known.addresses().len(), 1);
        known.learn(Found::Nothing, Found::Nothing, at(100_320), &PACE);
        assert_eq!(known.addresses().len(), 0);
        known.learn(found(&["10.0.0.4"], 5), Found::Nothing, at(100_330), &PACE);
        assert_eq!(known.addresses().len(), 1);
    }

    #[test]
    fn a_thousand_addresses_are_too_many() {
        let mut known = Known::default();
        let many = (0..1000u32).map(|i| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + i))).collect();
        known.learn(Found::Addresses(many, Duration::ZERO), Found::Nothing, Instant::now(), &PACE);
        assert_eq!(known.addresses().len(), MAX_ADDRESSES);
    }

    /// How the fake server treats a name.
    #[derive(Clone)]
    enum Answers {
        A(Vec<[u8; 4]>),
        /// Error code of the header.
        Code(u8),
        Silence,
        /// With an id nobody asked for, and then the right one.
        Poisoned(Vec<[u8; 4]>),
        /// A CNAME of itself.
        Loop,
        /// TC over UDP, the addresses over TCP.
        Truncated(Vec<[u8; 4]>),
    }

    /// A name server on loopback, UDP and TCP, for names `x.test`.
    struct Fake {
        addr: SocketAddr,
        zone: Arc<Mutex<FxHashMap<String, Answers>>>,
        asked: Arc<AtomicUsize>,
    }

    impl Fake {
        fn new(zone: &[(&str, Answers)]) -> Self {
            let (udp, tcp) = loop {
                let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
                if let Ok(tcp) = std::net::TcpListener::bind(udp.local_addr().unwrap()) {
                    break (udp, tcp);
                }
            };
            let zone: FxHashMap<String, Answers> = zone.iter().map(|(n, a)| (n.to_string(), a.clone())).collect();
            let fake =
                Self { addr: udp.local_addr().unwrap(), zone: Arc::new(Mutex::new(zone)), asked: Arc::default() };
            let (zone, asked) = (fake.zone.clone(), fake.asked.clone());
            // These end with the process; they hold nothing but their sockets.
            std::thread::spawn(move || {
                let mut buffer = [0u8; 512];
                while let Ok((len, from)) = udp.recv_from(&mut buffer) {
                    asked.fetch_add(1, Ordering::SeqCst);
                    for reply in replies(&buffer[..len], &zone, false) {
                        let _ = udp.send_to(&reply, from);
                    }
                }
            });
            let zone = fake.zone.clone();
            std::thread::spawn(move || {
                use std::io::{Read, Write};
                for stream in tcp.incoming() {
                    let (Ok(mut stream), zone) = (stream, zone.clone()) else { return };
                    std::thread::spawn(move || {
                        let mut len = [0u8; 2];
                        while stream.read_exact(&mut len).is_ok() {
                            let mut query = vec![0u8; u16::from_be_bytes(len).into()];
                            if stream.read_exact(&mut query).is_err() {
                                return;
                            }
                            for reply in replies(&query, &zone, true) {
                                let framed = [&(reply.len() as u16).to_be_bytes()[..], &reply].concat();
                                let _ = stream.write_all(&framed);
                            }
                        }
                    });
                }
            });
            fake
        }

        fn set(&self, name: &str, answers: Answers) {
            self.zone.lock().unwrap().insert(name.into(), answers);
        }
    }

    fn replies(query: &[u8], zone: &Mutex<FxHashMap<String, Answers>>, tcp: bool) -> Vec<Vec<u8>> {
        let mut labels = Vec::new();
        let mut at = 12;
        while query[at] > 0 {
            let len = usize::from(query[at]);
            labels.push(String::from_utf8_lossy(&query[at + 1..at + 1 + len]).to_ascii_lowercase());
            at += 1 + len;
        }
        let question = &query[12..at + 5];
        let is_a = query[at + 2] == 1;
        let reply = |id: &[u8], flags: u8, code: u8, records: Vec<Vec<u8>>| {
            let mut out = [id, &[0x80 | 0x04 | 0x01 | flags, 0x80 | code, 0, 1]].concat();
            out.extend((records.len() as u16).to_be_bytes());
            out.extend([0, 0, 0, 0]);
            out.extend(question);
            out.extend(records.concat());
            out
        };
        // Name by pointer to the question, type, class, TTL 0, then the data.
        let record =
            |kind: u8, data: &[u8]| [&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 0, 0, data.len() as u8], data].concat();
        let a = |ips: &[[u8; 4]]| if is_a { ips.iter().map(|ip| record(1, ip)).collect() } else { Vec::new() };
        let id = &query[..2];
        let other = [!query[0], query[1]];
        match zone.lock().unwrap().get(&labels.join(".")).cloned().unwrap_or(Answers::Code(3)) {
            Answers::A(ips) => vec![reply(id, 0, 0, a(&ips))],
            Answers::Code(code) => vec![reply(id, 0, code, Vec::new())],
            Answers::Silence => Vec::new(),
            Answers::Poisoned(ips) => vec![reply(&other, 0, 0, a(&[[6, 6, 6, 6]])), reply(id, 0, 0, a(&ips))],
            Answers::Loop => vec![reply(id, 0, 0, vec![record(5, &[0xc0, 12])])],
            Answers::Truncated(_) if !tcp => vec![reply(id, 0x02, 0, Vec::new())],
            Answers::Truncated(ips) => vec![reply(id, 0, 0, a(&ips))],
        }
    }

    /// What is known of each name after some answers.
    struct Seen(mpsc::Receiver<Answer>, FxHashMap<String, Vec<IpAddr>>);

    impl Seen {
        async fn until(&mut self, name: &str, expected: &[[u8; 4]]) {
            let expected: Vec<IpAddr> = expected.iter().map(|ip| IpAddr::from(*ip)).collect();
            while self.1.get(name) != Some(&expected) {
                let next = tokio::time::timeout(Duration::from_secs(20), self.0.recv()).await;
                let answer = next.unwrap_or_else(|_| panic!("{name} never became {expected:?}: {:?}", self.1)).unwrap();
                self.1.insert(answer.host.to_string(), answer.addresses);
            }
        }
    }

    const FAST: Pace =
        Pace { min: Duration::from_millis(20), max: Duration::from_secs(300), patience: Duration::from_millis(1500) };

    fn names(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|n| Arc::from(*n)).collect()
    }

    #[tokio::test]
    async fn no_name_waits_for_another() {
        let one = [10, 0, 0, 1];
        let fake = Fake::new(&[
            ("dead.test", Answers::Silence),
            ("loop.test", Answers::Loop),
            ("poisoned.test", Answers::Poisoned(vec![one])),
            ("long.test", Answers::Truncated(vec![one])),
            ("good.test", Answers::A(vec![one])),
        ]);
        let (mut resolver, rx) = Names::new(&[fake.addr], FAST).unwrap();
        let mut seen = Seen(rx, FxHashMap::default());
        resolver.want(&names(&["dead.test", "loop.test", "poisoned.test", "long.test", "good.test", "gone.test"]));
        let start = Instant::now();
        seen.until("good.test", &[one]).await;
        seen.until("long.test", &[one]).await;
        seen.until("poisoned.test", &[one]).await;
        assert!(start.elapsed() < Duration::from_secs(10));
        // What has no answer says so once, so that nobody waits for it.
        for name in ["gone.test", "loop.test", "dead.test"] {
            seen.until(name, &[]).await;
        }
        // TTL 0 is asked again and again, and a change arrives while another name is dead.
        fake.set("good.test", Answers::A(vec![[10, 0, 0, 2], one]));
        seen.until("good.test", &[one, [10, 0, 0, 2]]).await;
    }

    #[tokio::test]
    async fn failures_keep_the_answer_and_unwanted_names_are_not_asked() {
        let one = [10, 0, 0, 1];
        let fake = Fake::new(&[("a.test", Answers::A(vec![one]))]);
        let (mut resolver, rx) = Names::new(&[fake.addr], FAST).unwrap();
        let mut seen = Seen(rx, FxHashMap::default());
        resolver.want(&names(&["a.test"]));
        seen.until("a.test", &[one]).await;
        for bad in [Answers::Code(2), Answers::Code(3), Answers::Code(5)] {
            fake.set("a.test", bad);
            let before = fake.asked.load(Ordering::SeqCst);
            while fake.asked.load(Ordering::SeqCst) < before + 6 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(seen.0.try_recv().is_err(), "nothing changed, so nothing is told");
        }
        fake.set("a.test", Answers::A(vec![[10, 0, 0, 2]]));
        seen.until("a.test", &[[10, 0, 0, 2]]).await;
        resolver.want(&names(&[]));
        fake.set("a.test", Answers::A(vec![[10, 0, 0, 3]]));
        assert!(resolver.tasks.is_empty());
        drop(resolver);
        // An answer may have been under way; then the channel closes, for nobody is left to ask.
        while seen.0.recv().await.is_some() {}
    }

    #[tokio::test]
    async fn names_of_a_file_become_endpoints() {
        use crate::config::Controller;
        let fake = Fake::new(&[("db.test", Answers::A(vec![[10, 0, 0, 1], [10, 0, 0, 2]]))]);
        let dir = std::env::temp_dir().join(format!("weft-names-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("weft.yaml");
        let text = format!(
            "dns: {{servers: ['{}']}}\nlisteners: [{{name: a, role: hop, address: '127.0.0.1:1', to: db}}]\n\
             services: [{{name: db, port: 80, endpoints: [{{dns: 'db.test:5432'}}]}}]\n",
            fake.addr
        );
        std::fs::write(&file, text).unwrap();
        let (shared, task) = Controller::start(&file).unwrap();
        assert!(!shared.status.load().names_settled);
        let task = tokio::spawn(task);
        let start = Instant::now();
        while !shared.status.load().names_settled {
            assert!(start.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let bound = shared.snapshot.load().fixed("a").unwrap().clone();
        let endpoints = bound.backends[0].as_ref().unwrap().endpoints.load();
        let ids: Vec<String> = endpoints.endpoints.iter().map(|e| e.id.to_string()).collect();
        assert_eq!(ids, ["db.test/10.0.0.1:5432", "db.test/10.0.0.2:5432"]);
        task.abort();
        let _ = std::fs::remove_dir_all(&dir);
    }
}
