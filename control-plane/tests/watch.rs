//! What proxies are told: all of it at first, then only what changes, and only what is theirs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use rig::{Control, SOON, Stream, pod, service};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use tonic::Code;
use weft_proto::v1::watch_request::Kind;
use weft_proto::v1::{Applied, Edge, ReportRequest};
use weft_testkit::wait::block_on;

async fn open(control: &Control, namespace: &str, account: &str, pod: &str) -> Stream {
    let leaf = control.join(namespace, account, pod).await;
    Stream::open(control.client(Some(&leaf)).await).await.unwrap()
}

async fn begun(control: &Control, have: &[(&str, &str)], add: &[&str]) -> Stream {
    let stream = open(control, "demo", "web", "web-1").await;
    stream.hello(have).await;
    stream.subscribe(add, &[]).await;
    stream
}

#[test]
fn all_of_it_at_first_then_only_what_changes() {
    block_on(async {
        let control = Control::start(&[
            ("pods.yaml", &(pod("demo", "web-1", "web") + &pod("demo", "db-1", "db"))),
            ("web.yaml", &service("web", "")),
            ("db.yaml", &service("db", "")),
        ])
        .await;
        let mut stream = begun(&control, &[], &["*"]).await;
        let first = stream.step().await;
        assert_eq!(
            first.changed,
            ["trust", "endpoints/demo/db/80", "endpoints/demo/web/80", "service/demo/db", "service/demo/web", "proxy"]
        );
        assert!(first.removed.is_empty() && first.unknown.is_empty());
        assert_eq!(stream.document("service/demo/web"), json!({"name": "web", "port": 80, "hosts": ["web"]}));
        assert_eq!(stream.document("endpoints/demo/web/80"), json!(["10.1.0.5:80"]));
        assert_eq!(stream.document("proxy")["workload"], json!({"name": "web-1"}));
        assert_eq!(stream.document("trust")[0]["domain"], "cluster.local");

        control.manifests.write("web.yaml", service("web", "").replace("10.1.0.5:80", "10.1.0.6:80"));
        assert_eq!(stream.step().await.changed, ["endpoints/demo/web/80"]);
        assert_eq!(stream.document("endpoints/demo/web/80"), json!(["10.1.0.6:80"]));

        // Written anew and the same: nothing.
        control.manifests.write("web.yaml", service("web", "# a comment\n").replace("10.1.0.5:80", "10.1.0.6:80"));
        control.manifests.write("new.yaml", service("new", ""));
        let added = stream.step().await;
        assert_eq!(added.changed, ["endpoints/demo/new/80", "service/demo/new"]);

        std::fs::remove_file(control.manifests.join("db.yaml")).unwrap();
        let gone = stream.step().await;
        assert_eq!(
            (gone.changed.len(), gone.removed),
            (0, vec!["endpoints/demo/db/80".into(), "service/demo/db".into()])
        );
        stream.quiet().await;
    });
}

#[test]
fn a_broken_file_changes_nothing_and_is_shown() {
    block_on(async {
        let manifests = pod("demo", "web-1", "web") + &service("web", "");
        let control = Control::start(&[("a.yaml", &manifests), ("b.yaml", &service("b", ""))]).await;
        let mut stream = begun(&control, &[], &["*"]).await;
        stream.step().await;
        assert_eq!(control.admin_json("/errors").await["files"], json!([]));

        control.manifests.write("a.yaml", "apiVersion: v1\nkind: [Service\nmetadata: x\n");
        let errors = control.admin_until("/errors", |_, body| body.contains("a.yaml:")).await;
        let errors: Value = serde_json::from_str(&errors).unwrap();
        let file = control.manifests.join("a.yaml").display().to_string();
        assert_eq!(errors["files"][0]["at"], format!("{file}:3"), "{errors}");
        // The others go on, and the last good one stays.
        control.manifests.write("b.yaml", service("b", "").replace("10.1.0.5", "10.1.0.9"));
        assert_eq!(stream.step().await.changed, ["endpoints/demo/b/80"]);
        stream.quiet().await;

        control.manifests.write("a.yaml", manifests.replace("10.1.0.5", "10.1.0.8"));
        assert_eq!(stream.step().await.changed, ["endpoints/demo/web/80"]);
        assert_eq!(control.admin_json("/errors").await["files"], json!([]));

        // A document that no proxy would take: withheld, the last good one stays.
        control.manifests.write("b.yaml", service("b", "").replace("port: 80", "prot: 80"));
        let errors = control.admin_until("/errors", |_, body| body.contains("service/demo/b")).await;
        assert!(errors.contains("withheld"), "{errors}");
        assert_eq!(stream.step().await.changed, ["endpoints/demo/b/80"]);
        stream.quiet().await;
        let objects = control.admin_json("/objects").await;
        assert_eq!(objects["objects"][0]["object"], "pod/web-1.demo");
        assert_eq!((&objects["objects"][0]["file"], &objects["objects"][0]["line"]), (&json!(file), &json!(1)));
    });
}

