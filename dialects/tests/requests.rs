//! Where requests go: manifests of the route dialects, asked as a proxy would be.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod trial;

use std::collections::BTreeMap;
use weft_dialects::{Ledger, World};
use weft_policy::id::ServiceId;
use weft_policy::route::PlanAction;
use weft_policy::view::{ConnView, Fields, RequestView};
use weft_policy::{outlier, plan, retry, service};

/// `NAME.NAMESPACE`, each at port 80, as manifests to put others behind.
fn services(names: &[&str]) -> String {
    let each = names.iter().enumerate().map(|(i, name)| {
        let (name, namespace) = name.split_once('.').unwrap_or((name, "demo"));
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{clusterIP: 10.96.1.{i}, selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}\n---\n"
        )
    });
    each.collect()
}

/// An HTTPRoute of `web`.
fn route(meta: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{{meta}}}\nspec:\n  parentRefs: \
         [{{group: \"\", kind: Service, name: web, namespace: demo}}]\n  rules:\n{rules}\n---\n"
    )
}

fn world(text: &str) -> (World, Ledger) {
    trial::world(text)
}

fn entry(world: &World, name: &str, client: &str) -> service::Entry {
    let service = &world.services[&ServiceId::new("demo", name)];
    let variant = service.variants.iter().find(|v| v.clients.are(client, &BTreeMap::new())).unwrap();
    trial::entries(&variant.document).remove(0)
}

struct Headers<'a>(&'a [(&'a str, &'a str)]);

impl Fields for Headers<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        for (_, value) in self.0.iter().filter(|(n, _)| *n == name) {
            if !visit(value.as_bytes()) {
                return;
            }
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes())
    }
}

/// `GET /path a: b`, from a namespace, to `web`: the shares in percent, or the status that answers.
fn ask(world: &World, client: &str, request: &str) -> String {
    let config = entry(world, "web", client).config;
    let plan = plan::compile(&config).unwrap();
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let rest: Vec<&str> = words.collect();
    let headers: Vec<(&str, &str)> = rest.iter().map(|h| h.split_once('=').unwrap()).collect();
    let any = ([127, 0, 0, 1], 80).into();
    let found = plan.router.find(&RequestView {
        conn: ConnView { peer: any, destination: any, identity: None, server_name: None },
        method,
        scheme: "http",
        host: "web",
        path,
        query: None,
        fields: &Headers(&headers),
    });
    let route = match found {
        Some(route) => route.clone(),
        None if plan.router.is_empty() => plan.default_route.clone(),
        None => return "404".into(),
    };
    if !matches!(route.action, PlanAction::Forward(_)) {
        return "answered".into();
    }
    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    for i in 0..100u64 {
        let target = route.pick(i * (u64::MAX / 100) + u64::MAX / 200);
        let name = match target.and_then(|t| t.backend) {
            Some(backend) => plan.backends[backend].service.name.to_string(),
            None => "500".into(),
        };
        *shares.entry(name).or_default() += 1;
    }
    let shares: Vec<String> = shares.iter().map(|(name, n)| format!("{name} {n}")).collect();
    shares.join(", ").trim_end_matches(" 100").to_string()
}

fn asked(world: &World, client: &str, table: &[(&str, &str)]) {
    for (request, expected) in table {
        assert_eq!(ask(world, client, request), *expected, "{request} from {client}");
    }
}

