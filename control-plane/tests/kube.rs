//! `weft-control --kube` against a real Kubernetes: what it sees of it, what it writes to it, and what it does when the API server goes
//! away. One cluster for all of it, and the steps one after another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use weft_cluster::{Cluster, Options};
use weft_control::source;
use weft_dialects::world::PodId;
use weft_kubernetes::client::{Access, connect};
use weft_policy::id::ServiceId;
use weft_testkit::dir::TempDir;
use weft_testkit::netns::run_in;
use weft_testkit::wait::{block_on, poll};

const BIN: &str = env!("CARGO_BIN_EXE_weft-control");
const SOON: Duration = Duration::from_secs(30);

/// A replica in the cluster's network, outside of its pods.
struct Replica {
    child: Child,
    admin: String,
    status: String,
    log: Arc<Mutex<Vec<String>>>,
    _state: TempDir,
}

impl Replica {
    fn start(cluster: &Cluster, name: &str) -> Self {
        let state = TempDir::new();
        let mut command = cluster.command(BIN);
        command.args(["--kube", "--kubeconfig"]).arg(cluster.kubeconfig()).arg("--state").arg(state.path());
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--status", "127.0.0.1:0"]);
        command.args(["--log", "info,weft_control=debug"]).env("POD_NAME", name).env("NO_COLOR", "1");
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (found, serving) = mpsc::channel();
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.contains("serving") {
                    let _ = found.send(line.clone());
                }
                kept.lock().unwrap().push(line);
            }
        });
        let line = serving.recv_timeout(SOON).expect("serving");
        let word = |after: &str| {
            let rest = &line[line.find(after).unwrap() + after.len()..];
            rest.split(')').next().unwrap().to_string()
        };
        let (admin, status) = (word("admin=Some("), word("status=Some("));
        Self { child, admin, status, log, _state: state }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    fn logged(&self, what: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(what))
    }

    fn end(&mut self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
        self.child.wait().unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}", self.log());
        }
    }
}

struct Rig {
    cluster: Cluster,
    replica: Replica,
}

/// A page, asked for in the cluster's network. `None`: no answer, or not 200.
fn page(cluster: &Cluster, at: &str, path: &str) -> Option<String> {
    let url = format!("http://{at}{path}");
    let output = cluster.command("timeout").args(["5", "busybox", "wget", "-qO-", &url]).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[track_caller]
fn until<T>(what: &str, ready: impl FnMut() -> Option<T>) -> T {
    poll(SOON, ready).unwrap_or_else(|| panic!("not within {SOON:?}: {what}"))
}

impl Rig {
    fn page(&self, path: &str) -> Value {
        let text = page(&self.cluster, &self.replica.admin, path).unwrap_or_else(|| panic!("{path}"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
    }

    fn objects(&self) -> Vec<String> {
        let page = self.page("/objects");
        page["objects"].as_array().unwrap().iter().map(|o| o["object"].as_str().unwrap().to_string()).collect()
    }

    #[track_caller]
    fn sees(&self, name: &str, there: bool) {
        until(&format!("{name} {there}"), || (self.objects().iter().any(|o| o == name) == there).then_some(()));
    }

    fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.kubectl(args).unwrap_or_else(|e| panic!("{e}"))
    }

    fn apply(&self, yaml: &str) {
        self.cluster.apply(yaml).unwrap_or_else(|e| panic!("{e}"));
    }

    /// A condition of an object's status, once it holds what it should.
    #[track_caller]
    fn condition(&self, object: &str, path: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = poll(SOON, || {
            let text = self.kubectl(&["get", object, "-n", "demo", "-o", "json"]);
            last = serde_json::from_str(&text).unwrap();
            last.pointer(path).filter(|v| is(v)).cloned()
        });
        found.unwrap_or_else(|| panic!("{object} {path}: {last:#}"))
    }
}

const APP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: demo, labels: {app: web}, annotations: {weft.dev/sidecar: 'true'}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: 'busybox:1', command: [sleep, infinity], ports: [{containerPort: 8080}]}]
";

