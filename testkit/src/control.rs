//! A control plane with a script: a real gRPC server over TLS that signs, sends what a test sets, and remembers what proxies
//! say. It can be killed, started again at its address, and made to answer with garbage.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use prost::Message;
use rustls::ServerConfig;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::v1::mesh_server::{Mesh, MeshServer};
use weft_proto::v1::watch_request::Kind;
use weft_proto::v1::{
    Applied, Edge, Hello, ReportRequest, ReportResponse, Resource, SignRequest, SignResponse, TrustBundle,
    WatchRequest, WatchResponse,
};

use crate::ca::{Ca, LeafOpts};
use crate::io::{HyperIo, Spawn};

/// A certificate that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub id: String,
    /// Empty: renewed with the certificate.
    pub token: String,
}

struct State {
    ca: Arc<Ca>,
    /// Tokens that have not been used, and whom they are for.
    tokens: HashMap<String, String>,
    lifetime: Duration,
    renew_after: Duration,
    /// How far its clock is ahead of ours.
    ahead_by: Duration,
    refuse_to_sign: bool,
    garbage: bool,
    /// Sent to every stream as if it had been asked for.
    ahead: Vec<String>,
    /// What every stream is answered with, in place of the resources.
    script: Option<Vec<Vec<u8>>>,
    /// Every message of every stream, as it came.
    said: Vec<Vec<u8>>,
    /// Version and document by name.
    resources: HashMap<String, (String, Vec<u8>)>,
    versions: u64,
    hellos: Vec<Hello>,
    subscribed: Vec<String>,
    applied: Vec<Applied>,
    signed: Vec<Signed>,
    reported: Vec<Edge>,
}

struct Shared {
    state: Mutex<State>,
    /// Something new to be sent.
    changed: watch::Sender<u64>,
    /// Something new was heard.
    heard: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, message: &WatchRequest) {
        let mut state = self.state();
        state.said.push(message.encode_to_vec());
        match message.kind.clone() {
            Some(Kind::Hello(hello)) => state.hellos.push(hello),
            Some(Kind::Subscribe(subscribe)) => state.subscribed.extend(subscribe.add),
            Some(Kind::Applied(applied)) => state.applied.push(applied),
            None => {}
        }
        self.heard.notify_all();
    }
}

pub struct Control {
    shared: Arc<Shared>,
    addr: SocketAddr,
    running: Option<Running>,
}

struct Running {
    stop: watch::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Control {
    pub fn start(trust_domain: &str) -> Self {
        Self::of(Arc::new(Ca::new(trust_domain)))
    }

    /// With the CA of others.
    pub fn of(ca: Arc<Ca>) -> Self {
        let state = State {
            ca,
            tokens: HashMap::new(),
            lifetime: Duration::from_secs(24 * 3600),
            renew_after: Duration::from_secs(12 * 3600),
            ahead_by: Duration::ZERO,
            refuse_to_sign: false,
            garbage: false,
            ahead: Vec::new(),
            script: None,
            said: Vec::new(),
            resources: HashMap::new(),
            versions: 0,
            hellos: Vec::new(),
            subscribed: Vec::new(),
            applied: Vec::new(),
            signed: Vec::new(),
            reported: Vec::new(),
        };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(0), heard: Condvar::new() });
        let listener = crate::backend::listen(([127, 0, 0, 1], 0).into());
        let addr = listener.local_addr().expect("address");
        let running = Some(run(&shared, listener, CONTROL));
        Self { shared, addr, running }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn root_pem(&self) -> String {
        self.shared.state().ca.root_pem().to_string()
    }

