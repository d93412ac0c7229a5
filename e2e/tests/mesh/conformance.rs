//! Gateway API's own conformance suite, its mesh profiles. The report of the last whole run is docs/gateway-api-conformance.yaml
//! (`WEFT_BLESS=1` writes it).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use weft_cluster::Image;
use weft_e2e::{Mesh, Result, ensure};

const FEATURES: &[&str] = &[
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "HTTPRoute",
    "GRPCRoute",
    "ReferenceGrant",
];
const REPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/gateway-api-conformance.yaml");

fn suite() -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/go/build");
    let output = Command::new(script).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{script} failed; Go and its module proxy are needed, once");
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

fn echo(folder: &Path) -> Result<Image> {
    let key = rcgen::generate_simple_self_signed(vec!["echo".to_string()])?;
    Ok(Image::new("registry.k8s.io/gateway-api/echo-advanced:v1.5.1")
        .program("usr/local/bin/server", &folder.join("server"))
        .program("usr/local/bin/client", &folder.join("client"))
        .text("cert.crt", key.cert.pem())
        .text("cert.key", key.signing_key.serialize_pem())
        .entrypoint(&["/usr/local/bin/server"]))
}

pub fn mesh_profiles(mesh: &mut Mesh) -> Result {
    let folder = suite()?;
    mesh.cluster.import(&echo(&folder)?)?;
    let report = std::env::temp_dir().join(format!("weft-conformance-{}.yaml", std::process::id()));
    let mut command = mesh.cluster.command(&folder.join("conformance.test").to_string_lossy());
    command.args(["-test.run", "^TestConformance$", "-test.timeout", "20m", "-test.v"]);
    command.args(["-conformance-profiles", "MESH-HTTP,MESH-GRPC", "-supported-features", &FEATURES.join(",")]);
    command.args(["-mesh-name", "weft", "-namespace-labels", "istio-injection=enabled"]);
    command.args(["-organization", "weft", "-project", "weft", "-url", "https://weft.dev", "-contact", "@weft"]);
    command.args(["-version", env!("CARGO_PKG_VERSION"), "-report-output"]).arg(&report);
    let output = command.current_dir(&folder).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let tail = || {
        let telling = |l: &&str| {
            !l.contains("--- SKIP")
                && !l.contains("--- PASS")
                && ["--- ", "rror", "ailed", "panic"].iter().any(|w| l.contains(w))
        };
        let lines: Vec<&str> = said.lines().filter(telling).collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    };
    let text = std::fs::read_to_string(&report)
        .map_err(|e| format!("no report: {e}\n{}\n{}", tail(), String::from_utf8_lossy(&output.stderr)))?;
    let _ = std::fs::remove_file(&report);
    ensure!(output.status.success(), "{text}\n{}", tail());
    // A run that skipped everything passes as well: what counts is what it says it has run.
    let passed: Vec<u32> = text.lines().filter_map(|l| l.trim().strip_prefix("Passed: ")?.parse().ok()).collect();
    let failed: u32 = text.lines().filter_map(|l| l.trim().strip_prefix("Failed: ")?.parse::<u32>().ok()).sum();
    println!("    passed {passed:?}, failed {failed}");
    let mut sorted = passed.clone();
    sorted.sort_unstable();
    // All nine extended features; the suite has seven tests for them.
    let features = FEATURES[1..10].iter().filter(|f| text.lines().any(|l| l.trim() == format!("- {f}"))).count();
    ensure!(failed == 0 && sorted == [2, 7, 7] && features == 9, "{features} features: {text}");
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(REPORT, &text)?;
    }
    for namespace in ["gateway-conformance-mesh", "gateway-conformance-mesh-consumer"] {
        mesh.kubectl(&["delete", "namespace", namespace, "--ignore-not-found", "--wait=false"])?;
    }
    Ok(())
}