#[test]
fn the_most_specific_route_of_all_objects_wins() {
    let to = |name: &str| format!("    backendRefs: [{{name: {name}, port: 80}}]\n");
    let young = route(
        "name: young, namespace: demo, creationTimestamp: \"2026-05-01T00:00:00Z\"",
        &[
            "  - matches: [{path: {type: Exact, value: /a/b}}]\n".to_string() + &to("exact"),
            "  - matches: [{path: {value: /a/long}}]\n".to_string() + &to("long"),
            "  - matches: [{path: {value: /a}, method: PUT}]\n".to_string() + &to("method"),
            "  - matches: [{path: {value: /a}, headers: [{name: x, value: \"1\"}, {name: y, value: \"1\"}]}]\n"
                .to_string()
                + &to("headers"),
            "  - matches: [{path: {value: /a}}]\n".to_string() + &to("young"),
        ]
        .concat(),
    );
    let old = route(
        "name: old, namespace: demo, creationTimestamp: \"2026-01-01T00:00:00Z\"",
        &[
            "  - matches: [{path: {value: /a}, headers: [{name: x, value: \"1\"}]}]\n".to_string() + &to("header"),
            "  - matches: [{path: {value: /a}}]\n".to_string() + &to("old"),
        ]
        .concat(),
    );
    let services = services(&["web", "exact", "long", "method", "headers", "header", "young", "old"]);
    let (world, _) = world(&(services + &young + &old));
    asked(
        &world,
        "demo",
        &[
            ("GET /a/b", "exact"),
            ("GET /a/long/x", "long"),
            ("PUT /a x=1", "method"),
            ("GET /a x=1 y=1", "headers"),
            ("GET /a x=1", "header"),
            ("GET /a/longer", "old"),
            ("GET /apple", "404"),
            ("GET /", "404"),
        ],
    );
}

#[test]
fn consumers_see_their_own_route_and_nothing_of_the_producers() {
    let producer = route("name: p, namespace: demo", "  - matches: [{path: {value: /p}}]\n");
    let consumer = route("name: c, namespace: team", "  - matches: [{path: {value: /c}}]\n");
    let (world, ledger) = world(&(services(&["web"]) + &producer + &consumer));
    asked(&world, "demo", &[("GET /p", "web"), ("GET /c", "404")]);
    asked(&world, "else", &[("GET /p", "web"), ("GET /c", "404")]);
    asked(&world, "team", &[("GET /p", "404"), ("GET /c", "web")]);
    assert!(!ledger.has_errors());
    let (alone, _) = self::world(&(services(&["web"]) + &consumer));
    asked(&alone, "demo", &[("GET /p", "web")]);
    asked(&alone, "team", &[("GET /p", "404")]);
}

