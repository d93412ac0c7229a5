//! What `explain` says is what happens: generated manifests of several dialects, generated requests, the command's answer, and
//! then the same request through a real sidecar that was pushed the documents the control plane makes of these manifests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use kit::{MESHCTL, programs};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_control::scope::View;
use weft_dialects::object::{self, Objects};
use weft_dialects::world::PodId;
use weft_dialects::{Options, translate};
use weft_policy::diag::Diags;
use weft_testkit::backend::{self, Action, Backend, Reply};
use weft_testkit::client::{Http1, ReadError, Response, http1};
use weft_testkit::control::Control;
use weft_testkit::dir::{TempDir, free_addr, free_port};
use weft_testkit::proxy::{Proxy, Start};
use weft_testkit::rng::Rng;

const SOON: Duration = Duration::from_secs(30);
const CONFIGURATIONS: u64 = 30;
const REQUESTS: usize = 5;
/// Enough that who gets a quarter of them is seen: it is missed once in thirty million times.
const MANY: usize = 60;

/// The pods of three Services, `web` in two versions, each with a backend that names itself.
struct Apps {
    port: u16,
    all: BTreeMap<String, Backend>,
    manifests: String,
}

const PODS: [(&str, &str, &str); 6] = [
    ("web-1a", "web", "v1"),
    ("web-1b", "web", "v1"),
    ("web-2a", "web", "v2"),
    ("alt-1a", "alt", "v1"),
    ("other-1a", "other", "v1"),
    ("other-1b", "other", "v1"),
];

impl Apps {
    fn start() -> Self {
        let port = free_port();
        let mut manifests = String::from(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: client-0, namespace: demo, labels: {app: client}, annotations: \
             {weft.dev/sidecar: \"true\"}}\nspec: {serviceAccountName: client, containers: [{name: a, image: b}]}\n\
             status: {podIP: 127.0.1.1, conditions: [{type: Ready, status: \"True\"}]}\n---\n",
        );
        let mut all = BTreeMap::new();
        for (i, (name, app, version)) in PODS.iter().enumerate() {
            let ip = format!("127.0.1.{}", 10 + i);
            manifests.push_str(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: demo, labels: {{app: {app}, version: {version}}}}}\n\
                 spec: {{containers: [{{name: a, image: b, ports: [{{containerPort: {port}}}]}}]}}\n\
                 status: {{podIP: {ip}, conditions: [{{type: Ready, status: \"True\"}}]}}\n---\n"
            ));
            let addr = format!("{ip}:{port}").parse().unwrap();
            let options = backend::Options { addr, name: name.to_string(), ..backend::Options::default() };
            all.insert(name.to_string(), Backend::with(options, behaving()));
        }
        Self { port, all, manifests }
    }

    fn services(&self, annotations: &str) -> String {
        let each = |app: &str, annotations: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {app}, namespace: demo, annotations: {{{annotations}}}}}\n\
                 spec: {{selector: {{app: {app}}}, ports: [{{name: http, port: 80, targetPort: {}}}]}}\n---\n",
                self.port
            )
        };
        let versions = ["v1", "v2"].map(|v| {
            let (own, selector) = (format!("web-{v}"), format!("{{app: web, version: {v}}}"));
            each(&own, "").replace(&format!("{{app: {own}}}"), &selector)
        });
        each("web", annotations) + &each("alt", "") + &each("other", "") + &versions.concat()
    }

    fn clear(&self) {
        self.all.values().for_each(Backend::clear);
    }

    fn attempts(&self) -> u64 {
        self.all.values().map(Backend::requests).sum()
    }
}

/// As the request asks: fails, or never answers, or echoes.
fn behaving() -> backend::Handler {
    Arc::new(|seen| match (seen.header("x-fail"), seen.header("x-hang")) {
        (Some(status), _) => Action::Reply(Reply::new(status.parse().unwrap())),
        (_, Some(_)) => Action::Hang,
        _ => Action::Echo,
    })
}

