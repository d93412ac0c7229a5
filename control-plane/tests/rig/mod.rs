//! A control plane on a socket, with worlds made by hand, and clients that speak to it over TLS as proxies do.

#![allow(dead_code)]

pub mod raw;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use weft_control::app::{self, Running};
use weft_control::identity::token::{self, Binding};
use weft_control::settings::Serve;
use weft_control::state::StateDir;
use weft_dialects::world::{Clients, Pod, PodId, Service, Variant};
use weft_dialects::{Ledger, Objects, World};
use weft_policy::id::{ServiceId, SpiffeId, TrustDomain};
use weft_policy::meta::Workload;
use weft_policy::yaml;
use weft_proto::v1::mesh_client::MeshClient;
use weft_proto::v1::watch_request::Kind;
use weft_proto::v1::{Applied, Hello, Resource, SignRequest, SignResponse, Subscribe, WatchRequest, WatchResponse};
use weft_testkit::dir::TempDir;
use weft_tls::{Expect, Identity, Material, Origination, Roots, TrustBundle};

pub const DOMAIN: &str = "cluster.local";
pub const SERVER: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-control";
pub const SOON: Duration = Duration::from_secs(20);

/// A folder of manifests, a state folder, and what runs from them.
pub struct Control {
    pub manifests: TempDir,
    pub state: TempDir,
    pub running: Running,
}

pub fn serve(manifests: &TempDir, state: &TempDir, lifetime: Duration) -> Serve {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Serve {
        dir: vec![manifests.path().to_path_buf()],
        kube: false,
        kubeconfig: None,
        context: None,
        status: None,
        webhook: None,
        access_log: "json".into(),
        webhook_name: Vec::new(),
        listen: any,
        state: state.path().to_path_buf(),
        admin: Some(any),
        trust_domain: TrustDomain::parse(DOMAIN).unwrap(),
        namespace: "demo".into(),
        leaf_lifetime: lifetime,
        mesh_range: Vec::new(),
        otlp: None,
        sampling: 1.0,
        log: "info".into(),
    }
}

pub const DAY: Duration = Duration::from_secs(24 * 3600);

impl Control {
    pub async fn start(manifests: &[(&str, &str)]) -> Self {
        Self::with(manifests, DAY).await
    }

    pub async fn with(files: &[(&str, &str)], lifetime: Duration) -> Self {
        let (manifests, state) = (TempDir::new(), TempDir::new());
        for (name, text) in files {
            manifests.write(name, text);
        }
        let running = app::start(&serve(&manifests, &state, lifetime), Arc::new(by_hand)).await.unwrap();
        let control = Self { manifests, state, running };
        control.admin_until("/ready", |status, _| status == 200).await;
        control
    }

    /// Another process, same state.
    pub async fn restart(&mut self) {
        let running = app::start(&serve(&self.manifests, &self.state, DAY), Arc::new(by_hand)).await.unwrap();
        self.running = running;
        self.admin_until("/ready", |status, _| status == 200).await;
    }

    pub fn state_dir(&self) -> StateDir {
        StateDir::open(self.state.path()).unwrap()
    }

    pub fn token(&self, namespace: &str, account: &str, pod: &str) -> String {
        let binding = Binding { namespace: namespace.into(), service_account: account.into(), pod: pod.into() };
        token::create(&self.state_dir(), &binding, DAY, SystemTime::now()).unwrap()
    }

    pub fn bundle(&self) -> TrustBundle {
        bundle(self.state.join("root.pem"))
    }

    pub async fn join(&self, namespace: &str, account: &str, pod: &str) -> Identity {
        let token = self.token(namespace, account, pod);
        let (key, csr) = request(&[]);
        let signed = sign(self.client(None).await, csr, &token).await.unwrap();
        identity(&key, &signed)
    }

    /// Verifies that it speaks to the control plane.
    pub async fn client(&self, identity: Option<&Identity>) -> MeshClient<Channel> {
        self.try_client(identity, SERVER).await.unwrap()
    }

    pub async fn try_client(
        &self,
        identity: Option<&Identity>,
        expect: &str,
    ) -> Result<MeshClient<Channel>, tonic::transport::Error> {
        connect(self.running.address, self.bundle(), identity, expect).await
    }

    /// For messages that are bytes.
    pub async fn channel(&self, identity: Option<&Identity>) -> Channel {
        let config = client_config(self.bundle(), identity, SERVER);
        channel(self.running.address, config).await.unwrap()
    }