/// Of a kind whose objects are free to say what they like.
fn definition(group: &str, kind: &str, plural: &str, versions: &[&str]) -> String {
    let version = |(i, name): (usize, &&str)| {
        format!(
            "{{name: {name}, served: true, storage: {}, subresources: {{status: {{}}}}, schema: {{openAPIV3Schema: {{type: object, \
             x-kubernetes-preserve-unknown-fields: true}}}}}}",
            i == 0
        )
    };
    let versions: Vec<String> = versions.iter().enumerate().map(version).collect();
    let lower = kind.to_lowercase();
    // Gateway API's groups are guarded, for those who know they may.
    format!(
        "---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: {plural}.{group}\n  annotations: \
         {{api-approved.kubernetes.io: unapproved}}\nspec: {{group: {group}, scope: Namespaced, names: {{kind: {kind}, plural: {plural}, \
         singular: {lower}}}, versions: [{}]}}\n",
        versions.join(", ")
    )
}

fn route(name: &str, backend: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: demo}}\nspec:\n  parentRefs: \
         [{{group: '', kind: Service, name: web, port: 80}}, {{group: gateway.networking.k8s.io, kind: Gateway, name: front}}]\n  \
         rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]\n"
    )
}

#[test]
fn a_cluster_as_a_source() {
    // Compaction as often as that makes the watches of whoever was away too old.
    let flags = vec![("kube-apiserver", "--etcd-compaction-interval=3s".to_string())];
    let cluster = Cluster::start(Options { flags, ..Options::default() }).unwrap_or_else(|e| panic!("{e}"));
    cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: weft-system}}").unwrap();
    let replica = Replica::start(&cluster, "replica-1");
    let mut rig = Rig { cluster, replica };
    until("ready", || page(&rig.cluster, &rig.replica.status, "/ready"));

    objects_come_change_and_go(&rig);
    what_nodes_say(&rig);
    what_is_for_everybody(&rig);
    kinds_come_and_go(&rig);
    conditions_are_written(&rig);
    what_may_not_be_read_is_said(&rig);
    the_api_server_goes_and_comes_back(&mut rig);
    the_leader_is_lost(&mut rig);
}

fn objects_come_change_and_go(rig: &Rig) {
    assert!(rig.objects().contains(&"service/kubernetes.default".to_string()));
    rig.apply(APP);
    for name in ["namespace/demo", "service/web.demo", "pod/web-1.demo"] {
        rig.sees(name, true);
    }
    until("an EndpointSlice", || rig.objects().iter().any(|o| o.starts_with("endpointslice/web-")).then_some(()));
    rig.kubectl(&["wait", "-n", "demo", "--for=condition=Ready", "pod/web-1", "--timeout=60s"]);
    let generation = || rig.page("/objects")["generation"].as_u64().unwrap();
    let before = until("it is quiet", || {
        let before = generation();
        std::thread::sleep(Duration::from_millis(500));
        (generation() == before).then_some(before)
    });
    // What we do not read is no change; what we read is.
    rig.kubectl(&["annotate", "-n", "demo", "pod/web-1", "example.org/note=hello"]);
    rig.kubectl(&["annotate", "-n", "demo", "service/web", "retry.linkerd.io/http=5xx"]);
    until("the change", || (generation() > before).then_some(()));
    assert_eq!(generation(), before + 1);
    rig.kubectl(&["annotate", "-n", "demo", "service/web", "retry.linkerd.io/http-"]);
    let second =
        "{apiVersion: v1, kind: Service, metadata: {name: second, namespace: demo}, spec: {ports: [{port: 80}]}}";
    rig.apply(second);
    rig.sees("service/second.demo", true);
    rig.kubectl(&["delete", "-n", "demo", "service/second"]);
    rig.sees("service/second.demo", false);
}

