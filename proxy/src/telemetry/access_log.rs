//! The access log: one line per request or opaque connection, as JSON or in Istio's default text format.
//!
//! A line is copied into a bounded buffer; a thread of its own writes the buffer out. If the reader of the pipe stops, the
//! buffer fills and lines are dropped and counted; a request never waits. Clients choose much of what is logged, so fields
//! are cut at a length, and everything but plain ASCII is escaped: a line stays one line, on a terminal too.

use super::Hub;
use super::metrics::labels::is_inbound;
use super::record::{Peer, Proto, Record, TcpRecord};
use std::fmt::Write as _;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use weft_policy::reason::{Flags, Reason};
use weft_policy::telemetry::LogFormat;

/// What may wait for the writer.
const BUFFER: usize = 1 << 20;
/// The writer rests this long between writes, so that busy times make large ones.
const REST: Duration = Duration::from_millis(5);
/// The longest piece of a client's text in a line.
const FIELD: usize = 2048;

type Sink = Box<dyn Write + Send>;

#[derive(Default)]
struct Buffer {
    lines: Vec<u8>,
    /// The writer holds lines it has not written yet.
    writing: bool,
}

struct Shared {
    buffer: Mutex<Buffer>,
    changed: Condvar,
    dropped: AtomicU64,
    /// Taken by the thread when it starts.
    sink: Mutex<Option<Sink>>,
}

impl Shared {
    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
pub struct Log(Arc<Shared>);

impl Log {
    pub fn stdout() -> Self {
        Self::to(Box::new(std::io::stdout()))
    }

    pub fn to(sink: Sink) -> Self {
        Self(Arc::new(Shared {
            buffer: Mutex::default(),
            changed: Condvar::new(),
            dropped: AtomicU64::new(0),
            sink: Mutex::new(Some(sink)),
        }))
    }