/// Manifests by chance.
struct Maker<'r> {
    rng: &'r mut Rng,
}

impl Maker<'_> {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.below(of.len() as u64) as usize]
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.rng.below(100) < percent
    }

    fn routing(&mut self) -> (String, &'static str) {
        match self.rng.below(9) {
            0..=3 => (self.virtual_service(), ""),
            4 => (self.http_route(), ""),
            5 => (self.service_profile(), ""),
            6 => (self.traffic_split() + &if self.chance(50) { self.service_profile() } else { String::new() }, ""),
            7 => (self.traffic_policy(), ""),
            _ => {
                let annotations = self.one(&[
                    "retry.linkerd.io/http: 5xx, retry.linkerd.io/limit: \"2\"",
                    "retry.linkerd.io/http: \"503\", timeout.linkerd.io/request: 400ms",
                    "",
                ]);
                (if self.chance(50) { self.http_route() } else { String::new() }, annotations)
            }
        }
    }

    fn virtual_service(&mut self) -> String {
        let mut text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: demo}\nspec:\n  \
                        hosts: [web, api.example.com]\n  http:\n"
            .to_string();
        for i in 0..1 + self.rng.below(4) {
            text.push_str(&format!("  - name: r{i}\n"));
            if self.chance(85) {
                let path = self.one(&["exact: /a", "prefix: /a", "prefix: /api/", "regex: \"/[ab].*\"", "prefix: /"]);
                let method = self.one(&["", ", method: {exact: GET}", ", method: {regex: \"PUT|POST\"}"]);
                let header = self.one(&[
                    "",
                    "",
                    ", headers: {x-user: {exact: jason}}",
                    ", withoutHeaders: {x-user: {exact: jason}}",
                ]);
                let query = self.one(&["", "", ", queryParams: {v: {exact: \"2\"}}"]);
                text.push_str(&format!("    match: [{{uri: {{{path}}}{method}{header}{query}}}]\n"));
            }
            match self.rng.below(6) {
                0 => {
                    let to =
                        self.one(&["uri: /new", "authority: new.example.com:8080", "uri: /moved, redirectCode: 308"]);
                    text.push_str(&format!("    redirect: {{{to}}}\n"));
                    continue;
                }
                1 => {
                    let status = self.one(&[200, 418, 503]);
                    text.push_str(&format!("    directResponse: {{status: {status}, body: {{string: made here}}}}\n"));
                    continue;
                }
                _ => {}
            }
            let to = self.one(&[
                "[{destination: {host: web}}]",
                "[{destination: {host: web, subset: v1}, weight: 75}, {destination: {host: web, subset: v2}, weight: 25}]",
                "[{destination: {host: web, subset: v2}}]",
                "[{destination: {host: alt}, weight: 50}, {destination: {host: other}, weight: 50, headers: {request: {set: {x-to: other}}}}]",
                "[{destination: {host: alt}, weight: 100}, {destination: {host: other}, weight: 0}]",
                "[{destination: {host: web, subset: v9}}]",
                "[{destination: {host: nowhere}, weight: 50}, {destination: {host: alt}, weight: 50}]",
            ]);
            text.push_str(&format!("    route: {to}\n"));
            if self.chance(35) {
                let rewrite = self.one(&[
                    "uri: /r",
                    "uri: /r/",
                    "authority: inner.example.com",
                    "uriRegexRewrite: {match: \"/(a|api)\", rewrite: '/x\\1'}",
                ]);
                text.push_str(&format!("    rewrite: {{{rewrite}}}\n"));
            }
            if self.chance(50) {
                text.push_str("    headers: {request: {set: {x-env: test}, add: {x-more: \"%REQ(x-user)%\"}, remove: [x-drop]}, response: {set: {x-seen: \"yes\"}}}\n");
            }
            if self.chance(40) {
                let on = self.one(&["5xx", "503", "gateway-error", "connect-failure", "retriable-4xx,500"]);
                let attempts = self.rng.below(4);
                let per_try = self.one(&["", ", perTryTimeout: 150ms"]);
                text.push_str(&format!(
                    "    retries: {{attempts: {attempts}, retryOn: \"{on}\"{per_try}, backoff: 5ms}}\n"
                ));
            }
            if self.chance(30) {
                text.push_str("    timeout: 400ms\n");
            }
            if self.chance(45) {
                let fault = self.one(&[
                    "abort: {percentage: {value: 100}, httpStatus: 418}",
                    "abort: {percentage: {value: 0}, httpStatus: 418}",
                    "delay: {percentage: {value: 100}, fixedDelay: 120ms}",
                ]);
                text.push_str(&format!("    fault: {{{fault}}}\n"));
            }
        }
        let balancer = self.one(&[
            "simple: ROUND_ROBIN",
            "simple: LEAST_REQUEST",
            "simple: RANDOM",
            "consistentHash: {httpHeaderName: x-user}",
        ]);
        text.push_str(&format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: demo}}\nspec:\n  host: web\n  \
             trafficPolicy: {{loadBalancer: {{{balancer}}}, outlierDetection: {{consecutive5xxErrors: 1000}}}}\n  \
             subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]\n---\n"
        ));
        text
    }

    fn http_route(&mut self) -> String {
        let mut text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: demo}\nspec:\n  \
                        parentRefs: [{group: \"\", kind: Service, name: web}]\n  rules:\n"
            .to_string();
        for i in 0..1 + self.rng.below(4) {
            text.push_str(&format!("  - name: r{i}\n"));
            if self.chance(85) {
                let path = self.one(&[
                    "path: {type: PathPrefix, value: /a}",
                    "path: {type: PathPrefix, value: /api}",
                    "path: {type: PathPrefix, value: /}",
                ]);
                let method = self.one(&["", ", method: GET", ", method: POST"]);
                let header = self.one(&["", "", ", headers: [{name: x-user, value: jason}]"]);
                let query = self.one(&["", "", ", queryParams: [{name: v, value: \"2\"}]"]);
                text.push_str(&format!("    matches: [{{{path}{method}{header}{query}}}]\n"));
            }
            let mut filters = Vec::new();
            let redirect = self.chance(15);
            if redirect {
                filters.push("{type: RequestRedirect, requestRedirect: {hostname: new.example.com, statusCode: 301}}");
            } else if self.chance(40) {
                filters.push(self.one(&[
                    "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /r}}}",
                    "{type: URLRewrite, urlRewrite: {hostname: inner.example.com, path: {type: ReplaceFullPath, replaceFullPath: /full}}}",
                ]));
            }
            if self.chance(40) {
                filters.push("{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-env, value: test}], remove: [x-drop]}}");
            }
            if !filters.is_empty() {
                text.push_str(&format!("    filters: [{}]\n", filters.join(", ")));
            }
            if !redirect {
                let to = self.one(&[
                    "",
                    "[{name: alt, port: 80}]",
                    "[{name: web, port: 80, weight: 3}, {name: alt, port: 80, weight: 1}]",
                    "[{name: web-v1, port: 80}, {name: web-v2, port: 80}]",
                    "[{name: gone, port: 80}, {name: other, port: 80}]",
                    "[{name: alt, port: 80, weight: 0}]",
                ]);
                if !to.is_empty() {
                    text.push_str(&format!("    backendRefs: {to}\n"));
                }
                if self.chance(40) {
                    text.push_str(&format!("    retry: {{attempts: {}, codes: [500, 503]}}\n", 1 + self.rng.below(3)));
                }
                if self.chance(30) {
                    text.push_str("    timeouts: {request: 400ms}\n");
                }
            }
        }
        text + "---\n"
    }

    fn service_profile(&mut self) -> String {
        let mut text =
            "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: web.demo.svc.cluster.local, \
                        namespace: demo}\nspec:\n  routes:\n"
                .to_string();
        for i in 0..1 + self.rng.below(3) {
            let condition = self.one(&[
                "{pathRegex: /a}",
                "{method: GET, pathRegex: \"/a.*\"}",
                "{pathRegex: \"/api/[a-z]*\"}",
                "{method: POST}",
            ]);
            let more =
                self.one(&["", ", timeout: 400ms", ", isRetryable: true", ", retries: {limit: 2, timeout: 200ms}"]);
            text.push_str(&format!("  - {{name: p{i}, condition: {condition}{more}}}\n"));
        }
        text + "---\n"
    }

    fn traffic_split(&mut self) -> String {
        let backends = self.one(&[
            "{service: web-v1, weight: 3}, {service: web-v2, weight: 1}",
            "{service: web-v1, weight: 1}, {service: alt, weight: 0}",
            "{service: alt, weight: 500m}, {service: other, weight: 500m}",
        ]);
        let version = if backends.contains("500m") { "v1alpha1" } else { "v1alpha2" };
        format!(
            "apiVersion: split.smi-spec.io/{version}\nkind: TrafficSplit\nmetadata: {{name: web, namespace: demo}}\nspec:\n  \
             service: web\n  backends: [{backends}]\n---\n"
        )
    }

    fn traffic_policy(&mut self) -> String {
        let routes = match self.rng.below(3) {
            0 => self.http_route(),
            1 => self.virtual_service(),
            _ => String::new(),
        };
        let policy = self.one(&[
            "retry: {attempts: 2, on: \"5xx\", backoff: {base: 5ms}}",
            "retry: {attempts: 1, on: \"503\"}, timeout: {request: 400ms}",
            "timeout: {request: 400ms}, balance: {algorithm: roundRobin}",
        ]);
        routes
            + &format!(
                "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: web, namespace: demo}}\nspec: {{targetRefs: \
                 [{{group: \"\", kind: Service, name: web}}], {policy}}}\n---\n"
            )
    }

    fn request(&mut self) -> Request {
        let path = self.one(&["/", "/a", "/a/b", "/api", "/api/x", "/apix", "/b", "/a/../api/y", "/%61"]);
        let query = self.one(&["", "", "?v=2", "?v=1&w=2"]);
        let mut headers = vec![("x-drop".to_string(), "1".to_string())];
        let user = self.one(&["", "jason", "anna"]);
        if !user.is_empty() {
            headers.push(("x-user".into(), user.into()));
        }
        Request {
            method: self.one(&["GET", "GET", "POST", "PUT"]),
            host: self.one(&[
                "web",
                "web",
                "web",
                "web",
                "web.demo.svc.cluster.local",
                "WEB:80",
                "api.example.com",
                "alt",
                "nobody.test",
            ]),
            target: format!("{path}{query}"),
            headers,
        }
    }
}

