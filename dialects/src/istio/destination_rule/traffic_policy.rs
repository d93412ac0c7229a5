//! `trafficPolicy`, of a host, a subset or a port.

use crate::reader::Field;
use serde_json::{Map, Value, json};

/// Blocks by the names of our documents.
#[derive(Clone, Debug, Default)]
pub struct TrafficPolicy {
    blocks: Map<String, Value>,
    /// In place of everything above for one port, defaults included.
    ports: Vec<(u16, Map<String, Value>)>,
}

impl TrafficPolicy {
    /// For one port of a host.
    pub fn of(&self, port: u16) -> Map<String, Value> {
        let own = self.ports.iter().find(|(p, _)| *p == port).map(|(_, blocks)| blocks);
        let empty = |v: &Value| v.as_object().is_some_and(Map::is_empty);
        let own = own.unwrap_or(&self.blocks).iter().filter(|(name, v)| *name == "outlier" || !empty(v));
        own.map(|(name, v)| (name.clone(), v.clone())).collect()
    }

    /// For one port of a subset, whose document inherits the port's blocks: what is given for a port does not.
    pub fn of_subset(&self, port: u16) -> Map<String, Value> {
        let Some((_, own)) = self.ports.iter().find(|(p, _)| *p == port) else { return self.blocks.clone() };
        let defaults = [
            ("balance", json!({})),
            ("breaker", json!({})),
            ("connections", json!({})),
            ("tls", json!("auto")),
            ("http", json!("auto")),
        ];
        let mut out: Map<String, Value> = defaults.into_iter().map(|(name, v)| (name.to_string(), v)).collect();
        out.extend(own.clone());
        out
    }
}

pub fn read(f: &Field<'_>) -> TrafficPolicy {
    let mut out = TrafficPolicy { blocks: blocks(f), ports: Vec::new() };
    f.ignore("tunnel", "tunnels through other proxies are not made");
    f.ignore("proxyProtocol", "the PROXY protocol is not written");
    if let Some(budget) = f.get("retryBudget") {
        let percent = budget.get("percent").and_then(|f| f.float(0.0, 100.0)).unwrap_or(20.0);
        let least = budget.get("minRetryConcurrency").and_then(|f| f.u32()).unwrap_or(3);
        if let Some(interval) = budget.get("budgetInterval") {
            interval.ignored("retries are compared with the requests in flight");
        }
        out.blocks.insert("retryBudget".into(), json!({"percent": percent.round() as i64, "minConcurrency": least}));
    }
    for setting in f.list("portLevelSettings") {
        let number = setting.get("port").and_then(|p| p.get("number")?.port());
        let own = blocks(&setting);
        match number {
            Some(number) => out.ports.push((number, own)),
            None => {
                setting.fail::<()>("names no port", "port: {number: 80}");
            }
        }
    }
    out
}

fn blocks(f: &Field<'_>) -> Map<String, Value> {
    let mut out = Map::new();
    if let Some(balancer) = f.get("loadBalancer") {
        out.extend(balance(&balancer).map(|v| ("balance".to_string(), v)));
    }
    if let Some(pool) = f.get("connectionPool") {
        connection_pool(&pool, &mut out);
    }
    if let Some(outlier) = f.get("outlierDetection") {
        out.insert("outlier".into(), json!({"ejection": ejection(&outlier)}));
    }
    if let Some(tls) = f.get("tls") {
        out.extend(upstream_tls(&tls).map(|v| ("tls".to_string(), v)));
    }
    out
}

fn balance(f: &Field<'_>) -> Option<Value> {
    f.ignore("localityLbSetting", "locality is not looked at yet");
    f.ignore("warmupDurationSecs", "new endpoints are not warmed up: the balancer weighs them by their latency");
    f.ignore("warmup", "new endpoints are not warmed up: the balancer weighs them by their latency");
    if let Some(hash) = f.get("consistentHash") {
        return consistent_hash(&hash);
    }
    let simple = f.get("simple")?;
    let words = [
        ("UNSPECIFIED", Some("p2c")),
        ("LEAST_REQUEST", Some("leastRequest")),
        ("LEAST_CONN", Some("leastRequest")),
        ("ROUND_ROBIN", Some("roundRobin")),
        ("RANDOM", Some("random")),
        ("PASSTHROUGH", None),
    ];
    match simple.word(&words)? {
        Some(algorithm) => Some(json!({"algorithm": algorithm})),
        None => {
            simple.ignored("what is dialled is the Service; an endpoint of it is chosen as without this");
            None
        }
    }
}

