//! The answer on a page, for people: what happens from top to bottom, and behind each line who said so.

use crate::terminal::{Tone, paint};
use serde_json::Value as Json;

/// Of more endpoints the page shows these.
const ENDPOINTS: usize = 6;
const LABEL: usize = 13;

pub fn text(answer: &Json, all: bool, coloured: bool) -> String {
    let mut page = Page { out: String::new(), differs: Vec::new(), all, coloured };
    page.head(answer);
    page.destination(answer);
    page.route(answer);
    page.faults(answer);
    page.outcome(answer);
    page.backends(answer);
    page.changes(answer);
    page.limits(answer);
    page.servers(answer);
    page.differences();
    page.live(answer);
    page.out
}

struct Page {
    out: String,
    /// What is not quite as the object's own mesh would do it.
    differs: Vec<String>,
    all: bool,
    coloured: bool,
}

fn word<'j>(value: &'j Json, field: &str) -> &'j str {
    value[field].as_str().unwrap_or_default()
}

fn rows(value: &Json) -> &[Json] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn percent(share: &Json) -> String {
    let percent = share.as_f64().unwrap_or(0.0) * 100.0;
    if percent > 0.0 && percent < 0.1 { "<0.1 %".into() } else { format!("{percent:.1} %") }
}

/// `virtual-service.yaml:14 virtualservice/hello.default spec.http[1].route`
fn origin(origin: &Json) -> String {
    let text = format!("{}{} {}", place(origin, &origin["line"]), word(origin, "object"), word(origin, "field"));
    text.trim_end().to_string()
}

/// `virtual-service.yaml:14 `; a cluster's objects stand in no file.
fn place(origin: &Json, line: &Json) -> String {
    let file = word(origin, "file").rsplit('/').next().unwrap_or_default();
    if file.is_empty() { String::new() } else { format!("{file}:{line} ") }
}

impl Page {
    /// A line; the label only where something begins.
    fn line(&mut self, label: &str, text: &str, origins: &Json) {
        let told: Vec<String> = rows(origins).iter().map(origin).collect();
        for origin in rows(origins) {
            for differs in rows(&origin["differs"]) {
                let (field, how) = (word(differs, "field"), word(differs, "how"));
                let before = match word(origin, "file") {
                    "" => format!("{} ", word(origin, "object")),
                    _ => place(origin, &differs["line"]),
                };
                let text = format!("{before}{field}: {how}");
                if !self.differs.contains(&text) {
                    self.differs.push(text);
                }
            }
        }
        let label = paint(&format!("{label:LABEL$}"), Tone::Bold, self.coloured);
        self.out.push_str(format!("{label}{text}").trim_end());
        if !told.is_empty() {
            let told = format!("   <- {}", told.join(", "));
            self.out.push_str(&paint(&told, Tone::Faint, self.coloured));
        }
        self.out.push('\n');
    }

    fn plain(&mut self, label: &str, text: &str) {
        self.line(label, text, &Json::Null);
    }

    fn bad(&mut self, label: &str, text: &str) {
        let text = paint(text, Tone::Bad, self.coloured);
        self.line(label, &text, &Json::Null);
    }

    fn head(&mut self, a: &Json) {
        let (request, from) = (&a["request"], &a["from"]);
        let asked = format!("{} {}{}", word(request, "method"), word(request, "authority"), word(request, "target"));
        self.plain("Request", &paint(&asked, Tone::Bold, self.coloured));
        let given = request["headers"].as_object().into_iter().flatten();
        for (name, value) in given.filter(|(name, _)| !["x-forwarded-proto", "x-mesh-hops"].contains(&name.as_str())) {
            self.plain("", &format!("{name}: {}", value.as_str().unwrap_or_default()));
        }
        let who = format!("{}.{} at {}", word(from, "pod"), word(from, "namespace"), word(from, "address"));
        match from["identity"].as_str() {
            Some(identity) => self.plain("From", &format!("{who}, {identity}")),
            None => self.plain("From", &format!("{who}, which has no sidecar: no route, retry or mTLS on its side")),
        }
        for problem in rows(&a["problems"]).iter().chain(rows(&a["withheld"])) {
            self.bad("Mistake", problem.as_str().unwrap_or_default());
        }
    }

