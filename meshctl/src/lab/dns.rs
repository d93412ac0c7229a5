//! DNS for the lab's pods: names of Services, as cluster DNS gives them.
//!
//! Answers `NAME`, `NAME.NS`, `NAME.NS.svc` and `NAME.NS.svc.cluster.local`, and `POD.` before a headless Service's name. A bare
//! name means the asker's namespace. Addresses are IPv4; other names do not exist, since a lab reaches nothing outside.

use super::service::{Kind, View};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::UdpSocket;
use tokio::sync::watch;

pub const PORT: u16 = 53;

/// As many as fit into an answer of 512 bytes after the longest question.
const MOST: usize = 14;

/// Pods come and go within seconds.
const TTL: u32 = 5;

pub async fn serve(socket: UdpSocket, view: watch::Receiver<Arc<View>>) {
    let turn = AtomicUsize::new(0);
    let mut packet = [0u8; 1500];
    loop {
        // Errors are those of answers sent earlier to pods that have gone.
        let Ok((n, from)) = socket.recv_from(&mut packet).await else { continue };
        let now = view.borrow().clone();
        if let Some(answer) = answer(&packet[..n], from, &now, turn.fetch_add(1, Ordering::Relaxed)) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Addresses(Vec<Ipv4Addr>),
    Nothing,
}

fn answer(query: &[u8], from: SocketAddr, view: &View, turn: usize) -> Option<Vec<u8>> {
    // A header of 12 bytes, then one question: labels, type, class.
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;
    let asker = match from.ip() {
        IpAddr::V4(ip) => view.pods.iter().find(|p| p.address == ip).map(|p| p.namespace.as_str()),
        IpAddr::V6(_) => None,
    };
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let (code, mut addresses) = match lookup(&labels, asker, view, 0) {
        Found::Addresses(all) => (0, all),
        Found::Nothing => (3, Vec::new()),
    };
    // Each answer begins with another one, so that clients that take the first spread out.
    if !addresses.is_empty() {
        let first = turn % addresses.len();
        addresses.rotate_left(first);
    }
    // A name that has no address of that family exists all the same.
    if kind != 1 {
        addresses.clear();
    }
    addresses.truncate(MOST);
    let mut out =
        vec![query[0], query[1], 0x84 | query[2] & 1, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0];
    out.extend_from_slice(question);
    for address in addresses {
        // The name as a pointer to the question's; type A, class IN.
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        out.extend_from_slice(&TTL.to_be_bytes());
        out.extend_from_slice(&[0, 4]);
        out.extend_from_slice(&address.octets());
    }
    Some(out)
}

fn lookup(labels: &[&str], asker: Option<&str>, view: &View, depth: u8) -> Found {
    let labels = labels.strip_suffix(&["cluster", "local"]).unwrap_or(labels);
    let (labels, whole) = match labels.strip_suffix(&["svc"]) {
        Some(rest) => (rest, true),
        None => (labels, false),
    };
    let (pod, name, namespace) = match (labels, asker) {
        ([name], Some(asker)) if !whole => (None, *name, asker),
        ([name, namespace], _) => (None, *name, *namespace),
        ([pod, name, namespace], _) => (Some(*pod), *name, *namespace),
        _ => return Found::Nothing,
    };
    let Some(service) = view.service(namespace, name) else { return Found::Nothing };
    match &service.kind {
        Kind::Headless => {
            let pods = view.pods_of(service).filter(|p| match pod {
                Some(pod) => p.name == pod && p.subdomain.as_deref() == Some(name),
                None => true,
            });
            let addresses: Vec<Ipv4Addr> = pods.map(|p| p.address).collect();
            if pod.is_some() && addresses.is_empty() { Found::Nothing } else { Found::Addresses(addresses) }
        }
        _ if pod.is_some() => Found::Nothing,
        Kind::Virtual { address, .. } => Found::Addresses(vec![*address]),
        // Another name of something in the lab; of the outside nothing is known. Two that name each other end somewhere.
        Kind::External(other) if depth < 4 => {
            let labels: Vec<&str> = other.trim_end_matches('.').split('.').collect();
            lookup(&labels, None, view, depth + 1)
        }
        Kind::External(_) => Found::Nothing,
    }
}

/// What a pod of that namespace is told that a name stands for.
pub fn addresses(name: &str, namespace: &str, view: &View) -> Vec<Ipv4Addr> {
    let labels: Vec<&str> = name.trim_end_matches('.').split('.').collect();
    match lookup(&labels, Some(namespace), view, 0) {
        Found::Addresses(all) => all,
        Found::Nothing => Vec::new(),
    }
}

/// What a pod's resolver is told.
pub fn resolv_conf(server: Ipv4Addr, namespace: &str) -> String {
    format!(
        "nameserver {server}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::service;
    use std::collections::BTreeMap;

    fn view() -> View {
        let service = |namespace: &str, name: &str, kind| service::Service {
            namespace: namespace.into(),
            name: name.into(),
            kind,
            selector: BTreeMap::from([("app".to_string(), name.to_string())]),
            ports: Vec::new(),
            unready_too: false,
        };
        let pod = |name: &str, last| service::Pod {
            namespace: "shop".into(),
            name: name.into(),
            subdomain: Some("db".into()),
            address: Ipv4Addr::new(10, 244, 1, last),
            labels: BTreeMap::from([("app".to_string(), "db".to_string())]),
            ports: Vec::new(),
            ready: true,
        };
        let address = Ipv4Addr::new(10, 96, 0, 7);
        View {
            services: vec![
                service("shop", "web", Kind::Virtual { address, open: false }),
                service("shop", "db", Kind::Headless),
                service("default", "out", Kind::External("web.shop.svc.cluster.local".into())),
                service("default", "circle", Kind::External("circle.default.svc.cluster.local".into())),
            ],
            pods: vec![pod("db-0", 1), pod("db-1", 2)],
        }
    }

    #[test]
    fn names_mean_what_they_do_in_a_cluster() {
        let view = view();
        let web = || Found::Addresses(vec![Ipv4Addr::new(10, 96, 0, 7)]);
        let rows = [
            ("web", Some("shop"), web()),
            ("web", Some("default"), Found::Nothing),
            ("web", None, Found::Nothing),
            ("web.shop", None, web()),
            ("web.shop.svc", Some("default"), web()),
            ("web.shop.svc.cluster.local", None, web()),
            ("web.svc.cluster.local", Some("shop"), Found::Nothing),
            ("db.shop", None, Found::Addresses(vec![Ipv4Addr::new(10, 244, 1, 1), Ipv4Addr::new(10, 244, 1, 2)])),
            ("db-1.db.shop.svc.cluster.local", None, Found::Addresses(vec![Ipv4Addr::new(10, 244, 1, 2)])),
            ("db-7.db.shop.svc.cluster.local", None, Found::Nothing),
            ("a.web.shop.svc", None, Found::Nothing),
            ("out.default", None, web()),
            ("circle.default", None, Found::Nothing),
            ("example.com", Some("shop"), Found::Nothing),
        ];
        for (name, asker, wanted) in rows {
            let labels: Vec<&str> = name.split('.').collect();
            assert_eq!(lookup(&labels, asker, &view, 0), wanted, "{name} from {asker:?}");
        }
    }

    #[test]
    fn packets() {
        let ask = |kind: u8| {
            let mut query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03WEB\x04shop\x00\x00".to_vec();
            query.extend_from_slice(&[kind, 0, 1]);
            answer(&query, "10.244.1.1:4000".parse().unwrap(), &view(), 3).unwrap()
        };
        let a = ask(1);
        assert_eq!((a[3] & 15, a[7]), (0, 1));
        assert!(a.ends_with(&[0, 4, 10, 96, 0, 7]), "{a:?}");
        let aaaa = ask(28);
        assert_eq!((aaaa[3] & 15, aaaa[7]), (0, 0), "the name exists");
        for broken in [&b""[..], b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x3fWEB"] {
            assert_eq!(answer(broken, "10.244.1.1:4000".parse().unwrap(), &view(), 0), None);
        }
    }
}
