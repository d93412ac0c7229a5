//! The last traces of a lab: what its sidecars and apps have sent, as much of it as there is room for.
//!
//! Each span is kept as the JSON it will be shown as, so what it takes is known to the byte; the oldest traces go first.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, VecDeque};

const BYTES: usize = 32 << 20;
const TRACES: usize = 20_000;
const SPANS_OF_ONE: usize = 1000;
const ATTRIBUTES: usize = 64;
const TEXT: usize = 1024;

type TraceId = [u8; 16];

#[derive(Default)]
pub struct Spans {
    traces: HashMap<TraceId, Trace>,
    /// As they came.
    order: VecDeque<TraceId>,
    bytes: usize,
}

#[derive(Default)]
struct Trace {
    begun: u64,
    bytes: usize,
    spans: Vec<String>,
    /// Names and namespaces of who made them.
    services: Vec<(String, String)>,
}

/// Which traces are wanted.
#[derive(Debug, Default, PartialEq)]
pub struct Query {
    /// How the id begins, in hex.
    pub id: Option<String>,
    /// NAME or NAME.NAMESPACE
    pub service: Option<String>,
    /// Begun at this time at the latest, in nanoseconds: of those that came later, spans are still under way.
    pub until: Option<u64>,
    pub last: usize,
}

impl Query {
    pub fn json(&self) -> Value {
        json!({"id": self.id, "service": self.service, "until": self.until, "last": self.last})
    }

    pub fn read(value: &Value) -> Self {
        let text = |field: &str| value[field].as_str().map(String::from);
        let last = value["last"].as_u64().map_or(1, |n| n.clamp(1, TRACES as u64) as usize);
        Self { id: text("id"), service: text("service"), until: value["until"].as_u64(), last }
    }

    fn wants(&self, id: &TraceId, trace: &Trace) -> bool {
        let is = |wanted: &str, (name, namespace): &(String, String)| {
            wanted == name || wanted.strip_prefix(name.as_str()).and_then(|r| r.strip_prefix('.')) == Some(namespace)
        };
        self.id.as_ref().is_none_or(|wanted| hex(id).starts_with(wanted))
            && self.until.is_none_or(|until| trace.begun <= until)
            && self.service.as_ref().is_none_or(|wanted| trace.services.iter().any(|s| is(wanted, s)))
    }
}

impl Spans {
    pub fn take(&mut self, request: &ExportTraceServiceRequest) {
        for group in &request.resource_spans {
            let resource = group.resource.as_ref().map(|r| attributes(&r.attributes)).unwrap_or_default();
            for span in group.scope_spans.iter().flat_map(|s| &s.spans) {
                self.add(&resource, span);
            }
        }
        while self.bytes > BYTES || self.order.len() > TRACES {
            let Some(oldest) = self.order.pop_front() else { return };
            self.bytes -= self.traces.remove(&oldest).map_or(0, |t| t.bytes);
        }
    }

    fn add(&mut self, resource: &Map<String, Value>, span: &Span) {
        let Ok(id) = TraceId::try_from(span.trace_id.as_slice()) else { return };
        let word = |key: &str| resource.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let service = (word("service.name"), word("service.namespace"));
        let kind = match span.kind() {
            SpanKind::Server => "server",
            SpanKind::Client => "client",
            SpanKind::Producer => "producer",
            SpanKind::Consumer => "consumer",
            SpanKind::Internal | SpanKind::Unspecified => "internal",
        };
        let begun = span.start_time_unix_nano;
        let text = json!({
            "spanId": hex(&span.span_id),
            "parentId": hex(&span.parent_span_id),
            "service": service.0,
            "namespace": service.1,
            "version": word("service.version"),
            "instance": word("service.instance.id"),
            "name": cut(&span.name),
            "kind": kind,
            "startUnixNano": begun,
            "durationNano": span.end_time_unix_nano.saturating_sub(begun),
            "error": span.status.as_ref().is_some_and(|s| s.code == StatusCode::Error as i32),
            "attributes": attributes(&span.attributes),
        })
        .to_string();
        let new = !self.traces.contains_key(&id);
        let trace = self.traces.entry(id).or_default();
        if new {
            self.order.push_back(id);
            // The tables that know it.
            trace.bytes = 200;
            self.bytes += trace.bytes;
        }
        if trace.spans.len() >= SPANS_OF_ONE {
            return;
        }
        let mut more = text.len() + size_of::<String>();
        if !trace.services.contains(&service) {
            more += service.0.len() + service.1.len() + size_of::<(String, String)>();
            trace.services.push(service);
        }
        trace.begun = if new { begun } else { trace.begun.min(begun) };
        trace.bytes += more;
        trace.spans.push(text);
        self.bytes += more;
    }

