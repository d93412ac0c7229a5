//! Service: names, addresses and ports. What a port speaks is declared by `appProtocol`, or by its name's first word.

use crate::builder::{Builder, For, Port, Service};
use crate::object::{Objects, field};
use crate::reader::{Field, Reader};
use crate::world::Clients;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use weft_policy::diag::Severity;
use weft_policy::doc::{Node, Value};
use weft_policy::id::ServiceId;

/// Ports whose servers speak first, or whose protocols nobody should sniff: SMTP, DNS, MySQL, Galera, PostgreSQL, Redis,
/// Elasticsearch, memcached, MongoDB.
const OPAQUE: [u16; 10] = [25, 53, 587, 3306, 4444, 5432, 6379, 9300, 11211, 27017];

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let (object, spec) = (reader.object, reader.spec());
    let id = ServiceId::new(&object.namespace, &object.name);
    let external = spec.get("type").and_then(|f| f.text()).as_deref() == Some("ExternalName");
    let external_name = spec.get("externalName").and_then(|f| f.text());
    let given: Vec<String> =
        spec.get("clusterIP").into_iter().chain(spec.list("clusterIPs")).filter_map(|f| f.text()).collect();
    let headless = !external && given.iter().any(|a| a == "None");
    for (name, why) in [
        ("sessionAffinity", "balancing is the mesh's: DestinationRule loadBalancer.consistentHash"),
        ("sessionAffinityConfig", "as sessionAffinity"),
        ("externalIPs", "not the mesh's"),
        ("externalTrafficPolicy", "not the mesh's"),
        ("internalTrafficPolicy", "near and far endpoints are called alike"),
        ("trafficDistribution", "near and far endpoints are called alike"),
        ("loadBalancerIP", "not the mesh's"),
        ("loadBalancerClass", "not the mesh's"),
        ("loadBalancerSourceRanges", "not the mesh's"),
        ("allocateLoadBalancerNodePorts", "not the mesh's"),
        ("healthCheckNodePort", "not the mesh's"),
        ("ipFamilies", "clusterIPs says it"),
        ("ipFamilyPolicy", "clusterIPs says it"),
    ] {
        spec.ignore(name, why);
    }
    let mut service = Service {
        object: Some(object.reference()),
        labels: object.labels.clone(),
        annotations: object.annotations.clone(),
        selector: spec.get("selector").map(|f| f.texts()).filter(|_| !external).unwrap_or_default(),
        not_ready_too: spec.get("publishNotReadyAddresses").and_then(|f| f.bool()).unwrap_or(false),
        headless,
        hosts: hosts(&id, &b.options.cluster_domain),
        ..Service::default()
    };
    if !headless {
        let dialled = given.iter().filter_map(|a| a.parse::<IpAddr>().ok()).chain(b.addresses.get(&id).copied());
        let dialled: BTreeSet<IpAddr> = dialled.collect();
        service.addresses = dialled.iter().map(IpAddr::to_string).collect();
    }
    for field in spec.list("ports") {
        let Some((number, mut port)) = port(&field) else { continue };
        if let Some(name) = external_name.as_deref().filter(|_| external) {
            let target = port.target.parse().unwrap_or(number);
            port.endpoints.push(json!({"dns": format!("{}:{target}", name.trim_end_matches('.'))}));
        }
        if service.ports.insert(number, port).is_some() {
            field.fail::<()>(format!("port {number} is here twice"), "each port once for each protocol");
        }
    }
    if service.ports.is_empty() {
        reader.finding(Severity::Warning, None, "spec.ports", "has no TCP port, so nothing of it is in the mesh", "");
        return;
    }
    b.services.insert(id, service);
}

/// Short names are for clients of the same namespace: elsewhere they mean another service.
pub fn hosts(id: &ServiceId, domain: &str) -> Vec<For<String>> {
    let (name, namespace) = (&id.name, &id.namespace);
    let own = Clients { namespaces: [namespace.to_string()].into(), labels: BTreeMap::new() };
    let any = |what| For { clients: Clients::default(), what };
    vec![
        For { clients: own, what: name.to_string() },
        any(format!("{name}.{namespace}")),
        any(format!("{name}.{namespace}.svc")),
        any(format!("{name}.{namespace}.svc.{domain}")),
    ]
}

