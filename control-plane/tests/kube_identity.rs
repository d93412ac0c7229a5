//! Identity from a real Kubernetes: who a token proves and whom it does not, the authority in a Secret that replicas share, its
//! roots in every namespace, its rotation, and what goes on while the API server is away. One cluster, one test, in this order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::SigningKey;
use rig::{SERVER, SOON, Stream, code, identity, request, sign};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};
use tonic::Code;
use tonic::transport::Channel;
use weft_cluster::{Cluster, Options};
use weft_control::identity::Caller;
use weft_proto::v1::SignResponse;
use weft_proto::v1::mesh_client::MeshClient;
use weft_testkit::dir::TempDir;
use weft_testkit::netns::run_in;
use weft_testkit::wait::{block_on, until};
use weft_tls::Identity;

const CONTROL: &str = env!("CARGO_BIN_EXE_weft-control");
const LONG: Duration = Duration::from_secs(60);

/// `weft-control --kube`, in the cluster's network, as the pod of this name. Ends when dropped.
struct Replica {
    child: Child,
    address: SocketAddr,
    state: TempDir,
}

impl Replica {
    fn start(cluster: &Cluster, name: &str, namespace: &str, port: u16) -> Self {
        let replica = Self::begin(cluster, name, namespace, port, TempDir::new());
        replica.wait();
        replica
    }

    fn begin(cluster: &Cluster, name: &str, namespace: &str, port: u16, state: TempDir) -> Self {
        // The namespace is the cluster's own, so every port is free.
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = cluster.command(CONTROL);
        command.args(["--kube", "--listen", &address.to_string(), "--state"]).arg(state.path());
        command.env("POD_NAME", name).env("POD_NAMESPACE", namespace);
        Self { child: command.spawn().unwrap(), address, state }
    }

    fn wait(&self) {
        until("the control plane listens", LONG, || std::net::TcpStream::connect(self.address).is_ok());
    }

    fn root(&self) -> String {
        std::fs::read_to_string(self.state.join("root.pem")).unwrap()
    }

    async fn client(&self, identity: Option<&Identity>) -> MeshClient<Channel> {
        self.try_client(identity).await.unwrap()
    }

    async fn try_client(&self, identity: Option<&Identity>) -> Result<MeshClient<Channel>, tonic::transport::Error> {
        rig::connect(self.address, rig::bundle(self.state.join("root.pem")), identity, SERVER).await
    }

    async fn join(&self, token: &str) -> Identity {
        let (key, csr) = request(&[]);
        identity(&key, &sign(self.client(None).await, csr, token).await.unwrap())
    }

    async fn renew(&self, leaf: &Identity) -> Result<Identity, tonic::Status> {
        let (key, csr) = request(&[]);
        Ok(identity(&key, &sign(self.client(Some(leaf)).await, csr, "").await?))
    }

    /// The refusal of a token: it has to be one, and to say why.
    async fn refuses(&self, token: &str, why: &str) {
        let refused = sign(self.client(None).await, request(&[]).1, token).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        assert!(refused.message().contains(why), "{why}: {refused}");
    }

