//! What policies say, as JSON: numbers and words that the page and programs read.

use serde_json::{Map, Value as Json, json};
use std::time::Duration;
use weft_policy::balance::{Algorithm, HashOn};
use weft_policy::fault::AbortWith;
use weft_policy::listener::{Clients, Protocol};
use weft_policy::mtls::{Expected, Mode};
use weft_policy::retry::Outcome;
use weft_policy::{backend, balance, breaker, budget, headers, outlier, retry, rewrite, timeout};

/// `1m30s`, `250ms`
pub fn span(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), u64::from(duration.subsec_millis()));
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s"), (millis, "ms")];
    let text: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".into() } else { text }
}

pub fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Detect => "detect",
        Protocol::Http => "http",
        Protocol::Http1 => "http1",
        Protocol::Http2 => "http2",
        Protocol::Opaque => "tcp",
        Protocol::Tls => "tls",
    }
}

/// A retry policy by what it does: each outcome is asked of the policy itself.
pub fn retries(config: &retry::Config) -> Json {
    let takes = |outcome: Outcome| config.on.matches(&outcome);
    let answer = |status, grpc_status| Outcome::Response { status, grpc_status, ratelimited: false };
    let mut statuses: Vec<[u16; 2]> = Vec::new();
    for status in (100..600).filter(|status| takes(answer(*status, None))) {
        match statuses.last_mut() {
            Some(range) if range[1] + 1 == status => range[1] = status,
            _ => statuses.push([status, status]),
        }
    }
    let grpc: Vec<u8> = (1..=16).filter(|code| takes(answer(200, Some(*code)))).collect();
    json!({
        "attempts": config.attempts,
        "statuses": statuses,
        "grpcStatuses": grpc,
        "connectFailure": takes(Outcome::ConnectFailed),
        "refusedStream": takes(Outcome::RefusedStream),
        "reset": takes(Outcome::Reset { before_request_bytes: false }),
        "resetBeforeRequest": takes(Outcome::Reset { before_request_bytes: true }),
        "perTryTimeouts": config.per_try_timeout.is_some() && takes(Outcome::PerTryTimeout),
        "ratelimited": takes(Outcome::Response { status: 429, grpc_status: None, ratelimited: true }),
        "backoff": {"base": span(config.backoff.base), "max": span(config.backoff.max)},
        "avoidsPreviousHosts": config.avoid_previous_hosts,
        "largestBody": retry::REPLAY_CAP,
    })
}

pub fn budget(config: &budget::Config) -> Json {
    match config {
        budget::Config::Rate { percent, min_per_second, window } => {
            json!({"percent": percent, "minPerSecond": min_per_second, "window": span(*window)})
        }
        budget::Config::Concurrent { percent, min_concurrency } => {
            json!({"percent": percent, "minConcurrency": min_concurrency})
        }
    }
}

pub fn breaker(config: &breaker::Config) -> Json {
    let mut out = Map::new();
    for (name, limit) in [
        ("maxConnections", config.max_connections),
        ("maxPending", config.max_pending),
        ("maxRequests", config.max_requests),
        ("maxRetries", config.max_retries),
        ("maxRequestsPerConnection", config.max_requests_per_connection),
    ] {
        out.extend(limit.map(|limit| (name.to_string(), json!(limit))));
    }
    Json::Object(out)
}

pub fn outlier(config: &outlier::Config) -> Json {
    match config {
        outlier::Config::Ejection(e) => json!({"ejection": {
            "consecutive5xx": e.consecutive_5xx,
            "consecutiveGatewayErrors": e.consecutive_gateway,
            "consecutiveLocalOriginFailures": e.consecutive_local_origin.filter(|_| e.split_external_local),
            "interval": span(e.interval),
            "baseEjectionTime": span(e.base_ejection),
            "maxEjectionTime": span(e.max_ejection),
            "maxEjectionPercent": e.max_ejection_percent,
            "minHealthPercent": e.min_health_percent,
        }}),
        outlier::Config::Accrual(a) => json!({"accrual": {
            "maxFailures": a.max_failures,
            "minPenalty": span(a.min_penalty),
            "maxPenalty": span(a.max_penalty),
            "jitter": f64::from(a.jitter) / 1000.0,
        }}),
    }
}