/// In which zone an endpoint is, and which addresses are the mesh's own: as somebody sees it who reads the cluster as the replica does.
fn what_nodes_say(rig: &Rig) {
    let ask = |args: &str| rig.kubectl(&args.split(' ').collect::<Vec<_>>());
    let pods = ask("get nodes -o jsonpath={.items[0].spec.podCIDR}");
    let services = ask("get servicecidrs kubernetes -o jsonpath={.spec.cidrs[0]}");
    let both = BTreeSet::from([pods.as_str(), services.as_str()]);
    let label = |zone: &str| drop(ask(&format!("label nodes --all --overwrite topology.kubernetes.io/zone{zone}")));
    let access = Access { kubeconfig: Some(rig.cluster.kubeconfig()), context: None };
    let seen = || async {
        let (out, mut found) = tokio::sync::watch::channel(Arc::default());
        let (statuses, _) = tokio::sync::watch::channel(source::Statuses::default());
        let reading = tokio::spawn(source::kube::watch(connect(&access).await.unwrap(), out, statuses));
        for zone in ["=a", "=b", "-"] {
            label(zone);
            let wanted = zone.strip_prefix('=');
            let known = found.wait_for(|found| {
                let (world, _) = weft_dialects::translate(&found.objects, &weft_dialects::Options::default());
                let id = PodId { namespace: "demo".into(), name: "web-1".into() };
                let (Some(web), Some(pod)) = (world.services.get(&ServiceId::new("demo", "web")), world.pods.get(&id))
                else {
                    return false;
                };
                let ranges = pod.document["listeners"][0]["meshRanges"].as_array().into_iter().flatten();
                let endpoint = web.endpoints[&80].get(0);
                ranges.filter_map(Value::as_str).collect::<BTreeSet<_>>() == both
                    && endpoint.is_some_and(|e| e["labels"]["topology.kubernetes.io/zone"].as_str() == wanted)
            });
            tokio::time::timeout(SOON, known).await.unwrap_or_else(|_| panic!("{zone} {both:?}")).unwrap();
        }
        reading.abort();
    };
    run_in(&rig.cluster.place().netns(), || block_on(seen()));
}

fn what_is_for_everybody(rig: &Rig) {
    let open = |path: &str| page(&rig.cluster, &rig.replica.status, path);
    assert!(open("/live").is_some() && open("/metrics").unwrap().contains("weft_control_objects"));
    assert_eq!((open("/objects"), open("/status"), open("/")), (None, None, None));
}

fn kinds_come_and_go(rig: &Rig) {
    rig.sees("virtualservice/web.demo", false);
    // The newest of the versions that we read and the server has.
    rig.apply(&definition("networking.istio.io", "VirtualService", "virtualservices", &["v1alpha3", "v1beta1"]));
    rig.kubectl(&["wait", "--for=condition=Established", "crd/virtualservices.networking.istio.io", "--timeout=30s"]);
    let service = "apiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {name: web, namespace: demo}\nspec:\n  \
                   hosts: [web]\n  http: [{timeot: 1s, route: [{destination: {host: web}}]}]\n";
    until("the kind is there", || rig.cluster.apply(service).ok());
    rig.sees("virtualservice/web.demo", true);
    // Its versions are served one after another, so the first one seen may not be the one that stays.
    until("the newest version", || {
        let all = rig.page("/objects")["objects"].as_array().unwrap().clone();
        let one = all.into_iter().find(|o| o["kind"] == "VirtualService")?;
        (one["apiVersion"] == "networking.istio.io/v1beta1").then_some(())
    });
    until("the finding", || {
        let errors = rig.page("/errors");
        let all = errors["objects"].as_array().unwrap().clone();
        all.into_iter().find(|f| f["object"] == "virtualservice/web.demo" && f["field"].to_string().contains("timeot"))
    });
    rig.kubectl(&["delete", "crd", "virtualservices.networking.istio.io"]);
    rig.sees("virtualservice/web.demo", false);
}

