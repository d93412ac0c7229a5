//! The known traps of Istio's and Kubernetes' own kinds: each is told where it is, and not where it is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod trial;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                       spec: {selector: {app: web}, ports: [{name: http, port: 80}]}\n---\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web, version: v1}}\n\
                   spec: {containers: [{name: web}]}\n---\n";

fn rule(spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec: {spec}\n---\n")
}

fn destination(spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\nspec: {spec}\n---\n")
}

fn told(text: &str) -> String {
    trial::findings(&trial::world(&format!("{SERVICE}{POD}{text}")).1)
}

#[test]
fn traps() {
    let http =
        |rest: &str| rule(&format!("{{hosts: [web], http: [{{route: [{{destination: {{host: web}}}}]{rest}}}]}}"));
    let policy = |rest: &str| destination(&format!("{{host: web, trafficPolicy: {rest}}}"));
    let deployment = |labels: &str| {
        format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, labels: {labels}}}\nspec: {{}}\n---\n")
    };
    let template = |port: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\n\
             spec: {{template: {{metadata: {{labels: {{app: web}}}}, spec: {{containers: [{{ports: [{port}]}}]}}}}}}\n---\n"
        )
    };
    let subset = |labels: &str| destination(&format!("{{host: web, subsets: [{{name: a, labels: {labels}}}]}}"));
    let peer = |namespace: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: default, namespace: {namespace}}}\nspec: {spec}\n---\n"
        )
    };
    let retries = |on: &str| http(&format!(", retries: {{attempts: 3{on}}}"));
    let gets = "[{name: a, match: [{method: {exact: GET}}], route: [{destination: {host: web}}], \
                retries: {attempts: 3, retryOn: 5xx}}]";
    let cases = [
        ("G5", policy("{outlierDetection: {consecutiveErrors: 5}}"), policy("{outlierDetection: {interval: 5s}}")),
        ("G7", subset("{version: v2}"), subset("{version: v1}")),
        ("G7", rule("{hosts: [web], http: [{route: [{destination: {host: gone}}]}]}"), http("")),
        (
            "G7",
            rule("{hosts: [web], http: [{route: [{destination: {host: web, subset: a}}]}]}"),
            subset("{version: v1}") + &rule("{hosts: [web], http: [{route: [{destination: {host: web, subset: a}}]}]}"),
        ),
        ("G7", destination("{host: gone}"), destination("{host: web}")),
        ("G7", template("{containerPort: 81}"), template("{containerPort: 80}")),
        ("G8", retries(""), retries(", retryOn: 5xx")),
        ("G10", deployment("{version: v2}") + &subset("{version: v2}"), subset("{version: v2}")),
        (
            "G13",
            rule("{hosts: [web], http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: web}}]}]}"),
            rule("{hosts: [web], http: [{match: [{uri: {prefix: /a/}}], route: [{destination: {host: web}}]}]}"),
        ),
        (
            "G14",
            policy("{connectionPool: {http: {maxRequestsPerConnection: 2}}}"),
            policy("{connectionPool: {http: {maxRequestsPerConnection: 100}}}"),
        ),
        ("G18", retries(", retryOn: 5xx"), retries(", retryOn: connect-failure")),
        ("G18", retries(", retryOn: 5xx"), rule(&format!("{{hosts: [web], http: {gets}}}"))),
        ("G21", peer("elsewhere", "{mtls: {mode: STRICT}}"), peer("default", "{mtls: {mode: STRICT}}")),
        (
            "G21",
            peer("istio-system", "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}"),
            peer("istio-system", "{mtls: {mode: STRICT}}"),
        ),
        (
            "G21",
            peer("default", "{selector: {matchLabels: {app: gone}}, mtls: {mode: STRICT}}"),
            peer("default", "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}"),
        ),
        (
            "G26",
            http(", fault: {abort: {httpStatus: 500, percentage: {value: 1}}}, timeout: 1s"),
            http(", timeout: 1s"),
        ),
    ];
    for (trap, bad, good) in cases {
        let mark = format!(" {trap}: ");
        let (bad_said, good_said) = (told(&bad), told(&good));
        assert!(bad_said.contains(&mark), "{trap}: {bad}\n{bad_said}");
        assert!(!good_said.contains(&mark), "{trap}: {good}\n{good_said}");
    }
}