    /// A token for one workload, good for one certificate.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        let mut state = self.shared.state();
        let token = format!("token-{}-{namespace}-{account}", state.tokens.len() + state.signed.len());
        let id = state.ca.id(namespace, account);
        state.tokens.insert(token.clone(), id);
        token
    }

    /// Of leaves from now on.
    pub fn lifetime(&self, lifetime: Duration, renew_after: Duration) {
        let mut state = self.shared.state();
        (state.lifetime, state.renew_after) = (lifetime, renew_after);
    }

    /// Its leaves count from so long after now.
    pub fn clock_ahead(&self, by: Duration) {
        self.shared.state().ahead_by = by;
    }

    pub fn refuse_to_sign(&self, refuse: bool) {
        self.shared.state().refuse_to_sign = refuse;
    }

    /// Answers everything with bytes that mean nothing; streams that stand go on.
    pub fn garbage(&self, garbage: bool) {
        self.shared.state().garbage = garbage;
    }

    /// What is sent without being asked for, with what it needs.
    pub fn ahead(&self, names: &[&str]) {
        self.shared.state().ahead = names.iter().map(ToString::to_string).collect();
    }

    /// Messages of a control plane of another version, sent once a stream has subscribed.
    pub fn script(&self, messages: Vec<Vec<u8>>) {
        self.shared.state().script = Some(messages);
    }

    pub fn said(&self) -> Vec<Vec<u8>> {
        self.shared.state().said.clone()
    }

    /// Sets a resource; every stream gets it.
    pub fn set(&self, name: &str, document: impl Into<Vec<u8>>) {
        self.set_all(&[(name, document.into())]);
    }

    /// Several of them, in one message.
    pub fn set_all(&self, resources: &[(&str, Vec<u8>)]) {
        let mut state = self.shared.state();
        for (name, document) in resources {
            state.versions += 1;
            let version = format!("v{}", state.versions);
            state.resources.insert((*name).to_string(), (version, document.clone()));
        }
        drop(state);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    pub fn remove(&self, name: &str) {
        self.shared.state().resources.remove(name);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// What proxies said they have, by stream.
    pub fn hellos(&self) -> Vec<Hello> {
        self.shared.state().hellos.clone()
    }

    /// Everything that was subscribed to, in order.
    pub fn subscribed(&self) -> Vec<String> {
        self.shared.state().subscribed.clone()
    }

    pub fn signed(&self) -> Vec<Signed> {
        self.shared.state().signed.clone()
    }

    pub fn applied(&self) -> Vec<Applied> {
        self.shared.state().applied.clone()
    }

    /// What proxies told that they have counted, in order.
    pub fn reported(&self) -> Vec<Edge> {
        self.shared.state().reported.clone()
    }

    /// The answer to the newest version of a resource, once it is there: the error, empty when it was taken.
    #[track_caller]
    pub fn wait_applied(&self, name: &str, limit: Duration) -> String {
        self.wait(&format!("an answer to {name}"), limit, |state| {
            let (version, _) = state.resources.get(name)?;
            let mut applied = state.applied.iter().rev();
            applied.find(|a| a.name == name && a.version == *version).map(|a| a.error.clone())
        })
    }

    #[track_caller]
    pub fn wait_signed(&self, n: usize, limit: Duration) -> Vec<Signed> {
        self.wait(&format!("{n} certificates"), limit, |s| (s.signed.len() >= n).then(|| s.signed.clone()))
    }

    #[track_caller]
    pub fn wait_hellos(&self, n: usize, limit: Duration) -> Vec<Hello> {
        self.wait(&format!("{n} streams"), limit, |s| (s.hellos.len() >= n).then(|| s.hellos.clone()))
    }

    #[track_caller]
    fn wait<T>(&self, what: &str, limit: Duration, ready: impl Fn(&State) -> Option<T>) -> T {
        let end = Instant::now() + limit;
        let mut state = self.shared.state();
        loop {
            if let Some(found) = ready(&state) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what} within {limit:?}; heard: {:?}", state.applied);
            state = self.shared.heard.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Closes everything at once, as a kill does.
    pub fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop.send_replace(());
            let _ = running.thread.join();
        }
    }

    /// At the same address, with the same CA and resources.
    pub fn restart(&mut self) {
        self.restart_as(CONTROL);
    }

    /// The same, with a certificate of somebody else.
    pub fn restart_as(&mut self, (namespace, account): (&'static str, &'static str)) {
        self.kill();
        let listener = crate::wait::poll(Duration::from_secs(10), || std::net::TcpListener::bind(self.addr).ok());
        let listener = listener.expect("the address is free again");
        listener.set_nonblocking(true).expect("nonblocking");
        self.running = Some(run(&self.shared, listener, (namespace, account)));
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.kill();
    }
}

const CONTROL: (&str, &str) = ("weft-system", "weft-control");