fn port(field: &Field<'_>) -> Option<(u16, Port)> {
    field.ignore("nodePort", "not the mesh's");
    let number = field.get("port").and_then(|f| f.port());
    let name = field.get("name").and_then(|f| f.text()).unwrap_or_default();
    let target = field.get("targetPort").and_then(|f| f.text());
    let app_protocol = field.get("appProtocol").and_then(|f| f.text());
    if field.get("protocol").and_then(|f| f.text()).is_some_and(|transport| transport != "TCP") {
        field.ignored("only TCP is the mesh's");
        return None;
    }
    let Some(number) = number else {
        return match field.has("port") {
            true => None,
            false => field.fail("has no port", "port: 80"),
        };
    };
    let protocol = protocol(number, &name, app_protocol.as_deref());
    let target = target.unwrap_or_else(|| number.to_string());
    Some((number, Port { name, protocol, target, endpoints: Vec::new() }))
}

/// What a port of a Service speaks: http, http1, http2, grpc, tcp, or detect.
pub fn protocol(number: u16, name: &str, app_protocol: Option<&str>) -> &'static str {
    let declared = app_protocol.map(str::to_ascii_lowercase);
    let declared = declared.and_then(|p| word(&p));
    let named = || match name {
        _ if name.starts_with("grpc-web") => Some("http"),
        _ => word(name.split('-').next().unwrap_or_default()),
    };
    let known = || Some("tcp").filter(|_| OPAQUE.contains(&number));
    declared.or_else(named).or_else(known).unwrap_or("detect")
}

fn word(word: &str) -> Option<&'static str> {
    Some(match word {
        "http" | "kubernetes.io/ws" | "grpc-web" => "http",
        "http1" => "http1",
        "http2" | "h2c" | "kubernetes.io/h2c" => "http2",
        "grpc" => "grpc",
        // TLS of the app's own is passed through as it is.
        "tcp" | "https" | "tls" | "kubernetes.io/wss" | "mongo" | "mysql" | "redis" | "postgres" | "amqp" | "kafka" => {
            "tcp"
        }
        _ => return None,
    })
}

/// The address that clients dial, of each Service that has one: its own, or a made one of 10.96.0.0/12, the same for the same
/// set of Services everywhere.
pub fn addresses(objects: &Objects) -> BTreeMap<ServiceId, IpAddr> {
    let (mut found, mut without) = (BTreeMap::new(), BTreeSet::new());
    for object in objects.of("", "Service") {
        let id = ServiceId::new(&object.namespace, &object.name);
        let spec = field(&object.node, "spec");
        let text = |node: &Node| match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        match spec.and_then(|s| field(s, "clusterIP")).and_then(text) {
            Some(headless) if headless == "None" => {}
            Some(given) if given.parse::<IpAddr>().is_ok() => {
                found.extend(given.parse().ok().map(|ip| (id, ip)));
            }
            _ => {
                without.insert(id);
            }
        }
    }
    let mut taken: BTreeSet<IpAddr> = found.values().copied().collect();
    for id in without {
        let start = fnv(&format!("{}/{}", id.namespace, id.name));
        let free = (0..1 << 20).map(|n| made(start.wrapping_add(n))).find(|ip| !taken.contains(ip));
        if let Some(ip) = free {
            taken.insert(ip);
            found.insert(id, ip);
        }
    }
    found
}

/// 10.96.0.0/12 without its first 256, which clusters give to their own.
fn made(n: u32) -> IpAddr {
    let size = (1 << 20) - 512;
    IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + n % size))
}

/// FNV-1a: small, and the same for ever.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_port_speaks() {
        for (number, name, app, expected) in [
            (80, "http-web", None, "http"),
            (80, "http", None, "http"),
            (80, "", None, "detect"),
            (80, "web", None, "detect"),
            (80, "grpc-web-x", None, "http"),
            (80, "grpc-x", None, "grpc"),
            (80, "http2-x", None, "http2"),
            (5432, "db", None, "tcp"),
            (5432, "http-odd", None, "http"),
            (443, "https-x", None, "tcp"),
            (80, "tcp-x", Some("HTTP"), "http"),
            (80, "http-x", Some("kubernetes.io/h2c"), "http2"),
            (80, "http-x", Some("example.com/own"), "http"),
        ] {
            assert_eq!(protocol(number, name, app), expected, "{number} {name} {app:?}");
        }
    }
}
