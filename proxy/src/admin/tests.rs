//! The admin interface over real sockets.

use super::*;
use crate::telemetry::Recorder;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_policy::backend;
use weft_policy::endpoint::{self, Address};
use weft_policy::id::{BackendId, EndpointId, ServiceId};
use weft_policy::listener::Role;
use weft_policy::meta::Workload;
use weft_policy::telemetry::Config;

struct Fake {
    state: Mutex<State>,
    filter: Mutex<String>,
    drains: AtomicUsize,
    quits: AtomicUsize,
    backend: Arc<Backend>,
}

impl Fake {
    fn new() -> Arc<Self> {
        let id = BackendId { service: ServiceId::new("demo", "echo"), port: 80, subset: Some("v1".into()) };
        let mut config = backend::Config::default();
        config.breaker.max_connections = Some(1);
        let backend = Arc::new(Backend::new(id, config));
        backend.set_endpoints(&[endpoint::Config {
            id: EndpointId("e1".into()),
            address: Address::Direct(([10, 0, 0, 1], 8080).into()),
            identity: None,
            labels: Default::default(),
            weight: 1,
            draining: false,
            workload: Workload::default(),
        }]);
        Arc::new(Self {
            state: Mutex::new(State::Live),
            filter: Mutex::new("info".into()),
            drains: AtomicUsize::new(0),
            quits: AtomicUsize::new(0),
            backend,
        })
    }
}

impl Proxy for Fake {
    fn state(&self) -> State {
        *self.state.lock().unwrap()
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!({ "version": 1, "key": "-----BEGIN PRIVATE KEY-----", "headers": { "Authorization": "Bearer x" } })
    }

    fn backends(&self) -> Vec<Arc<Backend>> {
        vec![self.backend.clone()]
    }

    fn listeners(&self) -> Vec<(Arc<str>, SocketAddr)> {
        vec![("virtualOutbound".into(), ([0, 0, 0, 0], 15001).into())]
    }

