//! Services, and which pods answer for them right now: what DNS, address translation and the URLs all read.

use super::manifest::{DEFAULT_NAMESPACE, json, list, port, text, texts};
use super::workload::Target;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use weft_dialects::kubernetes::{addresses, service::protocol};
use weft_dialects::object::Objects;
use weft_policy::id::ServiceId;

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub kind: Kind,
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<Port>,
    /// Also pods that are not ready.
    pub unready_too: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The address, and whether the outside has a way in.
    Virtual {
        address: Ipv4Addr,
        open: bool,
    },
    Headless,
    External(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    pub name: Option<String>,
    pub number: u16,
    pub udp: bool,
    pub target: Target,
    /// As the mesh takes it: http, tcp, ... or detect.
    pub protocol: &'static str,
}

impl Port {
    /// HTTP/1.1, as far as anybody has said.
    pub fn speaks_http(&self) -> bool {
        !self.udp && ["http", "http1", "detect"].contains(&self.protocol)
    }
}

/// A pod as services see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub subdomain: Option<String>,
    pub address: Ipv4Addr,
    pub labels: BTreeMap<String, String>,
    /// Named container ports.
    pub ports: Vec<(String, u16)>,
    pub ready: bool,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub services: Vec<Service>,
    pub pods: Vec<Pod>,
}

pub fn services(objects: &Objects, problems: &mut Vec<String>) -> Vec<Service> {
    let addresses = addresses(objects);
    let mut found = Vec::new();
    for object in objects.of("", "Service") {
        let spec = &json(&object.node)["spec"];
        let namespace = if object.namespace.is_empty() { DEFAULT_NAMESPACE } else { &object.namespace };
        let address = match addresses.get(&ServiceId::new(&object.namespace, &object.name)) {
            Some(IpAddr::V4(address)) => Some(address),
            // Pods have IPv4 here.
            Some(IpAddr::V6(_)) | None => None,
        };
        let kind = match (spec["type"].as_str(), spec["clusterIP"].as_str(), address) {
            (Some("ExternalName"), ..) => Kind::External(text(&spec["externalName"]).unwrap_or_default()),
            (_, Some("None"), _) => Kind::Headless,
            (kind, _, Some(address)) => {
                Kind::Virtual { address: *address, open: matches!(kind, Some("LoadBalancer" | "NodePort")) }
            }
            (.., None) => {
                problems.push(format!("{}: {} has no address", object.file, object.reference()));
                continue;
            }
        };
        let ports = list(&spec["ports"]).iter().filter_map(|p| {
            let number = port(&p["port"])?;
            let target = Target::read(&p["targetPort"]).unwrap_or(Target::Number(number));
            let name = text(&p["name"]);
            let protocol = protocol(number, name.as_deref().unwrap_or_default(), p["appProtocol"].as_str());
            Some(Port { name, number, udp: p["protocol"] == "UDP", target, protocol })
        });
        found.push(Service {
            namespace: namespace.into(),
            name: object.name.clone(),
            kind,
            selector: texts(&spec["selector"]),
            ports: ports.collect(),
            unready_too: spec["publishNotReadyAddresses"] == true,
        });
    }
    found
}

impl Pod {
    pub fn port(&self, target: &Target) -> Option<u16> {
        match target {
            Target::Number(n) => Some(*n),
            Target::Name(name) => self.ports.iter().find(|(n, _)| n == name).map(|(_, port)| *port),
        }
    }
}