#[test]
fn who_comes_back_is_told_what_it_missed() {
    block_on(async {
        let manifests = pod("demo", "web-1", "web") + &service("web", "");
        let control = Control::start(&[("a.yaml", &manifests), ("b.yaml", &service("b", ""))]).await;
        let mut stream = begun(&control, &[], &["*"]).await;
        stream.step().await;
        let have: Vec<(String, String)> = stream.have.values().map(|r| (r.name.clone(), r.version.clone())).collect();
        let have: Vec<(&str, &str)> = have.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        drop(stream);

        let mut same = begun(&control, &have, &["*"]).await;
        let step = same.step().await;
        assert!(step.changed.is_empty() && step.removed.is_empty(), "{step:?}");
        drop(same);

        std::fs::remove_file(control.manifests.join("b.yaml")).unwrap();
        control.manifests.write("a.yaml", manifests.replace("10.1.0.5", "10.1.0.8"));
        control.admin_until("/objects", |_, body| !body.contains("b.yaml")).await;
        let mut later = begun(&control, &have, &["*"]).await;
        let mut step = later.step().await;
        // The two files may be seen one after the other.
        while step.changed.is_empty() || step.removed.is_empty() {
            let next = later.step().await;
            step.changed.extend(next.changed);
            step.removed.extend(next.removed);
        }
        assert_eq!(step.changed, ["endpoints/demo/web/80"]);
        assert_eq!(step.removed, ["endpoints/demo/b/80", "service/demo/b"]);
    });
}

#[test]
fn on_demand() {
    block_on(async {
        let manifests = pod("demo", "web-1", "web")
            + &service("web", "  refers: [api]\n")
            + &service("api", "")
            + &service("other", "");
        let control = Control::start(&[("a.yaml", &manifests)]).await;
        let mut stream = begun(&control, &[], &[]).await;
        assert_eq!(stream.step().await.changed, ["trust", "proxy"]);
        stream.subscribe(&["host/web:80", "host/nowhere:80"], &[]).await;
        let step = stream.step().await;
        assert_eq!(
            step.changed,
            ["endpoints/demo/api/80", "endpoints/demo/web/80", "service/demo/api", "service/demo/web", "host/web:80"]
        );
        assert_eq!(step.unknown, ["host/nowhere:80"]);
        assert_eq!(stream.document("host/web:80"), json!({"service": "web", "namespace": "demo"}));
        // Asked again, answered again; and told when it is there.
        stream.subscribe(&["host/nowhere:80"], &[]).await;
        assert_eq!(stream.step().await.unknown, ["host/nowhere:80"]);
        control.manifests.write("b.yaml", service("nowhere", ""));
        let step = stream.step().await;
        assert_eq!(step.changed, ["endpoints/demo/nowhere/80", "service/demo/nowhere", "host/nowhere:80"]);
        // What is no longer asked for goes, with what only it needed.
        stream.subscribe(&["service/demo/api"], &["host/web:80"]).await;
        let step = stream.step().await;
        assert_eq!(step.removed, ["endpoints/demo/web/80", "host/web:80", "service/demo/web"]);
        assert!(step.changed.is_empty());
        // What it does not need it does not hear of.
        control.manifests.write("c.yaml", service("more", ""));
        control.admin_until("/objects", |_, body| body.contains("service/more.demo")).await;
        stream.quiet().await;
    });
}