#[derive(Clone, Debug)]
struct Request {
    method: &'static str,
    host: &'static str,
    target: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn with(&self, name: &str, value: &str) -> Self {
        let mut more = self.clone();
        more.headers.push((name.into(), value.into()));
        more
    }

    fn explained(&self, dir: &Path, home: &Path) -> Value {
        let mut command = Command::new(MESHCTL);
        command.args(["explain", self.method]).arg(format!("http://{}{}", self.host, self.target));
        command.args(["--from", "client-0", "-o", "json", "--dir"]).arg(dir).env("WEFT_LAB_HOME", home);
        self.headers.iter().for_each(|(name, value)| {
            command.args(["-H", &format!("{name}: {value}")]);
        });
        let output = command.output().unwrap();
        assert!(output.status.success(), "{self:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn sent(&self, to: SocketAddr) -> Response {
        self.on(http1(to)).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    /// With a limit that only a lost answer reaches, also on a machine that stands still for a while.
    fn sent_patiently(&self, to: SocketAddr, about: &str) -> Response {
        let client = http1(to);
        client.stream.set_timeout(Duration::from_secs(60));
        self.on(client).unwrap_or_else(|e| panic!("never answered ({e}): {about}"))
    }

    fn on(&self, mut client: Http1) -> Result<Response, ReadError> {
        let mut headers: Vec<(&str, &str)> = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        headers.push(("host", self.host));
        client.request(self.method, &self.target, &headers, b"")
    }
}

/// The sidecar of `client-0`, and what pushes to it.
struct Client {
    control: Control,
    held: BTreeSet<String>,
    at: SocketAddr,
    _proxy: Proxy,
    _dir: TempDir,
}

impl Client {
    fn start() -> Self {
        let (control, dir, at, admin) = (Control::start("cluster.local"), TempDir::new(), free_addr(), free_addr());
        dir.write("root.pem", control.root_pem());
        dir.write("token", control.token("demo", "client"));
        // By Host, for nothing is redirected here; the rest is what the control plane would send.
        let document = json!({
            "workload": {"name": "client", "namespace": "demo"},
            "listeners": [{"name": "out", "role": "outbound", "address": at.to_string()}],
        });
        control.set("proxy", document.to_string());
        let path = |name: &str| dir.join(name).display().to_string();
        let args = [
            ("--control", control.addr().to_string()),
            ("--trust-root", path("root.pem")),
            ("--token-file", path("token")),
            ("--pod", "demo/client-0".into()),
            ("--state", path("state")),
            ("--admin", admin.to_string()),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_string(), value]);
        let args = args.chain(["--everything".to_string()]).collect();
        let bin = Path::new(MESHCTL).with_file_name("weft-proxy");
        let bin = bin.to_str().unwrap();
        let proxy = Proxy::with(Start { bin, admin: Some(admin), args, fileless: true, ..Start::default() });
        Self { control, held: BTreeSet::new(), at, _proxy: proxy, _dir: dir }
    }

    /// What the control plane makes of the manifests for this pod, and until it is in force.
    fn push(&mut self, manifests: &str) {
        let read = object::read(&"a.yaml".into(), manifests, "default", &mut Diags::default()).unwrap();
        let objects = Objects(read.into_iter().map(Arc::new).collect());
        let (world, _) = translate(&objects, &Options::default());
        let view = View::new(&world, &json!({}), &View::default());
        let pod = PodId { namespace: "demo".into(), name: "client-0".into() };
        let wanted = view.wanted(&pod, &world.pods[&pod].identity, &["*".to_string()].into()).unwrap();
        assert!(view.withheld.is_empty(), "{:?}\n{manifests}", view.withheld);
        let pieces = wanted.pieces.values().filter(|p| !["proxy", "trust"].contains(&&*p.name));
        let pieces: Vec<(&str, Vec<u8>)> = pieces.map(|p| (&*p.name, p.document.clone())).collect();
        self.control.set_all(&pieces);
        let names: BTreeSet<String> = pieces.iter().map(|(name, _)| name.to_string()).collect();
        self.held.difference(&names).for_each(|gone| self.control.remove(gone));
        for name in &names {
            assert_eq!(self.control.wait_applied(name, SOON), "", "{name}\n{manifests}");
        }
        self.held = names;
    }
}

/// What was shown by the whole run, so that none of it passes by never happening.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    actions: BTreeMap<String, u32>,
    shares: u32,
    retried: u32,
    timeouts: u32,
    rewrites: u32,
    headers: u32,
    faults: u32,
    failures: u32,
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What people see, of the examples.
#[test]
fn pages() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let home = TempDir::new();
    let client = ["--from", "client"];
    let gateway = ["--from", "api-gateway"];
    let cases: [(&str, &str, &str, &str, &[&str]); 9] = [
        ("split", "tutorial-5.9", "GET", "http://hello:8080/", &client),
        (
            "header",
            "tutorial-5.9",
            "GET",
            "http://hello:8080/",
            &[&client[..], &["-H", "user-agent: Chrome/1"]].concat(),
        ),
        ("no-sidecar", "tutorial-5.9", "GET", "http://hello:8080/", &["--from", "stranger", "-n", "default"]),
        ("all", "tutorial-5.9", "GET", "http://hello:8080/", &[&client[..], &["--all"]].concat()),
        ("canary", "lab-9.5", "GET", "http://user-service:8080/users?page=2", &gateway),
        ("profile", "lab-9.5", "GET", "http://flaky-service:8080/api/data", &gateway),
        ("other-path", "lab-9.5", "GET", "http://flaky-service.microservices.svc.cluster.local:8080/x", &gateway),
        ("extension", "lab-9.5", "POST", "http://payment-service:8080/api/charge", &gateway),
        ("unknown", "lab-9.5", "GET", "http://api.example.com/", &gateway),
    ];
    for (name, example, method, url, more) in cases {
        let mut command = Command::new(MESHCTL);
        command.args(["explain", method, url]).args(more).arg("--dir").arg(root.join("../examples").join(example));
        let output = command.env("WEFT_LAB_HOME", home.path()).env("NO_COLOR", "1").output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let page = String::from_utf8(output.stdout).unwrap();
        let golden = root.join("tests/explain").join(format!("{name}.golden"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &page).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(page, expected, "{}: UPDATE_GOLDEN=1 writes it anew", golden.display());
    }
}

/// What cannot be explained says what to do instead.
#[test]
fn refusals() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/lab-9.5");
    let home = TempDir::new();
    for (args, wanted) in [
        (&["GET", "http://a/", "--from", "nobody"][..], "one of api-gateway, auth-service"),
        (&["GET", "https://a/", "--from", "api-gateway"], "as bytes"),
        (&["GET", "http://a/", "--from", "api-gateway", "-H", "x"], "is no header"),
        (&["GET", "http://a/", "--from", "api-gateway", "--live"], "a folder has no sidecars to ask"),
    ] {
        let mut command = Command::new(MESHCTL);
        command.arg("explain").args(args).arg("--dir").arg(&examples).env("WEFT_LAB_HOME", home.path());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(wanted), "{args:?}: {text}");
    }
    let none = Command::new(MESHCTL).args(["status"]).env("WEFT_LAB_HOME", home.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&none.stderr).contains("no lab is running"), "{none:?}");
    let script = Command::new(MESHCTL).args(["completions", "bash"]).output().unwrap();
    assert!(String::from_utf8_lossy(&script.stdout).contains("_meshctl()"), "{script:?}");
}

