//! Every error says where it is, which field, and what would be right; all of them at once.

use crate::files::Folder;
use std::path::Path;
use weft_proxy::config::file::ProxyConfig;
use weft_proxy::settings::line;

fn findings(text: &str) -> Vec<String> {
    let (config, diags) = ProxyConfig::parse(text, Path::new("/nowhere"));
    assert_eq!(config.is_none(), diags.has_errors());
    diags.0.iter().map(|d| line(Path::new("f"), d)).collect()
}

/// A file with one listener and a service, and `more` after it.
fn with(listener: &str, service: &str) -> String {
    format!(
        "listeners:\n- {{name: a, role: hop, address: '127.0.0.1:1', to: web}}\n{listener}\nservices:\n- name: web\n  port: 80\n  hosts: [web]\n{service}\n"
    )
}

#[test]
fn one_error_each() {
    let mut wrong = Vec::new();
    let listener = |text: &str| with(text, "");
    let service = |text: &str| with("", text);
    for (text, expected) in [
        ("listeners: []".into(), "f:1: listeners: nothing is listened on (at least one listener)"),
        (
            "admin: x\nlisteners: [{name: a, role: hop, address: '127.0.0.1:1'}]".into(),
            "f:1: admin: \"x\" is not understood (an IP address and a port, such as 127.0.0.1:15000)",
        ),
        ("services: []".into(), "f:1: listeners: is missing"),
        (
            "listenrs: []\nlisteners: [{name: a, role: hop, address: '127.0.0.1:1'}]".into(),
            "f:1: listenrs: unknown field (did you mean listeners?)",
        ),
        ("a: 1\n b: 2".into(), "f:2: not YAML: "),
        // Listeners.
        (
            listener("- {name: b, role: outboud, address: '127.0.0.1:2'}"),
            "f:3: listeners[1].role: \"outboud\" is not known here (one of hop, outbound, inbound, tcp-out, tcp-in)",
        ),
        (
            listener("- {name: b, role: outbound, address: localhost}"),
            "f:3: listeners[1].address: \"localhost\" is not understood (an IP address and a port, such as 127.0.0.1:15001 or [::]:15006)",
        ),
        (
            listener("- {name: a, role: outbound, address: '127.0.0.1:2'}"),
            "f:3: listeners[1].name: a is also the name of listeners[0] (give each a name of its own)",
        ),
        (
            listener("- {name: b, role: outbound, address: '127.0.0.1:1'}"),
            "f:3: listeners[1].address: 127.0.0.1:1 is also listeners[0].address (give each an address or a port of its own)",
        ),
        (
            listener("- {name: b, role: outbound, address: '127.0.0.1:2', to: wep}"),
            "f:3: listeners[1].to: no service `wep` (did you mean web?)",
        ),
        (
            listener("- {name: b, role: outbound, address: '127.0.0.1:2', to: {service: web, port: 81}}"),
            "f:3: listeners[1].to.port: web.default has no port 81 (its ports: 80)",
        ),
        (
            listener("- {name: b, role: outbound, address: '127.0.0.1:2', to: web.other}"),
            "f:3: listeners[1].to: no service `web` in namespace other (did you mean web.default?)",
        ),
        (
            listener("- {name: b, role: outbound, address: '127.0.0.1:2', to: {service: web, subset: v1}}"),
            "f:3: listeners[1].to: a listener goes to a service, not to a subset (let a route of it choose the subset)",
        ),
        (
            listener("- {name: b, role: inbound, address: '127.0.0.1:2'}"),
            "f:3: listeners[1].app: is missing (where the app listens, or originalDst: true behind a redirect rule)",
        ),
        (
            listener("- {name: b, role: outbound, address: '127.0.0.1:2', mtls: strict}"),
            "f:3: listeners[1].mtls: has no meaning for outbound (only for inbound and tcp-in)",
        ),
        (
            listener("- {name: b, role: inbound, address: '127.0.0.1:2', app: '127.0.0.1:3', mtls: strict}"),
            "f:3: listeners[1].mtls: strict needs a certificate (an identity section, or another mode)",
        ),
        (
            listener(
                "- {name: b, role: inbound, address: '127.0.0.1:2', app: '127.0.0.1:3', mtls: {ports: {x: strict}}}",
            ),
            "f:3: listeners[1].mtls.ports.x: \"x\" is not a port (a whole number from 1 to 65535)",
        ),
        (
            listener("- {name: b, role: inbound, address: '127.0.0.1:2', app: '127.0.0.1:3', clients: {ids: [web]}}"),
            "f:3: listeners[1].clients.ids[0]: a SPIFFE id looks like spiffe://trust-domain/ns/NAMESPACE/sa/ACCOUNT",
        ),
        (
            listener("- {name: b, role: tcp-out, address: '127.0.0.1:2'}"),
            "f:3: listeners[1].to: is missing (a service, or originalDst: true, or protocol: tls to go by server name)",
        ),
        (
            listener("- {name: b, role: hop, address: '127.0.0.1:2', to: web, limits: {headerBytes: 5}}"),
            "f:3: listeners[1].limits.headerBytes: 5 is out of range (a whole number from 1024 to 1048576)",
        ),
        (
            listener("- {name: b, role: hop, address: '127.0.0.1:2', to: web, limits: {headerTimeout: 0s}}"),
            "f:3: listeners[1].limits.headerTimeout: this limit cannot be switched off (a duration above zero)",
        ),
        // Services.
        (service("  subset: []"), "f:8: services[0].subset: unknown field (did you mean subsets?)"),
        (
            service("- {name: web, port: 80}"),
            "f:8: services[1]: port 80 of web.default is also services[0] (give each port of a service once)",
        ),
        (
            service("- {name: web2, port: 80, hosts: [WEB]}"),
            "f:8: services[1].hosts: web:80 leads to services[0] already (one service for each)",
        ),
        (
            service("- {name: a.b.c, port: 80}"),
            "f:8: services[1].name: \"a.b.c\" has more than a name and a namespace (NAME, NAME.NAMESPACE, or a name with dots beside a namespace field)",
        ),
        (
            service("- {name: b, ports: [{port: 1}, {port: 1}]}"),
            "f:8: services[1].ports: port 1 is here twice (give each port once)",
        ),
        (service("- {name: b, ports: []}"), "f:8: services[1].ports: a service has at least one port"),
        (service("- {name: b}"), "f:8: services[1].port: is missing"),
        (
            service("- {name: b, port: 80, hosts: ['a b']}"),
            "f:8: services[1].hosts[0]: \"a b\" is not a host (a host such as",
        ),
        (
            service("- {name: b, port: 80, hosts: ['b:x']}"),
            "f:8: services[1].hosts[0]: \"b:x\" has no such port (a host such as",
        ),
        (
            service("- {name: b, port: 80, addresses: [b]}"),
            "f:8: services[1].addresses[0]: \"b\" is not an address (an IP address such as",
        ),
        (
            service("  endpoints: ['db:1']"),
            "f:8: services[0].endpoints[0]: \"db:1\" is not understood (an IP address and a port, such as 10.1.0.5:8080 or [fd00::5]:8080; names are given as {dns: HOST:PORT})",
        ),
        (
            service("  endpoints: [{dns: db}]"),
            "f:8: services[0].endpoints[0].dns: \"db\" is not a name with a port (such as db.example.com:5432)",
        ),
        (
            service("  endpoints: [{dns: '10.0.0.1:80'}]"),
            "f:8: services[0].endpoints[0].dns: 10.0.0.1 is an address, not a name (give it as address)",
        ),
        (
            service("  endpoints: [{weight: 1}]"),
            "f:8: services[0].endpoints[0]: an endpoint has either an address or a DNS name (address: 10.1.0.5:8080, or dns: db.example.com:5432)",
        ),
        (
            service("  endpoints: ['10.0.0.1:1', '10.0.0.1:1']"),
            "f:8: services[0].endpoints: 10.0.0.1:1 is here twice (give each endpoint once, or different ids)",
        ),
        (
            service("  endpoints: [{address: '10.0.0.1:1', labels: {version: 1.10}}]"),
            "f:8: services[0].endpoints[0].labels.version: a number where text is expected (put it in quotes)",
        ),
        (
            service("  routes: [{to: {subset: v1}}]"),
            "f:8: services[0].routes[0].to.subset: no subset `v1` of web.default:80 (its subsets: none)",
        ),
        (
            service(
                "  subsets: [{name: v2, labels: {version: v2}}]\n  routes:\n  - to: [{service: web, weight: 1}, {subset: v1}]",
            ),
            "f:10: services[0].routes[0].to[1].subset: no subset `v1` of web.default:80 (did you mean v2?)",
        ),
        (
            service("  routes: [{to: revews}]\n- {name: reviews, port: 80}"),
            "f:8: services[0].routes[0].to: no service `revews` (did you mean reviews?)",
        ),
        (
            service("  routes: [{mirror: {to: {service: web, port: 90}}}]"),
            "f:8: services[0].routes[0].mirror.to.port: web.default has no port 90 (its ports: 80)",
        ),
        (
            service("  routes:\n  - {name: x}\n  - {name: x}"),
            "f:10: services[0].routes[1].name: \"x\" is also the name of routes[0]; names are unique within a service",
        ),
        (
            service("  policy: {breaker: {maxConnectoins: 1}}"),
            "f:8: services[0].policy.breaker.maxConnectoins: unknown field (did you mean maxConnections?)",
        ),
        (
            service("  policy: {tls: {mode: mesh}}"),
            "f:8: services[0].policy.tls: mesh TLS needs a certificate (an identity section, or another mode)",
        ),
        (
            service("  policy: {tls: {mode: originate, roots: none.pem}}"),
            "f:8: services[0].policy.tls.roots: /nowhere/none.pem cannot be read: No such file or directory (os error 2) (a PEM file; looked for at /nowhere/none.pem)",
        ),
        (
            service("  subsets: [{name: v1, labels: {a: b}}, {name: v1, labels: {a: c}}]"),
            "f:8: services[0].subsets: subset v1 is here twice (give each name once)",
        ),
        (
            service("identity: {certificate: a.pem, key: a.key, trust: []}"),
            "f:8: identity.certificate: /nowhere/a.pem cannot be read",
        ),
        (service("identity: {certificate: a.pem, key: a.key}"), "f:8: identity.trust: is missing"),
        (service("workers: 0"), "f:8: workers: 0 is out of range (a whole number from 1 to 1024)"),
        (
            service("dns: {servers: [localhost]}"),
            "f:8: dns.servers[0]: \"localhost\" is not understood (an IP address and a port, such as 10.96.0.10:53)",
        ),
    ] {
        let found = findings(&text);
        if found.len() != 1 || !found[0].starts_with(expected) {
            wrong.push(format!("{text}\nexpected {expected}\nfound    {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn all_errors_at_once() {
    let text = "\
admin: here
listeners:
- {name: a, role: hop, address: 127.0.0.1:1, to: web}
- {name: b, role: hop, adress: 127.0.0.1:2}
services:
- name: web
  port: 80
  routes:
  - timeout: {request: soon}
  endpoints: [nonsense]
- name: other
  port: 80
  routes:
  - to: [web, wed]
- name: third
  port: 99999
";
    let found = findings(text);
    for expected in [
        "f:1: admin: ",
        "f:4: listeners[1].address: is missing",
        "f:4: listeners[1].adress: unknown field (did you mean address?)",
        "f:9: services[0].routes[0].timeout.request: \"soon\" is not a duration",
        "f:10: services[0].endpoints[0]: \"nonsense\" is not understood",
        "f:14: services[1].routes[0].to[1]: no service `wed` (did you mean web?)",
        "f:16: services[2].port: 99999 is out of range",
    ] {
        assert_eq!(found.iter().filter(|f| f.starts_with(expected)).count(), 1, "{expected}\n{found:#?}");
    }
    // The reference to `web`, which is there but wrong, is no error of its own.
    assert_eq!(found.len(), 7, "{found:#?}");
}

#[test]
fn certificates_are_looked_into() {
    let folder = Folder::new();
    folder.certificates();
    let text = "listeners: [{name: a, role: inbound, address: '127.0.0.1:1', app: '127.0.0.1:2', mtls: strict}]\n\
        identity:\n  certificate: web.pem\n  key: web.key\n  trust: [{domain: cluster.local, roots: [root.pem]}]\n";
    assert!(ProxyConfig::parse(text, folder.path()).0.is_some());
    folder.write("root.pem", "not a certificate");
    let other = Folder::new();
    other.certificates();
    std::fs::copy(other.join("web.key"), folder.join("web.key")).unwrap();
    let (config, diags) = ProxyConfig::parse(text, folder.path());
    assert!(config.is_none());
    let found: Vec<String> = diags.0.iter().map(|d| line(Path::new("f"), d)).collect();
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("f:3: identity.certificate: "), "{found:#?}");
    assert!(found[1].starts_with("f:5: identity.trust[0].roots[0]: "), "{found:#?}");
}

#[test]
fn validate_says_what_is_there_or_what_is_wrong() {
    use clap::Parser;
    let folder = Folder::new();
    let file = folder.write("weft.yaml", &with("", "  routes: [{name: a}]"));
    let run = |more: &[&str]| {
        let path = file.to_str().unwrap();
        let args = [&["weft-proxy", "--config", path, "--validate"], more].concat();
        weft_proxy::settings::Settings::parse_from(args).findings(false)
    };
    assert_eq!(run(&[]), (true, "ok: 1 listener, 1 service, 1 route\n".into()));
    let (good, text) = run(&["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(good && json["ok"] == true && json["counts"]["routes"] == 1, "{text}");
    folder.write("weft.yaml", &with("", "  routs: []"));
    let (good, text) = run(&[]);
    assert!(!good);
    assert_eq!(text, format!("{}:8: services[0].routs: unknown field (did you mean routes?)\n", file.display()));
}