/// A new replica has what the others use with its first answer; one of another workload has not.
#[test]
fn what_replicas_use_is_sent_ahead() {
    block_on(async {
        let owned = |name: &str, owner: &str| {
            pod("demo", name, "web").replace("  account: web\n", &format!("  account: web\n  owner: {owner}\n"))
        };
        let manifests = owned("web-1", "web")
            + &owned("web-2", "web")
            + &owned("job-1", "job")
            + &service("api", "")
            + &service("db", "")
            + &service("other", "");
        let control = Control::start(&[("a.yaml", &manifests)]).await;
        let mut first = begun(&control, &[], &["host/api:80", "host/none:80"]).await;
        first.step().await;
        first.subscribe(&["host/db:80"], &[]).await;
        first.step().await;

        let join = async |name| {
            let stream = open(&control, "demo", "web", name).await;
            stream.hello(&[]).await;
            stream.subscribe(&[], &[]).await;
            stream
        };
        let mut second = join("web-2").await;
        let step = second.step().await;
        for name in ["host/api:80", "service/demo/api", "endpoints/demo/api/80", "host/db:80", "service/demo/db"] {
            assert!(second.have.contains_key(name), "{name} of {:?}", step.changed);
        }
        assert!(step.unknown.is_empty() && !second.have.contains_key("service/demo/other"), "{step:?}");
        // Changes follow.
        control.manifests.write("a.yaml", manifests.replace("10.1.0.5", "10.1.0.8"));
        assert_eq!(second.step().await.changed, ["endpoints/demo/api/80", "endpoints/demo/db/80"]);
        assert_eq!(join("job-1").await.step().await.changed, ["trust", "proxy"]);

        // Who knows already what it calls gets that.
        let mut knows = open(&control, "demo", "web", "web-2").await;
        knows.hello(&[]).await;
        knows.subscribe(&["host/api:80"], &[]).await;
        knows.step().await;
        assert!(knows.have.contains_key("host/api:80") && !knows.have.contains_key("host/db:80"));
        drop(knows);

        // Remembered for a while after the last one has gone.
        drop((first, second));
        control.status_until(|s| s["proxies"].as_array().unwrap().iter().all(|p| p["connected"] == false)).await;
        let mut third = join("web-2").await;
        third.step().await;
        assert!(third.have.contains_key("host/db:80"), "{:?}", third.have.keys());
        // Unsubscribed from, it goes.
        third.subscribe(&[], &["host/db:80"]).await;
        assert_eq!(third.step().await.removed, ["endpoints/demo/db/80", "host/db:80", "service/demo/db"]);
    });
}

#[test]
fn an_identity_sees_its_own_and_what_it_may() {
    block_on(async {
        let manifests = pod("demo", "web-1", "web")
            + &pod("other", "web-1", "web")
            + &service("web", "")
            + &service("secret", "  clients: [demo]\n");
        let control = Control::start(&[("a.yaml", &manifests)]).await;
        let mut stream = open(&control, "other", "web", "web-1").await;
        stream.hello(&[]).await;
        stream.subscribe(&["*", "service/demo/secret", "host/secret:80", "endpoints/demo/secret/80"], &[]).await;
        let step = stream.step().await;
        assert_eq!(step.changed, ["trust", "endpoints/demo/web/80", "service/demo/web", "proxy"]);
        assert_eq!(step.unknown, ["endpoints/demo/secret/80", "host/secret:80", "service/demo/secret"]);

        // The pod is there and is somebody else's.
        let mut thief = open(&control, "demo", "db", "web-1").await;
        thief.hello(&[]).await;
        thief.subscribe(&["*"], &[]).await;
        assert_eq!(thief.message().await.unwrap_err().code(), Code::PermissionDenied);
    });
}

#[test]
fn a_pod_that_is_not_there_yet_waits() {
    block_on(async {
        let control = Control::start(&[("a.yaml", &service("web", ""))]).await;
        let mut stream = begun(&control, &[("old", "1")], &["*"]).await;
        let step = stream.step().await;
        assert_eq!((step.changed, step.removed.len()), (vec!["trust".into()], 0));
        control.manifests.write("b.yaml", pod("demo", "web-1", "web"));
        let step = stream.step().await;
        assert_eq!(step.changed, ["endpoints/demo/web/80", "service/demo/web", "proxy"]);
        assert_eq!(step.removed, ["old"]);
        // And one that is gone again keeps what it has.
        std::fs::remove_file(control.manifests.join("b.yaml")).unwrap();
        control.manifests.write("a.yaml", service("web", "").replace("10.1.0.5", "10.1.0.8"));
        control.admin_until("/objects", |_, body| !body.contains("pod/web-1")).await;
        control.manifests.write("b.yaml", pod("demo", "web-1", "web"));
        assert_eq!(stream.step().await.changed, ["endpoints/demo/web/80"]);
    });
}