    fn destination(&mut self, a: &Json) {
        let (to, action) = (&a["destination"], word(a, "action"));
        let dials = rows(&a["dials"]);
        if to.is_object() {
            let protocol = to["protocol"].as_str().map(|p| format!(", {p}")).unwrap_or_default();
            let text = format!(
                "{}.{} port {}{protocol}, found by {}",
                word(to, "service"),
                word(to, "namespace"),
                to["port"],
                word(to, "found")
            );
            self.line("Destination", &text, &to["origin"]);
        } else {
            let at = dials.first().and_then(Json::as_str).unwrap_or("whatever address DNS has for it");
            match action {
                "refused" => self.bad("Destination", "nothing in the mesh has it, and unknown ones are refused: 502"),
                "passthrough" => {
                    self.plain("Destination", "nothing in the mesh has this address or Host");
                    self.plain("", &format!("it passes to {at} as it is: no routes, no mTLS, no limits"));
                    self.plain("Retries", "only what no app has seen: a connection that fails, at most twice");
                }
                _ => self.plain("Destination", &format!("{at}, which is no Service")),
            }
        }
        if dials.is_empty() && action != "passthrough" {
            self.plain("", "no address in this mesh for the name: the app needs one to dial");
        } else if dials.len() > 1 {
            self.plain("", &format!("one of {} addresses, whichever the app takes; this is of the first", dials.len()));
        }
        if a["bytes"] == true {
            self.plain("", "declared as bytes: nothing of HTTP is read, so no match, retry or timeout");
        }
    }

    fn route(&mut self, a: &Json) {
        let routes = rows(&a["routes"]);
        if routes.is_empty() {
            if a["destination"].is_object() && a["from"]["sidecar"] == true && a["bytes"] != true {
                self.plain("Route", "none is written: everything goes to the service itself");
            }
            return;
        }
        let many = routes.len() > 1;
        if many || self.all {
            self.plain("Route", &format!("in this order ({}):", word(a, "order")));
        }
        for (i, route) in routes.iter().enumerate() {
            let label = if many || self.all || i > 0 { "" } else { "Route" };
            let name = match word(route, "name") {
                "" => "(without a name)",
                name => name,
            };
            let whys: Vec<&str> = rows(&route["why"]).iter().filter_map(Json::as_str).collect();
            let text = match route["matches"] == true {
                true => format!("{} {name}", paint("yes", Tone::Good, self.coloured)),
                false => format!("{}  {name}: {}", paint("no", Tone::Bold, self.coloured), whys.join("; nor: ")),
            };
            self.line(label, &text, &route["origin"]);
        }
    }

    fn faults(&mut self, a: &Json) {
        let cors = &a["cors"];
        if cors.is_object() {
            self.line("CORS", word(cors, "does"), &cors["origin"]);
        }
        let (delay, abort) = (&a["fault"]["delay"], &a["fault"]["abort"]);
        if delay.is_object() {
            let text = format!("{} % of requests wait {} first", delay["percent"], word(delay, "fixed"));
            self.line("Fault", &text, &a["fault"]["origin"]);
        }
        if abort.is_object() {
            let status = match abort["grpcStatus"].as_u64() {
                Some(code) => format!("gRPC status {code}"),
                None => abort["status"].to_string(),
            };
            let text = format!("{} % of requests are answered with {status}", abort["percent"]);
            self.line("Fault", &text, &a["fault"]["origin"]);
        }
    }

    /// Where nothing is sent on.
    fn outcome(&mut self, a: &Json) {
        let answer = &a["answer"];
        if !answer.is_object() {
            return;
        }
        let status = &answer["status"];
        let text = match (answer["location"].as_str(), answer["body"].as_str(), answer["why"].as_str()) {
            (Some(location), ..) => format!("{status}, location {location}"),
            (_, _, Some(why)) => format!("{status}: {why}"),
            (_, Some(body), _) if !body.is_empty() => format!("{status}, {:?}", short(body)),
            _ => status.to_string(),
        };
        self.line("Answer", &text, &answer["origin"]);
        let fields = answer["headers"].as_object().into_iter().flatten();
        for (name, value) in fields {
            self.plain("", &format!("{name}: {}", value.as_str().unwrap_or_default()));
        }
    }