    async fn stream(&self, leaf: &Identity) -> Stream {
        let mut stream = Stream::open(self.client(Some(leaf)).await).await.unwrap();
        stream.hello(&[]).await;
        stream.subscribe(&[], &[]).await;
        while !stream.have.contains_key("trust") {
            stream.step().await;
        }
        stream
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kubectl(cluster: &Cluster, args: &str) -> String {
    let args: Vec<&str> = args.split(' ').collect();
    cluster.kubectl(&args).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

fn pod(cluster: &Cluster, namespace: &str, name: &str, account: &str, labels: &str) {
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
         spec:\n  serviceAccountName: {account}\n  terminationGracePeriodSeconds: 0\n  \
         containers: [{{name: app, image: \"busybox:1\", command: [sleep, infinity]}}]\n"
    );
    cluster.apply(&yaml).unwrap();
    kubectl(cluster, &format!("wait -n {namespace} --for=condition=Ready pod/{name} --timeout=60s"));
}

fn token(cluster: &Cluster, namespace: &str, account: &str, pod: &str, audience: &str) -> String {
    let uid = kubectl(cluster, &format!("get pod -n {namespace} {pod} -o jsonpath={{.metadata.uid}}"));
    let bound = format!("--bound-object-kind Pod --bound-object-name {pod} --bound-object-uid {uid}");
    let made = format!("create token {account} -n {namespace} --audience {audience} {bound} --duration 10m");
    kubectl(cluster, &made).trim().to_string()
}

/// The same token with other claims, signed by the cluster's own key: what the API server would have to have said.
fn changed(cluster: &Cluster, token: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut parts = token.split('.');
    let (head, claims) = (parts.next().unwrap(), parts.next().unwrap());
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    change(&mut claims);
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = std::fs::read_to_string(cluster.place().path("pki/accounts.key")).unwrap();
    let der = rcgen::KeyPair::from_pem(&key).unwrap().sign(signed.as_bytes()).unwrap();
    // Of DER's two integers the 32 bytes each that JWS wants.
    let (mut raw, mut rest) = (Vec::new(), &der[2..]);
    while let [2, length, more @ ..] = rest {
        let (number, after) = more.split_at(usize::from(*length));
        let number = &number[number.len().saturating_sub(32)..];
        raw.extend(std::iter::repeat_n(0, 32 - number.len()).chain(number.iter().copied()));
        rest = after;
    }
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(raw))
}

fn certificate(signed: &SignResponse) -> Caller {
    Caller::of(&signed.chain[0].clone().into()).unwrap()
}

/// One step of a rotation, as an operator takes it: what it says, or why not.
fn rotate(cluster: &Cluster) -> Result<String, String> {
    let mut command: Command = cluster.command(CONTROL);
    let done = command.args(["rotate-root", "--kube"]).output().unwrap();
    match done.status.code() {
        Some(0) => Ok(String::from_utf8(done.stdout).unwrap()),
        Some(1) => Err(String::from_utf8(done.stderr).unwrap()),
        other => panic!("{other:?}: {done:?}"),
    }
}

/// The streams of this runtime go on between two tries only.
async fn rotated(cluster: &Cluster) -> String {
    let end = tokio::time::Instant::now() + SOON;
    loop {
        match rotate(cluster) {
            Ok(done) => return done,
            Err(why) => assert!(tokio::time::Instant::now() < end, "{why}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn refused(cluster: &Cluster, words: &[&str]) {
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let why = rotate(cluster).expect_err("too early");
        if words.iter().all(|w| why.contains(w)) {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{words:?} are not in: {why}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn roots_in(cluster: &Cluster, namespace: &str) -> String {
    let args =
        ["get", "configmap", "weft-root", "-n", namespace, "--ignore-not-found", "-o", "jsonpath={.data.root\\.pem}"];
    cluster.kubectl(&args).unwrap()
}

#[test]
fn pods_and_who_they_are() {
    let mut cluster = Cluster::start(Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let netns = cluster.place().netns();
    // All of it from within the cluster's network: neither its Services nor its API server are to be had elsewhere.
    run_in(&netns, || everything(&mut cluster));
    cluster.stop().unwrap();
}

fn everything(cluster: &mut Cluster) {
    kubectl(cluster, "create namespace weft-system");
    kubectl(cluster, "create namespace demo");
    for account in ["-n weft-system weft-control", "-n demo web", "-n demo db"] {
        kubectl(cluster, &format!("create serviceaccount {account}"));
    }
    // Where the control plane's own pods would be: they are looked for by their label.
    for name in ["weft-control-a", "weft-control-b"] {
        pod(cluster, "weft-system", name, "weft-control", "app.kubernetes.io/name: weft-control");
    }
    pod(cluster, "demo", "web-0", "web", "app: web");
    pod(cluster, "demo", "db-0", "db", "app: db");

    // Both at once: one of them makes the root, both have it.
    let a = Replica::begin(cluster, "weft-control-a", "weft-system", 15112, TempDir::new());
    let b = Replica::begin(cluster, "weft-control-b", "weft-system", 15212, TempDir::new());
    a.wait();
    b.wait();
    one_authority(cluster, &a, &b);
    block_on(tokens(cluster, &a, &b));
    roots_everywhere(cluster, &a);
    block_on(a_later_pod_of_the_same_name(cluster, &a));
    block_on(rotation(cluster, &a, &b));
    block_on(without_api_server(cluster, &a));
    drop((a, b));
    a_given_authority(cluster);
}

fn one_authority(cluster: &Cluster, a: &Replica, b: &Replica) {
    assert_eq!(a.root(), b.root());
    let secret: Value = serde_json::from_str(&kubectl(cluster, "get secret -n weft-system weft-ca -o json")).unwrap();
    let data = secret["data"].as_object().unwrap();
    assert_eq!(data.len(), 3, "{:?}", data.keys());
    let pem = data.iter().find(|(name, _)| name.ends_with(".pem")).unwrap().1;
    assert_eq!(String::from_utf8(STANDARD.decode(pem.as_str().unwrap()).unwrap()).unwrap(), a.root());
    for replica in [a, b] {
        let key = std::fs::read_dir(replica.state.path()).unwrap().map(|e| e.unwrap().path());
        let key = key.filter(|p| p.extension().is_some_and(|e| e == "key")).collect::<Vec<_>>();
        assert_eq!(key.len(), 1);
        assert_eq!(std::fs::metadata(&key[0]).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

async fn tokens(cluster: &Cluster, a: &Replica, b: &Replica) {
    let good = token(cluster, "demo", "web", "web-0", "weft.dev");
    let uid = kubectl(cluster, "get pod -n demo web-0 -o jsonpath={.metadata.uid}");
    // As often as it is shown, at any replica.
    for replica in [a, a, b] {
        let (_, csr) = request(&["spiffe://cluster.local/ns/demo/sa/web"]);
        let caller = certificate(&sign(replica.client(None).await, csr, &good).await.unwrap());
        assert_eq!(caller.id.as_str(), "spiffe://cluster.local/ns/demo/sa/web");
        assert_eq!(
            (caller.pod.namespace.as_str(), caller.pod.name.as_str(), caller.uid.as_str()),
            ("demo", "web-0", &*uid)
        );
    }
    let leaf = a.join(&good).await;
    b.renew(&leaf).await.unwrap();

    // Another's name.
    let (_, csr) = request(&["spiffe://cluster.local/ns/demo/sa/db"]);
    assert_eq!(code(sign(a.client(None).await, csr, &good).await), Code::PermissionDenied);

    a.refuses(&token(cluster, "demo", "web", "web-0", "somebody.else"), "audience").await;
    let plain = kubectl(cluster, "create token web -n demo --audience weft.dev").trim().to_string();
    a.refuses(&plain, "not bound to a pod").await;
    a.refuses(&token(cluster, "weft-system", "weft-control", "weft-control-a", "weft.dev"), "control plane's own")
        .await;
    for nothing in ["x", "a.b.c", "..", &format!("{good}.{good}"), &"a".repeat(100_000)] {
        assert_eq!(code(sign(a.client(None).await, request(&[]).1, nothing).await), Code::Unauthenticated);
    }
    a.refuses("0123456789abcdef", "no ServiceAccount token").await;

    // That signing anew is not what makes the next ones fail.
    a.join(&changed(cluster, &good, |claims| claims["jti"] = json!("another"))).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let old = changed(cluster, &good, |claims| {
        claims["exp"] = json!(now - 600);
        claims["iat"] = json!(now - 1200);
        claims["nbf"] = json!(now - 1200);
    });
    a.refuses(&old, "expired").await;
    let other = changed(cluster, &good, |claims| claims["kubernetes.io"]["pod"]["uid"] = json!("0-0-0-0"));
    a.refuses(&other, "earlier pod").await;
    let elsewhere = changed(cluster, &good, |claims| claims["kubernetes.io"]["node"]["name"] = json!("elsewhere"));
    a.refuses(&elsewhere, "node").await;
    let (head, signature) = good.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{head}.{first}{}", &signature[1..]);
    a.refuses(&forged, "refuses the token").await;

    // A pod that was deleted, though its token has not expired and its certificate neither.
    pod(cluster, "demo", "gone-0", "web", "app: gone");
    let gone = token(cluster, "demo", "web", "gone-0", "weft.dev");
    let leaf = a.join(&gone).await;
    kubectl(cluster, "delete pod -n demo gone-0 --grace-period=0 --force");
    kubectl(cluster, "wait -n demo --for=delete pod/gone-0 --timeout=60s");
    // The API server itself may remember the token for some seconds.
    a.refuses(&gone, "pod").await;
    let refused = b.renew(&leaf).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("no such pod"), "{refused}");
}

fn roots_everywhere(cluster: &Cluster, a: &Replica) {
    let everywhere = |what: &str, namespaces: &[&str]| {
        until(what, SOON, || namespaces.iter().all(|n| roots_in(cluster, n) == a.root()));
    };
    everywhere("roots in all namespaces", &["default", "demo", "kube-system", "weft-system"]);
    kubectl(cluster, "create namespace later");
    everywhere("roots in a new namespace", &["later"]);
    kubectl(cluster, "delete configmap -n later weft-root");
    everywhere("roots where they were deleted", &["later"]);
    kubectl(cluster, r#"patch configmap -n demo weft-root --type=merge -p {"data":{"root.pem":"mine"}}"#);
    everywhere("roots where they were changed", &["demo"]);
    kubectl(cluster, "delete namespace later --timeout=60s");
}

/// As a StatefulSet makes them.
async fn a_later_pod_of_the_same_name(cluster: &Cluster, a: &Replica) {
    pod(cluster, "demo", "st-0", "db", "app: st");
    let first = token(cluster, "demo", "db", "st-0", "weft.dev");
    let old = a.join(&first).await;
    let mut before = a.stream(&old).await;
    before.quiet().await;
    kubectl(cluster, "delete pod -n demo st-0 --grace-period=0 --force");
    kubectl(cluster, "wait -n demo --for=delete pod/st-0 --timeout=60s");
    pod(cluster, "demo", "st-0", "db", "app: st");
    let new = a.join(&token(cluster, "demo", "db", "st-0", "weft.dev")).await;
    // What was known of the old one may be some seconds old.
    let end = tokio::time::Instant::now() + SOON;
    let why = loop {
        match a.renew(&old).await {
            Err(why) if why.code() == Code::Unauthenticated => break why,
            _ => assert!(tokio::time::Instant::now() < end, "the old pod's certificate is renewed for ever"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(why.message().contains("earlier pod of that name"), "{why}");
    assert_eq!(code(Stream::open(a.client(Some(&old)).await).await.map(|_| ())), Code::Unauthenticated);
    a.refuses(&first, "pod").await;
    a.stream(&new).await.quiet().await;
    a.renew(&new).await.unwrap();
    kubectl(cluster, "delete pod -n demo st-0 --grace-period=0 --force");
}

async fn rotation(cluster: &Cluster, a: &Replica, b: &Replica) {
    let first = a.root();
    let web = a.join(&token(cluster, "demo", "web", "web-0", "weft.dev")).await;
    let db = b.join(&token(cluster, "demo", "db", "db-0", "weft.dev")).await;
    let (mut at_a, mut at_b) = (a.stream(&web).await, b.stream(&db).await);

    let said = rotate(cluster).unwrap();
    assert!(said.contains("is trusted beside"), "{said}");
    for stream in [&mut at_a, &mut at_b] {
        while stream.document("trust")[0]["roots"].as_array().unwrap().len() < 2 {
            stream.step().await;
        }
    }
    let both = a.root();
    assert_eq!((both.matches("BEGIN").count(), both.starts_with(&first)), (2, true));
    until("both roots everywhere", SOON, || roots_in(cluster, "demo") == both && b.root() == both);

    // Each replica knows of one that has not heard of it.
    refused(cluster, &["not known yet to", "demo/db-0", "demo/web-0"]).await;
    at_a.applied("trust", "").await;
    refused(cluster, &["not known yet to demo/db-0;"]).await;
    at_b.applied("trust", "").await;
    let said = rotated(cluster).await;
    assert!(said.contains("signs; "), "{said}");

    // Renewed at the other one, each.
    refused(cluster, &["still in use by", "demo/db-0", "demo/web-0"]).await;
    until("the new root signs", SOON, || {
        [a, b].iter().all(|r| std::fs::read_to_string(r.state.join("ca.json")).unwrap().contains("switched"))
    });
    // The replicas have read that half a second later.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let web = b.renew(&web).await.unwrap();
    refused(cluster, &["still in use by demo/db-0;"]).await;
    let db = a.renew(&db).await.unwrap();
    let said = rotated(cluster).await;
    assert!(said.contains("is the only one"), "{said}");
    until("one root everywhere", SOON, || {
        let now = a.root();
        now.matches("BEGIN").count() == 1 && now != first && b.root() == now && roots_in(cluster, "demo") == now
    });
    let secret: Value = serde_json::from_str(&kubectl(cluster, "get secret -n weft-system weft-ca -o json")).unwrap();
    assert_eq!(secret["data"].as_object().unwrap().len(), 3);
    // What the new root has signed goes on at both.
    let end = tokio::time::Instant::now() + SOON;
    while a.renew(&web).await.is_err() || b.renew(&db).await.is_err() {
        assert!(tokio::time::Instant::now() < end, "renewed after the rotation");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn without_api_server(cluster: &mut Cluster, a: &Replica) {
    let good = token(cluster, "demo", "db", "db-0", "weft.dev");
    let leaf = a.join(&good).await;
    cluster.kill_part("kube-apiserver").unwrap();
    let leaf = a.renew(&leaf).await.unwrap();
    assert_eq!(code(sign(a.client(None).await, request(&[]).1, &good).await), Code::Unavailable);
    // A replica that is started again meanwhile goes on with what its folder has.
    let copy = TempDir::new();
    for entry in std::fs::read_dir(a.state.path()).unwrap().map(Result::unwrap).filter(|e| e.path().is_file()) {
        std::fs::copy(entry.path(), copy.join(entry.file_name().to_str().unwrap())).unwrap();
    }
    let again = Replica::begin(cluster, "weft-control-c", "weft-system", 15312, copy);
    again.wait();
    again.renew(&leaf).await.unwrap();
    cluster.start_part("kube-apiserver").unwrap();
    until("the API server is back", LONG, || cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok());
    let end = tokio::time::Instant::now() + SOON;
    while sign(a.client(None).await, request(&[]).1, &good).await.is_err() {
        assert!(tokio::time::Instant::now() < end, "tokens are good again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// As cert-manager leaves one, and somebody who brings their own.
fn a_given_authority(cluster: &Cluster) {
    kubectl(cluster, "create namespace given");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, "ours");
    let cert = params.self_signed(&key).unwrap().pem();
    let files = TempDir::new();
    files.write("tls.crt", &cert);
    files.write("tls.key", key.serialize_pem());
    let at = |name: &str| files.join(name).display().to_string();
    let made = format!("create secret tls weft-ca -n given --cert {} --key {}", at("tls.crt"), at("tls.key"));
    kubectl(cluster, &made);
    let der = |pem: &str| -> Vec<u8> {
        let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
        STANDARD.decode(body.trim()).unwrap()
    };
    let only = Replica::start(cluster, "weft-control-d", "given", 15412);
    assert_eq!(der(&only.root()), der(&cert));
    block_on(async {
        let good = token(cluster, "demo", "web", "web-0", "weft.dev");
        let leaf = only.join(&good).await;
        assert!(Path::new(&only.state.path()).join("ca.json").exists());
        only.renew(&leaf).await.unwrap();
    });
    // With nothing but the Secret: the same root.
    drop(only);
    let next = Replica::start(cluster, "weft-control-e", "given", 15512);
    assert_eq!(der(&next.root()), der(&cert));
}