#[test]
fn what_proxies_say_is_known_and_not_said_again() {
    block_on(async {
        let manifests = pod("demo", "web-1", "web") + &service("web", "");
        let control = Control::start(&[("a.yaml", &manifests)]).await;
        let mut stream = begun(&control, &[], &["*"]).await;
        stream.step().await;
        for name in ["trust", "proxy", "endpoints/demo/web/80"] {
            stream.applied(name, "").await;
        }
        stream.applied("service/demo/web", "no such thing").await;
        // Of something it never had.
        stream.send(Kind::Applied(Applied { name: "x".into(), version: "1".into(), error: "y".into() })).await;
        let status = control.status_until(|s| s["proxies"][0]["pending"] == json!([])).await;
        let proxy = &status["proxies"][0];
        assert_eq!(
            (&proxy["pod"], &proxy["version"], &proxy["connected"]),
            (&json!("web-1"), &json!("test"), &json!(true))
        );
        assert_eq!(proxy["refused"][0]["name"], "service/demo/web");
        assert_eq!(proxy["refused"][0]["why"], "no such thing");
        let errors = control.admin_json("/errors").await;
        assert_eq!(errors["refused"].as_array().unwrap().len(), 1, "{errors}");
        assert_eq!(
            (&errors["refused"][0]["pod"], &errors["refused"][0]["why"]),
            (&json!("demo/web-1"), &json!("no such thing"))
        );
        assert_eq!((&proxy["inSync"], proxy["resources"].as_object().unwrap().len()), (&json!(false), 4));
        stream.quiet().await;

        let fixed = manifests.replace("hosts: [web]", "hosts: [web, web.demo]");
        control.manifests.write("a.yaml", &fixed);
        assert_eq!(stream.step().await.changed, ["service/demo/web"]);
        stream.applied("service/demo/web", "").await;
        control.status_until(|s| s["proxies"][0]["inSync"] == json!(true)).await;
        assert!(control.metric("weft_control_nacks_total").await >= 1);
        drop(stream);
        control.status_until(|s| s["proxies"][0]["connected"] == json!(false)).await;
    });
}

#[test]
fn a_slow_reader_is_told_the_newest_state_only() {
    block_on(async {
        let size = 300_000;
        let large = |n: usize| {
            let text = format!("{n}{}", "x".repeat(size));
            pod("demo", "web-1", "web").replace("name: out,", &format!("name: out, text: {text},"))
        };
        let control = Control::start(&[("a.yaml", &large(0))]).await;
        let mut stream = begun(&control, &[], &["*"]).await;
        stream.step().await;
        // From here on it does not read, and so much does not fit on the way.
        let rounds = 24;
        for n in 1..=rounds {
            let before = control.metric("weft_control_translations_total").await;
            control.manifests.write("a.yaml", large(n));
            control.metric_until("weft_control_translations_total", before + 1).await;
        }
        let mut read = 0;
        loop {
            stream.step().await;
            read += 1;
            let text = stream.document("proxy")["listeners"][0]["text"].to_string();
            if text.starts_with(&format!("\"{rounds}x")) {
                break;
            }
        }
        assert!(read < rounds / 2, "{read} of {rounds} states were kept for it");
        stream.quiet().await;
    });
}