pub fn balance(config: &balance::Config) -> Json {
    let (algorithm, means) = match config.algorithm {
        Algorithm::P2cEwma(_) => ("p2c", "the faster of two drawn at random: even while they are equally fast"),
        Algorithm::LeastRequest { .. } => {
            ("leastRequest", "the less loaded of a few: even while they are equally loaded")
        }
        Algorithm::RoundRobin => ("roundRobin", "in turn"),
        Algorithm::Random => ("random", "at random"),
        Algorithm::Ring { .. } => ("ringHash", "by the hash of the request"),
        Algorithm::Maglev { .. } => ("maglev", "by the hash of the request"),
    };
    let hash = config.hash.iter().map(|source| match source {
        HashOn::Header(name) => format!("header {name}"),
        HashOn::Cookie { name, .. } => format!("cookie {name}"),
        HashOn::SourceIp => "the caller's address".into(),
        HashOn::Query(name) => format!("query parameter {name}"),
    });
    json!({"algorithm": algorithm, "means": means, "hash": hash.collect::<Vec<_>>()})
}

pub fn connections(config: &timeout::ConnectConfig) -> Json {
    json!({
        "connectTimeout": span(config.connect_timeout),
        "idleTimeout": config.idle_timeout.map(span),
        "maxAge": config.max_age.map(span),
        "keepalive": config.keepalive.map(span),
    })
}

pub fn http(config: backend::Http) -> &'static str {
    match config {
        backend::Http::Auto => "auto",
        backend::Http::Http1 => "http1",
        backend::Http::Http2 => "http2",
    }
}

pub fn headers(config: &headers::Config) -> Json {
    let pairs = |list: &[(Box<str>, headers::Value)]| -> Json {
        Json::Object(list.iter().map(|(name, value)| (name.to_string(), json!(value.to_string()))).collect())
    };
    let mut out = Map::new();
    for (name, list) in [("set", &config.set), ("add", &config.add)] {
        if !list.is_empty() {
            out.insert(name.into(), pairs(list));
        }
    }
    if !config.remove.is_empty() {
        out.insert("remove".into(), json!(config.remove.iter().map(|n| &**n).collect::<Vec<_>>()));
    }
    Json::Object(out)
}

pub fn rewritten(config: &rewrite::Config) -> Json {
    use rewrite::PathRewrite::{Full, PathPrefix, Prefix, Regex};
    let path = config.path.as_ref().map(|path| match path {
        Full(to) => format!("the whole path becomes {to}"),
        Prefix(to) => format!("the matched text becomes {to}"),
        PathPrefix(to) => format!("the matched prefix becomes {}", if to.is_empty() { "/" } else { to }),
        Regex(_) => "what a regex finds is replaced".to_string(),
    });
    json!({"path": path, "authority": config.authority.as_deref()})
}

pub fn aborted(with: AbortWith) -> Json {
    match with {
        AbortWith::Http(status) => json!({"status": status}),
        AbortWith::Grpc(status) => json!({"grpcStatus": status}),
    }
}

pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Strict => "strict",
        Mode::Permissive => "permissive",
        Mode::Disable => "disable",
    }
}

pub fn clients(clients: &Clients) -> Json {
    match clients {
        Clients::Any => json!("any"),
        Clients::Ids(ids) => json!(ids.iter().map(|id| id.as_str()).collect::<Vec<_>>()),
        Clients::DnsName(name) => json!([name]),
    }
}

pub fn expected(expected: &Expected<'_>) -> Json {
    match expected {
        Expected::Any => json!("whoever the mesh's roots prove"),
        Expected::Id(id) => json!(id.as_str()),
        Expected::Ids(ids) => json!(ids.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(" or ")),
        Expected::DnsName(name) => json!(format!("DNS name {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_they_are_written() {
        for (millis, text) in
            [(0, "0s"), (250, "250ms"), (1500, "1s500ms"), (90_000, "1m30s"), (3_600_000, "1h"), (86_400_000, "24h")]
        {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn retries_by_their_outcomes() {
        let on = retry::Conditions::parse("5xx,reset,404,unavailable").unwrap();
        let config = retry::Config { on, attempts: 3, ..retry::Config::unasked() };
        let told = retries(&config);
        assert_eq!(told["statuses"], json!([[404, 404], [500, 599]]));
        assert_eq!((told["grpcStatuses"].clone(), told["reset"].clone()), (json!([14]), json!(true)));
        let told = retries(&retry::Config::unasked());
        assert_eq!((told["statuses"].clone(), told["connectFailure"].clone()), (json!([]), json!(true)));
        assert_eq!((told["attempts"].clone(), told["reset"].clone()), (json!(2), json!(false)));
    }
}
