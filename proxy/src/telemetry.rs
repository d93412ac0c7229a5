//! What the proxy tells about traffic. A request fills one [`record::Record`]; when it ends, its worker's [`Recorder`] counts it,
//! and writes a log line and spans where those are on. The process-wide [`Hub`] gathers the workers' counts once a second and whenever
//! somebody scrapes; it owns the log's and the spans' bounded queues. No request ever waits for any of them.

pub mod access_log;
pub mod edges;
pub mod metrics;
pub mod otlp;
pub mod record;
pub mod trace;

#[cfg(test)]
mod tests;

use crate::telemetry::edges::{Counts, Edge, Edges};
use crate::telemetry::metrics::cells::Cells;
use crate::telemetry::metrics::labels::Party;
use crate::telemetry::metrics::series::Series;
use crate::telemetry::metrics::{Collect, Kind, Labels, Text, process};
use crate::telemetry::record::{Record, TcpRecord};
use ::metrics as facade;
use bytes::Bytes;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, Semaphore, watch};
use weft_policy::id::SpiffeId;
use weft_policy::listener::Role;
use weft_policy::meta::Workload;
use weft_policy::telemetry::{Config, LogFormat};

/// Metrics text this young is served again: a burst of scrapers costs four renderings a second.
const CACHED: Duration = Duration::from_millis(250);
/// How long a scrape waits for workers that are busy.
const FRESH: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_secs(1);
/// A worker that finds the series taken tries again after this, rather than wait.
const AGAIN: Duration = Duration::from_millis(5);

const ROLES: [Role; 5] = [Role::Hop, Role::Outbound, Role::Inbound, Role::TcpOut, Role::TcpIn];

/// What a worker has had and has now, by role.
#[derive(Clone, Copy, Debug, Default)]
struct Activity {
    connections: [u64; 5],
    connections_closed: [u64; 5],
    requests: [u64; 5],
    requests_finished: [u64; 5],
}

impl Activity {
    fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.connections, &other.connections),
            (&mut self.connections_closed, &other.connections_closed),
            (&mut self.requests, &other.requests),
            (&mut self.requests_finished, &other.requests_finished),
        ];
        for (mine, theirs) in pairs {
            mine.iter_mut().zip(theirs).for_each(|(m, t)| *m += t);
        }
    }
}

/// For `/stats`, over all roles unless said otherwise.
#[derive(Debug, Default)]
pub struct Totals {
    /// Role, active and ever.
    pub connections: Vec<(Role, u64, u64)>,
    pub requests: Vec<(Role, u64, u64)>,
    pub finished: u64,
    pub errors: u64,
    pub durations: metrics::histogram::Durations,
}

struct Gathered {
    series: Series,
    workers: slab::Slab<Reported>,
    /// Of workers that are gone.
    ended: Activity,
    config: Arc<Config>,
    /// Counts changes of what cells depend on: names and bounds.
    shape: u64,
}

#[derive(Default)]
struct Reported {
    activity: Activity,
    /// The last question this worker answered.
    answered: u64,
}

pub struct Hub {
    pub workload: Workload,
    pub identity: Option<SpiffeId>,
    pub started: (Instant, SystemTime),
    pub log: access_log::Log,
    pub spans: otlp::Queue,
    own: Arc<Party>,
    gathered: Mutex<Gathered>,
    log_format: AtomicU32,
    sampling: AtomicU32,
    b3: std::sync::atomic::AtomicBool,
    ask: watch::Sender<u64>,
    answered: Notify,
    collectors: Mutex<Vec<Arc<dyn Collect>>>,
    cache: Mutex<Option<(Instant, Bytes)>>,
    rendering: Semaphore,
    scrapes: AtomicU64,
}

impl Hub {
    pub fn new(config: Config, workload: Workload, identity: Option<SpiffeId>) -> Arc<Self> {
        Self::logging_to(config, workload, identity, access_log::Log::stdout())
    }

