//! Connections of proxies: accepted whatever happens, handshakes bounded in time, who it is known before the first request, and
//! everything that a peer can open many of counted.

use crate::identity::Caller;
use crate::push::server::{Connection, Server};
use crate::status::{Status, count};
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::Service;
use weft_dialects::world::PodId;
use weft_proto::v1::mesh_server::MeshServer;
use weft_tls::{Live, MeshServer as Tls};

const CONNECTIONS: usize = 8192;
/// Without a certificate: only on the way to one.
const JOINING: usize = 256;
const JOINING_TIME: Duration = Duration::from_secs(30);
const PER_POD: u32 = 8;
const HANDSHAKE: Duration = Duration::from_secs(10);
const STREAMS: u32 = 100;
const HEADERS: u32 = 16 * 1024;
const MESSAGE: usize = 4 << 20;
const PING: Duration = Duration::from_secs(10);

/// A pod, and its uid if there is one: an earlier pod of the same name takes no place from the later one.
type Instance = (PodId, String);

struct Doors {
    tls: Tls,
    service: MeshServer<Server>,
    status: Arc<Status>,
    joining: Arc<Semaphore>,
    pods: Mutex<BTreeMap<Instance, u32>>,
}

pub async fn serve(listener: TcpListener, live: Live, server: Server, status: Arc<Status>) {
    let service = MeshServer::new(server).max_decoding_message_size(MESSAGE);
    let (joining, pods) = (Arc::new(Semaphore::new(JOINING)), Mutex::default());
    let tls = Tls::open(live, &[b"h2"]);
    let doors = Arc::new(Doors { tls, service, status, joining, pods });
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut pause = Duration::from_millis(10);
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most of the time: that passes.
                count(&doors.status.counters.accept_errors);
                tracing::warn!(%error, "accept");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
                continue;
            }
        };
        pause = Duration::from_millis(10);
        count(&doors.status.counters.accepted);
        let Ok(permit) = room.clone().try_acquire_owned() else {
            count(&doors.status.counters.turned_away);
            continue;
        };
        let doors = doors.clone();
        tokio::spawn(async move {
            connection(stream, address, &doors).await;
            drop(permit);
        });
    }
}

async fn connection(stream: TcpStream, address: SocketAddr, doors: &Arc<Doors>) {
    let _ = stream.set_nodelay(true);
    let config = match doors.tls.config() {
        Ok(config) => config,
        Err(error) => return tracing::error!(%error, "our own certificate cannot be used"),
    };
    let stream = match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            count(&doors.status.counters.handshake_errors);
            // A certificate that does not count is somebody's mistake or worse; the rest is noise of networks.
            let cause = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            return match matches!(cause, Some(rustls::Error::InvalidCertificate(_))) {
                true => tracing::warn!(%address, %error, "a client's certificate is refused"),
                false => tracing::debug!(%address, %error, "handshake"),
            };
        }
        Err(_) => {
            count(&doors.status.counters.handshake_errors);
            return tracing::debug!(%address, "handshake took too long");
        }
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let caller = shown.and_then(Caller::of).map(Arc::new);
    let (life, place) = match &caller {
        Some(caller) => {
            (caller.not_after.duration_since(SystemTime::now()).unwrap_or_default(), Place::pod(doors, caller))
        }
        None => (JOINING_TIME, doors.joining.clone().try_acquire_owned().ok().map(Place::Joining)),
    };
    let Some(_place) = place else {
        count(&doors.status.counters.turned_away);
        return tracing::debug!(%address, "too many connections of this kind");
    };
    let known = Connection { caller, address };
    let service = Introduced { service: doors.service.clone(), known };
    let mut builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1 << 20)
        .max_send_buf_size(256 * 1024)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    match tokio::time::timeout(life.saturating_add(Duration::from_secs(1)), serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%address, error, "connection"),
        Err(_) => tracing::debug!(%address, "connection cut: its time is over"),
    }
}

/// Given back when dropped.
enum Place {
    Joining(#[allow(dead_code)] tokio::sync::OwnedSemaphorePermit),
    Pod(Arc<Doors>, Instance),
}

impl Place {
    fn pod(doors: &Arc<Doors>, caller: &Caller) -> Option<Self> {
        let mut pods = doors.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let instance = (caller.pod.clone(), caller.uid.clone());
        let n = pods.entry(instance.clone()).or_default();
        if *n >= PER_POD {
            return None;
        }
        *n += 1;
        Some(Self::Pod(doors.clone(), instance))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self::Pod(doors, pod) = self else { return };
        let mut pods = doors.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let left = pods.get_mut(pod).map_or(0, |n| {
            *n -= 1;
            *n
        });
        if left == 0 {
            pods.remove(pod);
        }
    }
}

/// Tells every request whose connection it came on.
#[derive(Clone)]
struct Introduced {
    service: MeshServer<Server>,
    known: Connection,
}

impl<B> Service<Request<B>> for Introduced
where
    MeshServer<Server>: Service<Request<B>>,
{
    type Response = <MeshServer<Server> as Service<Request<B>>>::Response;
    type Error = <MeshServer<Server> as Service<Request<B>>>::Error;
    type Future = <MeshServer<Server> as Service<Request<B>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.known.clone());
        self.service.call(request)
    }
}
