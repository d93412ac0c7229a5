//! The lab's collector of spans: an OTLP/gRPC receiver in the hub, where every sidecar reaches it. What it keeps is asked for over
//! a socket in the lab's folder, and can be sent on to the person's own collector.

use super::net::Netns;
use super::record::Lab;
use super::spans::{Query, Spans};
use crate::error::{During, Error, Result};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use serde_json::Value;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};

const PORT: u16 = 4317;
const CONNECTIONS: usize = 2048;
const MESSAGE: usize = 4 << 20;
/// Messages that wait to be sent on; what finds no room is not.
const QUEUE: usize = 32;
const LIMIT: Duration = Duration::from_secs(5);
const QUESTION: u64 = 4096;
/// As many traces as fit into what is kept, and their ids.
const ANSWER: u64 = 64 << 20;

/// `http://HOST:PORT` of a person's collector.
pub fn collector(text: &str) -> std::result::Result<Endpoint, String> {
    let uri: Uri = text.parse().map_err(|e| format!("{e}"))?;
    match (uri.scheme_str(), uri.port_u16()) {
        (Some("http"), Some(_)) => Ok(Endpoint::from(uri).connect_timeout(LIMIT)),
        _ => Err("http://HOST:PORT of an OTLP/gRPC receiver, as in http://localhost:4317".into()),
    }
}

/// Runs until it is dropped.
pub struct Collector {
    _tasks: JoinSet<()>,
}

impl Collector {
    /// Where sidecars send to.
    pub fn url(lab: &Lab) -> String {
        format!("http://{}:{PORT}", lab.network.hub())
    }

    pub async fn start(lab: &Lab, hub: &Netns, forward: Option<Endpoint>) -> Result<Self> {
        let address = lab.network.hub();
        let listener = hub.inside(move || std::net::TcpListener::bind((address, PORT))).await;
        let listener = listener.during("the lab's collector")?;
        listener.set_nonblocking(true).during("the lab's collector")?;
        let listener = TcpListener::from_std(listener).during("the lab's collector")?;
        let socket = socket(lab);
        let questions = UnixListener::bind(&socket).map_err(|e| {
            Error::new(format!("{}: {e}", socket.display()), "WEFT_LAB_HOME=DIR for a place with a shorter name")
        })?;
        let spans = Arc::new(Mutex::new(Spans::default()));
        let mut tasks = JoinSet::new();
        let forward = forward.map(|to| {
            let (sender, waiting) = mpsc::channel(QUEUE);
            tasks.spawn(send_on(to, waiting));
            sender
        });
        tasks.spawn(receive(listener, Receiver { spans: spans.clone(), forward }));
        tasks.spawn(answer_all(questions, spans));
        Ok(Self { _tasks: tasks })
    }
}

fn socket(lab: &Lab) -> PathBuf {
    lab.folder.join("traces.sock")
}

#[derive(Clone)]
struct Receiver {
    spans: Arc<Mutex<Spans>>,
    forward: Option<mpsc::Sender<ExportTraceServiceRequest>>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> std::result::Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).take(&request);
        if let Some(forward) = &self.forward {
            // Nobody in the lab waits for a collector outside of it.
            let _ = forward.try_send(request);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn receive(listener: TcpListener, receiver: Receiver) {
    let service = TraceServiceServer::new(receiver).max_decoding_message_size(MESSAGE);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors; some will be free soon.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new()).http2_only();
            builder.http2().timer(TokioTimer::new()).max_concurrent_streams(16).keep_alive_interval(4 * LIMIT);
            // A sidecar that fails here sends again.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

async fn send_on(to: Endpoint, mut waiting: mpsc::Receiver<ExportTraceServiceRequest>) {
    let name = to.uri().to_string();
    let mut client: TraceServiceClient<Channel> = TraceServiceClient::new(to.connect_lazy());
    let mut taken = true;
    while let Some(request) = waiting.recv().await {
        let why = match tokio::time::timeout(LIMIT, client.export(request)).await {
            Ok(Ok(_)) => None,
            Ok(Err(status)) => Some(status.message().to_string()),
            Err(_) => Some("no answer in time".into()),
        };
        match &why {
            Some(why) if taken => {
                println!("warning: {name} takes no spans ({why}); meshctl lab traces has them all the same");
            }
            None if !taken => println!("{name} takes spans again"),
            _ => {}
        }
        taken = why.is_none();
    }
}

async fn answer_all(questions: UnixListener, spans: Arc<Mutex<Spans>>) {
    loop {
        let Ok((stream, _)) = questions.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let spans = spans.clone();
        tokio::spawn(async move {
            // Whoever asks and leaves has no use for an answer.
            let _ = tokio::time::timeout(2 * LIMIT, answer(stream, &spans)).await;
        });
    }
}

async fn answer(mut stream: UnixStream, spans: &Mutex<Spans>) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new((&mut stream).take(QUESTION)).read_line(&mut line).await?;
    let query = Query::read(&serde_json::from_str(&line).unwrap_or_default());
    let text = spans.lock().unwrap_or_else(PoisonError::into_inner).answer(&query);
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// What a running lab's collector has.
pub async fn ask(lab: &Lab, query: &Query) -> Result<Value> {
    let asked = async {
        let mut stream = UnixStream::connect(socket(lab)).await?;
        stream.write_all(format!("{}\n", query.json()).as_bytes()).await?;
        let mut text = String::new();
        stream.take(ANSWER).read_to_string(&mut text).await?;
        serde_json::from_str(&text).map_err(io::Error::other)
    };
    let answer = tokio::time::timeout(2 * LIMIT, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    answer.map_err(|e| {
        Error::new(format!("lab {} does not tell its traces: {e}", lab.id), "a lab with a mesh, without --no-mesh")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_collectors() {
        assert!(collector("http://localhost:4317").is_ok());
        for bad in ["localhost:4317", "http://localhost", "https://localhost:4317", "grpc://a:1", ""] {
            assert!(collector(bad).is_err(), "{bad}");
        }
    }
}