    fn backends(&mut self, a: &Json) {
        let backends = rows(&a["backends"]);
        if a["action"] == "plain" {
            let ends = rows(&a["endpoints"]);
            self.endpoints("Endpoints", ends);
            if ends.is_empty() {
                self.bad("", "nobody answers there");
            }
        }
        for (i, backend) in backends.iter().enumerate() {
            let origins = if backends.len() > 1 || i > 0 { &a["backendsOrigin"] } else { &Json::Null };
            let origins = if i == 0 { origins } else { &Json::Null };
            let label = if i == 0 { "Goes to" } else { "" };
            let name = match word(backend, "name") {
                "" => "nowhere",
                name => name,
            };
            self.line(label, &format!("{:>8} {name}", percent(&backend["probability"])), origins);
            if let Some(why) = backend["why"].as_str() {
                self.bad("", &format!("         {}: {why}", backend["status"]));
            }
            for (name, direction) in [("requestHeaders", "request"), ("responseHeaders", "response")] {
                for change in changes(&backend[name]) {
                    self.plain("", &format!("         {direction} header {change}"));
                }
            }
            self.endpoints("", rows(&backend["endpoints"]));
            for name in rows(&backend["names"]).iter().filter_map(Json::as_str) {
                self.plain("", &format!("         {name}, at the addresses that DNS has for it"));
            }
        }
    }

    fn endpoints(&mut self, label: &str, endpoints: &[Json]) {
        let shown = if self.all { endpoints.len() } else { ENDPOINTS };
        for (i, endpoint) in endpoints.iter().take(shown).enumerate() {
            let label = if i == 0 { label } else { "" };
            let (address, pod) = (word(endpoint, "address"), word(endpoint, "pod"));
            let security = word(endpoint, "security");
            let text = format!("{:>8}   {address} {pod}, {security}", percent(&endpoint["probability"]));
            self.plain(label, &text);
        }
        if endpoints.len() > shown {
            self.plain("", &format!("           and {} more (--all)", endpoints.len() - shown));
        }
        let mut expected: Vec<&str> = endpoints.iter().filter_map(|e| e["expects"].as_str()).collect();
        expected.dedup();
        if !expected.is_empty() {
            self.plain("", &format!("           who must prove to be {}", expected.join(" or ")));
        }
    }

    fn changes(&mut self, a: &Json) {
        let rewrite = &a["rewrite"];
        if rewrite.is_object() {
            let sends = rows(&a["backends"]).iter().find(|b| b["sends"].is_object()).map(|b| &b["sends"]);
            let sends = sends.map_or(String::new(), |s| format!("{}{}", word(s, "authority"), word(s, "path")));
            self.line("Rewrite", &format!("to {sends}"), &rewrite["origin"]);
        }
        for (name, label) in [("requestHeaders", "To backends"), ("responseHeaders", "To caller")] {
            for (i, change) in changes(&a[name]).iter().enumerate() {
                let origins = if i == 0 { &a[name]["origin"] } else { &Json::Null };
                self.line(if i == 0 { label } else { "" }, &format!("header {change}"), origins);
            }
        }
        for mirror in rows(&a["mirrors"]) {
            let to = mirror["to"].as_str().unwrap_or("nowhere: there is no such backend");
            let text = format!("{} % are copied to {to}, whose answers nobody sees", mirror["percent"]);
            self.line("Mirror", &text, &mirror["origin"]);
        }
    }

    fn limits(&mut self, a: &Json) {
        if a["action"] != "forward" || a["bytes"] == true {
            return;
        }
        let timeout = &a["timeout"];
        let per_try = a["retry"]["perTryTimeout"].as_str();
        match timeout["request"].as_str() {
            Some(request) => {
                self.line("Timeout", &format!("{request} for the request, over all attempts"), &timeout["origin"]);
            }
            None => self.plain("Timeout", "none for the request"),
        }
        if let Some(idle) = timeout["idle"].as_str() {
            self.line("", &format!("{idle} without a byte"), &timeout["origin"]);
        }
        self.retries(&a["retry"], per_try);
        let backends: Vec<&Json> = rows(&a["backends"]).iter().filter(|b| b["balance"].is_object()).collect();
        let all = self.all;
        self.each("Budget", &backends, "retryBudget", budget, "none: retries are not limited by one");
        self.each("Balancer", &backends, "balance", balance, "");
        self.each("Breaker", &backends, "breaker", breaker, "no limits");
        self.each("Outliers", &backends, "outlier", outlier, "endpoints that fail are not ejected");
        // Defaults are for who asks for everything.
        let said = |c: &Json| (all || !rows(&c["origin"]).is_empty()).then(|| connections(c));
        self.each("Connections", &backends, "connections", |c| said(c).unwrap_or_default(), "");
    }