/// What a proxy would refuse never reaches one, and what is beside it does.
#[test]
fn what_is_wrong_stays_out() {
    let good = rule("{hosts: [web], http: [{timeout: 1s, route: [{destination: {host: web}}]}]}");
    for bad in [
        rule("{hosts: [web], http: [{match: [{uri: {regex: '('}}], route: [{destination: {host: web}}]}]}"),
        rule("{hosts: [web], http: [{route: [{destination: {host: web}}], headers: {request: {set: {'a b': c}}}}]}"),
        rule("{hosts: [web], http: [{route: [{destination: {host: web}}], rewrite: {uri: here}}]}"),
        rule("{hosts: [web], http: 3}"),
        rule("{hosts: [web], http: [3, {route: {destination: 3}}, {route: [{destination: {host: [a]}}]}]}"),
        rule("{hosts: {web: 1}, http: [{}]}"),
        rule("[a]"),
        destination("{host: web, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: 'a b'}}}}"),
        destination("{host: web, trafficPolicy: {connectionPool: {tcp: {connectTimeout: soon}}}}"),
        destination("{host: web, subsets: [{name: 'A B', labels: {a: b}}]}"),
        destination("{host: web, subsets: [{name: a}, {name: a}]}"),
        "apiVersion: v1\nkind: Service\nmetadata: {name: 'No Name'}\nspec: {ports: [{port: 80}]}\n---\n".into(),
        "apiVersion: v1\nkind: Service\nmetadata: {name: odd}\nspec: {ports: [{port: 99999}, {port: 80}, {}]}\n---\n"
            .into(),
        "apiVersion: v1\nkind: Service\nmetadata: {name: out}\n\
         spec: {type: ExternalName, externalName: 'a b', ports: [{port: 80}]}\n---\n"
            .into(),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: odd, annotations: {weft.dev/sidecar: 'true'}}\n\
         spec: {serviceAccountName: 'a/b', containers: 7}\nstatus: 8\n---\n"
            .into(),
    ] {
        let (world, ledger) = trial::world(&format!("{SERVICE}{POD}{bad}{good}"));
        assert!(ledger.has_errors(), "{bad}\n{}", trial::findings(&ledger));
        let id = weft_policy::id::ServiceId::new("default", "web");
        assert!(world.services.contains_key(&id), "{bad}");
    }
}

/// Two Services with one address would make a proxy refuse both.
#[test]
fn an_address_has_one_owner() {
    let service = |name: &str, port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: 10.96.7.7, ports: [{{port: {port}}}]}}\n---\n"
        )
    };
    let (world, ledger) = trial::world(&[service("a", 80), service("b", 80), service("c", 81)].concat());
    let addresses = |name: &str| {
        let id = weft_policy::id::ServiceId::new("default", name);
        world.services[&id].variants[0].document["addresses"].clone()
    };
    assert_eq!(addresses("a"), serde_json::json!(["10.96.7.7"]));
    assert_eq!(addresses("b"), serde_json::Value::Null);
    assert_eq!(addresses("c"), serde_json::json!(["10.96.7.7"]));
    assert!(trial::findings(&ledger).contains("10.96.7.7 is the address of a.default too"));
}

/// G22: without a `tls` block, endpoints with an identity are called with mesh mTLS, as a STRICT server demands.
#[test]
fn auto_mtls_needs_no_rule() {
    let (world, _) = trial::world(&format!(
        "{SERVICE}{}{}",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}, annotations: {weft.dev/sidecar: 'true'}}\n\
         spec: {containers: [{name: web}]}\n\
         status: {podIP: 10.1.0.5, conditions: [{type: Ready, status: 'True'}]}\n---\n",
        destination("{host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 5}}}}")
    ));
    let service = &world.services[&weft_policy::id::ServiceId::new("default", "web")];
    let entry = &trial::entries(&trial::whole(&service.variants[0], &service.endpoints))[0];
    assert_eq!(entry.backends.policy.tls, weft_policy::mtls::UpstreamTls::Auto);
    assert_eq!(service.endpoints[&80][0]["identity"], "spiffe://cluster.local/ns/default/sa/default");
}

/// Two VirtualServices of two namespaces about one outside host: one service, and the older rule's routes.
#[test]
fn an_outside_host_is_one_service() {
    let outside = |namespace: &str, timeout: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: out, namespace: {namespace}}}\n\
             spec: {{hosts: [api.example.com], http: [{{timeout: {timeout}, route: [{{destination: {{host: web.default}}}}]}}]}}\n---\n"
        )
    };
    let (world, ledger) = trial::world(&format!("{SERVICE}{}{}", outside("one", "1s"), outside("two", "2s")));
    let names: Vec<String> = world.services.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["web.default", "api.example.com.external"]);
    let id = weft_policy::id::ServiceId::new("external", "api.example.com");
    let route = &world.services[&id].variants[0].document["ports"][0]["routes"][0];
    assert_eq!(route["timeout"]["request"], "1s");
    assert_eq!(route["to"], serde_json::json!([{"service": "web", "namespace": "default"}]));
    assert!(trial::findings(&ledger).contains("virtualservice/out.one wins"));
}