#[test]
fn what_proxies_count() {
    block_on(async {
        let control = Control::start(&[]).await;
        let leaf = control.join("demo", "web", "web-1").await;
        let mut client = control.client(Some(&leaf)).await;
        let edge = |n| Edge {
            source: "somebody-else".into(),
            source_identity: "spiffe://cluster.local/ns/demo/sa/somebody-else".into(),
            destination: "db".into(),
            requests: n,
            durations: vec![0, n],
            ..Edge::default()
        };
        let reports = [1, 2].map(|n| ReportRequest { edges: vec![edge(n)] });
        client.report(tonic::codegen::tokio_stream::iter(reports)).await.unwrap();
        let edges = control.admin_json("/edges").await;
        assert_eq!(edges["edges"].as_array().unwrap().len(), 1);
        let one = &edges["edges"][0];
        assert_eq!((&one["requests"], &one["durations"]), (&json!(3), &json!([0, 3])));
        assert_eq!(one["sourceIdentity"], "spiffe://cluster.local/ns/demo/sa/web", "what the certificate says");
        assert_eq!(one["source"], "web-1", "nothing says what this pod belongs to");
        assert_eq!(control.metric("weft_control_reports_total").await, 2);
        // As often as it likes is not taken; once in a while is.
        let report = |n| tonic::codegen::tokio_stream::iter([ReportRequest { edges: vec![edge(n)] }]);
        let mut refused = 0;
        for _ in 0..50 {
            if let Err(status) = client.report(report(1)).await {
                assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                refused += 1;
            }
        }
        assert!(refused > 0);
        let end = tokio::time::Instant::now() + SOON;
        while client.report(report(1)).await.is_err() {
            assert!(tokio::time::Instant::now() < end, "never taken again");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn streams_that_do_not_behave() {
    block_on(async {
        let manifests = pod("demo", "web-1", "web");
        let control = Control::start(&[("a.yaml", &manifests)]).await;
        let leaf = control.join("demo", "web", "web-1").await;
        let client = control.client(Some(&leaf)).await;
        let mut first = Stream::open(client.clone()).await.unwrap();
        first.subscribe(&["*"], &[]).await;
        assert_eq!(first.ended().await.code(), Code::InvalidArgument, "hello is missing");
        let mut twice = Stream::open(client.clone()).await.unwrap();
        twice.hello(&[]).await;
        twice.hello(&[]).await;
        assert_eq!(twice.ended().await.code(), Code::InvalidArgument);
        let mut long = Stream::open(client.clone()).await.unwrap();
        long.hello(&[]).await;
        long.subscribe(&[&"x".repeat(513)], &[]).await;
        assert_eq!(long.ended().await.code(), Code::InvalidArgument);
        let mut many = Stream::open(client.clone()).await.unwrap();
        many.hello(&[]).await;
        let names: Vec<String> = (0..10_001).map(|n| format!("host/h{n}:80")).collect();
        many.subscribe(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[]).await;
        assert_eq!(many.ended().await.code(), Code::ResourceExhausted);
        let mut huge = Stream::open(client.clone()).await.unwrap();
        huge.hello(&[]).await;
        huge.subscribe(&[&"x".repeat(5 << 20)], &[]).await;
        assert_eq!(huge.ended().await.code(), Code::OutOfRange);

        let mut kept = Vec::new();
        let refused = loop {
            match Stream::open(client.clone()).await {
                Ok(stream) => kept.push(stream),
                Err(status) => break status,
            }
            assert!(kept.len() < 10, "as many as it likes");
        };
        assert_eq!((refused.code(), kept.len()), (Code::ResourceExhausted, 4));
        drop(kept);
        control.status_until(|s| s["proxies"][0]["connected"] == json!(false)).await;
        let mut good = begun(&control, &[], &["*"]).await;
        assert_eq!(good.step().await.changed, ["trust", "proxy"]);
    });
}

#[test]
fn garbage_does_no_harm() {
    block_on(async {
        let control = Control::start(&[("a.yaml", &(pod("demo", "web-1", "web") + &service("web", "")))]).await;
        let mut stream = begun(&control, &[], &["*"]).await;
        stream.step().await;
        let at = control.running.address;
        let thrown = tokio::task::spawn_blocking(move || {
            let throws: [&[u8]; 5] = [
                b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
                b"\x16\x03\x01\xff\xff\x01\0\0\xfb\x03\x03",
                &[0; 4096],
                b"",
            ];
            for bytes in throws.iter().cycle().take(50) {
                let mut stream = TcpStream::connect(at).unwrap();
                let _ = stream.write_all(bytes);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                stream.set_read_timeout(Some(SOON)).unwrap();
                // Whatever it says, it ends.
                let mut answer = Vec::new();
                let ended = stream.read_to_end(&mut answer);
                assert!(ended.is_ok() || !weft_testkit::client::is_timeout(&ended.unwrap_err()));
            }
        });
        thrown.await.unwrap();
        assert!(control.metric("weft_control_handshake_errors_total").await >= 50);
        stream.quiet().await;
        control.join("demo", "db", "db-1").await;
    });
}

#[test]
fn the_admin_interface_is_for_loopback_names() {
    block_on(async {
        let control = Control::start(&[]).await;
        let at = control.running.admin.unwrap();
        let ask = |host: &'static str, method: &'static str, path: &'static str| async move {
            let asked = tokio::task::spawn_blocking(move || {
                weft_testkit::client::http1(at).host(host).request(method, path, &[], b"").unwrap().status
            });
            asked.await.unwrap()
        };
        assert_eq!(ask("example.com", "GET", "/status").await, 403);
        assert_eq!(ask("localhost", "POST", "/status").await, 405);
        assert_eq!(ask("localhost", "GET", "/none").await, 404);
        for page in ["/", "/ready", "/status", "/objects", "/errors", "/edges", "/metrics"] {
            assert_eq!(ask("127.0.0.1:1", "GET", page).await, 200, "{page}");
        }
        let mut public = rig::serve(&control.manifests, &control.state, rig::DAY);
        public.admin = Some(([0, 0, 0, 0], 0).into());
        assert!(weft_control::app::start(&public, std::sync::Arc::new(rig::by_hand)).await.is_err());
    });
}