impl View {
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.iter().find(|s| s.namespace == namespace && s.name == name)
    }

    /// The pods that answer for a service.
    pub fn pods_of<'v>(&'v self, service: &'v Service) -> impl Iterator<Item = &'v Pod> {
        self.pods.iter().filter(|pod| {
            !service.selector.is_empty()
                && pod.namespace == service.namespace
                && (pod.ready || service.unready_too)
                && service.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v))
        })
    }

    /// The rules that send what is meant for a service to one of its pods. All traffic between pods passes through one
    /// namespace, so they are needed once; what is for no pod is refused there and not left to time out.
    pub fn rules(&self) -> String {
        let mut to_pods = String::new();
        for service in &self.services {
            let Kind::Virtual { address, .. } = &service.kind else { continue };
            for port in &service.ports {
                let targets: Vec<String> = self
                    .pods_of(service)
                    .filter_map(|pod| Some((pod, pod.port(&port.target)?)))
                    .enumerate()
                    .map(|(i, (pod, target))| format!("{i} : {} . {target}", pod.address))
                    .collect();
                let protocol = if port.udp { "udp" } else { "tcp" };
                if !targets.is_empty() {
                    let _ = writeln!(
                        to_pods,
                        "ip daddr {address} {protocol} dport {} dnat ip addr . port to numgen random mod {} map {{ {} }}",
                        port.number,
                        targets.len(),
                        targets.join(", ")
                    );
                }
            }
        }
        let pods: Vec<String> = self.pods.iter().map(|p| p.address.to_string()).collect();
        let itself: Vec<String> = pods.iter().map(|ip| format!("{ip} . {ip}")).collect();
        let known: Vec<String> = [super::net::HUB.to_string()].into_iter().chain(pods).collect();
        // A pod that reaches itself through a service must not see its own address as the caller's.
        let hairpin = match itself.is_empty() {
            true => String::new(),
            false => format!("ip saddr . ip daddr {{ {} }} masquerade", itself.join(", ")),
        };
        format!(
            "table ip weft\ndelete table ip weft\ntable ip weft {{\n\
             chain services {{ type nat hook prerouting priority -100; policy accept;\n{to_pods}}}\n\
             chain nobody {{ type filter hook prerouting priority 0; policy accept;\n\
             iifname \"lo\" accept\nip daddr {{ {0} }} accept\nmeta l4proto tcp reject with tcp reset\nreject\n}}\n\
             chain itself {{ type nat hook postrouting priority 100; policy accept;\n{hairpin}\n}}\n}}\n",
            known.join(", ")
        )
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use weft_policy::diag::Diags;

    pub fn view() -> View {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, type: NodePort, ports: [{port: 80, targetPort: http}, {port: 81, targetPort: 9}]}\n---\n\
                    apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432}]}\n---\n\
                    apiVersion: v1\nkind: Service\nmetadata: {name: out}\nspec: {type: ExternalName, externalName: db.shop.svc.cluster.local}\n";
        let found = weft_dialects::object::read(&"a".into(), text, "default", &mut Diags::default()).unwrap();
        let objects = Objects(found.into_iter().map(std::sync::Arc::new).collect());
        let mut problems = Vec::new();
        let services = services(&objects, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        let pod = |namespace: &str, name: &str, app: &str, last: u8, ready| Pod {
            namespace: namespace.into(),
            name: name.into(),
            subdomain: Some("db".into()),
            address: Ipv4Addr::new(10, 244, 1, last),
            labels: BTreeMap::from([("app".to_string(), app.to_string())]),
            ports: vec![("http".into(), 8080)],
            ready,
        };
        let pods = vec![
            pod("default", "web-1", "web", 1, true),
            pod("default", "web-2", "web", 2, true),
            pod("default", "web-3", "web", 3, false),
            pod("shop", "db-0", "db", 4, true),
            pod("shop", "web-9", "web", 5, true),
        ];
        View { services, pods }
    }

    #[test]
    fn only_ready_pods_of_the_same_namespace_answer() {
        let view = view();
        let web = view.service("default", "web").unwrap();
        assert!(matches!(web.kind, Kind::Virtual { open: true, .. }));
        let pods: Vec<&str> = view.pods_of(web).map(|p| p.name.as_str()).collect();
        assert_eq!(pods, ["web-1", "web-2"]);
        let rules = view.rules();
        assert!(
            rules.contains("dport 80 dnat ip addr . port to numgen random mod 2 map { 0 : 10.244.1.1 . 8080, 1 : 10.244.1.2 . 8080 }"),
            "{rules}"
        );
        assert!(!rules.contains("5432"), "a headless service has no address: {rules}");
    }
}
