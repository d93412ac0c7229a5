//! Who may ask what. Pure, so that the table below is the whole truth.

use http::{HeaderMap, Method, StatusCode, header};
use std::net::{IpAddr, SocketAddr};

/// Which listener a question came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Loopback: everything.
    Admin,
    /// The pod's address: readiness and metrics, nothing else.
    Public,
    /// The pod's address, the status port: the same with the app's, and the end of the sidecar for those in the pod.
    Status,
    /// The pod's address, Linkerd's port: readiness and metrics by their names there, and the end for those in the pod.
    Linkerd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Index,
    Help,
    Ready,
    Live,
    Stats,
    Metrics,
    ConfigDump,
    Clusters,
    Certs,
    ServerInfo,
    Listeners,
    Logging,
    Drain,
    Quit,
}

/// Path, what it is, whether the public door knows it, whether it changes something.
pub const PATHS: &[(&str, Path, &str, bool, bool)] = &[
    ("/", Path::Index, "this list", false, false),
    ("/help", Path::Help, "this list", false, false),
    ("/ready", Path::Ready, "200 LIVE, or 503 and why not", true, false),
    ("/healthz/ready", Path::Ready, "the same", true, false),
    ("/live", Path::Live, "200 while the process runs", true, false),
    ("/stats", Path::Stats, "counters and gauges, one per line", false, false),
    ("/stats/prometheus", Path::Metrics, "metrics in Prometheus' text format", true, false),
    ("/metrics", Path::Metrics, "the same", true, false),
    ("/config_dump", Path::ConfigDump, "the effective configuration, JSON", false, false),
    ("/clusters", Path::Clusters, "backends and their endpoints", false, false),
    ("/certs", Path::Certs, "certificates and roots, JSON", false, false),
    ("/server_info", Path::ServerInfo, "version, state, uptime, JSON", false, false),
    ("/listeners", Path::Listeners, "listeners and their addresses", false, false),
    ("/logging", Path::Logging, "the log filter; POST ?level=FILTER sets it for 15 minutes", false, false),
    ("/drain", Path::Drain, "POST: stop taking connections, finish what is in flight", false, true),
    ("/drain_listeners", Path::Drain, "the same", false, true),
    ("/quitquitquit", Path::Quit, "POST: drain, then exit", false, true),
    ("/shutdown", Path::Quit, "the same, by Linkerd's name", false, true),
];

const LINKERD: &[&str] = &["/metrics", "/ready", "/live", "/shutdown"];

