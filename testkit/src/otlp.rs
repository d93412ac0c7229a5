//! An OTLP/gRPC receiver: the service that opentelemetry-proto generates from the real definition, on a socket.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use hyper::service::service_fn;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
pub use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::codegen::Service;

use crate::io::{HyperIo, Spawn};

/// A span with its resource's attributes.
#[derive(Clone, Debug)]
pub struct Received {
    pub resource: Vec<KeyValue>,
    pub span: Span,
}

impl Received {
    pub fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn span_id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// Empty for a root.
    pub fn parent_id(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// `service.name` of the resource.
    pub fn service(&self) -> Option<String> {
        text(&self.resource, "service.name")
    }

    pub fn attribute(&self, key: &str) -> Option<String> {
        text(&self.span.attributes, key)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|a| a.key == key)?.value.as_ref()?.value.as_ref()?;
    Some(match value {
        Value::StringValue(s) => s.clone(),
        Value::IntValue(n) => n.to_string(),
        Value::BoolValue(b) => b.to_string(),
        Value::DoubleValue(d) => d.to_string(),
        other => format!("{other:?}"),
    })
}

#[derive(Default)]
struct Store {
    spans: Mutex<Vec<Received>>,
    grew: Condvar,
}

#[derive(Clone)]
struct Collector(Arc<Store>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let mut spans = self.0.spans.lock().expect("spans");
        for group in request.into_inner().resource_spans {
            let resource = group.resource.map(|r| r.attributes).unwrap_or_default();
            for span in group.scope_spans.into_iter().flat_map(|s| s.spans) {
                spans.push(Received { resource: resource.clone(), span });
            }
        }
        self.0.grew.notify_all();
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

pub struct Receiver {
    addr: SocketAddr,
    store: Arc<Store>,
    stop: tokio::sync::watch::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self::start()
    }
}

impl Receiver {
    pub fn start() -> Self {
        let listener = crate::backend::listen(([127, 0, 0, 1], 0).into());
        let addr = listener.local_addr().expect("address");
        let store = Arc::new(Store::default());
        let service = TraceServiceServer::new(Collector(Arc::clone(&store)));
        let (stop, mut stopped) = tokio::sync::watch::channel(());
        let thread = std::thread::spawn(move || {
            crate::wait::block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
                loop {
                    let stream = tokio::select! {
                        _ = stopped.changed() => return,
                        accepted = listener.accept() => match accepted {
                            Ok((stream, _)) => stream,
                            Err(_) => continue,
                        },
                    };
                    let service = service.clone();
                    let call = service_fn(move |request| service.clone().call(request));
                    tokio::spawn(
                        hyper::server::conn::http2::Builder::new(Spawn).serve_connection(HyperIo(stream), call),
                    );
                }
            });
        });
        Self { addr, store, stop, thread: Some(thread) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn spans(&self) -> Vec<Received> {
        self.store.spans.lock().expect("spans").clone()
    }

    pub fn clear(&self) {
        self.store.spans.lock().expect("spans").clear();
    }

    /// Waits until at least `n` spans for which `wanted` holds are there.
    #[track_caller]
    pub fn wait(&self, n: usize, wanted: impl Fn(&Received) -> bool, limit: Duration) -> Vec<Received> {
        let end = Instant::now() + limit;
        let mut spans = self.store.spans.lock().expect("spans");
        loop {
            let found: Vec<Received> = spans.iter().filter(|s| wanted(s)).cloned().collect();
            if found.len() >= n {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {n} spans within {limit:?}; all: {:#?}", found.len(), *spans);
            spans = self.store.grew.wait_timeout(spans, left).expect("spans").0;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.send_replace(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};

    #[test]
    fn takes_spans_from_a_real_client() {
        let receiver = Receiver::start();
        let span = Span { trace_id: vec![1; 16], span_id: vec![2; 8], name: "GET /".into(), ..Span::default() };
        let group = ResourceSpans {
            scope_spans: vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        };
        crate::wait::block_on(async {
            let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", receiver.addr()));
            let channel = channel.expect("endpoint").connect().await.expect("connect");
            let request = ExportTraceServiceRequest { resource_spans: vec![group] };
            TraceServiceClient::new(channel).export(request).await.expect("export");
        });
        let spans = receiver.wait(1, |s| s.span.name == "GET /", Duration::from_secs(5));
        assert_eq!((spans[0].span_id(), spans[0].parent_id()), ("02".repeat(8), String::new()));
    }
}