fn conditions_are_written(rig: &Rig) {
    rig.apply(&definition("gateway.networking.k8s.io", "HTTPRoute", "httproutes", &["v1", "v1beta1"]));
    rig.apply(&definition("weft.dev", "TrafficPolicy", "trafficpolicies", &["v1alpha1"]));
    for name in ["httproutes.gateway.networking.k8s.io", "trafficpolicies.weft.dev"] {
        rig.kubectl(&["wait", "--for=condition=Established", &format!("crd/{name}"), "--timeout=30s"]);
    }
    until("the kind is there", || rig.cluster.apply(&route("r", "gone")).ok());
    let object = "httproute/r";
    let reason = |path: &str, reason: &str| {
        rig.condition(object, path, |v| v["reason"] == reason);
    };
    reason("/status/parents/0/conditions/1", "BackendNotFound");
    reason("/status/parents/0/conditions/0", "Accepted");
    // Somebody else's, who looks after gateways.
    let theirs = r#"{"status": {"parents": [{"controllerName": "example.org/gateways", "parentRef": {"name": "front"}, "conditions": []}]}}"#;
    rig.kubectl(&["patch", object, "-n", "demo", "--subresource=status", "--type=merge", "-p", theirs]);
    rig.apply(&route("r", "web"));
    let parents = rig.condition(object, "/status/parents", |v| {
        let ours = v.as_array().and_then(|all| all.iter().find(|p| p["controllerName"] == "weft.dev/mesh"));
        ours.is_some_and(|p| p["conditions"][1]["status"] == "True")
    });
    assert_eq!(parents.as_array().unwrap().len(), 2, "{parents}");
    let theirs = &parents[0];
    assert_eq!(theirs["controllerName"], "example.org/gateways");
    assert_eq!(
        (&parents[1]["conditions"][1]["observedGeneration"], &parents[1]["parentRef"]["name"]),
        (&2.into(), &"web".into())
    );

    let policy = |name: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: demo}}\nspec: {{targetRefs: [{{group: '', \
             kind: Service, name: {name}}}], timeout: {{request: 1s}}}}\n"
        )
    };
    until("the kind is there", || rig.cluster.apply(&policy("gone")).ok());
    rig.condition("trafficpolicy/p", "/status/conditions/0", |v| {
        v["reason"] == "TargetNotFound" && v["status"] == "False"
    });
    rig.apply(&policy("web"));
    let now = |v: &Value| v["reason"] == "Accepted" && v["observedGeneration"] == 2;
    rig.condition("trafficpolicy/p", "/status/conditions/0", now);
    // What somebody took away comes back, though nothing else has changed; what is others' stays.
    for (object, plural) in [("trafficpolicy/p", "conditions"), ("httproute/r", "parents")] {
        let wiped = format!(r#"{{"status": {{"{plural}": []}}}}"#);
        rig.kubectl(&["patch", object, "-n", "demo", "--subresource=status", "--type=merge", "-p", &wiped]);
        rig.condition(object, &format!("/status/{plural}"), |v| v.as_array().is_some_and(|all| all.len() == 1));
    }
    // Linkerd's copy of the kind.
    rig.apply(&definition("policy.linkerd.io", "HTTPRoute", "httproutes", &["v1beta3"]));
    let theirs = "apiVersion: policy.linkerd.io/v1beta3\nkind: HTTPRoute\nmetadata: {name: l, namespace: demo}\nspec:\n  parentRefs: \
                  [{group: core, kind: Service, name: web, port: 80}]\n  rules: [{backendRefs: [{name: gone, port: 80}]}]\n";
    until("the kind is there", || rig.cluster.apply(theirs).ok());
    let object = "httproutes.policy.linkerd.io/l";
    rig.condition(object, "/status/parents/0/conditions/1", |v| v["reason"] == "BackendNotFound");
    rig.kubectl(&["delete", object, "-n", "demo"]);
    // What is said already is not written again.
    let version =
        || rig.kubectl(&["get", "trafficpolicy/p", "-n", "demo", "-o", "jsonpath={.metadata.resourceVersion}"]);
    let before = version();
    rig.kubectl(&["label", "-n", "demo", "service/web", "touched=yes"]);
    rig.kubectl(&["label", "-n", "demo", "service/web", "touched-"]);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(version(), before);
}