fn consistent_hash(f: &Field<'_>) -> Option<Value> {
    let mut out = Map::new();
    let mut hash = Vec::new();
    if let Some(name) = f.get("httpHeaderName").and_then(|f| f.text()) {
        hash.push(json!({"header": name.to_ascii_lowercase()}));
    }
    if let Some(name) = f.get("httpQueryParameterName").and_then(|f| f.text()) {
        hash.push(json!({"query": name}));
    }
    if let Some(cookie) = f.get("httpCookie") {
        let mut made = Map::new();
        for name in ["name", "path"] {
            made.extend(cookie.get(name).and_then(|f| f.text()).map(|t| (name.to_string(), json!(t))));
        }
        let ttl = cookie.get("ttl").and_then(|f| f.duration().and(f.text()));
        made.extend(ttl.map(|t| ("ttl".to_string(), json!(t))));
        cookie.ignore("attributes", "the cookie has a path and a lifetime only");
        hash.push(json!({"cookie": made}));
    }
    if f.get("useSourceIp").and_then(|f| f.bool()) == Some(true) {
        hash.push(json!({"sourceIp": true}));
    }
    let ring = f.get("ringHash").and_then(|r| r.get("minimumRingSize")).or_else(|| f.get("minimumRingSize"));
    let size = ring.and_then(|f| f.u32()).filter(|n| *n > 0);
    match f.get("maglev") {
        Some(maglev) => {
            maglev.honoured();
            out.insert("algorithm".into(), json!("maglev"));
            let size = maglev.get("tableSize").and_then(|f| f.u32()).filter(|n| *n > 0);
            out.extend(size.map(|n| ("tableSize".to_string(), json!(n))));
        }
        None => {
            out.insert("algorithm".into(), json!("ringHash"));
            out.extend(size.map(|n| ("minimumRingSize".to_string(), json!(n))));
        }
    }
    match hash.is_empty() {
        true => {
            f.fail("says nothing to hash", "one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName")
        }
        false => {
            out.insert("hash".into(), json!(hash));
            Some(Value::Object(out))
        }
    }
}

/// Zero is no limit, as in Istio.
fn connection_pool(f: &Field<'_>, out: &mut Map<String, Value>) {
    let (mut breaker, mut connections) = (Map::new(), Map::new());
    let count = |f: &Field<'_>, name: &str| f.get(name).and_then(|f| f.u32()).filter(|n| *n > 0).map(|n| json!(n));
    let span = |f: &Field<'_>, name: &str| f.get(name).and_then(|f| f.duration().and(f.text())).map(|t| json!(t));
    let put = |to: &mut Map<String, Value>, name: &str, v: Option<Value>| to.extend(v.map(|v| (name.into(), v)));
    if let Some(tcp) = f.get("tcp") {
        put(&mut breaker, "maxConnections", count(&tcp, "maxConnections"));
        put(&mut connections, "connectTimeout", span(&tcp, "connectTimeout"));
        put(&mut connections, "idleTimeout", span(&tcp, "idleTimeout"));
        put(&mut connections, "maxAge", span(&tcp, "maxConnectionDuration"));
        if let Some(keepalive) = tcp.get("tcpKeepalive") {
            put(&mut connections, "keepalive", span(&keepalive, "time"));
            keepalive.ignore("probes", "as the system has it");
            keepalive.ignore("interval", "as the system has it");
        }
    }
    let mut upgrade = None;
    if let Some(http) = f.get("http") {
        put(&mut breaker, "maxPending", count(&http, "http1MaxPendingRequests"));
        put(&mut breaker, "maxRequests", count(&http, "http2MaxRequests"));
        put(&mut breaker, "maxRetries", count(&http, "maxRetries"));
        let each = count(&http, "maxRequestsPerConnection");
        let few = each.as_ref().and_then(Value::as_u64).filter(|n| *n < 10);
        if let Some((n, field)) = few.zip(http.get("maxRequestsPerConnection")) {
            let message = format!("closes every connection after {n} requests: a TLS handshake each {n} requests");
            field.warn(Some("G14"), message, "leave it out, or 100 and more");
        }
        put(&mut breaker, "maxRequestsPerConnection", each);
        let idle = span(&http, "idleTimeout");
        if let Some(other) = f.get("tcp").and_then(|t| t.get("idleTimeout")).filter(|_| idle.is_some()) {
            other.ignored("http.idleTimeout says something else");
        }
        put(&mut connections, "idleTimeout", idle);
        http.ignore("maxConcurrentStreams", "as many as the endpoint allows");
        http.ignore("useClientProtocol", "in the mesh it is HTTP/2, elsewhere what the client spoke");
        let words = [("DEFAULT", None), ("DO_NOT_UPGRADE", Some("http1")), ("UPGRADE", Some("http2"))];
        upgrade = http.get("h2UpgradePolicy").and_then(|f| f.word(&words)).flatten();
    }
    out.insert("breaker".into(), Value::Object(breaker));
    out.insert("connections".into(), Value::Object(connections));
    put(out, "http", upgrade.map(|w| json!(w)));
}