    pub fn logging_to(
        config: Config,
        workload: Workload,
        identity: Option<SpiffeId>,
        log: access_log::Log,
    ) -> Arc<Self> {
        rare();
        let now = Instant::now();
        let own = Arc::new(Party {
            workload: Workload { pod: Arc::default(), ..workload.clone() },
            identity: identity.as_ref().map(SpiffeId::shared),
            addr: None,
        });
        let series = Series::new(config.max_series as usize, config.istio_names, config.linkerd_names, now);
        let hub = Arc::new(Self {
            spans: otlp::Queue::new(&workload),
            workload,
            identity,
            started: (now, SystemTime::now()),
            log,
            own,
            gathered: Mutex::new(Gathered {
                series,
                workers: slab::Slab::new(),
                ended: Activity::default(),
                config: Arc::new(Config::default()),
                shape: 0,
            }),
            log_format: AtomicU32::new(0),
            sampling: AtomicU32::new(0),
            b3: true.into(),
            ask: watch::Sender::new(0),
            answered: Notify::new(),
            collectors: Mutex::default(),
            cache: Mutex::default(),
            rendering: Semaphore::new(1),
            scrapes: AtomicU64::new(0),
        });
        hub.configure(config);
        hub
    }

    /// Takes new settings; counts stand, except those of names that are switched off.
    pub fn configure(&self, config: Config) {
        self.log_format.store(config.access_log as u32, Ordering::Relaxed);
        self.sampling.store(config.tracing.sampling_per_10k, Ordering::Relaxed);
        self.b3.store(config.tracing.b3, Ordering::Relaxed);
        self.spans.send_to(config.tracing.otlp.clone());
        if config.access_log != LogFormat::Off {
            self.log.start();
        }
        let mut gathered = self.gathered();
        let old = &gathered.config;
        let shape = |c: &Config| (c.max_series, c.istio_names, c.linkerd_names);
        if shape(old) != shape(&config) {
            gathered.shape += 1;
            gathered.series.reshape(config.max_series as usize, config.istio_names, config.linkerd_names);
        }
        gathered.config = Arc::new(config);
    }

    /// Of root requests, for [`trace::Trace::start`].
    pub fn sampling_per_10k(&self) -> u32 {
        self.sampling.load(Ordering::Relaxed)
    }

    /// For [`trace::Trace::inject`].
    pub fn b3(&self) -> bool {
        self.b3.load(Ordering::Relaxed)
    }

    fn log_format(&self) -> LogFormat {
        match self.log_format.load(Ordering::Relaxed) {
            n if n == LogFormat::Json as u32 => LogFormat::Json,
            n if n == LogFormat::Text as u32 => LogFormat::Text,
            _ => LogFormat::Off,
        }
    }

    /// Adds something to look at at each scrape.
    pub fn collect(&self, collector: Arc<dyn Collect>) {
        self.collectors.lock().unwrap_or_else(PoisonError::into_inner).push(collector);
    }

    /// Sends spans for as long as it is polled; run it on the control thread.
    pub async fn export_spans(&self) {
        self.spans.export().await;
    }

    /// To be called about every second on the control thread: the facade's histograms grow until it is.
    pub fn upkeep(&self) {
        if let Some(rare) = rare() {
            rare.run_upkeep();
        }
        self.gathered().series.expire(Instant::now());
    }

    /// Asks every worker for what it has counted, and waits a little for the answers.
    pub async fn fresh(&self) {
        let mut question = 0;
        self.ask.send_modify(|n| {
            *n += 1;
            question = *n;
        });
        let all = async {
            loop {
                let mut answered = std::pin::pin!(self.answered.notified());
                answered.as_mut().enable();
                if self.gathered().workers.iter().all(|(_, w)| w.answered >= question) {
                    return;
                }
                answered.await;
            }
        };
        let _ = tokio::time::timeout(FRESH, all).await;
    }