#[test]
fn other_namespaces_have_to_grant() {
    let grant = |from: &str, to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: \
             other}}\nspec: {{from: [{{group: gateway.networking.k8s.io, {from}}}], to: [{{group: \"\", {to}}}]}}\n---\n"
        )
    };
    let rules = "  - backendRefs: [{name: far, namespace: other, port: 80, weight: 3}, {name: near, port: 80}]\n";
    let base = services(&["web", "near", "far.other"]) + &route("name: r, namespace: demo", rules);
    for (grant, expected) in [
        (String::new(), "500 75, near 25"),
        (grant("kind: HTTPRoute, namespace: demo", "kind: Service"), "far 75, near 25"),
        (grant("kind: HTTPRoute, namespace: demo", "kind: Service, name: far"), "far 75, near 25"),
        (grant("kind: HTTPRoute, namespace: demo", "kind: Service, name: other"), "500 75, near 25"),
        (grant("kind: HTTPRoute, namespace: demo", "kind: Secret"), "500 75, near 25"),
        (grant("kind: GRPCRoute, namespace: demo", "kind: Service"), "500 75, near 25"),
        (grant("kind: HTTPRoute, namespace: team", "kind: Service"), "500 75, near 25"),
    ] {
        let (world, ledger) = world(&(base.clone() + &grant));
        asked(&world, "demo", &[("GET /", expected)]);
        assert_eq!(ledger.has_errors(), expected.starts_with("500"), "{grant}");
    }
}

#[test]
fn what_leads_nowhere_is_500_and_the_rest_stands() {
    let rules = "  - matches: [{path: {value: /gone}}]\n    backendRefs: [{name: gone, port: 80}]\n\
                 \x20 - matches: [{path: {value: /zero}}]\n    backendRefs: [{name: near, port: 80, weight: 0}]\n\
                 \x20 - matches: [{path: {value: /filter}}]\n    filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]\n\
                 \x20 - matches: [{path: {value: /good}}]\n    backendRefs: [{name: near, port: 80}]\n\
                 \x20 - matches: [{path: {value: /self}}]\n\
                 \x20 - matches: [{path: {value: /there}}]\n    filters: [{type: RequestRedirect, requestRedirect: {hostname: a}}]\n";
    let (world, _) = world(&(services(&["web", "near"]) + &route("name: r, namespace: demo", rules)));
    asked(
        &world,
        "demo",
        &[
            ("GET /gone", "500"),
            ("GET /zero", "500"),
            ("GET /filter", "500"),
            ("GET /good", "near"),
            ("GET /self", "web"),
            ("GET /there", "answered"),
            ("GET /", "404"),
        ],
    );
}

#[test]
fn grpc_calls_by_service_and_method() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: demo}\nspec:\n  \
                parentRefs: [{group: \"\", kind: Service, name: web}]\n  rules:\n\
                \x20 - matches: [{method: {service: a.B, method: Get}}]\n    backendRefs: [{name: get, port: 80}]\n\
                \x20 - matches: [{method: {service: a.B}}]\n    backendRefs: [{name: all, port: 80}]\n\
                \x20 - matches: [{method: {method: Watch}}]\n    backendRefs: [{name: watch, port: 80}]\n";
    let (world, _) = world(&(services(&["web", "get", "all", "watch"]) + text));
    asked(
        &world,
        "demo",
        &[
            ("POST /a.B/Get", "get"),
            ("POST /a.B/Getting", "all"),
            ("POST /a.Bc/Get", "404"),
            ("POST /x.Y/Watch", "watch"),
            ("POST /x.Y/z/Watch", "404"),
        ],
    );
}

fn profile(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {{name: web.demo.svc.cluster.local, namespace: \
         {namespace}}}\nspec:\n{spec}\n---\n"
    )
}

#[test]
fn profiles_take_the_first_match_of_whole_paths() {
    let spec = "  routes:\n  - {name: one, condition: {pathRegex: /a}, timeout: 1s}\n\
                \x20 - {name: two, condition: {pathRegex: '/a.*', method: GET}, timeout: 2s}\n";
    let (world, _) = world(&(services(&["web"]) + &profile("demo", spec) + &profile("team", "  routes: []\n")));
    // G19: anchored, and the rest goes on as it was.
    asked(&world, "demo", &[("GET /a", "web"), ("POST /a/1", "web"), ("GET /b", "web")]);
    let routes = entry(&world, "web", "demo").config.routes;
    let times: Vec<_> = routes.iter().map(|r| (&*r.name, r.timeout.request.map(|t| t.as_secs()))).collect();
    assert_eq!(times, [("one", Some(1)), ("two", Some(2)), ("[DEFAULT]", None)]);
}

fn split(backends: &str) -> String {
    format!(
        "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {{name: s, namespace: demo}}\nspec: \
         {{service: web, backends: [{backends}]}}\n---\n"
    )
}

#[test]
fn splits_hold_the_share_of_what_is_missing_on_the_others() {
    let base = services(&["web", "v1", "v2"]);
    for (backends, expected, findings) in [
        ("{service: v1, weight: 900}, {service: v2, weight: 100}", "v1 90, v2 10", false),
        ("{service: v1, weight: 1000}, {service: v2, weight: 0}", "v1", false),
        ("{service: web, weight: 75}, {service: v2, weight: 25}", "v2 25, web 75", false),
        ("{service: web, weight: 75}, {service: gone, weight: 25}", "web", true),
        ("{service: gone, weight: 1}", "web", true),
    ] {
        let (world, ledger) = world(&(base.clone() + &split(backends)));
        asked(&world, "demo", &[("GET /", expected)]);
        let g6 = ledger.findings.iter().any(|f| f.reference == Some("G6"));
        assert_eq!(g6, findings, "{backends}: {}", trial::findings(&ledger));
    }
    let profile = profile("demo", "  routes: [{name: a, condition: {pathRegex: /a}}]\n");
    let (world, _) = world(&(base + &split("{service: v1, weight: 1}, {service: v2, weight: 1}") + &profile));
    asked(&world, "demo", &[("GET /a", "v1 50, v2 50"), ("GET /", "v1 50, v2 50")]);
}

/// What is said beside routes does not stand in a split's way.
#[test]
fn splits_go_with_annotations() {
    let text = annotated("retry.linkerd.io/http: 5xx") + &services(&["v1", "v2"]).replace("10.96.1", "10.96.2");
    let (world, _) = world(&(text + &split("{service: v1, weight: 3}, {service: v2, weight: 1}")));
    asked(&world, "demo", &[("GET /", "v1 75, v2 25")]);
    assert_eq!(entry(&world, "web", "demo").config.routes[0].retry.as_ref().map(|r| r.attempts), Some(1));
}

#[test]
fn dialects_win_in_one_order() {
    let base = services(&["web", "vs", "producer", "consumer", "split"]);
    let virtual_service = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: demo}\n\
                           spec: {hosts: [web], http: [{route: [{destination: {host: vs}}]}]}\n---\n";
    let producer = route("name: p, namespace: demo", "  - backendRefs: [{name: producer, port: 80}]\n");
    let consumer =
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: \
                    demo}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: team}], to: \
                    [{group: \"\", kind: Service}]}\n---\n"
            .to_string()
            + &route("name: c, namespace: team", "  - backendRefs: [{name: consumer, namespace: demo, port: 80}]\n");
    let split = split("{service: split, weight: 1}");
    for (others, demo, team) in [
        (split.clone(), "split", "split"),
        (split.clone() + &producer, "producer", "producer"),
        (split.clone() + &producer + virtual_service, "vs", "vs"),
        (split.clone() + &producer + virtual_service + &consumer, "vs", "consumer"),
    ] {
        let (world, ledger) = world(&(base.clone() + &others));
        asked(&world, "demo", &[("GET /", demo)]);
        asked(&world, "team", &[("GET /", team)]);
        let told = trial::findings(&ledger).contains("trafficsplit/s.demo");
        assert_eq!(told, demo != "split", "the split is told: {}", trial::findings(&ledger));
        assert!(!ledger.has_errors());
    }
}

fn annotated(annotations: &str) -> String {
    services(&["web"]).replace("namespace: demo}", &format!("namespace: demo, annotations: {{{annotations}}}}}"))
}

/// G2, LNK-15: a profile does not switch the breaker off, and the annotations make what the lab says of it.
#[test]
fn breakers_hold_beside_profiles() {
    let accrual = "balancer.linkerd.io/failure-accrual: consecutive, \
                   balancer.linkerd.io/failure-accrual-consecutive-max-failures: \"3\", \
                   balancer.linkerd.io/failure-accrual-consecutive-min-penalty: 30s";
    let spec = "  routes:\n  - {name: a, condition: {pathRegex: /a}, retries: {limit: 3, timeout: 500ms}}\n";
    let (world, ledger) = world(&(annotated(accrual) + &profile("demo", spec)));
    let entry = entry(&world, "web", "demo");
    let Some(outlier::Config::Accrual(accrual)) = entry.backends.policy.outlier else { panic!("no breaker") };
    assert_eq!((accrual.max_failures, accrual.min_penalty.as_secs()), (3, 30));
    let retry = entry.config.routes[0].retry.clone().unwrap();
    assert_eq!((retry.attempts, retry.per_try_timeout.unwrap().as_millis()), (3, 500));
    let status = |status| retry::Outcome::Response { status, grpc_status: None, ratelimited: false };
    for (outcome, again) in [
        (status(500), true),
        (status(503), true),
        (status(404), false),
        (retry::Outcome::PerTryTimeout, true),
        (retry::Outcome::ConnectFailed, true),
    ] {
        assert_eq!(retry.on.matches(&outcome), again, "{outcome:?}");
    }
    assert!(ledger.findings.iter().any(|f| f.reference == Some("G2")), "{}", trial::findings(&ledger));
}

/// Ruling 1: who brings a budget, and who does not.
#[test]
fn budgets() {
    let web = || services(&["web"]);
    let native = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: t, namespace: demo}\nspec: \
                  {targetRefs: [{kind: Service, name: web}], retry: {on: 5xx}}\n---\n";
    let budgeted = native.replace("retry: {on: 5xx}", "retry: {on: 5xx}, retryBudget: {percent: 7}");
    let virtual_service = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: demo}\n\
                           spec: {hosts: [web], http: [{retries: {attempts: 2, retryOn: 5xx}, route: [{destination: {host: web}}]}]}\n---\n";
    let extension = "  routes: [{name: a, condition: {pathRegex: /a}, retries: {limit: 2}}]\n";
    let retryable = "  routes: [{name: a, condition: {pathRegex: /a}, isRetryable: true}]\n";
    let written = format!("{extension}  retryBudget: {{retryRatio: 0.07, minRetriesPerSecond: 1, ttl: 5s}}\n");
    for (text, percent) in [
        (web() + &route("name: r, namespace: demo", "  - retry: {codes: [500]}\n"), Some(20)),
        (web() + &route("name: r, namespace: demo", "  - timeouts: {request: 1s, backendRequest: 1s}\n"), None),
        (web() + native, Some(20)),
        (web() + &budgeted, Some(7)),
        (web() + virtual_service, None),
        (web() + virtual_service + native, None),
        (web() + &profile("demo", extension), None),
        (web() + &profile("demo", retryable), Some(20)),
        (web() + &profile("demo", &written), Some(7)),
        (annotated("retry.linkerd.io/http: 5xx"), None),
    ] {
        let (world, _) = world(&text);
        let found = match entry(&world, "web", "demo").backends.policy.budget {
            Some(weft_policy::budget::Config::Rate { percent, .. }) => Some(percent),
            _ => None,
        };
        assert_eq!(found, percent, "{text}");
    }
}