#[test]
fn explain_agrees_with_the_sidecar() {
    programs();
    let given = std::env::var("WEFT_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or(20_261_121);
    let mut rng = Rng::new(seed);
    let (apps, mut client, home) = (Apps::start(), Client::start(), TempDir::new());
    let mut shown = Shown::default();
    for n in 0..CONFIGURATIONS {
        let mut maker = Maker { rng: &mut rng };
        let (routing, annotations) = maker.routing();
        let manifests = format!("{}{}{routing}", apps.manifests, apps.services(annotations));
        let requests: Vec<Request> = (0..REQUESTS).map(|_| maker.request()).collect();
        let dir = TempDir::new();
        dir.write("a.yaml", &manifests);
        client.push(&manifests);
        for request in requests {
            let explained = request.explained(dir.path(), home.path());
            let trial = Trial { apps: &apps, to: client.at, request: &request, explained: &explained };
            let about = format!("seed {seed}, configuration {n}: {request:?}\n{annotations}\n{routing}\n{explained:#}");
            trial.run(&mut shown, &about);
        }
    }
    println!("{shown:#?}");
    if given.is_some() {
        return;
    }
    let actions: Vec<&str> = shown.actions.keys().map(String::as_str).collect();
    assert_eq!(actions, ["forward", "noRoute", "passthrough", "redirect", "respond"]);
    let Shown { shares, retried, timeouts, rewrites, headers, faults, failures, .. } = shown;
    let all = [shares, retried, timeouts, rewrites, headers, faults, failures];
    assert!(all.iter().all(|n| *n > 0), "something was never tried");
}

struct Trial<'t> {
    apps: &'t Apps,
    to: SocketAddr,
    request: &'t Request,
    explained: &'t Value,
}