    /// Starts the writer; again is nothing.
    pub fn start(&self) {
        let Some(sink) = self.0.sink.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let shared = self.0.clone();
        let started = std::thread::Builder::new().name("access-log".into()).spawn(move || write(&shared, sink));
        if let Err(error) = started {
            tracing::error!(%error, "no thread for the access log; lines are dropped");
        }
    }

    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    pub fn push(&self, line: &[u8]) {
        let mut buffer = self.0.buffer();
        if buffer.lines.len() + line.len() > BUFFER {
            drop(buffer);
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let wake = buffer.lines.is_empty();
        buffer.lines.extend_from_slice(line);
        drop(buffer);
        if wake {
            self.0.changed.notify_all();
        }
    }

    /// Waits until everything is written, at the end of a drain; false if that took too long.
    pub fn settle(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut buffer = self.0.buffer();
        while buffer.writing || !buffer.lines.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            buffer = self.0.changed.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

fn write(shared: &Shared, mut sink: Sink) {
    let mut taken = Vec::new();
    loop {
        let mut buffer = shared.buffer();
        buffer.writing = false;
        shared.changed.notify_all();
        while buffer.lines.is_empty() {
            buffer = shared.changed.wait(buffer).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut buffer.lines, &mut taken);
        buffer.writing = true;
        drop(buffer);
        if let Err(error) = sink.write_all(&taken).and_then(|()| sink.flush()) {
            let lines = taken.iter().filter(|b| **b == b'\n').count() as u64;
            shared.dropped.fetch_add(lines, Ordering::Relaxed);
            // On stderr, which may be just as gone; the counter is what stays.
            tracing::debug!(%error, "the access log cannot be written");
        }
        taken.clear();
        std::thread::sleep(REST);
    }
}

/// Cuts at a length, on a character's border.
fn cut(text: &str) -> &str {
    if text.len() <= FIELD {
        return text;
    }
    let end = (0..=FIELD).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    &text[..end]
}

/// Plain ASCII as it is; the rest as JSON's escapes, so ESC, CR, bidirectional marks and the like cannot act.
pub(super) fn escape(out: &mut String, text: &str) {
    for c in cut(text).chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
}

struct Json<'a> {
    out: &'a mut String,
}

impl<'a> Json<'a> {
    fn new(out: &'a mut String) -> Self {
        out.push('{');
        Self { out }
    }

    fn key(&mut self, key: &str) {
        if !self.out.ends_with('{') {
            self.out.push(',');
        }
        let _ = write!(self.out, "\"{key}\":");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        self.out.push('"');
        escape(self.out, value);
        self.out.push('"');
    }

    /// Left out when empty.
    fn some(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.text(key, value);
        }
    }

    /// What needs no escapes.
    fn plain(&mut self, key: &str, value: impl std::fmt::Display) {
        self.key(key);
        let _ = write!(self.out, "\"{value}\"");
    }

    fn number(&mut self, key: &str, value: impl std::fmt::Display) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    fn end(self) {
        self.out.push_str("}\n");
    }
}

fn identity(peer: &Peer) -> &str {
    let identity = peer.identity.as_ref();
    identity.and_then(|i| i.spiffe.as_ref().map(|s| s.as_str()).or(i.dns.as_deref())).unwrap_or("")
}

/// Wall time of something that started at `started`.
fn wall(started: Instant, now: Instant) -> Timestamp {
    Timestamp(SystemTime::now() - now.saturating_duration_since(started))
}

/// RFC 3339 in UTC, with milliseconds.
pub struct Timestamp(pub SystemTime);

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        // Days since 1 March of year 0, in cycles of 400 years.
        let z = days + 719_468;
        let (era, day) = (z / 146_097, z % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let in_year = day - (365 * year + year / 4 - year / 100);
        let shifted = (5 * in_year + 2) / 153;
        let (date, month) =
            (in_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
        let year = era * 400 + year + u64::from(month <= 2);
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{date:02}T{h:02}:{m:02}:{s:02}.{:03}Z", since.subsec_millis())
    }
}

/// Appends the line of a finished request.
pub fn request(out: &mut String, format: LogFormat, hub: &Hub, record: &Record, now: Instant) {
    match format {
        LogFormat::Off => {}
        LogFormat::Json => json_request(out, hub, record, now),
        LogFormat::Text => text_request(out, record, now),
    }
}

/// Appends the line of a closed opaque connection.
pub fn connection(out: &mut String, format: LogFormat, hub: &Hub, record: &TcpRecord, now: Instant) {
    match format {
        LogFormat::Off => {}
        LogFormat::Json => json_connection(out, hub, record, now),
        LogFormat::Text => text_connection(out, record, now),
    }
}

fn json_request(out: &mut String, hub: &Hub, r: &Record, now: Instant) {
    let mut j = Json::new(out);
    let w = &hub.workload;
    j.plain("ts", wall(r.started, now));
    j.text("namespace", &w.namespace);
    j.text("app", &w.app);
    j.text("component", "weft-proxy");
    j.some("pod", &w.pod);
    j.text("listener", &r.listener);
    j.text("role", r.role.word());
    j.text("method", r.method.as_str());
    j.text("path", r.path.as_str());
    j.text("authority", r.authority());
    j.text("protocol", r.proto.word());
    j.number("status", r.status.as_u16());
    if let Some(grpc) = r.grpc_status {
        j.number("grpc_status", grpc);
    }
    j.plain("flags", r.flags);
    j.text("reason", r.flags.reason.map_or("none", Reason::word));
    if let Some(reason) = r.flags.reason {
        j.text("why", &why(reason, r));
    }
    j.number("duration_ms", millis(now, r.started));
    if let Some(head) = r.head_sent {
        j.number("head_ms", millis(head, r.started));
    }
    j.number("request_bytes", r.request_bytes);
    j.number("response_bytes", r.response_bytes);
    j.number("attempts", r.attempts.len());
    if let Some(last) = r.attempts.last() {
        j.plain("upstream", last.endpoint.address.socket());
        j.some("upstream_workload", &last.endpoint.workload.name);
        if last.tls {
            j.some("upstream_identity", last.endpoint.identity.as_ref().map_or("", |i| i.as_str()));
        }
    }
    if let Some(route) = &r.route {
        j.some("route", &route.name);
    }
    if let Some(backend) = &r.backend {
        j.text("backend", &backend.to_string());
    }
    j.plain("peer", r.peer.addr);
    j.some("peer_identity", identity(&r.peer));
    if let Some(workload) = &r.peer.workload {
        j.some("peer_workload", &workload.name);
    }
    j.plain("destination", r.destination);
    j.some("request_id", r.request_id());
    j.text("trace_id", &r.trace.trace_id_hex());
    if r.trace.sampled {
        j.key("sampled");
        j.out.push_str("true");
    }
    j.some("user_agent", r.user_agent());
    if r.upgraded {
        j.key("upgraded");
        j.out.push_str("true");
    }
    j.some("note", r.note.unwrap_or(""));
    j.end();
}

fn json_connection(out: &mut String, hub: &Hub, r: &TcpRecord, now: Instant) {
    let mut j = Json::new(out);
    let w = &hub.workload;
    j.plain("ts", wall(r.started, now));
    j.text("namespace", &w.namespace);
    j.text("app", &w.app);
    j.text("component", "weft-proxy");
    j.some("pod", &w.pod);
    j.text("listener", &r.listener);
    j.text("role", r.role.word());
    j.text("protocol", Proto::Tcp.word());
    j.plain("flags", r.flags);
    j.text("reason", r.flags.reason.map_or("none", Reason::word));
    if let Some(reason) = r.flags.reason {
        j.text("why", cause(reason));
    }
    j.number("duration_ms", millis(now, r.started));
    j.number("sent_bytes", r.sent.get());
    j.number("received_bytes", r.received.get());
    if let Some(endpoint) = &r.endpoint {
        j.plain("upstream", endpoint.address.socket());
        j.some("upstream_workload", &endpoint.workload.name);
    }
    if let Some(backend) = &r.backend {
        j.text("backend", &backend.to_string());
    }
    j.plain("peer", r.peer.addr);
    j.some("peer_identity", identity(&r.peer));
    j.plain("destination", r.destination);
    j.some("server_name", r.server_name.as_deref().unwrap_or(""));
    j.end();
}

fn millis(end: Instant, start: Instant) -> f64 {
    end.saturating_duration_since(start).as_micros() as f64 / 1000.0
}

/// Empty is `-`, as in Envoy.
fn dash(out: &mut String, text: &str) {
    match text {
        "" => out.push('-'),
        text => escape(out, text),
    }
}

fn quoted(out: &mut String, text: &str) {
    out.push_str(" \"");
    dash(out, text);
    out.push('"');
}

/// Envoy's response code details.
fn details(flags: Flags) -> String {
    match flags.reason {
        None => "via_upstream".into(),
        Some(
            reason @ (Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::TlsFailed
            | Reason::UpstreamClosed
            | Reason::UpstreamReset
            | Reason::RefusedStream
            | Reason::UpstreamProtocol
            | Reason::Overflow),
        ) => format!("upstream_reset_before_response_started{{{reason}}}"),
        Some(reason) => reason.word().into(),
    }
}

/// Envoy's name of a backend, as its users know it from logs and `/clusters`.
pub fn cluster_name(role: weft_policy::listener::Role, backend: &weft_policy::id::BackendId) -> String {
    if is_inbound(role) {
        return format!("inbound|{}||", backend.port);
    }
    let (service, subset) = (&backend.service, backend.subset.as_deref().unwrap_or(""));
    format!("outbound|{}|{subset}|{}.{}.svc.cluster.local", backend.port, service.name, service.namespace)
}

fn text_request(out: &mut String, r: &Record, now: Instant) {
    let _ = write!(out, "[{}] \"", wall(r.started, now));
    escape(out, r.method.as_str());
    out.push(' ');
    dash(out, r.path.as_str());
    let protocol = match r.proto {
        Proto::Http1 => "HTTP/1.1",
        Proto::Http2 | Proto::Grpc => "HTTP/2",
        Proto::Tcp => "-",
    };
    let _ = write!(out, " {protocol}\" {} {} {} - \"", r.status.as_u16(), r.flags, details(r.flags));
    let tls_failed = r.flags.reason == Some(Reason::TlsFailed);
    out.push_str(if tls_failed { "TLS_error" } else { "-" });
    let duration = now.saturating_duration_since(r.started).as_millis();
    let _ = write!(out, "\" {} {} {duration} ", r.request_bytes, r.response_bytes);
    match (r.attempts.last(), r.head_sent) {
        (Some(last), Some(head)) => {
            let _ = write!(out, "{}", head.saturating_duration_since(last.started).as_millis());
        }
        _ => out.push('-'),
    }
    // The forwarded-for header stays the app's; the peer is what we know.
    quoted(out, "");
    quoted(out, r.user_agent());
    quoted(out, r.request_id());
    quoted(out, r.authority());
    let upstream = r.attempts.last().map(|a| a.endpoint.address.socket().to_string());
    quoted(out, upstream.as_deref().unwrap_or(""));
    out.push(' ');
    dash(out, &r.backend.as_ref().map(|b| cluster_name(r.role, b)).unwrap_or_default());
    let _ = write!(out, " - {} {} - ", r.destination, r.peer.addr);
    dash(out, r.route.as_ref().map_or("", |route| &route.name));
    out.push('\n');
}

fn text_connection(out: &mut String, r: &TcpRecord, now: Instant) {
    let _ = write!(out, "[{}] \"- - -\" 0 {} - ", wall(r.started, now), r.flags);
    dash(out, r.flags.reason.map_or("", Reason::word));
    let duration = now.saturating_duration_since(r.started).as_millis();
    let _ = write!(out, " \"-\" {} {} {duration} - \"-\" \"-\" \"-\" \"-\"", r.received.get(), r.sent.get());
    let upstream = r.endpoint.as_ref().map(|e| e.address.socket().to_string());
    quoted(out, upstream.as_deref().unwrap_or(""));
    out.push(' ');
    dash(out, &r.backend.as_ref().map(|b| cluster_name(r.role, b)).unwrap_or_default());
    let _ = write!(out, " - {} {} ", r.destination, r.peer.addr);
    dash(out, r.server_name.as_deref().unwrap_or(""));
    out.push_str(" -\n");
}

/// One sentence for people: why the proxy answered by itself.
fn why(reason: Reason, r: &Record) -> String {
    let mut text = String::from(cause(reason));
    if let Some(backend) = &r.backend {
        let _ = write!(text, "; backend {backend}");
    }
    if let Some(last) = r.attempts.last() {
        let _ = write!(text, ", endpoint {}", last.endpoint.address.socket());
    }
    match r.attempts.len() {
        0 | 1 => {}
        n => {
            let _ = write!(text, ", after {n} attempts");
        }
    }
    text.push('.');
    text
}

/// A new reason does not compile until it can be explained.
fn cause(reason: Reason) -> &'static str {
    match reason {
        Reason::Malformed => "The client's message is not valid HTTP",
        Reason::UriTooLong => "The request's path is longer than the listener allows",
        Reason::HeadersTooLarge => "The request's header is larger than the listener allows",
        Reason::BodyTooLarge => "The request's body is larger than is allowed",
        Reason::ClientTimeout => "The client did not send its request in time",
        Reason::ClientGone => "The client went away before its answer was complete",
        Reason::NoRoute => "No route of this service matches the request",
        Reason::NoCluster => "The route names a destination that nobody defined",
        Reason::InvalidBackend => "The route names a backend that is invalid",
        Reason::NotAllowed => "The destination is not known, and unknown destinations are not allowed",
        Reason::NotDiscovered => "The control plane has not said what the destination is",
        Reason::NoHealthyUpstream => "There is no endpoint that may be used",
        Reason::ConnectFailed => "The endpoint did not take the connection",
        Reason::ConnectTimeout => "The connection was not made in time",
        Reason::TlsFailed => "The endpoint's TLS or identity is not what it must be",
        Reason::UpstreamClosed => "The endpoint closed the connection before it answered",
        Reason::UpstreamReset => "The endpoint reset the request before it answered",
        Reason::RefusedStream => "The endpoint refused the request without looking at it",
        Reason::UpstreamProtocol => "The endpoint's answer is not valid HTTP",
        Reason::UpstreamBroken => "The endpoint broke off in the middle of its answer",
        Reason::Overflow => "A circuit breaker's limit is reached",
        Reason::RequestTimeout => "The request took longer than its timeout",
        Reason::PerTryTimeout => "The attempt took longer than its timeout",
        Reason::StreamIdle => "The stream made no progress for its idle limit",
        Reason::FaultAbort => "A fault rule aborts this request on purpose",
        Reason::Loop => "The request came back to a proxy it had passed",
        Reason::Overload => "The proxy is out of a resource of its own",
        Reason::UpgradeRefused => "The endpoint refused the protocol upgrade",
        Reason::Draining => "The proxy is shutting down",
        Reason::Internal => "The proxy failed; this is a bug",
    }
}