/// What to do, or the status and sentence that refuse it.
pub fn admit(
    door: Door,
    peer: IpAddr,
    bound: SocketAddr,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<Path, (StatusCode, &'static str)> {
    let known = PATHS.iter().find(|(name, _, _, public, changes)| {
        let opens = match door {
            Door::Admin => true,
            Door::Public => *public,
            Door::Status => *public || *changes,
            Door::Linkerd => LINKERD.contains(name),
        };
        *name == path && opens
    });
    let trusted = door == Door::Admin || known.is_some_and(|(.., changes)| *changes);
    if trusted && !host_is_ours(headers, bound) {
        return Err((StatusCode::MISDIRECTED_REQUEST, "the Host is not this machine's\n"));
    }
    let Some((_, what, _, _, changes)) = known else {
        return Err((StatusCode::NOT_FOUND, "no such page; see /help\n"));
    };
    let read = *method == Method::GET || *method == Method::HEAD;
    let write = *method == Method::POST && (*changes || *what == Path::Logging);
    match (read, write, changes) {
        (true, _, false) => Ok(*what),
        (_, true, _) if !peer.to_canonical().is_loopback() => {
            Err((StatusCode::FORBIDDEN, "changes are made from this machine only\n"))
        }
        // A browser says where a page comes from; whatever it is, it is not an operator.
        (_, true, _) if headers.contains_key(header::ORIGIN) => Err((StatusCode::FORBIDDEN, "not from a web page\n")),
        (_, true, _) => Ok(*what),
        (true, _, true) => Err((StatusCode::METHOD_NOT_ALLOWED, "this changes something: use POST\n")),
        _ => Err((StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")),
    }
}

/// The `allow` header of a 405.
pub fn allowed(path: &str) -> &'static str {
    match PATHS.iter().find(|(name, ..)| *name == path) {
        Some((_, Path::Logging, ..)) => "GET, HEAD, POST",
        Some((_, _, _, _, true)) => "POST",
        _ => "GET, HEAD",
    }
}

/// Names of this machine that nobody's DNS decides about (or the address the listener has).
fn host_is_ours(headers: &HeaderMap, bound: SocketAddr) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(host) = host.to_str() else { return false };
    let Ok(host) = host.parse::<http::uri::Authority>() else { return false };
    let host = host.host().trim_start_matches('[').trim_end_matches(']');
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    host.parse::<IpAddr>()
        .is_ok_and(|ip| ip.to_canonical().is_loopback() || ip.to_canonical() == bound.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(door: Door, peer: &str, method: &str, path: &str, fields: &[(&'static str, &str)]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let method = method.parse().unwrap();
        match admit(door, peer.parse().unwrap(), "10.0.0.5:15000".parse().unwrap(), &method, path, &headers) {
            Ok(_) => 200,
            Err((status, _)) => status.as_u16(),
        }
    }

    #[test]
    fn the_table() {
        use Door::{Admin, Linkerd, Public, Status};
        let local: &[(&'static str, &str)] = &[("host", "localhost:15000")];
        let table: &[(Door, &str, &str, &str, &[(&'static str, &str)], u16)] = &[
            (Admin, "127.0.0.1", "GET", "/stats", local, 200),
            (Admin, "127.0.0.1", "HEAD", "/metrics", local, 200),
            (Admin, "127.0.0.1", "GET", "/nothing", local, 404),
            (Admin, "127.0.0.1", "GET", "/stats", &[("host", "127.0.0.1")], 200),
            (Admin, "127.0.0.1", "GET", "/stats", &[("host", "127.8.9.1:1")], 200),
            (Admin, "::1", "GET", "/stats", &[("host", "[::1]:15000")], 200),
            (Admin, "10.0.0.9", "GET", "/stats", &[("host", "10.0.0.5:15000")], 200),
            (Admin, "127.0.0.1", "GET", "/stats", &[("host", "evil.example")], 421),
            (Admin, "127.0.0.1", "GET", "/stats", &[("host", "localhost.evil.example")], 421),
            (Admin, "127.0.0.1", "GET", "/stats", &[("host", "127.0.0.1.nip.io")], 421),
            (Admin, "127.0.0.1", "GET", "/stats", &[("host", "10.0.0.6")], 421),
            (Admin, "127.0.0.1", "GET", "/stats", &[], 421),
            (Admin, "127.0.0.1", "GET", "/stats", &[("host", "localhost"), ("host", "evil")], 421),
            (Admin, "127.0.0.1", "GET", "/nothing", &[("host", "evil")], 421),
            (Admin, "127.0.0.1", "POST", "/drain", &[("host", "evil")], 421),
            (Admin, "127.0.0.1", "POST", "/drain", local, 200),
            (Admin, "::ffff:127.0.0.1", "POST", "/quitquitquit", local, 200),
            (Admin, "10.0.0.9", "POST", "/drain", &[("host", "10.0.0.5")], 403),
            (Admin, "127.0.0.1", "POST", "/drain", &[("host", "localhost"), ("origin", "http://evil")], 403),
            (Admin, "127.0.0.1", "GET", "/drain", local, 405),
            (Admin, "127.0.0.1", "GET", "/quitquitquit", local, 405),
            (Admin, "127.0.0.1", "PUT", "/drain", local, 405),
            (Admin, "127.0.0.1", "POST", "/stats", local, 405),
            (Admin, "127.0.0.1", "GET", "/logging", local, 200),
            (Admin, "127.0.0.1", "POST", "/logging", local, 200),
            (Admin, "10.0.0.9", "POST", "/logging", &[("host", "10.0.0.5")], 403),
            (Public, "10.0.0.9", "GET", "/ready", &[("host", "anything")], 200),
            (Public, "10.0.0.9", "GET", "/live", &[], 200),
            (Public, "10.0.0.9", "GET", "/metrics", &[], 200),
            (Public, "10.0.0.9", "GET", "/stats/prometheus", &[], 200),
            (Public, "10.0.0.9", "POST", "/metrics", &[], 405),
            (Public, "10.0.0.9", "GET", "/stats", &[], 404),
            (Public, "10.0.0.9", "GET", "/config_dump", &[], 404),
            (Public, "127.0.0.1", "POST", "/drain", local, 404),
            (Public, "127.0.0.1", "POST", "/quitquitquit", local, 404),
            (Public, "127.0.0.1", "GET", "/", local, 404),
            (Status, "10.0.0.9", "GET", "/healthz/ready", &[("host", "anything")], 200),
            (Status, "10.0.0.9", "GET", "/stats/prometheus", &[], 200),
            (Status, "127.0.0.1", "GET", "/stats", local, 404),
            (Status, "127.0.0.1", "GET", "/config_dump", local, 404),
            (Status, "127.0.0.1", "POST", "/logging", local, 404),
            (Status, "127.0.0.1", "POST", "/drain", local, 200),
            (Status, "127.0.0.1", "POST", "/quitquitquit", local, 200),
            (Status, "127.0.0.1", "GET", "/quitquitquit", local, 405),
            (Status, "10.0.0.9", "POST", "/quitquitquit", &[("host", "10.0.0.5")], 403),
            (Status, "127.0.0.1", "POST", "/quitquitquit", &[("host", "evil.example")], 421),
            (Status, "127.0.0.1", "POST", "/drain", &[("host", "localhost"), ("origin", "http://evil")], 403),
            (Linkerd, "10.0.0.9", "GET", "/ready", &[("host", "anything")], 200),
            (Linkerd, "10.0.0.9", "GET", "/live", &[], 200),
            (Linkerd, "10.0.0.9", "GET", "/metrics", &[], 200),
            (Linkerd, "10.0.0.9", "GET", "/stats", &[], 404),
            (Linkerd, "127.0.0.1", "POST", "/quitquitquit", local, 404),
            (Linkerd, "127.0.0.1", "POST", "/shutdown", local, 200),
            (Linkerd, "127.0.0.1", "GET", "/shutdown", local, 405),
            (Linkerd, "10.0.0.9", "POST", "/shutdown", &[("host", "10.0.0.5")], 403),
        ];
        for (door, peer, method, path, headers, status) in table {
            assert_eq!(ask(*door, peer, method, path, headers), *status, "{door:?} {peer} {method} {path} {headers:?}");
        }
    }
}
