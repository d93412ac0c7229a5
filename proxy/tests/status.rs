//! The status port: a pod's probes and metrics, asked of its app by its sidecar.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use weft_testkit::backend::{Action, Backend, Options, Reply, always};
use weft_testkit::ca::{Ca, LeafOpts};
use weft_testkit::client::{Response, http1};
use weft_testkit::dir::free_addr;
use weft_testkit::proxy::{Proxy, Start};
use weft_testkit::tls;

const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");

fn ask(to: SocketAddr, method: &str, path: &str) -> Response {
    http1(to).request(method, path, &[], b"").expect("an answer")
}

fn yaml(admin: SocketAddr) -> String {
    format!(
        "admin: {admin}\nlisteners: [{{name: front, role: hop, address: \"127.0.0.1:0\", to: web}}]\n\
         services: [{{name: web, port: 80, endpoints: [\"127.0.0.1:9\"]}}]\n"
    )
}

#[test]
fn probes_and_metrics_of_the_app() {
    let (admin, status) = (free_addr(), free_addr());
    let well = |seen: &weft_testkit::backend::Seen| match seen.header("x-probe") {
        Some("1") => Action::Reply(Reply::text(200, "well")),
        _ => Action::Reply(Reply::text(418, "who asks?")),
    };
    let web = Backend::start(Arc::new(well));
    let ill = Backend::start(always(Reply::text(500, "ill")));
    let ca = Ca::new("cluster.local");
    let options = Options {
        tls: Some(tls::server(
            &ca.leaf("spiffe://cluster.local/ns/demo/sa/web", &LeafOpts::dns(&["app.test"])),
            &[],
            &["http/1.1"],
        )),
        ..Options::default()
    };
    let secure = Backend::with(options, always(Reply::text(204, "")));
    let serving = Backend::start(always(Reply::grpc(0, &[8, 1])));
    let not_serving = Backend::start(always(Reply::grpc(0, &[8, 2])));
    let no_health = Backend::start(always(Reply::grpc(12, b"")));
    let metrics = Backend::start(always(Reply::text(200, "# TYPE app_orders counter\napp_orders 7\n")));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = free_addr().port();
    let http = |port: u16| json!({"httpGet": {"path": "/up", "port": port, "httpHeaders": [{"name": "x-probe", "value": "1"}]}});
    let probes = json!({
        "/app-health/web/readyz": http(web.port()),
        "/app-health/web/livez": {"httpGet": {"port": web.port()}},
        "/app-health/ill/livez": http(ill.port()),
        "/app-health/tls/livez": {"httpGet": {"port": secure.port(), "scheme": "HTTPS"}, "timeoutSeconds": 5},
        "/app-health/tcp/livez": {"tcpSocket": {"port": web.port()}},
        "/app-health/tcp/readyz": {"tcpSocket": {"port": closed}},
        "/app-health/grpc/livez": {"grpc": {"port": serving.port(), "service": "shop"}},
        "/app-health/grpc/readyz": {"grpc": {"port": not_serving.port()}},
        "/app-health/grpc/startupz": {"grpc": {"port": no_health.port()}},
        "/app-health/late/livez": http(silent.local_addr().unwrap().port()),
    });
    let scrape = json!({"scrape": "true", "path": "/metrics", "port": metrics.port().to_string()});
    let yaml = yaml(admin);
    let mut proxy = Proxy::with(Start {
        bin: BIN,
        yaml: &yaml,
        admin: Some(admin),
        args: vec!["--status".into(), status.to_string()],
        env: vec![("WEFT_APP_PROBES".into(), probes.to_string()), ("WEFT_APP_METRICS".into(), scrape.to_string())],
        ..Start::default()
    });
    for (path, code, word) in [
        ("web/readyz", 200, "well"),
        ("web/livez", 418, "who asks?"),
        ("ill/livez", 500, "ill"),
        ("tls/livez", 204, ""),
        ("tcp/livez", 200, ""),
        ("tcp/readyz", 503, "refused"),
        ("grpc/livez", 200, ""),
        ("grpc/readyz", 503, "not serving"),
        ("grpc/startupz", 503, "health service"),
        ("late/livez", 503, "no answer within 1 s"),
        ("nobody/livez", 404, "no such page"),
    ] {
        let answer = ask(status, "GET", &format!("/app-health/{path}"));
        assert_eq!(answer.status, code, "{path}: {}", answer.text());
        assert!(answer.text().contains(word), "{path}: {}", answer.text());
    }
    assert_eq!(web.last().path(), "/");
    assert!(serving.last().path().ends_with("/grpc.health.v1.Health/Check"), "{}", serving.last().path());
    // Only where it is meant to be.
    assert_eq!(ask(admin, "GET", "/app-health/web/readyz").status, 404);

    let text = ask(status, "GET", "/stats/prometheus").text();
    assert!(text.contains("process_cpu_seconds_total ") && text.ends_with("\napp_orders 7\n"), "{text}");
    assert!(!ask(admin, "GET", "/stats/prometheus").text().contains("app_orders"));
    metrics.set(always(Reply::text(500, "")));
    let text = ask(status, "GET", "/stats/prometheus").text();
    assert!(text.contains("process_cpu_seconds_total ") && text.contains("# The app's metrics"), "{text}");

    assert_eq!(ask(status, "GET", "/healthz/ready").text(), "LIVE\n");
    assert_eq!(ask(status, "GET", "/config_dump").status, 404);
    assert_eq!(ask(status, "GET", "/quitquitquit").status, 405);
    assert_eq!(ask(status, "POST", "/quitquitquit").text(), "OK\n");
    assert!(proxy.wait_exit(Duration::from_secs(60)).success());
}