impl Trial<'_> {
    fn run(&self, shown: &mut Shown, about: &str) {
        let (said, request) = (self.explained, self.request);
        let action = said["action"].as_str().unwrap();
        *shown.actions.entry(action.into()).or_default() += 1;
        self.apps.clear();
        let begun = Instant::now();
        let answer = request.sent(self.to);
        let delay = &said["fault"]["delay"];
        if delay["percent"] == 100.0 {
            shown.faults += 1;
            assert!(begun.elapsed() >= Duration::from_millis(120), "not delayed: {about}");
        }
        let abort = &said["fault"]["abort"];
        if abort["percent"] == 100.0 {
            shown.faults += 1;
            assert_eq!((json!(answer.status), self.apps.attempts()), (abort["status"].clone(), 0), "{about}");
            return;
        }
        match action {
            // Nothing is redirected here, so there is no address to pass it to.
            "passthrough" => assert_eq!((answer.status, self.apps.attempts()), (404, 0), "{about}"),
            "noRoute" => assert_eq!((answer.status, self.apps.attempts()), (404, 0), "{about}"),
            "redirect" | "respond" => {
                assert_eq!(
                    (json!(answer.status), self.apps.attempts()),
                    (said["answer"]["status"].clone(), 0),
                    "{about}"
                );
                assert_eq!(answer.header("location"), said["answer"]["location"].as_str(), "{about}");
                if let Some(body) = said["answer"]["body"].as_str() {
                    assert_eq!(answer.text(), body, "{about}");
                }
            }
            "forward" => self.forwarded(answer, shown, about),
            other => panic!("{other}: {about}"),
        }
    }

    fn forwarded(&self, first: Response, shown: &mut Shown, about: &str) {
        let said = self.explained;
        // Who may answer, and how often: pods by their names, own answers by their status.
        let mut expected: BTreeMap<String, (f64, &Value)> = BTreeMap::new();
        let mut add = |who: String, share: f64, backend| expected.entry(who).or_insert((0.0, backend)).0 += share;
        for backend in list(&said["backends"]) {
            match backend["status"].as_u64() {
                Some(status) => add(status.to_string(), backend["probability"].as_f64().unwrap(), backend),
                None => list(&backend["endpoints"]).iter().for_each(|endpoint| {
                    let pod = endpoint["pod"].as_str().unwrap().to_string();
                    add(pod, endpoint["probability"].as_f64().unwrap(), backend);
                }),
            }
        }
        if let Some(status) = said["answer"]["status"].as_u64() {
            add(status.to_string(), 1.0, &Value::Null);
        }
        let sum: f64 = expected.values().map(|(share, _)| share).sum();
        assert!((sum - 1.0).abs() < 1e-6, "shares add up to {sum}: {about}");
        let delayed = said["fault"]["delay"]["percent"] == 100.0;
        let many = expected.len() > 1 && !delayed;
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let answers =
            std::iter::once(first).chain((1..if many { MANY } else { 1 }).map(|_| self.request.sent(self.to)));
        for answer in answers {
            let who = answer.header("x-weft-backend").map_or(answer.status.to_string(), String::from);
            let allowed = expected.get(&who).filter(|(share, _)| *share > 0.0);
            let (_, backend) = allowed.unwrap_or_else(|| panic!("{who} was not to be expected: {about}"));
            if let Some(app) = self.apps.all.get(&who) {
                assert_eq!(answer.status, 200, "{about}");
                self.arrived(&app.last(), &backend["sends"], &answer, shown, about);
            }
            *seen.entry(who).or_default() += 1;
        }
        if many {
            shown.shares += 1;
            // Which of a backend's endpoints is taken is the balancer's, by what it has measured; what a backend gets, the weights'.
            for backend in list(&said["backends"]).iter().filter(|b| b["probability"].as_f64() > Some(0.24)) {
                let pods = list(&backend["endpoints"]).iter().filter_map(|e| e["pod"].as_str());
                let mut all = pods.map(String::from).chain(backend["status"].as_u64().map(|s| s.to_string()));
                assert!(
                    all.any(|who| seen.contains_key(&who)),
                    "{} was never seen in {seen:?}: {about}",
                    backend["name"]
                );
            }
        }
        let backends = list(&said["backends"]);
        if !backends.is_empty() && backends.iter().all(|b| b["status"].is_null()) && !delayed {
            self.failing(shown, about);
            self.hanging(shown, about);
        }
    }

    /// The request as the app saw it, and the answer as the caller did.
    fn arrived(&self, seen: &backend::Seen, sends: &Value, answer: &Response, shown: &mut Shown, about: &str) {
        assert_eq!(seen.target, sends["path"].as_str().unwrap(), "{about}");
        assert_eq!(seen.header("host"), sends["authority"].as_str(), "{about}");
        shown.rewrites += u32::from(self.explained["rewrite"].is_object());
        let headers = sends["headers"].as_object().unwrap();
        for (name, value) in headers {
            let all: Vec<&str> = seen.headers.get_all(name.as_str()).iter().map(|v| v.to_str().unwrap()).collect();
            assert_eq!(Some(all.join(",").as_str()), value.as_str(), "{name}: {about}");
        }
        for (name, _) in &self.request.headers {
            let there = seen.header(name).is_some();
            assert_eq!(there, headers.contains_key(name), "{name}: {about}");
        }
        let response = &self.explained["responseHeaders"]["set"];
        for (name, value) in response.as_object().into_iter().flatten() {
            shown.headers += 1;
            assert_eq!(answer.header(name), value.as_str(), "{about}");
        }
    }

    /// How often is tried what always fails.
    fn failing(&self, shown: &mut Shown, about: &str) {
        let retry = &self.explained["retry"];
        for status in [500u16, 503, 409] {
            self.apps.clear();
            let answer = self.request.with("x-fail", &status.to_string()).sent(self.to);
            assert_eq!(answer.status, status, "{about}");
            let range = |r: &&Value| r[0].as_u64() <= Some(status.into()) && Some(u64::from(status)) <= r[1].as_u64();
            let again = list(&retry["statuses"]).iter().any(|r| range(&r));
            let expected = 1 + if again { retry["attempts"].as_u64().unwrap() } else { 0 };
            assert_eq!(self.apps.attempts(), expected, "attempts at {status}: {about}");
            shown.failures += 1;
            shown.retried += u32::from(expected > 1);
        }
    }

    /// How long is waited for what never answers.
    fn hanging(&self, shown: &mut Shown, about: &str) {
        let (limit, retry) = (self.explained["timeout"]["request"].as_str(), &self.explained["retry"]);
        let per_try = retry["perTryTimeout"].as_str();
        if limit.is_none() && per_try.is_none() {
            return;
        }
        self.apps.clear();
        let begun = Instant::now();
        let answer = self.request.with("x-hang", "1").sent_patiently(self.to, about);
        assert_eq!(answer.status, 504, "{about}");
        let millis = |text: &str| weft_policy::doc::parse_duration(text).unwrap();
        let attempts = 1 + if retry["perTryTimeouts"] == true { retry["attempts"].as_u64().unwrap() } else { 0 };
        let least = match (limit, per_try) {
            (Some(limit), None) => millis(limit),
            (None, Some(each)) => millis(each) * attempts as u32,
            (Some(limit), Some(each)) => millis(limit).min(millis(each) * attempts as u32),
            (None, None) => Duration::ZERO,
        };
        assert!(begun.elapsed() + Duration::from_millis(5) >= least, "{:?} is too soon: {about}", begun.elapsed());
        if limit.is_none() {
            assert_eq!(self.apps.attempts(), attempts, "{about}");
        }
        shown.timeouts += 1;
    }
}