    fn certs(&self) -> Certs {
        let cert = Cert {
            serial: "0a".into(),
            uris: vec!["spiffe://cluster.local/ns/demo/sa/echo".into()],
            dns: Vec::new(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::now() + Duration::from_secs(10 * 86_400 + 60),
        };
        Certs { chain: vec![cert], roots: Vec::new() }
    }

    fn log_filter(&self) -> String {
        self.filter.lock().unwrap().clone()
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), String> {
        if filter.contains('?') {
            return Err("not a filter".into());
        }
        *self.filter.lock().unwrap() = filter.into();
        Ok(())
    }

    fn drain(&self) {
        self.drains.fetch_add(1, Ordering::SeqCst);
        *self.state.lock().unwrap() = State::Draining;
    }

    fn quit(&self) {
        self.quits.fetch_add(1, Ordering::SeqCst);
    }
}

struct Served {
    fake: Arc<Fake>,
    hub: Arc<Hub>,
    admin: SocketAddr,
    public: SocketAddr,
}

async fn served(log_reset: Duration) -> Served {
    let fake = Fake::new();
    let workload = Workload { name: "web".into(), namespace: "demo".into(), ..Workload::default() };
    let hub = Hub::new(Config::default(), workload, None);
    let state = AdminState::resetting_logs_after(hub.clone(), fake.clone(), log_reset);
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let of = (admin.local_addr().unwrap(), public.local_addr().unwrap());
    tokio::spawn(serve(admin, state.clone()));
    tokio::spawn(serve_public(public, state));
    Served { fake, hub, admin: of.0, public: of.1 }
}

/// Status, head and body.
async fn ask(to: SocketAddr, method: &str, path: &str, more: &str) -> (u16, String, String) {
    let host = if more.to_ascii_lowercase().contains("host:") { String::new() } else { format!("host: {to}\r\n") };
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(format!("{method} {path} HTTP/1.1\r\n{host}{more}\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_string())
}

async fn get(to: SocketAddr, path: &str) -> String {
    let (status, head, body) = ask(to, "GET", path, "").await;
    assert_eq!(status, 200, "{path}: {body}");
    assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    assert!(head.contains("content-type: text/plain") || head.contains("content-type: application/json"), "{head}");
    body
}

#[tokio::test]
async fn pages() {
    let s = served(Duration::from_secs(60)).await;
    let recorder = Recorder::new(&s.hub);
    recorder.connection_opened(Role::Outbound);
    recorder.flush();
    assert_eq!(get(s.admin, "/ready").await, "LIVE\n");
    for (path, _, _, _, changes) in rules::PATHS {
        if !changes {
            get(s.admin, path).await;
        }
    }
    let stats = get(s.admin, "/stats").await;
    for word in ["downstream_cx_active", "request_duration", "circuit_breaker", "active", "error", "cpu"] {
        assert!(stats.lines().any(|l| l.contains(word)), "{word} in {stats}");
    }
    assert!(stats.contains("http.outbound.downstream_cx_active: 1\n"), "{stats}");
    let metrics = get(s.admin, "/stats/prometheus").await;
    assert!(
        metrics.contains("process_cpu_seconds_total ")
            && metrics.contains("weft_active_connections{role=\"outbound\"} 1")
    );
    let clusters = get(s.admin, "/clusters").await;
    let name = "outbound|80|v1|echo.demo.svc.cluster.local";
    for line in [
        "::10.0.0.1:8080::health_flags::healthy\n",
        "::default_priority::max_connections::1\n",
        "::default_priority::max_requests::4294967295\n",
        "::cx_active::0\n",
    ] {
        assert!(clusters.contains(&format!("{name}{line}")), "{line} in {clusters}");
    }
    let dump = get(s.admin, "/config_dump").await;
    assert!(!dump.contains("PRIVATE") && !dump.contains("Bearer") && dump.contains("version"), "{dump}");
    let certs: serde_json::Value = serde_json::from_str(&get(s.admin, "/certs").await).unwrap();
    assert_eq!(certs["certificates"][0]["cert_chain"][0]["days_until_expiration"], "10");
    let info: serde_json::Value = serde_json::from_str(&get(s.admin, "/server_info").await).unwrap();
    assert_eq!(info["state"], "LIVE");
    assert_eq!(get(s.admin, "/listeners").await, "virtualOutbound::0.0.0.0:15001\n");
    assert!(get(s.admin, "/help").await.contains("/config_dump"));
    *s.fake.state.lock().unwrap() = State::PreInitializing;
    assert_eq!(ask(s.admin, "GET", "/ready", "").await.0, 503);
    assert_eq!(ask(s.public, "GET", "/ready", "").await.2, "PRE_INITIALIZING\n");
}

#[tokio::test]
async fn changes() {
    let s = served(Duration::from_secs(60)).await;
    for path in ["/drain", "/quitquitquit"] {
        let (status, head, _) = ask(s.admin, "GET", path, "").await;
        assert_eq!(status, 405);
        assert!(head.contains("allow: post"), "{head}");
        assert_eq!(ask(s.admin, "POST", path, "host: evil.example\r\ncontent-length: 0\r\n").await.0, 421);
        assert_eq!(ask(s.public, "POST", path, "content-length: 0\r\n").await.0, 404);
    }
    assert_eq!((s.fake.drains.load(Ordering::SeqCst), s.fake.quits.load(Ordering::SeqCst)), (0, 0));
    assert_eq!(ask(s.admin, "POST", "/drain", "content-length: 0\r\n").await.0, 200);
    assert_eq!(ask(s.admin, "GET", "/ready", "").await.2, "DRAINING\n");
    assert_eq!(ask(s.admin, "POST", "/quitquitquit", "content-length: 0\r\n").await.0, 200);
    assert_eq!((s.fake.drains.load(Ordering::SeqCst), s.fake.quits.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn the_public_door() {
    let s = served(Duration::from_secs(60)).await;
    for path in ["/ready", "/live", "/metrics", "/stats/prometheus"] {
        assert_eq!(ask(s.public, "GET", path, "host: whatever\r\n").await.0, 200, "{path}");
    }
    for path in ["/", "/stats", "/config_dump", "/clusters", "/certs", "/server_info", "/logging", "/help"] {
        assert_eq!(ask(s.public, "GET", path, "").await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn log_levels_reset_themselves() {
    let s = served(Duration::from_millis(200)).await;
    assert_eq!(get(s.admin, "/logging").await, "info\n");
    let post = "content-length: 0\r\n";
    assert_eq!(ask(s.admin, "POST", "/logging", post).await.0, 400);
    assert_eq!(ask(s.admin, "POST", "/logging?level=%3f", post).await.0, 400);
    let (status, _, body) = ask(s.admin, "POST", "/logging?level=warn%2Cweft%3Ddebug", post).await;
    assert_eq!((status, body.as_str()), (200, "warn,weft=debug\n"));
    assert_eq!(ask(s.admin, "POST", "/logging?level=trace", post).await.0, 429);
    let limit = Instant::now() + Duration::from_secs(10);
    while s.fake.log_filter() != "info" {
        assert!(Instant::now() < limit);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// AD-06: many scrapers at once cost few renderings, and everybody gets an answer.
#[tokio::test]
async fn a_burst_of_scrapes() {
    let s = served(Duration::from_secs(60)).await;
    let mut all = tokio::task::JoinSet::new();
    let started = Instant::now();
    for _ in 0..200 {
        let to = s.admin;
        all.spawn(async move {
            let Ok(mut stream) = TcpStream::connect(to).await else { return None };
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            answer.get(9..12)?.parse::<u16>().ok()
        });
    }
    let mut ok = 0;
    while let Some(status) = all.join_next().await {
        match status.unwrap() {
            Some(200) => ok += 1,
            // Over a bound: told so, or closed at once.
            Some(503) | None => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(ok > 0);
    // One rendering per 250 ms at most, however many asked.
    let most = started.elapsed().as_millis() / 250 + 2;
    let text = String::from_utf8(s.hub.metrics_text().await.to_vec()).unwrap();
    let renderings: u128 = text.lines().find_map(|l| l.strip_prefix("weft_scrapes_total ")).unwrap().parse().unwrap();
    assert!(renderings <= most, "{renderings} renderings, {most} would do");
}

#[tokio::test]
async fn garbage_is_refused() {
    let s = served(Duration::from_secs(60)).await;
    for bad in [
        "\r\n\r\n\0\0",
        "GET /stats HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/9.9\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(s.admin).await.unwrap();
        stream.write_all(bad.as_bytes()).await.unwrap();
        let _ = stream.shutdown().await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(!answer.contains(" 200 "), "{bad:?}: {answer}");
    }
    assert_eq!(get(s.admin, "/ready").await, "LIVE\n");
}