/// What Linkerd's users ask at 4191.
#[test]
fn by_linkerds_names() {
    let (admin, linkerd) = (free_addr(), free_addr());
    let yaml = yaml(admin);
    let args = vec!["--linkerd-admin".into(), linkerd.to_string()];
    let mut proxy = Proxy::with(Start { bin: BIN, yaml: &yaml, admin: Some(admin), args, ..Start::default() });
    assert_eq!(ask(linkerd, "GET", "/ready").text(), "ready\n");
    assert_eq!(ask(linkerd, "GET", "/live").text(), "live\n");
    assert!(ask(linkerd, "GET", "/metrics").text().contains("process_cpu_seconds_total "));
    assert_eq!(ask(linkerd, "GET", "/config_dump").status, 404);
    assert_eq!(ask(linkerd, "GET", "/shutdown").status, 405);
    assert_eq!(ask(linkerd, "POST", "/shutdown").status, 200);
    assert!(proxy.wait_exit(Duration::from_secs(60)).success());
}

/// What the pod has time for counts, whatever the configuration says of its listeners.
#[test]
fn a_drain_as_long_as_it_was_told() {
    let admin = free_addr();
    let hanging = Backend::start(Arc::new(|_: &weft_testkit::backend::Seen| Action::Hang));
    let front = free_addr();
    let yaml = format!(
        "admin: {admin}\nlisteners: [{{name: front, role: hop, address: \"{front}\", to: web, limits: {{drain: 10m}}}}]\n\
         services: [{{name: web, port: 80, endpoints: [\"{}\"]}}]\n",
        hanging.addr()
    );
    let env = vec![("WEFT_DRAIN_SECONDS".into(), "1".into())];
    let mut proxy = Proxy::with(Start { bin: BIN, yaml: &yaml, admin: Some(admin), env, ..Start::default() });
    let mut request = http1(front);
    request.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").expect("sent");
    weft_testkit::wait::until("it is in flight", Duration::from_secs(20), || hanging.requests() == 1);
    proxy.sigterm();
    assert_eq!(proxy.wait_exit(Duration::from_secs(60)).code(), Some(3));
}

#[test]
fn variables_that_cannot_be_read() {
    let admin = free_addr();
    let yaml = yaml(admin);
    let mut proxy = Proxy::with(Start {
        bin: BIN,
        yaml: &yaml,
        args: vec!["--status".into(), free_addr().to_string()],
        env: vec![("WEFT_APP_PROBES".into(), r#"{"/app-health/a/livez": {"exec": {}}}"#.into())],
        no_wait: true,
        ..Start::default()
    });
    assert_eq!(proxy.wait_exit(Duration::from_secs(60)).code(), Some(2));
    proxy.wait_log(|l| l.contains("WEFT_APP_PROBES: /app-health/a/livez: one of httpGet"), Duration::from_secs(10));
}