fn ejection(f: &Field<'_>) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, v: Option<Value>| out.extend(v.map(|v| (name.to_string(), v)));
    if let Some(old) = f.get("consecutiveErrors") {
        let n = old.u32();
        old.differs("counts 502, 503, 504 and failed connections, as it once did; today's Istio ignores it");
        let hint = "consecutive5xxErrors, or consecutiveGatewayErrors";
        let message = "is deprecated, and today's Istio ignores it: Envoy's default of 5 answers of 5xx decides there. \
                       Here it counts 502, 503, 504 and failed connections";
        old.warn(Some("G5"), message, hint);
        put("consecutiveGatewayErrors", n.map(|n| json!(n)));
        if !f.has("consecutive5xxErrors") {
            put("consecutive5xx", Some(json!(0)));
        }
    }
    for (name, ours) in [
        ("consecutive5xxErrors", "consecutive5xx"),
        ("consecutiveGatewayErrors", "consecutiveGatewayErrors"),
        ("consecutiveLocalOriginFailures", "consecutiveLocalOriginFailures"),
    ] {
        put(ours, f.get(name).and_then(|f| f.u32()).map(|n| json!(n)));
    }
    let split = "splitExternalLocalOriginErrors";
    put(split, f.get(split).and_then(|f| f.bool()).map(|y| json!(y)));
    for name in ["interval", "baseEjectionTime", "maxEjectionTime"] {
        put(name, f.get(name).and_then(|f| f.duration().and(f.text())).map(|t| json!(t)));
    }
    for name in ["maxEjectionPercent", "minHealthPercent"] {
        put(name, f.get(name).and_then(|f| f.int(0, 100)).map(|n| json!(n)));
    }
    f.ignore("outlierDetectionHttpErrorCodes", "which answers are errors cannot be chosen");
    Value::Object(out)
}

fn upstream_tls(f: &Field<'_>) -> Option<Value> {
    let text = |name: &str| f.get(name).and_then(|f| f.text());
    let mode = f.get("mode").map_or(Some("DISABLE"), |m| {
        m.word(&["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"].map(|word| (word, word)))
    })?;
    let mut out = Map::new();
    let mut put = |name: &str, v: Option<Value>| out.extend(v.map(|v| (name.to_string(), v)));
    for (name, why) in [
        ("credentialName", "certificates are read from files of the pod only"),
        ("caCrl", "revocation lists are not read"),
    ] {
        if let Some(field) = f.get(name) {
            field.ignored(why);
            field.warn(None, why, "");
        }
    }
    let names: Vec<String> = f.list("subjectAltNames").iter().filter_map(|f| f.text()).collect();
    let (sni, insecure) = (text("sni"), f.get("insecureSkipVerify").and_then(|f| f.bool()));
    let (roots, certificate, key) = (text("caCertificates"), text("clientCertificate"), text("privateKey"));
    let some = |list: &[String]| (!list.is_empty()).then(|| json!(list));
    match mode {
        "DISABLE" => return Some(json!("disable")),
        "ISTIO_MUTUAL" => {
            put("mode", Some(json!("mesh")));
            put("identities", some(&names));
        }
        _ => {
            put("mode", Some(json!("originate")));
            put("names", some(&names));
            put("roots", roots.map(|t| json!(t)));
            put("insecureSkipVerify", insecure.map(|y| json!(y)));
            if mode == "MUTUAL" {
                put("certificate", certificate.map(|t| json!(t)));
                put("key", key.map(|t| json!(t)));
            }
        }
    }
    put("sni", sni.map(|t| json!(t)));
    Some(Value::Object(out))
}
