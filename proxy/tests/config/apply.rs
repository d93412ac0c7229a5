//! What a change touches, and above all what it does not.

use arc_swap::ArcSwap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use weft_policy::backend::Backend;
use weft_policy::endpoint::Endpoint;
use weft_policy::id::{BackendId, ServiceId};
use weft_policy::registry::Bound;
use weft_proxy::config::apply::Applier;
use weft_proxy::config::file::ProxyConfig;
use weft_proxy::config::snapshot::Snapshot;
use weft_proxy::config::status::State;

const FILE: &str = "\
listeners:
- {name: front, role: hop, address: 127.0.0.1:1, to: web}
services:
- name: web
  port: 80
  hosts: [web]
  addresses: [10.0.0.1]
  routes:
  - {name: all, to: [{subset: v1, weight: 1}, {service: other}]}
  subsets: [{name: v1, labels: {version: v1}}]
  policy: {breaker: {maxConnections: 5}}
  endpoints: [{address: '10.1.0.1:1', labels: {version: v1}}, {address: '10.1.0.2:1'}]
- {name: other, port: 80, hosts: [other], endpoints: ['10.2.0.1:1']}
";

struct Rig {
    snapshot: Arc<ArcSwap<Snapshot>>,
    applier: Applier,
}

impl Rig {
    fn new() -> Self {
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let mut rig = Self { applier: Applier::new(snapshot.clone()), snapshot };
        assert!(rig.apply(FILE));
        rig
    }

    fn apply(&mut self, text: &str) -> bool {
        let (config, diags) = ProxyConfig::parse(text, Path::new("."));
        self.applier.apply(&config.unwrap_or_else(|| panic!("{:?}", diags.0)), SystemTime::now())
    }

    fn bound(&self, host: &str) -> Arc<Bound> {
        self.snapshot.load().by_host(host, 80).unwrap().clone()
    }

    fn backend(&self, name: &str, subset: Option<&str>) -> Arc<Backend> {
        let id = BackendId { service: ServiceId::new("default", name), port: 80, subset: subset.map(Into::into) };
        self.applier.registry().get(&id).unwrap().clone()
    }

    fn endpoints(&self, name: &str) -> Vec<Arc<Endpoint>> {
        self.backend(name, None).endpoints.load().endpoints.clone()
    }
}

fn same<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

#[test]
fn everything_is_found() {
    let rig = Rig::new();
    let snapshot = rig.snapshot.load();
    let web = rig.bound("web");
    assert!(Arc::ptr_eq(snapshot.by_addr("10.0.0.1:80".parse().unwrap()).unwrap(), &web));
    assert!(Arc::ptr_eq(snapshot.fixed("front").unwrap(), &web));
    assert_eq!(snapshot.listener("front").unwrap().address.port(), 1);
    // Whatever the order in the file, every target has its backend.
    assert_eq!(web.backends.len(), 3);
    assert!(web.backends.iter().all(Option::is_some));
    assert_eq!(rig.backend("web", Some("v1")).endpoints.load().endpoints.len(), 1);
    assert_eq!(rig.endpoints("web").len(), 2);
}

#[test]
fn the_same_file_a_hundred_times_touches_nothing() {
    let mut rig = Rig::new();
    let snapshot = rig.snapshot.load_full();
    let (web, other) = (rig.bound("web"), rig.bound("other"));
    let backend = rig.backend("web", None);
    let (set, config) = (backend.endpoints.load_full(), backend.config.load_full());
    let resources = rig.applier.resources();
    for _ in 0..100 {
        assert!(!rig.apply(FILE));
    }
    assert!(Arc::ptr_eq(&rig.snapshot.load_full(), &snapshot));
    assert!(Arc::ptr_eq(&rig.bound("web"), &web) && Arc::ptr_eq(&rig.bound("other"), &other));
    assert!(Arc::ptr_eq(&rig.backend("web", None), &backend));
    assert!(Arc::ptr_eq(&backend.endpoints.load_full(), &set));
    assert!(Arc::ptr_eq(&backend.config.load_full(), &config));
    assert_eq!(rig.applier.resources(), resources);
}

#[test]
fn a_policy_changes_alone() {
    let mut rig = Rig::new();
    let (backend, endpoints, web) = (rig.backend("web", None), rig.endpoints("web"), rig.bound("web"));
    assert!(!rig.apply(&FILE.replace("maxConnections: 5", "maxConnections: 6")));
    assert!(Arc::ptr_eq(&rig.backend("web", None), &backend));
    assert_eq!(backend.config.load().breaker.max_connections, Some(6));
    // The subset inherits it.
    assert_eq!(rig.backend("web", Some("v1")).config.load().breaker.max_connections, Some(6));
    assert!(same(&rig.endpoints("web"), &endpoints));
    assert!(Arc::ptr_eq(&rig.bound("web"), &web));
}

#[test]
fn endpoints_come_and_go_alone() {
    let mut rig = Rig::new();
    let (web, before, other) = (rig.bound("web"), rig.endpoints("web"), rig.endpoints("other"));
    assert!(!rig.apply(&FILE.replace("{address: '10.1.0.2:1'}", "{address: '10.1.0.2:1'}, {address: '10.1.0.3:1'}")));
    let after = rig.endpoints("web");
    assert_eq!(after.len(), 3);
    assert!(same(&after[..2], &before));
    assert!(same(&rig.endpoints("other"), &other));
    assert!(Arc::ptr_eq(&rig.bound("web"), &web));
    assert!(!rig.apply(&FILE.replace(", {address: '10.1.0.2:1'}", "")));
    assert!(same(&rig.endpoints("web"), &before[..1]));
    assert!(before[1].is_gone() && !before[0].is_gone());
}

