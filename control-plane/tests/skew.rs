//! Proxies of other versions: one whose session was recorded when its release was made, and one that says what is not known yet.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use prost::Message;
use rig::{Control, SOON, pod, raw, request, service};
use std::collections::BTreeMap;
use tonic::Streaming;
use weft_proto::v1::watch_request::Kind;
use weft_proto::v1::{Applied, Hello, SignRequest, SignResponse, Subscribe, WatchRequest, WatchResponse};
use weft_testkit::wait::block_on;
use weft_testkit::wire;

/// What has come so far, until a name is among it.
async fn until(stream: &mut Streaming<Vec<u8>>, name: &str) -> BTreeMap<String, Vec<u8>> {
    let mut have = BTreeMap::new();
    while !have.contains_key(name) {
        let message = tokio::time::timeout(SOON, stream.message()).await.expect("an answer");
        let message = WatchResponse::decode(message.unwrap().expect("the stream goes on").as_slice()).unwrap();
        have.extend(message.changed.into_iter().map(|r| (r.name, r.document)));
        message.removed.iter().chain(&message.unknown).for_each(|name| drop(have.remove(name)));
    }
    have
}

fn manifests() -> String {
    pod("demo", "web-1", "web") + &service("app", "")
}

#[test]
fn a_recorded_older_proxy_gets_what_it_needs() {
    block_on(async {
        let control = Control::start(&[("a.yaml", &manifests())]).await;
        let leaf = control.join("demo", "web", "web-1").await;
        let messages = wire::recorded("v0.1/proxy.session");
        // Each of its streams began with hello.
        let is_hello = |m: &[u8]| matches!(WatchRequest::decode(m).unwrap().kind, Some(Kind::Hello(_)));
        let begins: Vec<usize> = (0..messages.len()).filter(|i| is_hello(&messages[*i])).collect();
        assert!(begins.len() >= 2 && begins[0] == 0, "{begins:?}");
        for (i, begin) in begins.iter().enumerate() {
            let end = begins.get(i + 1).copied().unwrap_or(messages.len());
            let (say, mut stream) = raw::watch(control.channel(Some(&leaf)).await).await;
            for message in &messages[*begin..end] {
                say.send(message.clone()).await.unwrap();
            }
            let have = until(&mut stream, "host/app:80").await;
            assert!(have.contains_key("service/demo/app") && have.contains_key("endpoints/demo/app/80"), "{have:?}");
            assert!(have.contains_key("proxy"), "{have:?}");
        }
    });
}

#[test]
fn a_newer_proxy_is_understood_as_far_as_it_can_be() {
    block_on(async {
        let control = Control::start(&[("a.yaml", &manifests())]).await;
        let more = [wire::number(99, 7), wire::bytes(100, b"newer")].concat();
        // A field more in the request for a certificate.
        let (key, csr) = request(&[]);
        let join_token = control.token("demo", "web", "web-1");
        let ask = [SignRequest { csr, join_token }.encode_to_vec(), more.clone()].concat();
        let signed = raw::sign(control.channel(None).await, ask).await.unwrap();
        let leaf = rig::identity(&key, &SignResponse::decode(signed.as_slice()).unwrap());

        let (say, mut stream) = raw::watch(control.channel(Some(&leaf)).await).await;
        let unknown_kind = wire::bytes(15, &more);
        // Kinds by their number in the oneof, each with fields that are not known.
        let hello = Hello { version: "9.9".into(), have: [("wasm/x".into(), "1".into())].into() }.encode_to_vec();
        let subscribe = |add: &[&str]| {
            let add = add.iter().map(ToString::to_string).collect();
            Subscribe { add, remove: vec!["wasm/y".into()] }.encode_to_vec()
        };
        let applied = Applied { name: "wasm/x".into(), version: "1".into(), error: String::new() }.encode_to_vec();
        let kind =
            |n: u32, message: Vec<u8>| [wire::bytes(n, &[message, more.clone()].concat()), more.clone()].concat();
        for message in [
            unknown_kind.clone(),
            Vec::new(),
            kind(1, hello),
            unknown_kind,
            kind(2, subscribe(&["wasm/z", "host/app:80"])),
            kind(3, applied),
        ] {
            say.send(message).await.unwrap();
        }
        let have = until(&mut stream, "host/app:80").await;
        assert!(have.contains_key("service/demo/app") && !have.contains_key("wasm/z"), "{have:?}");
        control.status_until(|s| s["proxies"][0]["version"] == "9.9" && s["proxies"][0]["connected"] == true).await;
    });
}

/// `proxy/tests/control.rs` plays it to today's proxy.
#[test]
#[ignore = "records the control plane of this release, once, when it is made"]
fn record() {
    block_on(async {
        let document = "{workload: {name: web}, listeners: [{name: out, role: outbound, address: '127.0.0.1:0'}]}";
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-1, namespace: demo}}\nspec: {{account: web, document: {document}}}\n---\n"
        );
        let app = |body: &str| {
            service("app", "")
                .replace("hosts: [app]", &format!("hosts: [app], routes: [{{respond: {{status: 200, body: {body}}}}}]"))
        };
        let control =
            Control::start(&[("pod.yaml", &pod), ("app.yaml", &app("first")), ("b.yaml", &service("b", ""))]).await;
        let leaf = control.join("demo", "web", "web-1").await;
        let (say, mut stream) = raw::watch(control.channel(Some(&leaf)).await).await;
        let mut messages = Vec::new();
        let mut step = async |kind: Option<Kind>| {
            if let Some(kind) = kind {
                say.send(WatchRequest { kind: Some(kind) }.encode_to_vec()).await.unwrap();
            }
            loop {
                let message = tokio::time::timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap();
                let complete = WatchResponse::decode(message.as_slice()).unwrap().complete;
                messages.push(message);
                if complete {
                    break;
                }
            }
        };
        let subscribe = |add: &[&str]| {
            let add = add.iter().map(ToString::to_string).collect();
            Some(Kind::Subscribe(Subscribe { add, remove: Vec::new() }))
        };
        say.send(WatchRequest { kind: Some(Kind::Hello(Hello::default())) }.encode_to_vec()).await.unwrap();
        step(subscribe(&[])).await;
        step(subscribe(&["host/app:80", "host/b:80", "host/none:80"])).await;
        control.manifests.write("app.yaml", app("second"));
        step(None).await;
        std::fs::remove_file(control.manifests.join("b.yaml")).unwrap();
        step(None).await;
        wire::record("v0.1/control.session", &messages);
    });
}