    /// A policy of each backend, told once where it is the same for all.
    fn each(&mut self, label: &str, backends: &[&Json], block: &str, show: impl Fn(&Json) -> String, none: &str) {
        let mut told: Vec<(String, &Json, Vec<&str>)> = Vec::new();
        for backend in backends {
            let value = &backend[block];
            let text = if value.is_object() { show(value) } else { String::new() };
            let text = if text.is_empty() { none.to_string() } else { text };
            let name = word(backend, "name");
            match told.iter_mut().find(|(t, origin, _)| *t == text && **origin == value["origin"]) {
                Some((.., names)) => names.push(name),
                None => told.push((text, &value["origin"], vec![name])),
            }
        }
        told.retain(|(text, ..)| !text.is_empty());
        let one = told.len() == 1;
        for (i, (text, origin, names)) in told.into_iter().enumerate() {
            let of = if one { String::new() } else { format!(" ({})", names.join(", ")) };
            self.line(if i == 0 { label } else { "" }, &format!("{text}{of}"), origin);
        }
    }

    fn retries(&mut self, retry: &Json, per_try: Option<&str>) {
        if let Some(per_try) = per_try {
            self.line("", &format!("{per_try} for each attempt"), &retry["origin"]);
        }
        let attempts = retry["attempts"].as_u64().unwrap_or(0);
        if attempts == 0 {
            self.line("Retries", "none", &retry["origin"]);
            return;
        }
        let times = if attempts == 1 { "once".to_string() } else { format!("up to {attempts} times") };
        let asked = if retry["asked"] == true { "" } else { ", for nobody says otherwise" };
        self.line("Retries", &format!("{times}{asked}, after"), &retry["origin"]);
        self.plain("", &format!("  {}", outcomes(retry).join("; ")));
        if self.all {
            let (base, max) = (word(&retry["backoff"], "base"), word(&retry["backoff"], "max"));
            self.plain("", &format!("  with a pause of up to {base}, doubled each time, at most {max}"));
            self.plain("", &format!("  not with a body of more than {} bytes", retry["largestBody"]));
            if retry["avoidsPreviousHosts"] == true {
                self.plain("", "  at another endpoint, where there is one");
            }
        }
    }

    /// What the other end demands.
    fn servers(&mut self, a: &Json) {
        let backends = rows(&a["backends"]).iter().flat_map(|b| rows(&b["endpoints"]));
        let mut told: Vec<(String, bool, &Json)> = Vec::new();
        for endpoint in backends.chain(rows(&a["endpoints"])) {
            let server = &endpoint["server"];
            let Some(workload) = server["workload"].as_str() else { continue };
            let text = match (server["sidecar"] == true, word(server, "mtls")) {
                (false, _) => format!("{workload} has no sidecar: takes whatever comes"),
                _ if server["itself"] == true => format!("{workload}: of itself past its own sidecar's inbound side"),
                (_, "strict") => format!("{workload} demands mTLS (STRICT)"),
                (_, "permissive") => format!("{workload} takes mTLS and plaintext (PERMISSIVE)"),
                _ => format!("{workload} takes plaintext only (DISABLE)"),
            };
            if !told.iter().any(|(t, ..)| *t == text) {
                told.push((text, server["refused"] == true, &server["origin"]));
            }
        }
        for (i, (text, refused, origin)) in told.into_iter().enumerate() {
            let refused = if refused {
                paint(": REFUSED, for this comes in plaintext", Tone::Bad, self.coloured)
            } else {
                String::new()
            };
            self.line(if i == 0 { "Other side" } else { "" }, &format!("{text}{refused}"), origin);
        }
    }

    fn differences(&mut self) {
        for (i, text) in std::mem::take(&mut self.differs).into_iter().enumerate() {
            self.plain(if i == 0 { "Differs" } else { "" }, &text);
        }
    }

    fn live(&mut self, a: &Json) {
        for (i, backend) in rows(&a["live"]).iter().enumerate() {
            let label = if i == 0 { "Now" } else { "" };
            if backend["held"] == false {
                let text = format!("{}: not called yet, so the sidecar holds nothing of it", word(backend, "name"));
                self.plain(label, &text);
                continue;
            }
            let text = format!(
                "{}: {} connections, {} requests, {} waiting",
                word(backend, "name"),
                word(backend, "connections"),
                word(backend, "requests"),
                word(backend, "pending")
            );
            self.plain(label, &text);
            for endpoint in rows(&backend["endpoints"]) {
                let (at, state) = (word(endpoint, "address"), word(endpoint, "state"));
                if state != "healthy" {
                    self.bad("", &format!("  {at} {state}"));
                } else if self.all {
                    self.plain("", &format!("  {at} {state}"));
                }
            }
        }
    }
}