#[test]
fn routes_of_one_service_change_alone() {
    let mut rig = Rig::new();
    let (web, other, backend) = (rig.bound("web"), rig.bound("other"), rig.backend("web", None));
    assert!(rig.apply(&FILE.replace("weight: 1", "weight: 2")));
    assert!(!Arc::ptr_eq(&rig.bound("web"), &web));
    assert!(Arc::ptr_eq(&rig.bound("other"), &other));
    assert!(Arc::ptr_eq(&rig.backend("web", None), &backend));
}

#[test]
fn services_come_and_go() {
    let mut rig = Rig::new();
    let (web, gone) = (rig.bound("web"), rig.endpoints("other"));
    let without = FILE
        .replace(", {service: other}", "")
        .replace("- {name: other, port: 80, hosts: [other], endpoints: ['10.2.0.1:1']}", "");
    assert!(rig.apply(&without));
    assert!(rig.snapshot.load().by_host("other", 80).is_none());
    assert!(gone[0].is_gone());
    assert_eq!(rig.applier.registry().all().count(), 2);
    assert_eq!(web.backends.len(), 3, "requests in flight keep what they have");
    assert!(rig.apply(FILE));
    assert!(rig.bound("web").backends.iter().all(Option::is_some));
    assert_eq!(rig.endpoints("other").len(), 1);
    assert!(!Arc::ptr_eq(&rig.endpoints("other")[0], &gone[0]));
}

#[test]
fn labels_of_a_subset_choose_again() {
    let mut rig = Rig::new();
    let subset = rig.backend("web", Some("v1"));
    rig.apply(&FILE.replace("labels: {version: v1}}]", "labels: {version: v2}}]"));
    assert!(Arc::ptr_eq(&rig.backend("web", Some("v1")), &subset));
    assert!(subset.endpoints.load().endpoints.is_empty());
}

#[test]
fn what_does_not_compile_keeps_its_own_last_good_version() {
    let mut rig = Rig::new();
    let web = rig.bound("web");
    let (config, _) = ProxyConfig::parse(&FILE.replace("hosts: [other]", "hosts: [new]"), Path::new("."));
    let mut config = config.unwrap();
    // A checked file has no such thing; another source may.
    let route = config.services[0].config.routes[0].clone();
    config.services[0].config.routes.push(route);
    assert!(rig.applier.apply(&config, SystemTime::now()));
    assert!(Arc::ptr_eq(&rig.bound("web"), &web));
    assert!(rig.snapshot.load().by_host("new", 80).is_some(), "the others apply");
    let of = |rig: &Rig, name: &str| rig.applier.resources().into_iter().find(|r| r.name == name).unwrap();
    assert!(matches!(of(&rig, "web.default:80").state, State::Refused(why) if why[0].contains("routes[1].name")));
    assert_eq!(of(&rig, "other.default:80").state, State::Applied);
    rig.apply(FILE);
    assert_eq!(of(&rig, "web.default:80").state, State::Applied);
    assert!(Arc::ptr_eq(&rig.bound("web"), &web), "what is equal is not compiled into something else");
}

#[test]
fn names_become_endpoints() {
    let mut rig = Rig::new();
    let text =
        FILE.replace("endpoints: ['10.2.0.1:1']", "endpoints: [{dns: 'DB.example.com:5432', weight: 3}, '10.2.0.1:1']");
    rig.apply(&text);
    let name: Arc<str> = "db.example.com".into();
    assert!(rig.applier.names().iter().eq([&name]));
    assert_eq!(rig.endpoints("other").len(), 1);
    let (a, b) = ("10.9.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
    rig.applier.answer(&name, vec![a, b]);
    let both = rig.endpoints("other");
    let ids: Vec<String> = both.iter().map(|e| e.id.to_string()).collect();
    assert_eq!(ids, ["db.example.com/10.9.0.1:5432", "db.example.com/[fd00::1]:5432", "10.2.0.1:1"]);
    assert_eq!(both[0].weight(), 3);
    rig.applier.answer(&name, vec![b]);
    assert!(same(&rig.endpoints("other"), &both[1..]));
    // A reload keeps what is known of the name.
    rig.apply(&text.replace("weight: 1", "weight: 7"));
    assert!(same(&rig.endpoints("other"), &both[1..]));
}

#[test]
fn a_large_file_is_read_in_reasonable_time() {
    let mut text = String::from("listeners: [{name: a, role: outbound, address: '127.0.0.1:1'}]\nservices:\n");
    for i in 0..1000 {
        text.push_str(&format!(
            "- {{name: s{i}, port: 80, hosts: [s{i}], addresses: [10.1.{}.{}], routes: [{{to: s{}}}], endpoints: ['10.0.0.1:1', '10.0.0.2:1']}}\n",
            i / 250, i % 250, (i + 1) % 1000
        ));
    }
    let endpoints: String = (0..3000).map(|i| format!("  - 10.{}.{}.1:80\n", i / 250, i % 250)).collect();
    text.push_str(&format!("- name: many\n  port: 80\n  endpoints:\n{endpoints}"));
    let start = std::time::Instant::now();
    let (config, diags) = ProxyConfig::parse(&text, Path::new("."));
    let config = config.unwrap_or_else(|| panic!("{:?}", diags.0));
    let read = start.elapsed();
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let mut applier = Applier::new(snapshot.clone());
    applier.apply(&config, SystemTime::now());
    let first = start.elapsed() - read;
    applier.apply(&config, SystemTime::now());
    eprintln!("{} bytes: read {read:?}, applied {first:?}, again {:?}", text.len(), start.elapsed() - read - first);
    // Ten times what a slow machine needs without optimisation; a quadratic step would need far more.
    assert!(start.elapsed() < std::time::Duration::from_secs(30));
    assert!(snapshot.load().by_host("s999", 80).is_some());
}