    /// The traces that are wanted, oldest first, as JSON.
    pub fn answer(&self, query: &Query) -> String {
        let mut found: Vec<(&TraceId, &Trace)> = self.traces.iter().filter(|(id, t)| query.wants(id, t)).collect();
        found.sort_by_key(|(id, trace)| (trace.begun, **id));
        let last = found.split_off(found.len().saturating_sub(query.last));
        let one = |(id, trace): (&TraceId, &Trace)| {
            format!("{{\"traceId\":\"{}\",\"spans\":[{}]}}", hex(id), trace.spans.join(","))
        };
        let traces: Vec<String> = last.into_iter().map(one).collect();
        format!("{{\"kept\":{},\"traces\":[{}]}}", self.order.len(), traces.join(","))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(16).map(|b| format!("{b:02x}")).collect()
}

fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(TEXT)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    &text[..end]
}

/// Texts, numbers and yes or no; what nests is not shown.
fn attributes(list: &[KeyValue]) -> Map<String, Value> {
    let value = |any: &Any| {
        Some(match any {
            Any::StringValue(text) => cut(text).into(),
            Any::IntValue(n) => (*n).into(),
            Any::DoubleValue(x) => (*x).into(),
            Any::BoolValue(b) => (*b).into(),
            _ => return None,
        })
    };
    let known = list.iter().filter_map(|a| Some((cut(&a.key).into(), value(a.value.as_ref()?.value.as_ref()?)?)));
    known.take(ATTRIBUTES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::common::v1::AnyValue;
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};

    fn text(key: &str, value: &str) -> KeyValue {
        let value = Some(AnyValue { value: Some(Any::StringValue(value.into())) });
        KeyValue { key: key.into(), value, ..KeyValue::default() }
    }

    fn request(service: &str, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let attributes = vec![text("service.name", service), text("service.namespace", "shop")];
        let resource = Some(Resource { attributes, ..Resource::default() });
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans { resource, scope_spans, ..Default::default() }],
        }
    }

    fn span(n: u32, start: u64) -> Span {
        let mut trace_id = vec![0; 12];
        trace_id.extend(n.to_be_bytes());
        Span { trace_id, span_id: vec![7; 8], start_time_unix_nano: start, ..Span::default() }
    }

    fn ids(spans: &Spans, query: &Query) -> Vec<String> {
        let answer: Value = serde_json::from_str(&spans.answer(query)).unwrap();
        let traces = answer["traces"].as_array().unwrap();
        traces.iter().map(|t| t["traceId"].as_str().unwrap().trim_start_matches('0').to_string()).collect()
    }

    #[test]
    fn the_last_ones_that_are_wanted() {
        let mut spans = Spans::default();
        spans.take(&request("web", vec![span(1, 10), span(2, 30), span(3, 20)]));
        spans.take(&request("users", vec![span(2, 31)]));
        let last = |n| Query { last: n, ..Query::default() };
        assert_eq!(ids(&spans, &last(1)), ["2"]);
        assert_eq!(ids(&spans, &last(9)), ["1", "3", "2"]);
        for service in ["users", "users.shop"] {
            assert_eq!(ids(&spans, &Query { service: Some(service.into()), ..last(9) }), ["2"]);
        }
        for service in ["user", "users.sho", "users."] {
            assert!(ids(&spans, &Query { service: Some(service.into()), ..last(9) }).is_empty(), "{service}");
        }
        let third = "0".repeat(31) + "3";
        assert_eq!(ids(&spans, &Query { id: Some(third), ..last(1) }), ["3"]);
        assert_eq!(ids(&spans, &Query { until: Some(29), ..last(1) }), ["3"]);
        let all = Query { until: Some(u64::MAX), service: Some("a".into()), ..last(3) };
        assert_eq!(Query::read(&all.json()), all);
    }

    #[test]
    fn hostile_spans_find_an_end() {
        let mut spans = Spans::default();
        let mut large = span(1, 1);
        large.name = "\u{e9}".repeat(100_000);
        large.attributes = (0..70).map(|i| text(&format!("k{i}"), &"x".repeat(1100))).collect();
        spans.take(&request("web", vec![Span { trace_id: vec![1; 3], ..span(1, 1) }]));
        assert!(spans.order.is_empty(), "no id, no trace");
        spans.take(&request("web", vec![large; 400]));
        assert_eq!(spans.traces.len(), 1);
        assert!(spans.bytes < 400 * (ATTRIBUTES + 2) * (TEXT + 100), "each was cut: {}", spans.bytes);
        spans.take(&request("web", vec![span(2, 2); SPANS_OF_ONE + 5]));
        assert_eq!(spans.traces.values().map(|t| t.spans.len()).max(), Some(SPANS_OF_ONE));
        let many = TRACES as u32 + 1000;
        for n in (0..many).step_by(1000) {
            spans.take(&request("web", (n..n + 1000).map(|n| span(n, n.into())).collect()));
        }
        assert!(spans.bytes <= BYTES && spans.order.len() <= TRACES && spans.traces.len() == spans.order.len());
        assert_eq!(spans.bytes, spans.traces.values().map(|t| t.bytes).sum::<usize>());
        assert_eq!(ids(&spans, &Query { last: 1, ..Query::default() }), [format!("{:x}", many - 1)]);
    }
}
