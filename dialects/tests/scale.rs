//! A large mesh is translated in a time that grows with it, not with its square: a bound ten times what was measured, unoptimised.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod trial;

use std::fmt::Write;
use std::time::{Duration, Instant};
use weft_dialects::{Options, translate};

#[test]
fn a_large_mesh() {
    let mut text = String::new();
    for n in 0..1000 {
        let namespace = if n % 2 == 0 { "one" } else { "two" };
        let head = |version: &str, kind: &str, name: &str| {
            format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}")
        };
        writeln!(text, "{}}}", head("v1", "Service", &format!("s{n}"))).unwrap();
        writeln!(text, "spec: {{selector: {{app: s{n}}}, ports: [{{name: http, port: 80}}]}}").unwrap();
        for pod in 0..2 {
            let labels = format!("labels: {{app: s{n}, pod: p{pod}}}, annotations: {{weft.dev/sidecar: 'true'}}");
            writeln!(text, "{}, {labels}}}", head("v1", "Pod", &format!("s{n}-{pod}"))).unwrap();
            let ip = format!("10.{}.{}.{}", pod + 1, n / 250, n % 250 + 1);
            writeln!(text, "spec: {{containers: [{{name: a}}]}}").unwrap();
            writeln!(text, "status: {{podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}").unwrap();
        }
        writeln!(text, "{}}}", head("networking.istio.io/v1", "VirtualService", &format!("s{n}"))).unwrap();
        writeln!(text, "spec: {{hosts: [s{n}], http: [{{route: [{{destination: {{host: s{n}}}}}]}}]}}").unwrap();
        writeln!(text, "{}}}", head("networking.istio.io/v1", "DestinationRule", &format!("s{n}"))).unwrap();
        writeln!(text, "spec: {{host: s{n}, subsets: [{{name: a, labels: {{pod: p0}}}}]}}").unwrap();
    }
    let objects = trial::objects(&text);
    let begun = Instant::now();
    let (world, ledger) = translate(&objects, &Options::default());
    let took = begun.elapsed();
    eprintln!("{} objects in {took:?}", objects.0.len());
    assert_eq!((world.services.len(), world.pods.len()), (1000, 2000));
    assert!(ledger.findings.is_empty(), "{}", trial::findings(&ledger));
    assert!(took < Duration::from_secs(60), "{took:?}");
}

/// The same of routes, annotations, profiles, splits and policies, one of each for each service.
#[test]
fn many_routes() {
    let mut text = String::new();
    for n in 0..1000 {
        let head = |version: &str, kind: &str, name: &str| {
            format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: one")
        };
        let annotations = "annotations: {retry.linkerd.io/http: 5xx, timeout.linkerd.io/request: 2s}";
        writeln!(text, "{}, {annotations}}}", head("v1", "Service", &format!("s{n}"))).unwrap();
        writeln!(text, "spec: {{selector: {{app: s{n}}}, ports: [{{name: http, port: 80}}]}}").unwrap();
        writeln!(text, "{}}}", head("gateway.networking.k8s.io/v1", "HTTPRoute", &format!("s{n}"))).unwrap();
        writeln!(
            text,
            "spec: {{parentRefs: [{{group: '', kind: Service, name: s{n}}}], rules: [{{retry: {{codes: [500]}}}}]}}"
        )
        .unwrap();
        writeln!(text, "{}}}", head("weft.dev/v1alpha1", "TrafficPolicy", &format!("s{n}"))).unwrap();
        let target = format!("{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: s{n}}}");
        writeln!(
            text,
            "spec: {{targetRefs: [{target}, {{kind: Service, name: s{n}}}], timeout: {{request: 1s}}, http: http2}}"
        )
        .unwrap();
        let name = format!("s{n}.one.svc.cluster.local");
        writeln!(text, "{}}}", head("linkerd.io/v1alpha2", "ServiceProfile", &name)).unwrap();
        writeln!(text, "spec: {{routes: [{{name: a, condition: {{pathRegex: /a}}}}]}}").unwrap();
        writeln!(text, "{}}}", head("split.smi-spec.io/v1alpha2", "TrafficSplit", &format!("s{n}"))).unwrap();
        writeln!(text, "spec: {{service: s{n}, backends: [{{service: s{n}, weight: 1}}]}}").unwrap();
    }
    let objects = trial::objects(&text);
    let begun = Instant::now();
    let (world, ledger) = translate(&objects, &Options::default());
    let took = begun.elapsed();
    eprintln!("{} objects in {took:?}", objects.0.len());
    assert_eq!(world.services.len(), 1000);
    assert!(!ledger.has_errors(), "{}", trial::findings(&ledger));
    assert!(took < Duration::from_secs(60), "{took:?}");
}