    pub async fn admin(&self, path: &str) -> (u16, String) {
        let at = self.running.admin.unwrap();
        get(at, path).await
    }

    pub async fn admin_json(&self, path: &str) -> Value {
        let (status, body) = self.admin(path).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub async fn admin_until(&self, path: &str, ready: impl Fn(u16, &str) -> bool) -> String {
        let end = tokio::time::Instant::now() + SOON;
        loop {
            let (status, body) = self.admin(path).await;
            if ready(status, &body) {
                return body;
            }
            assert!(tokio::time::Instant::now() < end, "not within {SOON:?}: {path} is {status} {body}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn status_until(&self, ready: impl Fn(&Value) -> bool) -> Value {
        let body = self.admin_until("/status", |_, body| ready(&serde_json::from_str(body).unwrap())).await;
        serde_json::from_str(&body).unwrap()
    }

    pub async fn metric_until(&self, name: &str, least: u64) {
        let end = tokio::time::Instant::now() + SOON;
        while self.metric(name).await < least {
            assert!(tokio::time::Instant::now() < end, "not within {SOON:?}: {name} is {least}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.admin("/metrics").await;
        let line = text.lines().find(|l| l.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

pub async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    let path = path.to_string();
    let asked = tokio::task::spawn_blocking(move || {
        let answer = weft_testkit::client::http1(at).host("localhost").get(&path);
        (answer.status, answer.text())
    });
    asked.await.unwrap()
}

pub fn bundle(path: PathBuf) -> TrustBundle {
    let pem = std::fs::read(path).unwrap();
    TrustBundle::from_pem(Some(TrustDomain::parse(DOMAIN).unwrap()), &pem).unwrap()
}

pub async fn connect(
    at: SocketAddr,
    bundle: TrustBundle,
    identity: Option<&Identity>,
    expect: &str,
) -> Result<MeshClient<Channel>, tonic::transport::Error> {
    Ok(MeshClient::new(channel(at, client_config(bundle, identity, expect)).await?))
}

fn client_config(bundle: TrustBundle, identity: Option<&Identity>, expect: &str) -> Arc<ClientConfig> {
    let expect = Expect::id(SpiffeId::parse(expect).unwrap());
    let bundle = Arc::new(bundle);
    match identity {
        Some(identity) => {
            let material = Material { identity: identity.clone(), bundle, generation: 1 };
            weft_tls::mesh_client(&material, expect, &[b"h2"]).unwrap()
        }
        None => weft_tls::origination_client(&Origination {
            roots: Roots::Bundle(bundle),
            expect: vec![expect],
            identity: None,
            alpn: vec![b"h2".to_vec()],
            send_sni: false,
        })
        .unwrap(),
    }
}

async fn channel(at: SocketAddr, config: Arc<ClientConfig>) -> Result<Channel, tonic::transport::Error> {
    let dial = move |_| {
        let tls = tokio_rustls::TlsConnector::from(config.clone());
        async move {
            let stream = TcpStream::connect(at).await?;
            // As proxies do: what is measured is the server, not the kernel's patience.
            stream.set_nodelay(true)?;
            let name = ServerName::try_from("weft-control").unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    };
    // Small, so that a slow reader is felt.
    let endpoint = Endpoint::from_static("http://control").initial_stream_window_size(64 * 1024);
    endpoint.connect_with_connector(tower::service_fn(dial)).await
}

/// A key, and a request that names these URIs.
pub fn request(uris: &[&str]) -> (rcgen::KeyPair, Vec<u8>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = uris.iter().map(|u| rcgen::SanType::URI((*u).try_into().unwrap())).collect();
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    (key, csr)
}

pub fn identity(key: &rcgen::KeyPair, signed: &SignResponse) -> Identity {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Identity::from_der(signed.chain.iter().map(|c| CertificateDer::from(c.clone())).collect(), key).unwrap()
}

pub async fn sign(mut client: MeshClient<Channel>, csr: Vec<u8>, token: &str) -> Result<SignResponse, Status> {
    Ok(client.sign(SignRequest { csr, join_token: token.into() }).await?.into_inner())
}

pub fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.unwrap_err().code()
}

/// A proxy's side of a stream.
pub struct Stream {
    pub requests: mpsc::Sender<WatchRequest>,
    pub answers: Streaming<WatchResponse>,
    pub have: BTreeMap<String, Resource>,
}

/// What came up to a `complete`.
#[derive(Debug, Default)]
pub struct Step {
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    pub unknown: Vec<String>,
}

impl Stream {
    pub async fn open(mut client: MeshClient<Channel>) -> Result<Self, Status> {
        let (requests, out) = mpsc::channel(16);
        let answers = client.watch(ReceiverStream::new(out)).await?.into_inner();
        Ok(Self { requests, answers, have: BTreeMap::new() })
    }

    pub async fn send(&self, kind: Kind) {
        self.requests.send(WatchRequest { kind: Some(kind) }).await.unwrap();
    }

    pub async fn hello(&self, have: &[(&str, &str)]) {
        let have: HashMap<String, String> = have.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        self.send(Kind::Hello(Hello { version: "test".into(), have })).await;
    }

    pub async fn subscribe(&self, add: &[&str], remove: &[&str]) {
        let own = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        self.send(Kind::Subscribe(Subscribe { add: own(add), remove: own(remove) })).await;
    }

    pub async fn applied(&self, name: &str, error: &str) {
        let version = self.have[name].version.clone();
        self.send(Kind::Applied(Applied { name: name.into(), version, error: error.into() })).await;
    }

    pub async fn message(&mut self) -> Result<Option<WatchResponse>, Status> {
        tokio::time::timeout(SOON, self.answers.message()).await.expect("a message, or the end")
    }

    /// Everything up to the next `complete`.
    pub async fn step(&mut self) -> Step {
        let mut step = Step::default();
        loop {
            let message = self.message().await.unwrap().expect("the stream goes on");
            for resource in message.changed {
                step.changed.push(resource.name.clone());
                self.have.insert(resource.name.clone(), resource);
            }
            for name in &message.removed {
                self.have.remove(name);
            }
            step.removed.extend(message.removed);
            step.unknown.extend(message.unknown);
            if message.complete {
                return step;
            }
        }
    }

    /// Nothing unasked is on its way: the answer to an empty Subscribe is the next there is.
    pub async fn quiet(&mut self) {
        self.subscribe(&[], &[]).await;
        let step = self.step().await;
        assert!(step.changed.is_empty() && step.removed.is_empty() && step.unknown.is_empty(), "{step:?}");
    }

    pub fn document(&self, name: &str) -> Value {
        serde_json::from_slice(&self.have[name].document).unwrap()
    }

    /// Until the control plane ends it.
    pub async fn ended(&mut self) -> Status {
        loop {
            match self.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a word"),
                Err(status) => return status,
            }
        }
    }
}

/// Worlds as they are written: a Service holds a document, a Pod holds one as well.
pub fn by_hand(objects: &Objects) -> (World, Ledger) {
    let mut world = World::default();
    for object in &objects.0 {
        let spec = yaml::json(&object.node)["spec"].clone();
        let words = |v: &Value| -> Vec<String> {
            v.as_array().into_iter().flatten().filter_map(|v| Some(v.as_str()?.to_string())).collect()
        };
        match object.kind.as_str() {
            "Service" => {
                let clients =
                    Clients { namespaces: words(&spec["clients"]).into_iter().collect(), labels: BTreeMap::new() };
                let refers = words(&spec["refers"]).iter().map(|n| ServiceId::new(&object.namespace, n)).collect();
                let variant = Variant { clients, document: spec["document"].clone(), refers, from: Vec::new() };
                let endpoints = BTreeMap::from([(80, spec["endpoints"].clone())]);
                let service = Service { variants: vec![variant], endpoints };
                world.services.insert(ServiceId::new(&object.namespace, &object.name), service);
            }
            "Pod" => {
                let account = spec["account"].as_str().unwrap_or("default");
                let id = format!("spiffe://{DOMAIN}/ns/{}/sa/{account}", object.namespace);
                let pod = Pod {
                    identity: SpiffeId::parse(&id).unwrap(),
                    workload: Workload {
                        name: spec["owner"].as_str().unwrap_or(&object.name).into(),
                        ..Workload::default()
                    },
                    labels: object.labels.clone(),
                    document: spec["document"].clone(),
                };
                world.pods.insert(PodId { namespace: object.namespace.clone(), name: object.name.clone() }, pod);
            }
            _ => {}
        }
    }
    (world, Ledger::default())
}

pub fn service(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  \
         document: {{name: {name}, port: 80, hosts: [{name}]}}\n  endpoints: [\"10.1.0.5:80\"]\n{more}---\n"
    )
}

pub fn pod(namespace: &str, name: &str, account: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  account: {account}\n  \
         document: {{workload: {{name: {name}}}, listeners: [{{name: out, role: outbound}}]}}\n---\n"
    )
}
