use super::*;
use crate::id::DestKey;
use crate::listener::Protocol;
use crate::matcher::{FieldMatch, StringMatch};
use crate::testing::{List, Xorshift, read, view, warnings};

fn service(order: Order, routes: Vec<Config>) -> service::Config {
    service::Config {
        id: ServiceId::new("demo", "reviews"),
        port: 80,
        keys: vec![DestKey::Host { host: "reviews".into(), port: 80 }],
        protocol: Protocol::Http,
        order,
        routes,
    }
}

fn route(json: &str) -> Config {
    read(Config::read, json).unwrap_or_else(|e| panic!("{json}: {e:?}"))
}

fn compile(order: Order, routes: Vec<Config>) -> Result<(Router, Vec<BackendId>), Vec<String>> {
    let mut backends = vec![BackendRef::own().resolve(&ServiceId::new("demo", "reviews"), 80)];
    let mut errors = Vec::new();
    let router = Router::compile(&service(order, routes), &mut backends, &mut errors);
    if errors.is_empty() { Ok((router, backends)) } else { Err(errors.iter().map(|e| e.to_string()).collect()) }
}

fn router(order: Order, routes: &[&str]) -> Router {
    let named = |(i, matches): (usize, &&str)| route(&format!(r#"{{"name": "r{i}", "match": {matches}}}"#));
    compile(order, routes.iter().enumerate().map(named).collect()).unwrap().0
}

fn found(router: &Router, target: &str, fields: &List) -> String {
    router.find(&view("reviews", target, fields)).map_or("-".into(), |plan| plan.name.to_string())
}

/// Gateway API's rules for HTTPRoute, one after the other: in each case the expected route is listed last, or both orders are
/// tried, so that it does not win by its place.
#[test]
fn gateway_api_precedence() {
    let headers = List::of(&[("a", "1"), ("b", "2"), ("version", "two")]);
    for (why, target, winner, loser) in [
        (
            "exact before prefix",
            "/foo",
            r#"{"path": {"exact": "/foo"}}"#,
            r#"{"path": {"pathPrefix": "/foo"}, "method": "GET"}"#,
        ),
        ("exact before regex", "/foo", r#"{"path": {"exact": "/foo"}}"#, r#"{"path": {"regex": "/fo."}}"#),
        (
            "longest prefix",
            "/foo/bar/x",
            r#"{"path": {"pathPrefix": "/foo/bar"}}"#,
            r#"{"path": {"pathPrefix": "/foo"}}"#,
        ),
        (
            "longest prefix, textual",
            "/foo/bar",
            r#"{"path": {"prefix": "/foo/b"}}"#,
            r#"{"path": {"pathPrefix": "/foo"}}"#,
        ),
        (
            "length beats all that follows",
            "/foo/bar?q=1",
            r#"{"path": {"pathPrefix": "/foo/bar"}}"#,
            r#"{"path": {"pathPrefix": "/foo"}, "method": "GET", "headers": {"a": "1", "b": "2"}, "query": {"q": "1"}}"#,
        ),
        (
            "prefix before regex",
            "/foo/x",
            r#"{"path": {"pathPrefix": "/foo"}}"#,
            r#"{"path": {"regex": "/foo/.*"}, "method": "GET"}"#,
        ),
        (
            "regex before everything",
            "/foo",
            r#"{"path": {"regex": "/f.*"}}"#,
            r#"{"path": {"pathPrefix": "/"}, "method": "GET"}"#,
        ),
        ("any path before none", "/foo", r#"{"path": {"pathPrefix": "/foo"}}"#, r#"{"headers": {"a": "1"}}"#),
        (
            "method",
            "/foo",
            r#"{"path": {"pathPrefix": "/foo"}, "method": "GET"}"#,
            r#"{"path": {"pathPrefix": "/foo"}, "headers": {"a": "1", "b": "2"}}"#,
        ),
        ("method, no paths", "/foo", r#"{"method": "GET"}"#, r#"{"headers": {"a": "1"}, "query": {}}"#),
        (
            "most headers",
            "/?q=1&r=2",
            r#"{"headers": {"a": "1", "b": "2"}}"#,
            r#"{"headers": {"a": "1"}, "query": {"q": "1", "r": "2"}}"#,
        ),
        ("most query parameters", "/?q=1&r=2", r#"{"query": {"q": "1", "r": "2"}}"#, r#"{"query": {"q": "1"}}"#),
        ("one header before none", "/", r#"{"headers": {"version": "two"}}"#, r#"{}"#),
        ("one parameter before none", "/?q", r#"{"query": {"q": {}}}"#, r#"{"path": {"pathPrefix": "/"}}"#),
    ] {
        assert_eq!(found(&router(Order::GatewayApi, &[winner, loser]), target, &headers), "r0", "{why}");
        assert_eq!(found(&router(Order::GatewayApi, &[loser, winner]), target, &headers), "r1", "{why}");
        assert_eq!(found(&router(Order::FirstMatch, &[loser, winner]), target, &headers), "r0", "{why}: first match");
    }
}

#[test]
fn equal_routes_stay_in_config_order() {
    let none = List::default();
    for pair in [
        [r#"{"path": {"pathPrefix": "/a"}}"#, r#"{"path": {"pathPrefix": "/a/"}}"#],
        [r#"{"path": {"pathPrefix": "/"}}"#, r#"{}"#],
        [r#"{}"#, r#"{"path": {"prefix": "/"}}"#],
        [r#"{"method": "GET"}"#, r#"{"method": {"regex": "G.*"}}"#],
        [r#"{"path": {"regex": "/a.*"}}"#, r#"{"path": {"regex": "/a/longer|/a/.*"}}"#],
    ] {
        assert_eq!(found(&router(Order::GatewayApi, &pair), "/a/b", &none), "r0", "{pair:?}");
        assert_eq!(found(&router(Order::GatewayApi, &[pair[1], pair[0]]), "/a/b", &none), "r0", "{pair:?}");
    }
}

#[test]
fn matches_of_one_route_are_alternatives_with_ranks_of_their_own() {
    let routes =
        [r#"[{"path": {"exact": "/a"}}, {"path": {"pathPrefix": "/x"}}]"#, r#"{"path": {"pathPrefix": "/x/y"}}"#];
    let router = router(Order::GatewayApi, &routes);
    for (target, expected) in [("/a", "r0"), ("/x", "r0"), ("/x/z", "r0"), ("/x/y/z", "r1"), ("/a/b", "-"), ("/", "-")]
    {
        assert_eq!(found(&router, target, &List::default()), expected, "{target}");
    }
}

#[test]
fn first_match_is_as_listed() {
    let jason = List::of(&[("end-user", "jason")]);
    let routes = [
        r#"{"headers": {"end-user": {"exact": "jason"}}, "path": {"prefix": "/reviews"}}"#,
        r#"{"path": {"prefix": "/re"}}"#,
        r#"{"path": {"exact": "/reviews"}}"#,
        r#"[]"#,
    ];
    let router = router(Order::FirstMatch, &routes);
    for (target, fields, expected) in [
        ("/reviews", &jason, "r0"),
        ("/reviews", &List::default(), "r1"),
        ("/rest", &jason, "r1"),
        ("/other", &jason, "r3"),
    ] {
        assert_eq!(found(&router, target, fields), expected, "{target}");
    }
}

/// The sorted list against the rules written as a comparison of every pair of matching routes.
#[test]
fn precedence_agrees_with_a_comparison_of_all() {
    let mut random = Xorshift(0xfeed);
    let header = |name: &str| FieldMatch { name: name.into(), value: StringMatch::Present, invert: false };
    let paths = ["/", "/a", "/a/b", "/a/b/c", "/ab", "/b"];
    for round in 0..3_000 {
        let mut routes = Vec::new();
        for i in 0..1 + random.below(8) {
            let path = paths[random.below(paths.len())];
            let matched = RequestMatch {
                path: match random.below(5) {
                    0 => None,
                    1 => Some(PathMatch::exact(path)),
                    _ => Some(PathMatch::path_prefix(path)),
                },
                method: (random.below(3) == 0).then(|| StringMatch::exact("GET")),
                headers: ["h", "i"].into_iter().take(random.below(3)).map(header).collect(),
                query: ["q", "r"].into_iter().take(random.below(3)).map(header).collect(),
                ..Default::default()
            };
            routes.push(Config::new(&format!("r{i}"), vec![matched], Action::Forward(vec![])));
        }
        let fields = List::of(&[("h", ""), ("i", "")][..random.below(3)]);
        let target = format!("{}{}", paths[random.below(paths.len())], ["", "?q", "?q&r=1"][random.below(3)]);
        let request = view("reviews", &target, &fields);
        let specific = |m: &RequestMatch| match &m.path {
            Some(PathMatch::Exact(text)) => (true, text.text.len()),
            Some(PathMatch::PathPrefix(text)) => (false, text.text.len()),
            _ => (false, 0),
        };
        let mut best: Option<&Config> = None;
        for route in routes.iter().filter(|r| r.matches[0].matches(&request)) {
            let (new, old) = (&route.matches[0], best.map(|b| &b.matches[0]));
            let better = old.is_none_or(|old| {
                specific(new)
                    .cmp(&specific(old))
                    .then(new.method.is_some().cmp(&old.method.is_some()))
                    .then(new.headers.len().cmp(&old.headers.len()))
                    .then(new.query.len().cmp(&old.query.len()))
                    .is_gt()
            });
            if better {
                best = Some(route);
            }
        }
        let expected = best.map_or("-".to_string(), |r| r.name.to_string());
        let (router, _) = compile(Order::GatewayApi, routes.clone()).unwrap();
        assert_eq!(found(&router, &target, &fields), expected, "round {round}: {target} {routes:#?}");
    }
}

fn weighted(weights: &[u32]) -> RoutePlan {
    let to = weights
        .iter()
        .enumerate()
        .map(|(i, w)| Destination::to(BackendRef { subset: Some(format!("v{i}").into()), ..BackendRef::own() }, *w));
    let (router, _) = compile(Order::FirstMatch, vec![Config::new("", vec![], Action::Forward(to.collect()))]).unwrap();
    Arc::into_inner(router.entries.into_iter().next().unwrap().1).unwrap()
}

#[test]
fn weights() {
    let plan = weighted(&[90, 10]);
    let mut random = Xorshift(42);
    let first = (0..10_000).filter(|_| plan.pick(random.next()).unwrap().backend == Some(1)).count();
    assert!((8_900..=9_100).contains(&first), "{first}");

    // The proportions are exact: walking the whole range in even steps gives them to the last one.
    for weights in [&[1, 1][..], &[1, 2, 3], &[0, 5, 0, 5], &[1_000_000, 1], &[u32::MAX, u32::MAX, u32::MAX]] {
        let plan = weighted(weights);
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let steps = total.min(10_000);
        let mut counts = vec![0u64; weights.len()];
        for i in 0..steps {
            let random = ((u128::from(i) << 64) / u128::from(steps)) as u64;
            // Backend 0 is the service itself, so v0 is 1.
            counts[plan.pick(random.saturating_add(1)).unwrap().backend.unwrap() - 1] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let exact = u64::from(*weight) * steps / total;
            assert!(count.abs_diff(exact) <= 1, "{weights:?} {counts:?}");
            assert!(*weight > 0 || *count == 0, "{weights:?} {counts:?}");
        }
        assert!(plan.pick(0).is_some() && plan.pick(u64::MAX).is_some());
    }
    for none in [&[][..], &[0], &[0, 0]] {
        assert_eq!(weighted(none).pick(7), None);
    }
    assert_eq!(weighted(&[0, 1]).pick(0).unwrap().backend, Some(2));
}

#[test]
fn backends_are_numbered_once() {
    let routes = vec![
        route(r#"{"to": [{"service": "reviews", "subset": "v1"}, {"subset": "v2"}, "ratings.other"]}"#),
        route(
            r#"{"to": [{"subset": "v1"}, {"service": "gone", "invalid": true}], "mirror": [{"to": {"subset": "v2"}}]}"#,
        ),
        route(r#"{}"#),
        route(r#"{"to": {"service": "api.example.com", "namespace": "egress", "port": 443}}"#),
    ];
    let (router, backends) = compile(Order::FirstMatch, routes).unwrap();
    let names: Vec<_> = backends.iter().map(|b| b.to_string()).collect();
    let expected = [
        "reviews.demo:80",
        "reviews.demo:80/v1",
        "reviews.demo:80/v2",
        "ratings.other:80",
        "api.example.com.egress:443",
    ];
    assert_eq!(names, expected);
    let targets = |i: usize| match &router.entries[i].1.action {
        PlanAction::Forward(targets) => targets.all().iter().map(|t| t.backend).collect::<Vec<_>>(),
        _ => panic!(),
    };
    assert_eq!(targets(0), [Some(1), Some(2), Some(3)]);
    assert_eq!(targets(1), [Some(1), None]);
    assert_eq!(targets(2), [Some(0)]);
    assert_eq!(router.entries[1].1.mirrors[0].backend, Some(2));
    assert_eq!(RoutePlan::default_to(0).pick(9).unwrap().backend, Some(0));
}

#[test]
fn rewrites_know_which_match_led_to_them() {
    let json = r#"{"match": [{"path": {"prefix": "/a"}}, {"path": {"prefix": "/long/b"}}, {"path": {"exact": "/c"}}],
        "rewrite": {"path": {"prefix": "/x"}}}"#;
    let (router, _) = compile(Order::FirstMatch, vec![route(json)]).unwrap();
    for (target, expected) in [("/a/1", "/x/1"), ("/long/b/1?q", "/x/1?q"), ("/c", "/x")] {
        let fields = List::default();
        let request = view("reviews", target, &fields);
        let plan = router.find(&request).unwrap();
        assert_eq!(plan.rewrite_target(request.path, request.query), Ok(Some(expected.to_string())), "{target}");
    }
    let shared =
        r#"{"match": [{"path": {"prefix": "/a"}}, {"path": {"prefix": "/b"}}], "rewrite": {"path": {"full": "/x"}}}"#;
    let (router, _) = compile(Order::FirstMatch, vec![route(shared)]).unwrap();
    assert!(Arc::ptr_eq(&router.entries[0].1, &router.entries[1].1));
}

#[test]
fn what_does_not_compile_says_where() {
    let many = |n: usize, of: &str| vec![of; n].join(",");
    for (order, routes, expected) in [
        (
            Order::FirstMatch,
            vec![r#"{"name": "a"}"#.into(), r#"{}"#.into(), r#"{"name": "a"}"#.into()],
            "routes[2].name: ",
        ),
        (Order::GatewayApi, vec![format!(r#"{{"match": [{}]}}"#, many(65, "{}"))], "routes[0].match: 65 "),
        (Order::GatewayApi, vec![format!(r#"{{"to": [{}]}}"#, many(17, "\"a\""))], "routes[0].to: 17 "),
        (
            Order::FirstMatch,
            vec![r#"{"redirect": {"host": "a"}, "rewrite": {"authority": "b"}}"#.into()],
            "routes[0].rewrite: ",
        ),
        (
            Order::FirstMatch,
            vec![r#"{"respond": {"status": 200}, "mirror": {"to": "b"}}"#.into()],
            "routes[0].mirror: ",
        ),
        (
            Order::FirstMatch,
            vec![r#"{"match": {"path": {"exact": "/a"}}, "rewrite": {"path": {"pathPrefix": "/b"}}}"#.into()],
            "routes[0].rewrite.path: ",
        ),
        (
            Order::FirstMatch,
            vec![r#"{"match": {"path": {"prefix": "/a"}}, "redirect": {"path": {"pathPrefix": "/b"}}}"#.into()],
            "routes[0].redirect.path: ",
        ),
        (
            Order::FirstMatch,
            (0..2).map(|_| format!(r#"{{"match": [{}]}}"#, many(2049, "{}"))).collect(),
            "routes: 4098 matches",
        ),
    ] {
        let errors = compile(order, routes.iter().map(|r| route(r)).collect()).err().unwrap();
        assert!(errors.len() == 1 && errors[0].starts_with(expected), "{errors:?} {expected}");
    }
    // First-match lists come from dialects without these limits; unnamed routes are not namesakes.
    assert!(
        compile(Order::FirstMatch, vec![route(&format!(r#"{{"match": [{}]}}"#, many(65, "{}"))), route("{}")]).is_ok()
    );
}

#[test]
fn plans_are_equal_where_configs_are() {
    let routes = || {
        vec![
            route(r#"{"match": {"path": {"regex": "/a.*"}}, "to": [{"subset": "v1", "weight": 3}, "b"]}"#),
            route("{}"),
        ]
    };
    assert_eq!(compile(Order::GatewayApi, routes()), compile(Order::GatewayApi, routes()));
    let mut other = routes();
    other[1].fault = Some(fault::Config::default());
    assert_ne!(compile(Order::GatewayApi, routes()), compile(Order::GatewayApi, other));
    let plan = crate::plan::compile(&service(Order::GatewayApi, Vec::new())).unwrap();
    assert!(plan.router.is_empty() && plan.default_route.pick(1).unwrap().backend == Some(0));
}

#[test]
fn bytes_go_where_the_first_route_without_a_match_says() {
    let routes = || vec![route(r#"{"match": {"port": 1}, "to": "a"}"#), route(r#"{"to": [{"weight": 1}, "b"]}"#)];
    let plan = |protocol| {
        let config = service::Config { protocol, ..service(Order::FirstMatch, routes()) };
        crate::plan::compile(&config).unwrap()
    };
    let targets = |plan: &crate::plan::ServicePlan| match &plan.default_route.action {
        PlanAction::Forward(targets) => targets.all().iter().map(|t| t.backend).collect::<Vec<_>>(),
        _ => Vec::new(),
    };
    let tcp = plan(Protocol::Opaque);
    assert_eq!(targets(&tcp), [Some(0), tcp.backends.iter().position(|b| &*b.service.name == "b")]);
    assert_eq!(targets(&plan(Protocol::Detect)), [Some(0)]);
}

#[test]
fn reading() {
    let full = route(
        r#"{"name": "canary", "match": {"path": {"prefix": "/"}},
            "to": [{"service": "reviews", "namespace": "other", "port": 8080, "subset": "v2", "weight": 5,
                    "requestHeaders": {"set": {"x": "1"}}, "responseHeaders": {"remove": ["y"]}}],
            "timeout": {"request": "3s"}, "fault": {"abort": {"percent": 1, "status": 500}}, "mirror": [{"to": "shadow"}],
            "cors": {"allowOrigins": ["*"]}, "rewrite": {"authority": "a"},
            "requestHeaders": {"add": {"z": "1"}}, "responseHeaders": {"set": {"z": "1"}}}"#,
    );
    let Action::Forward(to) = &full.action else { panic!() };
    assert_eq!(to[0].backend.resolve(&ServiceId::new("demo", "web"), 1).to_string(), "reviews.other:8080/v2");
    assert_eq!((to[0].weight, to.len(), full.mirrors.len()), (5, 1, 1));
    assert!(full.retry.is_none() && full.cors.is_some() && full.rewrite.is_some() && full.fault.is_some());
    let own = BackendRef::own().resolve(&ServiceId::new("demo", "web"), 1);
    assert_eq!(own.to_string(), "web.demo:1");
    assert_eq!(read(Order::read, r#""firstMatch""#), Ok(Order::FirstMatch));
    for (json, hint) in [
        (r#"{"to": "a", "redirect": {"host": "b"}, "timeout": {}}"#, "one of to, redirect, respond"),
        (r#"{"to": "a.b.c"}"#, "namespace: NAMESPACE"),
        (r#"{"to": "A"}"#, "lower-case"),
        (r#"{"to": {"service": ".a"}}"#, "lower-case"),
        (r#"{"to": {"service": "a", "weigth": 3}}"#, "did you mean weight"),
        (r#"{"to": {"service": "a", "weight": -1}}"#, "from 0"),
        (r#"{"to": {"service": "a", "namespace": "b.c"}}"#, "lower-case"),
        (r#"{"name": "a\nb"}"#, "one line"),
        (r#"{"matches": []}"#, "did you mean match"),
        (r#"{"match": [{"path": "/a"}, {"port": 0}]}"#, "match[1].port"),
    ] {
        let errors = read(Config::read, json).expect_err(json);
        assert!(errors.iter().any(|e| e.contains(hint)), "{json}: {errors:?}");
        assert!(errors.len() == 1 || hint == "match[1].port", "{json}: {errors:?}");
    }
    let odd = r#"{"match": {"path": {"prefix": "/weather"}}, "rewrite": {"path": {"prefix": "/"}}}"#;
    assert!(warnings(Config::read, odd).iter().any(|w| w.contains("makes //")));
    let fine = r#"{"match": {"path": {"prefix": "/weather/"}}, "rewrite": {"path": {"prefix": "/"}}}"#;
    assert!(warnings(Config::read, fine).is_empty());
}

/// Documents put together at random from the words that readers know: whatever is refused says why, and whatever is read
/// compiles or says why not, to plans whose every pick is a backend of theirs.
#[test]
fn readers_and_compile_hold_for_any_document() {
    use crate::diag::{Diags, Pos};
    use crate::doc::Node;
    const KEYS: [&str; 52] = [
        "name",
        "match",
        "to",
        "redirect",
        "respond",
        "timeout",
        "retry",
        "fault",
        "mirror",
        "cors",
        "rewrite",
        "requestHeaders",
        "responseHeaders",
        "path",
        "method",
        "host",
        "headers",
        "query",
        "port",
        "scheme",
        "exact",
        "prefix",
        "pathPrefix",
        "regex",
        "suffix",
        "present",
        "not",
        "ignoreCase",
        "service",
        "namespace",
        "subset",
        "weight",
        "invalid",
        "set",
        "add",
        "remove",
        "full",
        "authority",
        "status",
        "body",
        "delay",
        "abort",
        "percent",
        "fixed",
        "grpcStatus",
        "allowOrigins",
        "maxAge",
        "fraction",
        "numerator",
        "denominator",
        "request",
        "x-user",
    ];
    const TEXTS: [&str; 12] =
        ["", "/", "/a", "/a/b/", "a", "reviews.demo", "2s", "GET", "(", "https", "a b\n", "%REQ(a)% %"];
    fn node(random: &mut Xorshift, depth: usize) -> Node {
        let value = match random.below(if depth == 0 { 6 } else { 12 }) {
            0 => Value::Int(random.below(700) as i64 - 5),
            1 => Value::Bool(true),
            2 => Value::Null,
            3..6 => Value::Text(TEXTS[random.below(TEXTS.len())].into()),
            6 => Value::List((0..random.below(3)).map(|_| node(random, depth - 1)).collect()),
            _ => {
                let mut keys: Vec<_> = (0..random.below(4)).map(|_| KEYS[random.below(KEYS.len())]).collect();
                keys.sort();
                keys.dedup();
                Value::Map(keys.into_iter().map(|k| (k.into(), Pos::default(), node(random, depth - 1))).collect())
            }
        };
        Node { at: Pos::default(), value }
    }
    let mut random = Xorshift(0xabcd);
    let mut good = Vec::new();
    for _ in 0..40_000 {
        // One field with a document of its own, so that much of it is read to the end.
        let field = KEYS[random.below(13)];
        let node =
            Node { at: Pos::default(), value: Value::Map(vec![(field.into(), Pos::default(), node(&mut random, 4))]) };
        let mut diags = Diags::default();
        let config = Config::read(&mut Cursor::new(&node, &mut diags));
        assert_eq!(config.is_none(), diags.has_errors(), "{node:?} {diags:?}");
        good.extend(config);
    }
    assert!(good.len() > 2_000, "{}", good.len());
    for routes in good.chunks(5) {
        for order in [Order::FirstMatch, Order::GatewayApi] {
            let Ok((router, backends)) = compile(order, routes.to_vec()) else { continue };
            let fields = List::of(&[("x-user", "a")]);
            if let Some(plan) = router.find(&view("reviews", "/a/b/c?a", &fields)) {
                let target = plan.pick(random.next());
                assert!(target.and_then(|t| t.backend).is_none_or(|at| at < backends.len()));
                if let Ok(Some(target)) = plan.rewrite_target("/a/b/c", Some("a")) {
                    assert!(target.starts_with('/') && target.ends_with("?a"), "{target}");
                }
            }
        }
    }
}

#[test]
fn shares_are_what_is_picked() {
    let to = r#"{"to": [{"service": "a", "weight": 3}, {"service": "b", "weight": 0}, {"service": "c", "weight": 1}]}"#;
    let (router, backends) = compile(Order::FirstMatch, vec![route(to)]).unwrap();
    let (_, plan) = router.entries().next().unwrap();
    let PlanAction::Forward(targets) = &plan.action else { panic!("{plan:?}") };
    let name = |t: &Target| backends[t.backend.unwrap()].service.name.to_string();
    let shares: Vec<(String, f64)> = targets.shares().map(|(t, share)| (name(t), share)).collect();
    assert_eq!(shares, [("a".to_string(), 0.75), ("c".to_string(), 0.25)]);
    assert_eq!(Targets::default().shares().count(), 0);
}