fn run(shared: &Arc<Shared>, listener: std::net::TcpListener, who: (&'static str, &'static str)) -> Running {
    let (stop, mut stopped) = watch::channel(());
    let shared = shared.clone();
    let thread = std::thread::spawn(move || {
        let runtime = crate::wait::runtime();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            let tls = TlsAcceptor::from(tls(&shared, who));
            loop {
                let stream = tokio::select! {
                    _ = stopped.changed() => return,
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => stream,
                        Err(_) => continue,
                    },
                };
                tokio::spawn(serve(shared.clone(), tls.clone(), stream));
            }
        });
        // Nobody is told goodbye.
        runtime.shutdown_background();
    });
    Running { stop, thread }
}

fn tls(shared: &Shared, (namespace, account): (&str, &str)) -> Arc<ServerConfig> {
    let state = shared.state();
    let leaf = state.ca.leaf(&state.ca.id(namespace, account), &LeafOpts::dns(&["weft-control"]));
    crate::tls::server_asking(&leaf, &[&state.ca], &["h2"])
}

async fn serve(shared: Arc<Shared>, tls: TlsAcceptor, stream: tokio::net::TcpStream) {
    let Ok(stream) = tls.accept(stream).await else { return };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).map(|c| c.to_vec());
    let peer = Peer(certificate.as_deref().and_then(crate::ca::uri_of));
    let mesh = MeshServer::new(Server(shared.clone())).max_encoding_message_size(64 << 20);
    let answer = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let (garbage, script) = {
            let state = shared.state();
            (state.garbage, state.script.clone())
        };
        let shared = shared.clone();
        let mut mesh = mesh.clone();
        async move {
            if garbage {
                let body = tonic::body::Body::new(Full::new(Bytes::from_static(
                    b"\x00\x00\x00\x00\x08\xff\xff\xff\xff\xff\xff\xff\xff",
                )));
                let mut answer = http::Response::new(body);
                answer.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
                return Ok(answer);
            }
            match script.filter(|_| request.uri().path().ends_with("/Watch")) {
                Some(script) => Ok(replay(shared, script, request.into_body())),
                None => mesh.call(request).await,
            }
        }
    });
    let _ = hyper::server::conn::http2::Builder::new(Spawn).serve_connection(HyperIo(stream), answer).await;
}

/// Reads what the proxy says, and answers its first Subscribe with the script.
fn replay(
    shared: Arc<Shared>,
    script: Vec<Vec<u8>>,
    mut said: hyper::body::Incoming,
) -> http::Response<tonic::body::Body> {
    let (send, frames) = mpsc::channel::<Result<Frame<Bytes>, Status>>(script.len().max(1));
    tokio::spawn(async move {
        let mut script = Some(script);
        let mut bytes = Vec::new();
        while let Some(Ok(frame)) = said.frame().await {
            bytes.extend(frame.into_data().unwrap_or_default());
            // A flag, a length, a message.
            while let Some(length) = bytes.get(1..5).map(|l| u32::from_be_bytes(l.try_into().expect("four")) as usize) {
                if bytes.len() < 5 + length {
                    break;
                }
                let message: Vec<u8> = bytes.drain(..5 + length).skip(5).collect();
                let message = WatchRequest::decode(message.as_slice()).expect("a request");
                shared.hear(&message);
                if matches!(message.kind, Some(Kind::Subscribe(_))) {
                    for message in script.take().into_iter().flatten() {
                        let _ = send.send(Ok(Frame::data(crate::backend::grpc_frame(&message)))).await;
                    }
                }
            }
        }
    });
    let body = tonic::body::Body::new(StreamBody::new(ReceiverStream::new(frames)));
    let mut answer = http::Response::new(body);
    answer.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    answer
}

/// Who called, by certificate.
#[derive(Clone)]
struct Peer(Option<String>);

#[derive(Clone)]
struct Server(Arc<Shared>);