fn outcomes(retry: &Json) -> Vec<String> {
    let mut out = Vec::new();
    let range = |range: &Json| match range[0] == range[1] {
        true => range[0].to_string(),
        false => format!("{}-{}", range[0], range[1]),
    };
    let statuses: Vec<String> = rows(&retry["statuses"]).iter().map(range).collect();
    if !statuses.is_empty() {
        out.push(format!("an answer of {}", statuses.join(", ")));
    }
    let codes: Vec<String> = rows(&retry["grpcStatuses"]).iter().map(Json::to_string).collect();
    if !codes.is_empty() {
        out.push(format!("a gRPC status of {}", codes.join(", ")));
    }
    for (field, text) in [
        ("connectFailure", "a connection that fails"),
        ("refusedStream", "a stream that is refused"),
        ("reset", "a reset"),
        ("perTryTimeouts", "an attempt that takes too long"),
        ("ratelimited", "an answer that says x-envoy-ratelimited"),
    ] {
        if retry[field] == true {
            out.push(text.into());
        }
    }
    if retry["resetBeforeRequest"] == true && retry["reset"] != true {
        out.push("a reset before anything was sent".into());
    }
    out
}

fn budget(b: &Json) -> String {
    match b["minConcurrency"].as_u64() {
        Some(least) => format!("retries in flight: {} % of the requests in flight, or {least}", b["percent"]),
        None => format!(
            "{} % of the requests of the last {}, and {} a second",
            b["percent"],
            word(b, "window"),
            b["minPerSecond"]
        ),
    }
}

fn balance(b: &Json) -> String {
    let hash: Vec<&str> = rows(&b["hash"]).iter().filter_map(Json::as_str).collect();
    let text = format!("{}, {}", word(b, "algorithm"), word(b, "means"));
    match (hash.is_empty(), b["hashed"] == true) {
        (true, _) => text,
        (false, true) => format!("{text}: {}", hash.join(", ")),
        (false, false) => format!("{text}: {}, of which it has none: at random", hash.join(", ")),
    }
}

fn breaker(b: &Json) -> String {
    let limits = [
        ("maxConnections", "connections"),
        ("maxPending", "requests waiting"),
        ("maxRequests", "requests"),
        ("maxRetries", "retries"),
        ("maxRequestsPerConnection", "requests per connection"),
    ];
    let said = limits.iter().filter(|(field, _)| b[*field].is_number());
    let said: Vec<String> = said.map(|(field, of)| format!("{} {of}", b[*field])).collect();
    if said.is_empty() { String::new() } else { format!("at most {}; more are answered 503", said.join(", ")) }
}

fn outlier(o: &Json) -> String {
    let accrual = &o["accrual"];
    if accrual.is_object() {
        let (min, max) = (word(accrual, "minPenalty"), word(accrual, "maxPenalty"));
        return format!("out for {min} after {} failures in a row, then doubled up to {max}", accrual["maxFailures"]);
    }
    let e = &o["ejection"];
    let counts = [
        ("consecutive5xx", "answers of 5xx"),
        ("consecutiveGatewayErrors", "of 502 to 504"),
        ("consecutiveLocalOriginFailures", "connections that fail"),
    ];
    let counts = counts.iter().filter(|(field, _)| e[*field].is_number());
    let counts: Vec<String> = counts.map(|(field, of)| format!("{} {of}", e[*field])).collect();
    let counts = if counts.is_empty() { "nothing".into() } else { counts.join(" or ") };
    let (base, interval) = (word(e, "baseEjectionTime"), word(e, "interval"));
    format!(
        "out for {base} (more each time) after {counts} in a row; at most {} % of the endpoints, looked at every {interval}",
        e["maxEjectionPercent"]
    )
}

fn connections(c: &Json) -> String {
    let said = [
        ("connectTimeout", "to connect"),
        ("idleTimeout", "idle"),
        ("maxAge", "old at most"),
        ("keepalive", "between keepalives"),
    ];
    let said = said.iter().filter_map(|(field, of)| Some(format!("{} {of}", c[*field].as_str()?)));
    said.collect::<Vec<_>>().join(", ")
}

fn short(text: &str) -> String {
    let mut out: String = text.chars().take(60).collect();
    if out.len() < text.len() {
        out.push_str("...");
    }
    out
}

fn changes(headers: &Json) -> Vec<String> {
    let pairs = |kind: &'static str| {
        let all = headers[kind].as_object().into_iter().flatten();
        all.map(move |(name, value)| (kind, name.clone(), value.as_str().unwrap_or_default().to_string()))
    };
    let set = pairs("set").chain(pairs("add"));
    let mut out: Vec<String> = set.map(|(kind, name, value)| format!("{kind} {name}: {value}")).collect();
    out.extend(rows(&headers["remove"]).iter().filter_map(Json::as_str).map(|name| format!("remove {name}")));
    out
}
