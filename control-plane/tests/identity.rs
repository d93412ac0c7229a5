//! Who gets which certificate: by token, by renewal, and not otherwise; what outlives what.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use rig::{Control, DAY, SERVER, SOON, Stream, code, identity, pod, request, service, sign};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};
use tonic::Code;
use weft_control::identity::rotate;
use weft_testkit::ca::Ca;
use weft_testkit::wait::block_on;
use weft_tls::Identity;

const WEB: &str = "spiffe://cluster.local/ns/demo/sa/web";

#[test]
fn a_token_is_good_once_and_for_one_workload() {
    block_on(async {
        let control = Control::start(&[]).await;
        let token = control.token("demo", "web", "web-1");
        let (_, other) = request(&["spiffe://cluster.local/ns/demo/sa/db"]);
        let refused = sign(control.client(None).await, other, &token).await;
        assert_eq!(code(refused), Code::PermissionDenied);
        let (_, broken) = (0, vec![0x30, 0x03, 0x02, 0x01, 0x00]);
        assert_eq!(code(sign(control.client(None).await, broken, &token).await), Code::InvalidArgument);

        // Neither has used it up.
        let (key, csr) = request(&[WEB]);
        let signed = sign(control.client(None).await, csr.clone(), &token).await.unwrap();
        let own = identity(&key, &signed);
        assert_eq!(own.spiffe().unwrap().as_str(), WEB);
        assert_eq!(own.chain().len(), 1);
        // Whose clock is ten minutes behind takes it all the same.
        assert!(own.not_before() + Duration::from_secs(600) < SystemTime::now());
        assert_eq!((signed.trust.len(), signed.trust[0].trust_domain.as_str()), (1, "cluster.local"));
        assert_eq!(signed.trust[0].roots.len(), 1);
        let half = DAY.as_secs() / 2;
        assert!(
            (half * 8 / 10..half * 12 / 10).contains(&signed.renew_after_seconds),
            "{}",
            signed.renew_after_seconds
        );

        assert_eq!(code(sign(control.client(None).await, csr.clone(), &token).await), Code::Unauthenticated);
        for wrong in ["", "x", &token[1..], &"a".repeat(100_000)] {
            assert_eq!(code(sign(control.client(None).await, csr.clone(), wrong).await), Code::Unauthenticated);
        }
        assert_eq!(control.metric("weft_control_signed_total").await, 1);
        // Another identity, a broken request, the same token again, and four that are none.
        assert_eq!(control.metric("weft_control_sign_refused_total").await, 7);
    });
}

#[test]
fn two_with_one_token_get_one_certificate() {
    block_on(async {
        let control = Control::start(&[]).await;
        let token = control.token("demo", "web", "web-1");
        let client = control.client(None).await;
        let mut tries = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (client, token, csr) = (client.clone(), token.clone(), request(&[]).1);
            tries.spawn(async move { sign(client, csr, &token).await });
        }
        let signed = tries.join_all().await.into_iter().filter(Result::is_ok).count();
        assert_eq!(signed, 1);
    });
}

#[test]
fn renewal_by_the_certificate_of_the_connection() {
    block_on(async {
        let control = Control::start(&[]).await;
        let first = control.join("demo", "web", "web-1").await;
        let (key, csr) = request(&[]);
        let signed = sign(control.client(Some(&first)).await, csr, "").await.unwrap();
        let second = identity(&key, &signed);
        assert_eq!(second.spiffe(), first.spiffe());
        assert_ne!(second.sha256(), first.sha256());
        let (_, other) = request(&["spiffe://cluster.local/ns/demo/sa/db"]);
        assert_eq!(code(sign(control.client(Some(&second)).await, other, "").await), Code::PermissionDenied);
        // A few at once are normal, a flood is not; others are not touched by it.
        let mut refused = 0;
        for _ in 0..10 {
            let (_, csr) = request(&[]);
            refused += usize::from(sign(control.client(Some(&second)).await, csr, "").await.is_err_and(|s| {
                assert_eq!(s.code(), Code::ResourceExhausted);
                true
            }));
        }
        assert!(refused >= 5, "{refused}");
        control.join("demo", "db", "db-1").await;
    });
}

#[test]
fn certificates_end_and_so_does_what_they_opened() {
    block_on(async {
        let manifests = pod("demo", "web-1", "web");
        let control = Control::with(&[("a.yaml", &manifests)], Duration::from_secs(3)).await;
        let leaf = control.join("demo", "web", "web-1").await;
        let open = control.client(Some(&leaf)).await;
        let mut stream = Stream::open(open.clone()).await.unwrap();
        stream.hello(&[]).await;
        stream.subscribe(&[], &[]).await;
        stream.step().await;
        assert_eq!(stream.ended().await.code(), Code::Unauthenticated);
        assert!(SystemTime::now() >= leaf.not_after());
        assert!(sign(open, request(&[]).1, "").await.is_err());
        // A certificate counts to the end of its last second.
        let end = tokio::time::Instant::now() + SOON;
        while !refused(control.try_client(Some(&leaf), SERVER).await, &control).await {
            assert!(tokio::time::Instant::now() < end, "refused when it has expired");
        }
        // The control plane's own goes on.
        control.join("demo", "web", "web-1").await;
    });
}

/// In TLS 1.3 the client is done before the server has looked at its certificate: the refusal may come with the first call.
async fn refused(
    client: Result<weft_proto::v1::mesh_client::MeshClient<tonic::transport::Channel>, tonic::transport::Error>,
    control: &Control,
) -> bool {
    let failed = match client {
        Err(_) => true,
        Ok(client) => {
            let token = control.token("demo", "web", "web-1");
            sign(client, request(&[]).1, &token)
                .await
                .is_err_and(|s| s.code() == Code::Unavailable || s.code() == Code::Unknown)
        }
    };
    failed && control.metric("weft_control_handshake_errors_total").await > 0
}