/// G3: on a profile the annotation means nothing to Linkerd; here it is the Service's pods that demand mesh mTLS. A namespace's
/// is for all of it, and a pod's wins.
#[test]
fn strict_by_annotation() {
    const ANNOTATION: &str = "config.linkerd.io/default-inbound-policy";
    let pod = |app: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {app}, namespace: demo, labels: {{app: {app}}}, annotations: \
             {{weft.dev/sidecar: \"true\"{more}}}}}\nspec: {{serviceAccountName: a}}\nstatus: {{podIP: 10.1.0.1}}\n---\n"
        )
    };
    let profile = profile("demo", "  routes: []\n")
        .replace("namespace: demo}", &format!("namespace: demo, annotations: {{{ANNOTATION}: all-authenticated}}}}"));
    let namespace = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: demo, annotations: {{{ANNOTATION}: all-authenticated}}}}\n---\n"
    );
    let open = format!(", {ANNOTATION}: all-unauthenticated");
    for (text, other, web, told) in [
        (pod("other", "") + &pod("web", "") + &profile, "permissive", "strict", true),
        (pod("other", "") + &pod("web", "") + &namespace, "strict", "strict", false),
        (pod("other", &open) + &pod("web", "") + &namespace, "permissive", "strict", false),
        (pod("other", "") + &pod("web", ""), "permissive", "permissive", false),
    ] {
        let (world, ledger) = world(&(services(&["web", "other"]) + &text));
        let modes: Vec<_> = world.pods.values().map(|p| p.document["listeners"][1]["mtls"].clone()).collect();
        assert_eq!(modes, [other, web]);
        assert_eq!(ledger.findings.iter().any(|f| f.reference == Some("G3")), told);
    }
}

