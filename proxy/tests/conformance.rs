//! Other people's judgement: h2spec against the inbound listener, gRPC's interop pair through two sidecars.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use weft_testkit::backend::{self, Backend, Reply};
use weft_testkit::ca::{Ca, Files};
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::proxy::Proxy;
use weft_testkit::relay::TlsWrap;
use weft_testkit::tools;

const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");
/// What h2spec v2.2.1 has without `-S`.
const H2SPEC_CASES: u32 = 145;

fn identity(files: &Files) -> String {
    format!(
        "identity: {{certificate: {:?}, key: {:?}, trust: [{{domain: cluster.local, roots: [{:?}]}}]}}\n",
        files.cert, files.key, files.roots
    )
}

fn inbound(files: Option<&Files>, app: SocketAddr, mode: &str, protocol: &str) -> (Proxy, SocketAddr) {
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\n{}listeners:\n- {{name: in, role: inbound, address: {address}, app: {app}, mtls: {mode}, protocol: {protocol}}}\n",
        files.map(identity).unwrap_or_default()
    );
    (Proxy::start(BIN, &yaml, admin), address)
}

fn judge(report: &tools::Report) {
    println!(
        "{} executed, {} passed, {} skipped, {} failed",
        report.executed, report.passed, report.skipped, report.failed
    );
    assert_eq!((report.executed, report.failed, report.skipped), (H2SPEC_CASES, 0, 0), "{}", report.text);
}

#[test]
fn h2spec_in_plaintext() {
    let app = Backend::start(backend::always(Reply::text(200, "conformance")));
    let (_proxy, address) = inbound(None, app.addr(), "disable", "http2");
    judge(&tools::h2spec(address, false));
}

/// As it comes to a sidecar that also takes mesh TLS, and so has to look at the first bytes.
#[test]
fn h2spec_where_the_protocol_is_sniffed() {
    let ca = Ca::new("cluster.local");
    let dir = TempDir::new();
    let files = ca.workload("demo", "server").write(&dir, "server", &[&ca]);
    let app = Backend::start(backend::always(Reply::text(200, "conformance")));
    let (_proxy, address) = inbound(Some(&files), app.addr(), "permissive", "http");
    judge(&tools::h2spec(address, false));
}

/// h2spec knows no client certificates: a relay puts the mesh's TLS around it.
#[test]
fn h2spec_in_mesh_tls() {
    let ca = Ca::new("cluster.local");
    let dir = TempDir::new();
    let files = ca.workload("demo", "server").write(&dir, "server", &[&ca]);
    let app = Backend::start(backend::always(Reply::text(200, "conformance")));
    let (_proxy, address) = inbound(Some(&files), app.addr(), "strict", "detect");
    let client = weft_testkit::tls::client(Some(&ca.workload("demo", "client")), &["h2"]);
    let wrap = TlsWrap::start(address, client, "server.demo.svc.cluster.local");
    judge(&tools::h2spec(wrap.addr(), false));
}

#[test]
fn grpc_interop_through_a_pair() {
    let ca = Ca::new("cluster.local");
    let dir = TempDir::new();
    let server_files = ca.workload("demo", "server").write(&dir, "server", &[&ca]);
    let client_files = ca.workload("demo", "client").write(&dir, "client", &[&ca]);
    let server = tools::GrpcServer::start();
    let (inbound, mesh) = inbound(Some(&server_files), server.addr(), "strict", "grpc");
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\n{}listeners:\n- {{name: out, role: outbound, address: {address}, to: interop}}\n\
         services:\n- {{name: interop, port: 80, protocol: grpc, identity: {:?}, endpoints: [{mesh}]}}\n",
        identity(&client_files),
        ca.id("demo", "server"),
    );
    let _outbound = Proxy::start(BIN, &yaml, admin);
    let mut ran = 0;
    let mut failed = Vec::new();
    for case in tools::GRPC_CASES {
        ran += 1;
        failed.extend(tools::grpc_interop(address, case).err());
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert_eq!(ran, 14);
    // It did go through the mesh.
    assert!(inbound.metrics().contains("weft_"), "no metrics");
}
