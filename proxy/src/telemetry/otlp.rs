//! Spans over OTLP/gRPC: a server span per sampled request and a client span per attempt.
//!
//! Workers put finished spans into a bounded queue; the control thread sends them every second, or as soon as a batch is
//! full. Full queue, dead collector: spans are dropped and counted. A request never waits.

use super::record::{Proto, Record};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tonic::transport::{Channel, Endpoint};
use weft_policy::meta::Workload;

const QUEUE: usize = 2048;
const BATCH: usize = 512;
const EVERY: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(5);
/// The longest text of a client's in an attribute.
const FIELD: usize = 1024;

pub struct Queue {
    on: AtomicBool,
    spans: mpsc::Sender<Box<Span>>,
    waiting: Mutex<Option<mpsc::Receiver<Box<Span>>>>,
    target: watch::Sender<Option<String>>,
    resource: Resource,
    dropped: AtomicU64,
    exported: AtomicU64,
    /// No more spans will come.
    closing: watch::Sender<bool>,
    /// All that came have been sent or dropped.
    settled: watch::Sender<bool>,
}

impl Queue {
    pub fn new(workload: &Workload) -> Self {
        let (spans, waiting) = mpsc::channel(QUEUE);
        let app = if workload.app.is_empty() { "unknown" } else { &workload.app };
        let attributes = [
            ("service.name", app),
            ("service.namespace", &workload.namespace),
            ("service.version", &workload.version),
            ("service.instance.id", &workload.pod),
            ("k8s.namespace.name", &workload.namespace),
            ("k8s.pod.name", &workload.pod),
            ("k8s.cluster.name", &workload.cluster),
        ];
        let attributes = attributes.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| text(k, v)).collect();
        Self {
            on: AtomicBool::new(false),
            spans,
            waiting: Mutex::new(Some(waiting)),
            target: watch::Sender::new(None),
            resource: Resource { attributes, ..Resource::default() },
            dropped: AtomicU64::new(0),
            exported: AtomicU64::new(0),
            closing: watch::Sender::new(false),
            settled: watch::Sender::new(false),
        }
    }

    /// Where to, from now on; `None` stops making spans.
    pub fn send_to(&self, target: Option<String>) {
        self.on.store(target.is_some(), Ordering::Relaxed);
        self.target.send_if_modified(|now| {
            let changed = *now != target;
            *now = target;
            changed
        });
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Takes a sampled request's spans.
    pub fn push(&self, record: &Record, now: Instant) {
        let wall = SystemTime::now();
        self.put(|| server_span(record, now, wall));
        for (i, attempt) in record.attempts.iter().enumerate() {
            self.put(|| client_span(record, attempt, i, now, wall));
        }
    }

    /// Makes the span only if there is room.
    fn put(&self, make: impl FnOnce() -> Span) {
        match self.spans.try_reserve() {
            Ok(room) => room.send(Box::new(make())),
            Err(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sends until `settle`; the second caller gets nothing to do.
    pub async fn export(&self) {
        let Some(mut waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let mut target = self.target.subscribe();
        target.mark_changed();
        let mut closing = self.closing.subscribe();
        let mut client = None;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let full = async {
                while batch.len() < BATCH {
                    match waiting.recv().await {
                        Some(span) => batch.push(*span),
                        None => std::future::pending().await,
                    }
                }
            };
            let last = tokio::select! {
                _ = tokio::time::timeout(EVERY, full) => false,
                _ = closing.wait_for(|closing| *closing) => true,
            };
            while last && batch.len() < BATCH {
                let Ok(span) = waiting.try_recv() else { break };
                batch.push(*span);
            }
            if target.has_changed().unwrap_or(false) {
                client = target.borrow_and_update().as_deref().and_then(connect);
            }
            if batch.is_empty() && last {
                self.settled.send_replace(true);
                return;
            }
            if batch.is_empty() {
                continue;
            }
            let spans = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            let n = spans.len() as u64;
            let sent = match &mut client {
                Some(client) => self.send(client, spans).await,
                None => Err("no collector is set".into()),
            };
            match sent {
                Ok(()) => self.exported.fetch_add(n, Ordering::Relaxed),
                Err(error) => {
                    tracing::debug!(%error, spans = n, "the collector did not take spans");
                    self.dropped.fetch_add(n, Ordering::Relaxed)
                }
            };
        }
    }

    /// Sends what is left, as far as the collector takes it in time; whoever made spans has ended.
    pub async fn settle(&self, limit: Duration) -> bool {
        if !self.is_on() {
            return true;
        }
        self.closing.send_replace(true);
        let mut settled = self.settled.subscribe();
        tokio::time::timeout(limit, settled.wait_for(|settled| *settled)).await.is_ok()
    }

    async fn send(&self, client: &mut TraceServiceClient<Channel>, spans: Vec<Span>) -> Result<(), String> {
        let scope = InstrumentationScope {
            name: "weft-proxy".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
        let resource_spans =
            vec![ResourceSpans { resource: Some(self.resource.clone()), scope_spans, ..ResourceSpans::default() }];
        let sent = client.export(ExportTraceServiceRequest { resource_spans });
        match tokio::time::timeout(LIMIT, sent).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(status.to_string()),
            Err(_) => Err("no answer in time".into()),
        }
    }
}

/// Connects at the first batch, and again after each failure.
fn connect(target: &str) -> Option<TraceServiceClient<Channel>> {
    match Endpoint::from_shared(target.to_string()) {
        Ok(endpoint) => Some(TraceServiceClient::new(endpoint.connect_timeout(LIMIT).connect_lazy())),
        Err(error) => {
            tracing::warn!(%error, target, "not an address of a collector; spans are dropped");
            None
        }
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    let end = (0..=value.len().min(FIELD)).rev().find(|i| value.is_char_boundary(*i)).unwrap_or(0);
    of(key, Value::StringValue(value[..end].to_string()))
}

fn number(key: &str, value: u64) -> KeyValue {
    of(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn of(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_string(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn nanos(at: Instant, now: Instant, wall: SystemTime) -> u64 {
    let at = wall - now.saturating_duration_since(at);
    at.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// Errors are 5xx and what was never answered; on the client's side 4xx too.
fn status(code: u16, client: bool) -> Option<Status> {
    let failed = code >= 500 || code == 0 || (client && code >= 400);
    failed.then(|| Status { code: StatusCode::Error as i32, ..Status::default() })
}

/// What is common to the request's span and its attempts'.
fn common(record: &Record) -> Vec<KeyValue> {
    // A query may hold secrets, so it stays here.
    let path = record.path.path();
    let version = match record.proto {
        Proto::Http1 => "1.1",
        Proto::Http2 | Proto::Grpc => "2",
        Proto::Tcp => "",
    };
    let mut attributes = vec![
        text("http.request.method", record.method.as_str()),
        text("url.path", path),
        text("server.address", record.authority()),
        text("network.protocol.version", version),
    ];
    if let Some(route) = &record.route {
        attributes.push(text("weft.route", &route.name));
    }
    if let Some(backend) = &record.backend {
        attributes.push(text("weft.backend", &backend.to_string()));
    }
    attributes
}

/// A name of few values: the route's, or the method alone.
fn name(record: &Record) -> String {
    match &record.route {
        Some(route) if !route.name.is_empty() => format!("{} {}", record.method, route.name),
        _ => record.method.to_string(),
    }
}

fn server_span(record: &Record, now: Instant, wall: SystemTime) -> Span {
    let trace = &record.trace;
    let mut attributes = common(record);
    attributes.extend([
        number("http.response.status_code", record.status.as_u16().into()),
        number("http.request.body.size", record.request_bytes),
        number("http.response.body.size", record.response_bytes),
        text("client.address", &record.peer.addr.ip().to_string()),
        text("weft.response_flags", &record.flags.to_string()),
        text("weft.role", record.role.word()),
        number("weft.attempts", record.attempts.len() as u64),
    ]);
    if let Some(reason) = record.flags.reason {
        attributes.push(text("weft.reason", reason.word()));
    }
    if let Some(grpc) = record.grpc_status {
        attributes.push(number("rpc.grpc.status_code", grpc.into()));
    }
    if !record.request_id().is_empty() {
        attributes.push(text("weft.request_id", record.request_id()));
    }
    if let Some(id) = record.peer.identity.as_ref().and_then(|i| i.spiffe.as_ref()) {
        attributes.push(text("weft.peer.identity", id.as_str()));
    }
    Span {
        trace_id: trace.trace_id.to_vec(),
        span_id: trace.span_id.to_vec(),
        parent_span_id: trace.parent.map(|p| p.to_vec()).unwrap_or_default(),
        trace_state: trace.state.as_ref().and_then(|s| s.to_str().ok()).unwrap_or_default().to_string(),
        flags: 1,
        name: name(record),
        kind: SpanKind::Server as i32,
        start_time_unix_nano: nanos(record.started, now, wall),
        end_time_unix_nano: nanos(now, now, wall),
        attributes,
        status: status(record.status.as_u16(), false),
        ..Span::default()
    }
}

fn client_span(record: &Record, attempt: &super::record::Attempt, i: usize, now: Instant, wall: SystemTime) -> Span {
    let mut attributes = common(record);
    let endpoint = &attempt.endpoint;
    let addr = endpoint.address.socket();
    let code = attempt.status.map_or(0, |s| s.as_u16());
    attributes.extend([
        text("network.peer.address", &addr.ip().to_string()),
        number("network.peer.port", addr.port().into()),
    ]);
    if code > 0 {
        attributes.push(number("http.response.status_code", code.into()));
    }
    if i > 0 {
        attributes.push(number("http.request.resend_count", i as u64));
    }
    if let Some(id) = endpoint.identity.as_ref().filter(|_| attempt.tls) {
        attributes.push(text("weft.peer.identity", id.as_str()));
    }
    Span {
        trace_id: record.trace.trace_id.to_vec(),
        span_id: attempt.span.to_vec(),
        parent_span_id: record.trace.span_id.to_vec(),
        flags: 1,
        name: name(record),
        kind: SpanKind::Client as i32,
        start_time_unix_nano: nanos(attempt.started, now, wall),
        end_time_unix_nano: nanos(attempt.ended, now, wall),
        attributes,
        status: status(code, true),
        ..Span::default()
    }
}