/// G18: nobody is stopped, and everybody is told.
#[test]
fn unsafe_retries_are_told() {
    let of = |method: &str| {
        let spec =
            format!("  routes:\n  - {{name: a, condition: {{method: {method}, pathRegex: /a}}, isRetryable: true}}\n");
        let rules = format!("  - matches: [{{method: {method}}}]\n    retry: {{codes: [500]}}\n");
        let (_, profiled) = world(&(services(&["web"]) + &profile("demo", &spec)));
        let (_, routed) = world(&(services(&["web"]) + &route("name: r, namespace: demo", &rules)));
        [profiled, routed].map(|l| l.findings.iter().any(|f| f.reference == Some("G18")))
    };
    assert_eq!((of("POST"), of("GET")), ([true, true], [false, false]));
}

/// What is said by a route counts there, and what is said by its Service counts where the route is silent.
#[test]
fn annotations_of_a_route_stand_in_the_place_of_its_services() {
    let service = annotated(
        "retry.linkerd.io/http: 5xx, retry.linkerd.io/limit: \"9\", retry.linkerd.io/timeout: 9s, timeout.linkerd.io/request: 9s",
    );
    let silent = route("name: r, namespace: demo", "  - {}\n");
    let own = route("name: r, namespace: demo, annotations: {retry.linkerd.io/http: \"502\"}", "  - {}\n");
    let timed = route("name: r, namespace: demo", "  - timeouts: {request: 1s}\n");
    for (route, attempts, per_try, request) in
        [(String::new(), 9, Some(9), 9), (silent, 9, Some(9), 9), (own, 1, None, 9), (timed, 9, Some(9), 1)]
    {
        let (world, _) = world(&(service.clone() + &route));
        let found = entry(&world, "web", "demo").config.routes.remove(0);
        let retry = found.retry.unwrap();
        let seconds = |d: Option<std::time::Duration>| d.map(|d| d.as_secs());
        let found = (retry.attempts, seconds(retry.per_try_timeout), seconds(found.timeout.request));
        assert_eq!(found, (attempts, per_try, Some(request)), "{route}");
    }
}

