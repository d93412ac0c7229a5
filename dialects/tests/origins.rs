//! Of every part of a document it is known who said it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod trial;

use weft_dialects::ledger::Document;
use weft_dialects::world::PodId;
use weft_policy::id::ServiceId;

const TEXT: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo, annotations: {retry.linkerd.io/http: 5xx}}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: split, namespace: demo}
spec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: demo}
spec:
  hosts: [web]
  http:
  - match: [{uri: {exact: /a}}]
    route: [{destination: {host: web, subset: v1}}]
  - route: [{destination: {host: web}}]
    timeout: 1s
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d, namespace: demo}
spec:
  host: web
  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}
  subsets: [{name: v1, labels: {version: v1}}]
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: t, namespace: demo}
spec:
  targetRefs: [{group: networking.istio.io, kind: VirtualService, name: v}]
  timeout: {request: 2s}
---
apiVersion: split.smi-spec.io/v1alpha2
kind: TrafficSplit
metadata: {name: s, namespace: demo}
spec: {service: split, backends: [{service: web, weight: 1}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p, namespace: demo}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: demo, labels: {app: web, version: v1}, annotations: {weft.dev/sidecar: \"true\"}}
spec: {containers: [{name: a, image: b}]}
status: {podIP: 10.0.0.1}
";

#[test]
fn each_part_has_its_origin() {
    let (_, ledger) = trial::world(TEXT);
    let told = |document: Document| -> Vec<String> {
        let all = ledger.origins.get(&document).into_iter().flatten();
        all.map(|(path, from)| format!("{path} {} {} {}", from.object, from.field, from.at.line)).collect()
    };
    assert_eq!(
        told(Document::Service(ServiceId::new("demo", "web"), 0)),
        [
            "ports[0].policy.outlier destinationrule/d.demo spec.trafficPolicy 27",
            "ports[0].routes[0] virtualservice/v.demo spec.http[0] 17",
            "ports[0].routes[0].timeout.request trafficpolicy/t.demo spec 34",
            "ports[0].routes[1] virtualservice/v.demo spec.http[1] 19",
            "ports[0].routes[1].timeout.request trafficpolicy/t.demo spec 34",
            "ports[0].subsets[0] destinationrule/d.demo spec.subsets[0] 28",
        ]
    );
    assert_eq!(
        told(Document::Service(ServiceId::new("demo", "split"), 0)),
        ["ports[0].routes[0] trafficsplit/s.demo spec 40", "ports[0].routes[0].to trafficsplit/s.demo spec 40"]
    );
    let pod = PodId { namespace: "demo".into(), name: "web-1".into() };
    assert_eq!(told(Document::Pod(pod)), ["inbound.mtls peerauthentication/p.demo spec 45"]);
}