    /// The text of a scrape: fresh, unless somebody scraped a moment ago.
    pub async fn metrics_text(&self) -> Bytes {
        if let Some(text) = self.cached() {
            return text;
        }
        let Ok(_one) = self.rendering.acquire().await else { return Bytes::new() };
        if let Some(text) = self.cached() {
            return text;
        }
        self.fresh().await;
        let text = Bytes::from(self.render());
        *self.cache.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), text.clone()));
        text
    }

    fn cached(&self) -> Option<Bytes> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.as_ref().filter(|(at, _)| at.elapsed() < CACHED).map(|(_, text)| text.clone())
    }

    fn render(&self) -> String {
        let mut out = Text::default();
        let (activity, config) = {
            let gathered = self.gathered();
            gathered.series.write(&mut out);
            (gathered.activity(), gathered.config.clone())
        };
        self.write_own(&mut out, &activity, &config);
        let collectors = self.collectors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        collectors.iter().for_each(|c| c.collect(&mut out));
        process::collect(&mut out, self.started.1);
        if let Some(rare) = rare() {
            out.out.push_str(&rare.render());
        }
        out.out
    }

    fn write_own(&self, out: &mut Text, activity: &Activity, config: &Config) {
        let roles = |out: &mut Text, name: &str, kind, help: &str, of: &dyn Fn(usize) -> u64| {
            out.family(name, kind, help);
            for role in ROLES {
                out.sample(name, Labels::default().with("role", role.word()).as_str(), of(role as usize));
            }
        };
        let a = activity;
        roles(out, "weft_connections_total", Kind::Counter, "Connections taken from clients.", &|r| a.connections[r]);
        roles(out, "weft_active_connections", Kind::Gauge, "Connections of clients that are open.", &|r| {
            a.connections[r].saturating_sub(a.connections_closed[r])
        });
        roles(out, "weft_active_requests", Kind::Gauge, "Requests in flight.", &|r| {
            a.requests[r].saturating_sub(a.requests_finished[r])
        });
        for (name, help, value) in [
            ("weft_log_dropped_total", "Access log lines dropped, because the reader was slow.", self.log.dropped()),
            (
                "weft_spans_dropped_total",
                "Spans dropped, because the collector was slow or gone.",
                self.spans.dropped(),
            ),
            ("weft_spans_exported_total", "Spans the collector has taken.", self.spans.exported()),
            ("weft_scrapes_total", "Renderings of this page.", self.scrapes.fetch_add(1, Ordering::Relaxed) + 1),
        ] {
            out.single(name, Kind::Counter, help, value);
        }
        let w = &self.workload;
        let mut labels = Labels::default();
        for (name, value) in [
            ("version", env!("CARGO_PKG_VERSION")),
            ("workload", &w.name),
            ("namespace", &w.namespace),
            ("app", &w.app),
            ("app_version", &w.version),
            ("pod", &w.pod),
            ("cluster", &w.cluster),
        ] {
            labels.push(name, value);
        }
        for (name, value) in &config.labels {
            let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            labels.push(&format!("label_{name}"), value);
        }
        out.family("weft_proxy_info", Kind::Gauge, "This proxy and its workload.");
        out.sample("weft_proxy_info", labels.as_str(), 1);
    }

    /// Totals for people; [`Hub::fresh`] first.
    pub fn totals(&self) -> Totals {
        let gathered = self.gathered();
        let a = gathered.activity();
        let (finished, errors, durations) = gathered.series.totals();
        let of = |had: &[u64; 5], done: &[u64; 5]| {
            ROLES.map(|r| (r, had[r as usize].saturating_sub(done[r as usize]), had[r as usize])).to_vec()
        };
        Totals {
            connections: of(&a.connections, &a.connections_closed),
            requests: of(&a.requests, &a.requests_finished),
            finished,
            errors,
            durations,
        }
    }

    /// From now on, who calls whom is counted for [`Hub::take_edges`].
    pub fn count_edges(&self) {
        self.gathered().series.edges.get_or_insert_default();
    }

    /// What was counted since the last time.
    pub fn take_edges(&self) -> Vec<(Edge, Counts)> {
        self.gathered().series.edges.as_mut().map(Edges::take).unwrap_or_default()
    }

    /// What was taken and could not be told: it is there again the next time.
    pub fn put_back_edges(&self, edges: Vec<(Edge, Counts)>) {
        if let Some(all) = &mut self.gathered().series.edges {
            all.put_back(edges);
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gathered {
    fn activity(&self) -> Activity {
        let mut all = self.ended;
        self.workers.iter().for_each(|(_, w)| all.add(&w.activity));
        all
    }
}

/// Everything that is counted through the facade, wherever it is counted.
const RARE_NAMES: [(&str, &str); 18] = [
    ("weft_panics_total", "Tasks that panicked; each is a bug."),
    ("weft_accept_errors_total", "Failures to accept connections at all."),
    ("weft_tcp_rejected_total", "Connections refused before anything was served on them."),
    ("weft_tcp_detect_timeout_total", "Connections whose protocol took longer than the limit to show."),
    ("weft_tls_handshake_failed_total", "Handshakes that failed, of clients (server) and towards endpoints (client)."),
    ("weft_client_stalled_total", "Answers and sockets given up because their client took nothing."),
    ("weft_h2_flood_total", "HTTP/2 connections ended because of what only an attacker sends so much of."),
    ("weft_mirror_total", "Copies sent to shadows."),
    ("weft_mirror_dropped_total", "Copies not sent to shadows."),
    ("weft_dns_failures_total", "Questions for endpoints' addresses that failed."),
    ("weft_config_reloads_total", "Readings of the configuration."),
    ("weft_config_refused", "Whether the newest configuration was refused, and the one before is in force."),
    ("weft_config_last_success_timestamp_seconds", "When a configuration was last taken."),
    ("weft_control_connected", "Whether the control plane's stream of configuration stands."),
    ("weft_control_streams_total", "Streams of configuration begun."),
    ("weft_control_refused_total", "Resources of the control plane that were refused."),
    ("weft_control_renewal_failures_total", "Attempts to renew the certificate that failed."),
    ("weft_control_report_failures_total", "Reports that the control plane did not take; they are made again."),
];

/// The `metrics` facade's recorder, for what is too rare to matter: reloads, panics, DNS, rotations.
fn rare() -> Option<&'static PrometheusHandle> {
    static RARE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    RARE.get_or_init(|| {
        let handle = PrometheusBuilder::new().install_recorder().ok()?;
        for (name, help) in RARE_NAMES {
            facade::describe_counter!(name, help);
        }
        facade::counter!("weft_panics_total").absolute(0);
        Some(handle)
    })
    .as_ref()
}

/// A worker's side. Its methods take `&self` and never block or wait.
pub struct Recorder {
    hub: Arc<Hub>,
    number: usize,
    cells: RefCell<Cells>,
    shape: Cell<u64>,
    activity: Cell<Activity>,
    line: RefCell<String>,
}

impl Recorder {
    pub fn new(hub: &Arc<Hub>) -> Self {
        let mut gathered = hub.gathered();
        let cells = RefCell::new(Self::cells(hub, &gathered.config));
        // A newcomer has nothing to tell of earlier questions.
        let number = gathered.workers.insert(Reported { answered: *hub.ask.borrow(), ..Reported::default() });
        let shape = Cell::new(gathered.shape);
        drop(gathered);
        Self { hub: hub.clone(), number, cells, shape, activity: Cell::default(), line: RefCell::default() }
    }

    fn cells(hub: &Hub, config: &Config) -> Cells {
        let (cap, now) = (config.max_series as usize, Instant::now());
        Cells::new(hub.own.clone(), cap, config.istio_names, config.linkerd_names, now)
    }

    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    fn active(&self, change: impl FnOnce(&mut Activity)) {
        let mut activity = self.activity.get();
        change(&mut activity);
        self.activity.set(activity);
    }

    pub fn connection_opened(&self, role: Role) {
        self.active(|a| a.connections[role as usize] += 1);
    }

    pub fn connection_closed(&self, role: Role) {
        self.active(|a| a.connections_closed[role as usize] += 1);
    }

    /// A request's head is here; [`Recorder::finish`] must follow.
    pub fn request_started(&self, role: Role) {
        self.active(|a| a.requests[role as usize] += 1);
    }

    /// A request is over, however it ended.
    pub fn finish(&self, record: &Record, now: Instant) {
        self.active(|a| a.requests_finished[record.role as usize] += 1);
        self.cells.borrow_mut().finish(record, now);
        match self.hub.log_format() {
            LogFormat::Off => {}
            format => self.log(|hub, line| access_log::request(line, format, hub, record, now)),
        }
        if record.trace.sampled && self.hub.spans.is_on() {
            self.hub.spans.push(record, now);
        }
    }

    pub fn tcp_open(&self, record: &TcpRecord) {
        self.cells.borrow_mut().tcp(record, |n| n.opened += 1);
    }

    /// Counts bytes that passed since the last time; for connections that last.
    pub fn tcp_progress(&self, record: &TcpRecord) {
        let now = (record.sent.get(), record.received.get());
        let before = record.counted.replace(now);
        if now != before {
            self.cells.borrow_mut().tcp(record, |n| {
                n.sent += now.0.saturating_sub(before.0);
                n.received += now.1.saturating_sub(before.1);
            });
        }
    }

    pub fn tcp_close(&self, record: &TcpRecord) {
        self.tcp_progress(record);
        self.cells.borrow_mut().tcp(record, |n| n.closed += 1);
        match self.hub.log_format() {
            LogFormat::Off => {}
            format => self.log(|hub, line| access_log::connection(line, format, hub, record, Instant::now())),
        }
    }

    fn log(&self, write: impl FnOnce(&Hub, &mut String)) {
        let mut line = self.line.borrow_mut();
        line.clear();
        write(&self.hub, &mut line);
        self.hub.log.push(line.as_bytes());
    }

    /// Moves what was counted to the hub; false if the hub was busy, and nothing moved.
    pub fn flush(&self) -> bool {
        let question = *self.hub.ask.borrow();
        let mut gathered = match self.hub.gathered.try_lock() {
            Ok(gathered) => gathered,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return false,
        };
        self.flush_into(&mut gathered);
        if let Some(worker) = gathered.workers.get_mut(self.number) {
            worker.answered = question;
        }
        drop(gathered);
        self.hub.answered.notify_waiters();
        true
    }

    fn flush_into(&self, gathered: &mut Gathered) {
        let mut cells = self.cells.borrow_mut();
        if self.shape.replace(gathered.shape) != gathered.shape {
            cells.forget_series();
            cells.flush(&mut gathered.series, Instant::now());
            *cells = Self::cells(&self.hub, &gathered.config);
        } else {
            cells.flush(&mut gathered.series, Instant::now());
        }
        if let Some(worker) = gathered.workers.get_mut(self.number) {
            worker.activity = self.activity.get();
        }
    }

    /// Flushes every second and whenever somebody scrapes. Runs beside the worker's connections, for as long as it does.
    pub async fn keep_flushed(&self) {
        let mut ask = self.hub.ask.subscribe();
        loop {
            let wait = if self.flush() { TICK } else { AGAIN };
            // Neither an answer nor a closed channel matters: the hub outlives its workers.
            let _ = tokio::time::timeout(wait, ask.changed()).await;
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let hub = self.hub.clone();
        let mut gathered = hub.gathered();
        self.flush_into(&mut gathered);
        if let Some(worker) = gathered.workers.try_remove(self.number) {
            gathered.ended.add(&worker.activity);
        }
    }
}