#[test]
fn certificates_of_others() {
    block_on(async {
        let control = Control::start(&[("a.yaml", &pod("demo", "web-1", "web"))]).await;
        for domain in ["other.domain", "cluster.local"] {
            let foreign = Ca::new(domain).workload("demo", "web");
            let foreign = Identity::from_pem(foreign.cert_pem.as_bytes(), foreign.key_pem.as_bytes()).unwrap();
            let client = control.try_client(Some(&foreign), SERVER).await;
            assert!(refused(client, &control).await, "{domain}");
        }
        // Clients look as well.
        assert!(control.try_client(None, WEB).await.is_err());
        // Without a certificate there is nothing to watch.
        assert_eq!(code(Stream::open(control.client(None).await).await.map(|_| ())), Code::Unauthenticated);
        let mut report = control.client(None).await;
        let nothing = tonic::codegen::tokio_stream::iter([weft_proto::v1::ReportRequest::default()]);
        assert_eq!(code(report.report(nothing).await), Code::Unauthenticated);
        assert_eq!(control.metric("weft_control_unproven_total").await, 2);
    });
}

#[test]
fn the_root_is_kept_and_private() {
    block_on(async {
        let mut control = Control::start(&[]).await;
        let leaf = control.join("demo", "web", "web-1").await;
        let unused = control.token("demo", "db", "db-1");
        let before = std::fs::read(control.state.join("root.pem")).unwrap();
        let mut keys = 0;
        for entry in std::fs::read_dir(control.state.path()).unwrap() {
            let path = entry.unwrap().path();
            let secret = std::fs::read(&path).is_ok_and(|b| String::from_utf8_lossy(&b).contains("PRIVATE KEY"));
            if secret {
                keys += 1;
                let mode = std::fs::metadata(&path).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{}", path.display());
            }
        }
        assert_eq!(keys, 1);

        control.restart().await;
        assert_eq!(std::fs::read(control.state.join("root.pem")).unwrap(), before);
        sign(control.client(Some(&leaf)).await, request(&[]).1, "").await.unwrap();
        sign(control.client(None).await, request(&[]).1, &unused).await.unwrap();

        let mut other = rig::serve(&control.manifests, &control.state, DAY);
        other.trust_domain = weft_policy::id::TrustDomain::parse("other.domain").unwrap();
        let wrong = weft_control::app::start(&other, std::sync::Arc::new(rig::by_hand)).await;
        assert!(wrong.unwrap_err().to_string().contains("other.domain"));
    });
}

#[test]
fn a_rotation_reaches_everybody_and_cuts_nobody() {
    block_on(async {
        let manifests = pod("demo", "web-1", "web") + &service("web", "");
        let control = Control::start(&[("a.yaml", &manifests)]).await;
        let old_leaf = control.join("demo", "web", "web-1").await;
        let old_bundle = control.bundle();
        let mut stream = Stream::open(control.client(Some(&old_leaf)).await).await.unwrap();
        stream.hello(&[]).await;
        stream.subscribe(&["*"], &[]).await;
        stream.step().await;
        let roots = |stream: &Stream| stream.document("trust")[0]["roots"].as_array().unwrap().len();
        assert_eq!(roots(&stream), 1);

        rotate::step(&control.state_dir(), false, SystemTime::now()).unwrap();
        assert_eq!(stream.step().await.changed, ["trust"]);
        assert_eq!(roots(&stream), 2);

        // It signs when everybody has it: not before this one has said so.
        let end = tokio::time::Instant::now() + SOON;
        loop {
            let early = rotate::step(&control.state_dir(), false, SystemTime::now()).unwrap_err().to_string();
            if early.contains("not known yet to web-1") {
                break;
            }
            assert!(tokio::time::Instant::now() < end, "{early}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stream.applied("trust", "").await;

        let end = tokio::time::Instant::now() + SOON;
        while let Err(early) = rotate::step(&control.state_dir(), false, SystemTime::now()) {
            assert!(tokio::time::Instant::now() < end, "{early}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // A new one is signed by the new root: who trusts the old one only does not take the server any more.
        let end = tokio::time::Instant::now() + SOON;
        while rig::connect(control.running.address, old_bundle.clone(), None, SERVER).await.is_ok() {
            assert!(tokio::time::Instant::now() < end, "the new root signs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let early = rotate::step(&control.state_dir(), false, SystemTime::now());
        assert!(early.unwrap_err().to_string().contains("web-1"));
        let new_leaf = control.join("demo", "web", "web-1").await;
        for leaf in [&old_leaf, &new_leaf] {
            let mut stream = Stream::open(control.client(Some(leaf)).await).await.unwrap();
            stream.hello(&[]).await;
            stream.subscribe(&[], &[]).await;
            stream.step().await;
        }

        // Nobody uses what the old one signed any more.
        rotate::step(&control.state_dir(), false, SystemTime::now()).unwrap();
        assert_eq!(stream.step().await.changed, ["trust"]);
        assert_eq!(roots(&stream), 1);
        let end = tokio::time::Instant::now() + SOON;
        while !refused(control.try_client(Some(&old_leaf), SERVER).await, &control).await {
            assert!(tokio::time::Instant::now() < end, "the old root is gone");
        }
        control.client(Some(&new_leaf)).await;
        sign(control.client(Some(&new_leaf)).await, request(&[]).1, "").await.unwrap();
    });
}