/// A port's own policy comes before the Service's, and each fills in what the one before left open.
#[test]
fn policies_of_a_port_come_first() {
    let policy = |name: &str, section: &str, rest: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: demo}}\nspec: \
             {{targetRefs: [{{group: \"\", kind: Service, name: web{section}}}], {rest}}}\n---\n"
        )
    };
    let all =
        policy("all", "", "breaker: {maxRequests: 9}, http: http1, timeout: {request: 9s, idle: 9s}, retry: {on: 5xx}");
    let port = policy("port", ", sectionName: http", "breaker: {maxRequests: 1}, timeout: {request: 1s}");
    let (world, ledger) = world(&(services(&["web"]) + &all + &port));
    let entry = entry(&world, "web", "demo");
    let (route, policy) = (&entry.config.routes[0], &entry.backends.policy);
    assert_eq!((policy.breaker.max_requests, policy.http), (Some(1), weft_policy::backend::Http::Http1));
    assert_eq!((route.timeout.request.map(|t| t.as_secs()), route.timeout.idle), (Some(1), None));
    assert!(route.retry.is_some() && !ledger.has_errors());
}

/// Nobody speaks for the Services of another namespace.
#[test]
fn other_namespaces_are_left_alone() {
    let split = "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {name: s, namespace: team}\nspec: \
                 {service: web.demo, backends: [{service: near.demo, weight: 1}]}\n---\n";
    let native = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: t, namespace: team}\nspec: \
                  {targetRefs: [{kind: Service, name: web}], timeout: {request: 1s}}\n---\n";
    let profile =
        profile("team", "  opaquePorts: [80]\n  dstOverrides: [{authority: near.demo.svc.cluster.local, weight: 1}]");
    let base = services(&["web", "near"]);
    let (before, _) = world(&base);
    let (after, ledger) = world(&(base + split + native + &profile));
    assert_eq!(entry(&before, "web", "demo"), entry(&after, "web", "demo"));
    asked(&after, "demo", &[("GET /", "web")]);
    asked(&after, "team", &[("GET /", "near")]);
    assert_eq!(ledger.findings.len(), 2, "{}", trial::findings(&ledger));
}

/// Whatever stands at any place of any manifest: nothing panics, and proxies take all that comes out.
#[test]
fn hostile_manifests() {
    use std::sync::Arc;
    use weft_dialects::{Options, translate};
    use weft_policy::doc::{Node, Value};

    fn paths(node: &Node, here: &mut Vec<usize>, out: &mut Vec<Vec<usize>>) {
        let below: Vec<&Node> = match &node.value {
            Value::Map(items) => items.iter().map(|(.., node)| node).collect(),
            Value::List(items) => items.iter().collect(),
            _ => Vec::new(),
        };
        out.push(here.clone());
        for (i, node) in below.into_iter().enumerate() {
            here.push(i);
            paths(node, here, out);
            here.pop();
        }
    }
    fn at<'n>(node: &'n mut Node, path: &[usize]) -> &'n mut Node {
        let Some((first, rest)) = path.split_first() else { return node };
        match &mut node.value {
            Value::Map(items) => at(&mut items[*first].2, rest),
            Value::List(items) => at(&mut items[*first], rest),
            _ => panic!("{path:?} leads nowhere"),
        }
    }
    let text = |t: &str| Value::Text(t.into());
    let empty = |value| Node { at: Default::default(), value };
    let strange = [
        Value::Null,
        Value::Int(-1),
        Value::Int(i64::MAX),
        Value::Float(f64::MAX),
        text(""),
        text("%\u{0}\n../*?#[("),
        text(&"a.".repeat(400)),
        text("18446744073709551615k"),
        Value::List(vec![empty(Value::Null), empty(Value::Map(Vec::new()))]),
        Value::Map(vec![("Host".into(), Default::default(), empty(text("*")))]),
    ];
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/routes");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    let mut tried = 0usize;
    for file in files {
        let objects = trial::objects(&std::fs::read_to_string(&file).unwrap());
        for (i, object) in objects.0.iter().enumerate().filter(|(_, o)| !["Service", "Pod"].contains(&&*o.kind)) {
            let mut all = Vec::new();
            paths(&object.node, &mut Vec::new(), &mut all);
            // Every third place, and another value at each.
            for path in all.into_iter().step_by(3) {
                let mut objects = objects.clone();
                let mut changed = (**object).clone();
                at(&mut changed.node, &path).value = strange[tried % strange.len()].clone();
                objects.0[i] = Arc::new(changed);
                let (world, _) = translate(&objects, &Options::default());
                trial::check(&world);
                tried += 1;
            }
        }
    }
    assert!(tried > 300, "{tried}");
}

/// The example of the docs does what it says.
#[test]
fn the_documented_policy() {
    let docs = include_str!("../../docs/traffic-policy.md");
    let example = docs.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let (world, ledger) = world(&(services(&["reviews"]) + example));
    assert!(ledger.findings.is_empty(), "{}", trial::findings(&ledger));
    let entry = entry(&world, "reviews", "demo");
    assert_eq!(entry.backends.policy.breaker.max_connections, Some(100));
    assert!(entry.backends.policy.outlier.is_some() && entry.backends.policy.budget.is_some());
    assert_eq!(entry.config.routes[0].retry.as_ref().map(|r| r.attempts), Some(3));
}