/// Everything in its own namespace, where the authority is, and of the cluster only Services.
const POOR: &str = "
{apiVersion: v1, kind: ServiceAccount, metadata: {name: poor, namespace: weft-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: poor, namespace: weft-system}
rules: [{apiGroups: ['', coordination.k8s.io], resources: [secrets, configmaps, leases], verbs: ['*']}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: poor, namespace: weft-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: poor}
subjects: [{kind: ServiceAccount, name: poor, namespace: weft-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: poor}
rules: [{apiGroups: [''], resources: [services], verbs: [list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: poor}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: poor}
subjects: [{kind: ServiceAccount, name: poor, namespace: weft-system}]
";

/// Who may read Services only, sees those, and is told which rules are missing.
fn what_may_not_be_read_is_said(rig: &Rig) {
    rig.apply(POOR);
    let token = rig.kubectl(&["create", "token", "poor", "-n", "weft-system"]);
    let folder = TempDir::new();
    let own = folder.join("kubeconfig");
    std::fs::copy(rig.cluster.kubeconfig(), &own).unwrap();
    let file = own.display().to_string();
    let config = |args: &[&str]| rig.kubectl(&[&["config", "--kubeconfig", &file][..], args].concat());
    config(&["set-credentials", "poor", "--token", token.trim()]);
    config(&["set-context", "--current", "--user", "poor"]);
    let state = TempDir::new();
    let mut command = rig.cluster.command(BIN);
    command.args(["--kube", "--kubeconfig", &file, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:25014", "--state"]);
    let mut child = command.arg(state.path()).stderr(Stdio::null()).spawn().unwrap();
    let errors = poll(SOON, || {
        page(&rig.cluster, "127.0.0.1:25014", "/ready")?;
        page(&rig.cluster, "127.0.0.1:25014", "/errors").filter(|e| e.contains("endpointslices"))
    });
    let objects = page(&rig.cluster, "127.0.0.1:25014", "/objects");
    child.kill().unwrap();
    child.wait().unwrap();
    let errors = errors.expect("faults");
    for rule in ["endpointslices", "customresourcedefinitions", "httproutes"] {
        assert!(errors.contains(rule), "{rule}: {errors}");
    }
    let objects = objects.unwrap();
    assert!(objects.contains("service/web.demo") && !objects.contains("pod/web-1.demo"), "{objects}");
}

/// What is known stays, and what happened meanwhile is seen afterwards; after a compaction too.
fn the_api_server_goes_and_comes_back(rig: &mut Rig) {
    let before = rig.objects();
    rig.cluster.kill_part("kube-apiserver").unwrap();
    until("it is noticed", || rig.replica.logged("the last state stays").then_some(()));
    assert_eq!(rig.objects(), before);
    assert!(page(&rig.cluster, &rig.replica.status, "/ready").is_some());
    // The replica sleeps while others write, until where it was is compacted away.
    let pid = rig.replica.child.id().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    signal("-STOP");
    rig.cluster.start_part("kube-apiserver").unwrap();
    until("the API server", || rig.cluster.kubectl(&["get", "--raw", "/readyz"]).ok());
    rig.kubectl(&["delete", "-n", "demo", "httproute/r"]);
    let end = Instant::now() + Duration::from_secs(10);
    let mut n = 0;
    while Instant::now() < end {
        n += 1;
        rig.kubectl(&["label", "-n", "demo", "--overwrite", "service/web", &format!("n=v{n}")]);
    }
    // So that its own memory of what was does not reach back.
    rig.cluster.kill_part("kube-apiserver").unwrap();
    rig.cluster.start_part("kube-apiserver").unwrap();
    until("the API server", || rig.cluster.kubectl(&["get", "--raw", "/readyz"]).ok());
    rig.apply("{apiVersion: v1, kind: Service, metadata: {name: after, namespace: demo}, spec: {ports: [{port: 80}]}}");
    signal("-CONT");
    rig.sees("service/after.demo", true);
    rig.sees("httproute/r.demo", false);
    until("a watch was too old", || rig.replica.logged("too old").then_some(()));
    rig.sees("pod/web-1.demo", true);
}

fn the_leader_is_lost(rig: &mut Rig) {
    let holder = |rig: &Rig| {
        rig.kubectl(&["get", "lease/weft-control", "-n", "weft-system", "-o", "jsonpath={.spec.holderIdentity}"])
    };
    until("it leads again", || (holder(rig) == "replica-1").then_some(()));
    let mut second = Replica::start(&rig.cluster, "replica-2");
    until("the second is ready", || page(&rig.cluster, &second.status, "/ready"));
    // Killed, it gives nothing back: its time has to pass.
    rig.replica.end("-KILL");
    rig.apply(&route("late", "gone"));
    until("the second leads", || (holder(rig) == "replica-2").then_some(()));
    rig.condition("httproute/late", "/status/parents/0/conditions/1", |v| v["reason"] == "BackendNotFound");
    // One that ends as it should is followed at once.
    rig.replica = Replica::start(&rig.cluster, "replica-3");
    until("the third is ready", || page(&rig.cluster, &rig.replica.status, "/ready"));
    second.end("-TERM");
    let asked = Instant::now();
    until("the third leads", || (holder(rig) == "replica-3").then_some(()));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}