#[tonic::async_trait]
impl Mesh for Server {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|p| p.0.clone());
        let SignRequest { csr, join_token } = request.into_inner();
        let mut state = self.0.state();
        if state.refuse_to_sign {
            return Err(Status::unavailable("not now"));
        }
        let id = match join_token.is_empty() {
            true => peer.ok_or_else(|| Status::unauthenticated("no certificate to renew"))?,
            false => state.tokens.remove(&join_token).ok_or_else(|| Status::unauthenticated("no such token"))?,
        };
        let now = SystemTime::now() + state.ahead_by;
        let opts = LeafOpts { not_before: now, not_after: now + state.lifetime, ..LeafOpts::default() };
        let chain = state.ca.sign(&csr, &id, &opts).map_err(Status::invalid_argument)?;
        let root = state.ca.root_der();
        let answer = SignResponse {
            chain,
            trust: vec![TrustBundle { trust_domain: state.ca.trust_domain.clone(), roots: vec![root] }],
            renew_after_seconds: state.renew_after.as_secs(),
        };
        state.signed.push(Signed { id, token: join_token });
        self.0.heard.notify_all();
        Ok(Response::new(answer))
    }

    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        if request.extensions().get::<Peer>().is_none_or(|p| p.0.is_none()) {
            return Err(Status::unauthenticated("a certificate is needed"));
        }
        let mut said = request.into_inner();
        let (send, sent) = mpsc::channel(4);
        let shared = self.0.clone();
        tokio::spawn(async move {
            let mut changes = shared.changed.subscribe();
            let mut has: HashMap<String, String> = HashMap::new();
            let mut subscribed = false;
            let mut names: HashSet<String> = HashSet::new();
            loop {
                tokio::select! {
                    message = said.message() => match message {
                        Ok(Some(message)) => {
                            shared.hear(&message);
                            match message.kind {
                                Some(Kind::Hello(hello)) => has = hello.have,
                                Some(Kind::Subscribe(subscribe)) => {
                                    subscribed = true;
                                    names.extend(subscribe.add);
                                    names.retain(|name| !subscribe.remove.contains(name));
                                    changes.mark_changed();
                                }
                                Some(Kind::Applied(_)) | None => {}
                            }
                        }
                        _ => return,
                    },
                    changed = changes.changed(), if subscribed => {
                        if changed.is_err() || send.send(Ok(difference(&shared, &names, &mut has))).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(sent)))
    }

    async fn report(&self, request: Request<Streaming<ReportRequest>>) -> Result<Response<ReportResponse>, Status> {
        let (mut reports, mut told) = (request.into_inner(), Vec::new());
        while let Some(report) = reports.message().await? {
            told.extend(report.edges);
        }
        self.0.state().reported.extend(told);
        self.0.heard.notify_all();
        Ok(Response::new(ReportResponse {}))
    }
}

/// What a proxy does not have yet, or not any more.
fn difference(shared: &Shared, names: &HashSet<String>, has: &mut HashMap<String, String>) -> WatchResponse {
    let state = shared.state();
    let (wanted, unknown) = wanted(&state, names);
    let mut changed: Vec<Resource> = wanted
        .iter()
        .filter(|(name, (version, _))| has.get(**name) != Some(version))
        .map(|(name, (version, document))| Resource {
            name: (*name).to_string(),
            version: version.clone(),
            document: document.clone(),
        })
        .collect();
    changed.sort_by(|a, b| a.name.cmp(&b.name));
    let removed = has.keys().filter(|name| !wanted.contains_key(name.as_str())).cloned().collect();
    *has = wanted.iter().map(|(name, (version, _))| ((*name).to_string(), version.clone())).collect();
    WatchResponse { changed, removed, unknown, complete: true }
}

type Held = (String, Vec<u8>);

/// What the names lead to, and those that lead nowhere.
fn wanted<'s>(state: &'s State, names: &HashSet<String>) -> (HashMap<&'s str, &'s Held>, Vec<String>) {
    let all = names.contains("*");
    let mut prefixes = Vec::new();
    let mut unknown = Vec::new();
    for name in names.iter().chain(&state.ahead).filter(|name| *name != "*") {
        let Some((_, document)) = state.resources.get(name) else {
            unknown.push(name.clone());
            continue;
        };
        let alias: serde_json::Value = serde_json::from_slice(document).expect("an alias");
        let service =
            format!("{}/{}", alias["namespace"].as_str().expect("text"), alias["service"].as_str().expect("text"));
        prefixes.extend([name.clone(), format!("service/{service}"), format!("endpoints/{service}/")]);
    }
    let is_wanted = |name: &str| {
        let alias = name.starts_with("host/") || name.starts_with("address/");
        (all && !alias)
            || name == "proxy"
            || name == "trust"
            || prefixes.iter().any(|p| name == p || (p.ends_with('/') && name.starts_with(p)))
    };
    let wanted = state.resources.iter().filter(|(name, _)| is_wanted(name)).map(|(n, held)| (n.as_str(), held));
    (wanted.collect(), unknown)
}
