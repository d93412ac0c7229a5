//! Least privilege: of what is installed, each verb of each rule is taken away in turn, and what needs it says so. Beside the mesh's
//! own programs others run that may do all but that one thing; a right that nobody would miss has no place in the chart, and one
//! that is not in the table below fails the test.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use weft_e2e::mesh::said;
use weft_e2e::{Mesh, Result, ensure};

/// A namespace that is made so that a right is missed in it, and what else that takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// The CA is there, and somebody else leads.
    Plain,
    /// A sidecar asks for its certificate.
    Joins,
    /// A pod is made in a namespace that nobody knows yet.
    Asks,
    /// Nobody leads yet: there is no Lease, or one without a holder.
    Leaderless,
    Free,
    /// What leads finds conditions to write. One after the other, for what one has written no other has to write.
    Leads,
    /// The webhook's certificate is there.
    Hook,
    /// The same, of other names: it has to be made anew.
    Renamed,
    /// There is none.
    Bare,
    /// Not even a CA.
    Empty,
    /// A CA that somebody gave.
    Given,
    /// The root is being rotated.
    Rotation,
}
use Place::*;

const PLACES: &[Place] = &[Plain, Joins, Asks, Leaderless, Free, Leads, Hook, Renamed, Bare, Empty, Given, Rotation];

impl Place {
    fn namespace(self) -> String {
        format!("rights-{self:?}").to_lowercase()
    }
}

/// Rule (group, resources, names), verbs, where they are missed, and what fails without.
type Row = (&'static str, &'static str, Place, &'static str);

const CONTROL: &[Row] = &[
    ("core namespaces,services", "list watch", Plain, "no service of the mesh is known"),
    ("core pods", "list watch", Plain, "no pod of the mesh is known"),
    ("core pods", "get", Joins, "no sidecar gets a certificate"),
    ("core nodes", "list watch", Plain, "no zone is known, nor the pods' addresses"),
    ("networking.k8s.io servicecidrs", "list watch", Plain, "the Services' addresses are not known"),
    ("discovery.k8s.io endpointslices", "list watch", Plain, "no endpoint is known"),
    ("apps daemonsets,deployments,statefulsets", "list watch", Plain, "what is wrong with workloads is not found"),
    ("apiextensions.k8s.io customresourcedefinitions", "list watch", Plain, "kinds that come later are not noticed"),
    ("gateway.networking.k8s.io grpcroutes,httproutes", "list watch", Plain, "these routes have no effect"),
    ("gateway.networking.k8s.io grpcroutes,httproutes", "get", Leads, "their conditions are not written"),
    ("gateway.networking.k8s.io referencegrants", "list watch", Plain, "no route leads to another namespace"),
    ("networking.istio.io destinationrules,virtualservices", "list watch", Plain, "these have no effect"),
    ("security.istio.io peerauthentications", "list watch", Plain, "STRICT has no effect"),
    ("linkerd.io serviceprofiles", "list watch", Plain, "these have no effect"),
    ("policy.linkerd.io httproutes", "list watch", Plain, "these have no effect"),
    ("policy.linkerd.io httproutes", "get", Leads, "their conditions are not written"),
    ("policy.linkerd.io httproutes/status", "patch", Leads, "no conditions"),
    ("specs.smi-spec.io httproutegroups", "list watch", Plain, "a split cannot match requests"),
    ("split.smi-spec.io trafficsplits", "list watch", Plain, "splits have no effect"),
    ("weft.dev trafficpolicies", "list watch", Plain, "these have no effect"),
    ("weft.dev trafficpolicies", "get", Leads, "their conditions are not written"),
    ("gateway.networking.k8s.io grpcroutes/status,httproutes/status", "patch", Leads, "no conditions"),
    ("weft.dev trafficpolicies/status", "patch", Leads, "no conditions"),
    ("core configmaps weft-root", "list watch", Plain, "new namespaces get no root"),
    ("core configmaps weft-root", "patch", Plain, "a root that somebody changed stays so"),
    ("core configmaps", "create", Plain, "new namespaces get no root"),
    ("authentication.k8s.io tokenreviews", "create", Joins, "no sidecar gets a certificate"),
    (
        "admissionregistration.k8s.io validatingwebhookconfigurations weft-control",
        "list watch",
        Hook,
        "a caBundle that somebody changed stays so",
    ),
    ("admissionregistration.k8s.io validatingwebhookconfigurations weft-control", "patch", Bare, "no caBundle"),
    ("core secrets weft-ca", "get", Plain, "there is no CA to begin with"),
    ("core secrets weft-ca", "list watch", Plain, "a rotation is not noticed"),
    ("core secrets weft-ca", "update", Given, "a CA that was given is not taken"),
    ("core secrets weft-control-webhook", "list watch", Hook, "the webhook has no certificate"),
    ("core secrets weft-control-webhook", "update", Renamed, "the webhook's certificate is not renewed"),
    ("core secrets", "create", Empty, "the first control plane does not start"),
    ("core configmaps weft-replicas", "get patch", Rotation, "a rotation does not go on"),
    ("coordination.k8s.io leases weft-control", "get", Leaderless, "nobody leads"),
    ("coordination.k8s.io leases", "create", Leaderless, "nobody leads"),
    ("coordination.k8s.io leases weft-control", "update", Free, "nobody leads"),
];

const INJECTOR: &[Row] = &[
    ("core namespaces", "list watch", Hook, "it is not ready"),
    ("core namespaces", "get", Asks, "the first pods of a new namespace get no sidecar"),
    (HOOKS, "list watch", Hook, "a caBundle that somebody changed stays so"),
    (HOOKS, "patch", Bare, "no caBundle"),
    ("core secrets weft-injector-webhook", "list watch", Hook, "it has no certificate"),
    ("core secrets weft-injector-webhook", "update", Renamed, "its certificate is not renewed"),
    ("core secrets", "create", Empty, "it has no certificate"),
];
const HOOKS: &str =
    "admissionregistration.k8s.io mutatingwebhookconfigurations,validatingwebhookconfigurations weft-injector";

/// Sorted, so that it is found whatever the order in the chart.
fn name(rule: &Value) -> String {
    let words = |key: &str| {
        let mut all: Vec<&str> = rule[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        all.sort_unstable();
        all.join(",")
    };
    let group = words("apiGroups");
    let group = if group.is_empty() { "core" } else { &group };
    format!("{group} {} {}", words("resources"), words("resourceNames")).trim_end().to_string()
}

/// The rules of one program: those for the whole cluster, and those for its own namespace.
struct Rules {
    program: &'static str,
    cluster: Vec<Value>,
    own: Vec<Value>,
}

impl Rules {
    fn installed(mesh: &Mesh, program: &'static str) -> Result<Self> {
        let of = |args: &[&str]| -> Result<Vec<Value>> {
            Ok(mesh.json(args)?["rules"].as_array().cloned().unwrap_or_default())
        };
        let (cluster, own) =
            (of(&["get", "clusterrole", program])?, of(&["-n", "weft-system", "get", "role", program])?);
        Ok(Self { program, cluster, own })
    }

    fn each(&self) -> BTreeSet<(String, String)> {
        let verbs = |rule: &Value| rule["verbs"].as_array().cloned().unwrap_or_default();
        let all = self.cluster.iter().chain(&self.own);
        all.flat_map(|r| verbs(r).into_iter().map(|v| (name(r), v.as_str().unwrap_or_default().to_string()))).collect()
    }

    /// Without a verb of a rule, or without the rule.
    fn without(rules: &[Value], rule: &str, verb: Option<&str>) -> Vec<Value> {
        let mut out = rules.to_vec();
        for one in out.iter_mut().filter(|r| name(r) == rule) {
            match one["verbs"].as_array_mut() {
                Some(verbs) => verbs.retain(|v| verb.is_some_and(|verb| v != verb)),
                None => one["verbs"] = json!([]),
            }
        }
        out.retain(|r| r["verbs"].as_array().is_some_and(|v| !v.is_empty()));
        out
    }
}

/// One right that is taken away, and whoever has all others.
struct Without<'a> {
    rules: &'a Rules,
    rule: &'static str,
    verb: &'static str,
    place: Place,
    fails: &'static str,
    n: usize,
}

/// Verb, resource, group.
type Denied = (String, String, String);

impl Without<'_> {
    fn user(&self) -> String {
        format!("rights-{}", self.n)
    }

    fn objects(&self) -> Vec<Value> {
        let (user, namespace) = (self.user(), self.place.namespace());
        let mut cluster = Rules::without(&self.rules.cluster, self.rule, Some(self.verb));
        let own = Rules::without(&self.rules.own, self.rule, Some(self.verb));
        if self.place == Rotation {
            // It would tell the whole mesh of a root that there is not.
            cluster = Rules::without(&cluster, "core configmaps weft-root", None);
        }
        let role = |kind: &str, rules: Vec<Value>, namespace: Option<&str>| {
            let meta = json!({"name": user, "namespace": namespace});
            let subject = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]);
            let to = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user});
            [
                object(&rbac(kind), meta.clone(), json!({"rules": rules})),
                object(&rbac(&format!("{kind}Binding")), meta, json!({"roleRef": to, "subjects": subject})),
            ]
        };
        let mut out = role("ClusterRole", cluster, None).to_vec();
        out.extend(role("Role", own, Some(&namespace)));
        out
    }

    fn missed(&self) -> BTreeSet<Denied> {
        let mut words = self.rule.split(' ');
        let (group, resources) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let group = if group == "core" { "" } else { group };
        resources.split(',').map(|r| (self.verb.to_string(), r.to_string(), group.to_string())).collect()
    }

    /// Runs the program until it has said all that it may not, and says the first line of it.
    fn shown(&self, stage: &Stage<'_>) -> Result {
        let begun = Instant::now();
        let mut running = vec![stage.start(self)?];
        let mut sidecar = None;
        let missed = self.missed();
        let log = stage.folder.path(&format!("{}.log", self.user()));
        let outcome = loop {
            let text = std::fs::read_to_string(&log)?.replace('\\', "");
            let denied = denied(&text);
            if missed.is_subset(&denied) {
                let own = self.place == Rotation;
                let more: Vec<&Denied> =
                    denied.difference(&missed).filter(|(_, r, _)| !(own && r == "configmaps")).collect();
                break match more.is_empty() {
                    true => Ok(()),
                    false => Err(format!("more is denied than was taken away: {more:?}\n{}", last(&text))),
                };
            }
            if begun.elapsed() > Duration::from_secs(45) {
                break Err(format!(
                    "nobody misses it: take it out of the chart, or show here who does\n{}",
                    last(&text)
                ));
            }
            match self.place {
                Joins if sidecar.is_none() && text.contains("serving") => {
                    sidecar = Some(());
                    running.push(stage.sidecar(self)?);
                }
                Asks if text.contains("serving") => stage.ask(self)?,
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        for mut one in running {
            // In good order: what it leads is given back.
            let signal = if self.place == Leads { "-TERM" } else { "-KILL" };
            let _ = Command::new("kill").args([signal, &one.id().to_string()]).status();
            one.wait()?;
        }
        let what = format!("{} without {} {:?}", self.rules.program, self.verb, self.rule);
        outcome.map_err(|why| format!("{what}: {why}"))?;
        println!("    {what}: {} ({:.1} s)", self.fails, begun.elapsed().as_secs_f32());
        Ok(())
    }
}

/// The end of a log.
fn last(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|l| l.chars().take(300).collect()).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// What the API server has denied, by its own words in what a program says.
fn denied(text: &str) -> BTreeSet<Denied> {
    let of = |part: &str| {
        let (verb, rest) = part.split_once(" resource \"")?;
        let (resource, rest) = rest.split_once("\" in API group \"")?;
        Some((verb.to_string(), resource.to_string(), rest.split_once('"')?.0.to_string()))
    };
    text.split("\" cannot ").skip(1).filter_map(of).collect()
}

fn rbac(kind: &str) -> String {
    format!("rbac.authorization.k8s.io/v1 {kind}")
}

/// `what`: version and kind.
fn object(what: &str, metadata: Value, rest: Value) -> Value {
    let (version, kind) = what.split_once(' ').unwrap_or(("v1", what));
    let mut out = json!({"apiVersion": version, "kind": kind, "metadata": metadata});
    if let (Some(out), Value::Object(rest)) = (out.as_object_mut(), rest) {
        out.extend(rest);
    }
    out
}

/// Goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("weft-rights-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What all of them play on.
struct Stage<'a> {
    mesh: &'a Mesh,
    folder: Folder,
    kubeconfig: Value,
}

/// Objects that are there with a status, which is made empty when conditions are to be missed.
const ROUTES: [&str; 4] =
    ["httproutes.gateway.networking.k8s.io", "grpcroute", "trafficpolicy", "httproutes.policy.linkerd.io"];

impl<'a> Stage<'a> {
    fn set(mesh: &'a Mesh, all: &[Without<'_>]) -> Result<Self> {
        let folder = Folder::new()?;
        let config = mesh.kubectl(&["config", "view", "--raw", "-o", "json"])?;
        let stage = Self { mesh, folder, kubeconfig: serde_json::from_str(&config)? };
        let settings = mesh.kubectl(&[
            "-n",
            "weft-system",
            "get",
            "configmap",
            "weft-injector",
            "-o",
            "jsonpath={.data.settings\\.yaml}",
        ])?;
        std::fs::write(stage.folder.path("settings.yaml"), settings)?;
        let roots = ["-n", "weft-system", "get", "configmap", "weft-root", "-o", "jsonpath={.data.root\\.pem}"];
        std::fs::write(stage.folder.path("root.pem"), mesh.kubectl(&roots)?)?;

        let mut objects: Vec<Value> = all.iter().flat_map(Without::objects).collect();
        let namespaces = PLACES.iter().map(|p| p.namespace()).chain(["rights-full", "rights-wrong"].map(String::from));
        let namespaces = namespaces.map(|n| object("Namespace", json!({"name": n}), json!({})));
        stage.create(namespaces.collect())?;
        for place in PLACES {
            objects.extend(stage.props(*place)?);
        }
        stage.create(objects)?;
        mesh.apply(PROPS)?;
        stage.roots()?;
        Ok(stage)
    }

    fn create(&self, items: Vec<Value>) -> Result {
        let file = self.folder.path("objects.json");
        std::fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        self.mesh.kubectl(&["create", "-f", &file.to_string_lossy()]).map(drop)
    }

    /// What a place has before anybody comes.
    fn props(&self, place: Place) -> Result<Vec<Value>> {
        let namespace = place.namespace();
        let meta = |name: &str| json!({"name": name, "namespace": namespace});
        let copy = |name: &str, annotations: Option<Value>| -> Result<Value> {
            let secret = self.mesh.json(&["-n", "weft-system", "get", "secret", name])?;
            let mut meta = meta(name);
            meta["annotations"] = annotations.unwrap_or_else(|| secret["metadata"]["annotations"].clone());
            Ok(object("Secret", meta, json!({"data": secret["data"], "type": secret["type"]})))
        };
        let mut out = Vec::new();
        match place {
            Empty => {}
            Given => {
                let mut params = rcgen::CertificateParams::default();
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                let key = rcgen::KeyPair::generate()?;
                let pem = params.self_signed(&key)?.pem();
                let data = json!({"tls.crt": pem, "tls.key": key.serialize_pem()});
                out.push(object("Secret", meta("weft-ca"), json!({"stringData": data})));
            }
            _ => out.push(copy("weft-ca", None)?),
        }
        let lease = |spec: Value| object("coordination.k8s.io/v1 Lease", meta("weft-control"), json!({"spec": spec}));
        match place {
            Leaderless | Leads => {}
            Free => out.push(lease(json!({}))),
            _ => out.push(lease(json!({"holderIdentity": "somebody", "leaseDurationSeconds": 3600}))),
        }
        for name in ["weft-control", "weft-injector"] {
            let secret = format!("{name}-webhook");
            match place {
                // As it is: no configuration has to change, so the mesh's own programs are not disturbed.
                Hook | Asks => {
                    let names = format!("{name}.{namespace}.svc {name}.{namespace}.svc.cluster.local");
                    let since = self.mesh.json(&["-n", "weft-system", "get", "secret", &secret])?;
                    let since = since["metadata"]["annotations"]["weft.dev/since"].clone();
                    out.push(copy(&secret, Some(json!({"weft.dev/names": names, "weft.dev/since": since})))?);
                }
                Renamed => out.push(copy(&secret, None)?),
                _ => {}
            }
        }
        Ok(out)
    }

    /// A namespace in which no root can be made, one whose root cannot be put right, and a CA with two roots: so that who may do it
    /// cannot be faster than who may not.
    fn roots(&self) -> Result {
        let mesh = self.mesh;
        for namespace in ["rights-full", "rights-wrong"] {
            mesh.until("the mesh's own root", || {
                mesh.kubectl(&["-n", namespace, "get", "configmap", "weft-root"]).map(drop)
            })?;
        }
        mesh.until("the quota counts", || {
            let hard = mesh.kubectl(&["-n", "rights-full", "get", "quota", "none", "-o", "jsonpath={.status.hard}"])?;
            ensure!(!hard.is_empty(), "not yet");
            Ok(())
        })?;
        mesh.kubectl(&["-n", "rights-full", "delete", "configmap", "weft-root"])?;
        let wrong = r#"{"data": {"root.pem": "wrong"}, "immutable": true}"#;
        mesh.kubectl(&["-n", "rights-wrong", "patch", "configmap", "weft-root", "--type=merge", "-p", wrong])?;
        let control = mesh.programs.join("weft-control");
        let mut command = mesh.cluster.command(&control.to_string_lossy());
        command.args(["rotate-root", "--kube", "--namespace", &Rotation.namespace()]).stdin(Stdio::null());
        said("rotate-root", command.output()?).map(drop)
    }

    /// Once it is written, whoever has does not look again.
    fn written(&self) -> Result {
        self.mesh.until("conditions", || {
            for kind in ROUTES {
                let status =
                    self.mesh.json(&["-n", "rights-leads", "get", &format!("{kind}/rights")])?["status"].clone();
                ensure!(status.to_string().contains("lastTransitionTime"), "{kind}: {status}");
            }
            Ok(())
        })
    }

    /// As if nobody had written it yet.
    fn forget(&self) -> Result {
        for kind in ROUTES {
            let list = if kind == "trafficpolicy" { "conditions" } else { "parents" };
            let empty = json!({"status": {list: []}}).to_string();
            let object = format!("{kind}/rights");
            let patch = ["-n", "rights-leads", "patch", &object, "--subresource=status", "--type=merge", "-p", &empty];
            self.mesh.kubectl(&patch)?;
        }
        Ok(())
    }

    fn start(&self, without: &Without<'_>) -> Result<Child> {
        let (user, namespace) = (without.user(), without.place.namespace());
        let file = |end: &str| self.folder.path(&format!("{user}{end}"));
        let mut config = self.kubeconfig.clone();
        config["users"][0]["user"]["as"] = user.as_str().into();
        std::fs::write(file(".json"), config.to_string())?;
        let address = |base: usize| format!("127.0.0.1:{}", base + without.n);
        let program = self.mesh.programs.join(without.rules.program);
        let mut command = self.mesh.cluster.command(&program.to_string_lossy());
        command.arg("--kubeconfig").arg(file(".json")).args(["--listen", &address(22000)]);
        match without.rules.program {
            "weft-control" => {
                command.args(["--kube", "--state"]).arg(file(".state"));
                if matches!(without.place, Hook | Renamed | Bare) {
                    command.args(["--webhook", &address(23000)]);
                }
            }
            _ => {
                command.args(["--status", &address(24000), "--settings"]).arg(self.folder.path("settings.yaml"));
            }
        }
        command.env("POD_NAMESPACE", namespace).env("POD_NAME", &user).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stderr(std::fs::File::create(file(".log"))?);
        Ok(command.spawn()?)
    }

    fn sidecar(&self, without: &Without<'_>) -> Result<Child> {
        let uid = self.mesh.kubectl(&["-n", "rights-joins", "get", "pod", "app", "-o", "jsonpath={.metadata.uid}"])?;
        let file = |end: &str| self.folder.path(&format!("{}{end}", without.user()));
        let bound = ["--bound-object-kind=Pod", "--bound-object-name=app", &format!("--bound-object-uid={uid}")];
        let token = ["-n", "rights-joins", "create", "token", "default", "--audience=weft.dev"];
        std::fs::write(file(".token"), self.mesh.kubectl(&[&token[..], &bound[..]].concat())?)?;
        let program = self.mesh.programs.join("weft-proxy");
        let mut command = self.mesh.cluster.command(&program.to_string_lossy());
        command.args(["--control", &format!("127.0.0.1:{}", 22000 + without.n), "--pod", "rights-joins/app"]);
        command.args(["--admin", "127.0.0.1:0", "--trust-root"]).arg(self.folder.path("root.pem"));
        command.arg("--token-file").arg(file(".token")).arg("--state").arg(file(".sidecar"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    /// As the API server asks about a pod.
    fn ask(&self, without: &Without<'_>) -> Result {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}});
        let request = json!({"uid": "1", "operation": "CREATE", "namespace": "of-late", "object": pod,
            "kind": {"group": "", "version": "v1", "kind": "Pod"}});
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        let url = format!("https://127.0.0.1:{}/inject", 22000 + without.n);
        let mut command = self.mesh.cluster.command("curl");
        command.args(["-sSk", "-m", "5", "-d", &review.to_string(), &url]).stdin(Stdio::null());
        command.output().map(drop).map_err(Into::into)
    }
}

const PROPS: &str = r#"
apiVersion: v1
kind: ResourceQuota
metadata: {name: none, namespace: rights-full}
spec: {hard: {count/configmaps: "0"}}
---
apiVersion: v1
kind: Pod
metadata: {name: app, namespace: rights-joins}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: app, image: "busybox:1", command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: rights-leads}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: grpc, namespace: rights-leads}
spec: {selector: {app: grpc}, ports: [{name: grpc, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: rights, namespace: rights-leads}
spec: {parentRefs: [{group: "", kind: Service, name: web, port: 80}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: rights, namespace: rights-leads}
spec: {parentRefs: [{group: "", kind: Service, name: grpc, port: 80}], rules: [{backendRefs: [{name: grpc, port: 80}]}]}
---
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {name: rights, namespace: rights-leads}
spec: {parentRefs: [{group: core, kind: Service, name: web, port: 80}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: rights, namespace: rights-leads}
spec: {targetRefs: [{group: "", kind: Service, name: web}], retry: {attempts: 2, "on": "5xx"}}
"#;

pub fn each_rule_is_missed(mesh: &mut Mesh) -> Result {
    let programs =
        [(Rules::installed(mesh, "weft-control")?, CONTROL), (Rules::installed(mesh, "weft-injector")?, INJECTOR)];
    let mut all = Vec::new();
    for (rules, table) in &programs {
        let mut expected = BTreeSet::new();
        for (rule, verbs, place, fails) in *table {
            for verb in verbs.split(' ') {
                expected.insert((rule.to_string(), verb.to_string()));
                all.push(Without { rules, rule, verb, place: *place, fails, n: all.len() });
            }
        }
        let installed = rules.each();
        let untold: Vec<_> = installed.difference(&expected).collect();
        ensure!(untold.is_empty(), "{}: the table does not say what fails without {untold:?}", rules.program);
        let gone: Vec<_> = expected.difference(&installed).collect();
        ensure!(gone.is_empty(), "{}: in the table, and not in the chart: {gone:?}", rules.program);
    }
    // The mesh's own lack nothing.
    for (rules, _) in &programs {
        let log = mesh.kubectl(&["-n", "weft-system", "logs", &format!("deploy/{}", rules.program)])?;
        let lacks = denied(&log.replace('\\', ""));
        ensure!(lacks.is_empty(), "{}: {lacks:?}", rules.program);
    }
    let stage = Stage::set(mesh, &all)?;
    let (in_turn, mut at_once): (Vec<_>, Vec<_>) = all.into_iter().partition(|w| w.place == Leads);
    stage.written()?;
    // The mesh's own would write at once what is forgotten.
    let scale = |replicas: &str| -> Result {
        mesh.kubectl(&["-n", "weft-system", "scale", "deploy/weft-control", replicas])?;
        mesh.rolled_out("weft-system")
    };
    scale("--replicas=0")?;
    mesh.until("nobody writes conditions", || {
        let left = mesh.pods("weft-system", "app.kubernetes.io/name=weft-control")?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    let shown = |without: &Without<'_>| {
        stage.forget()?;
        without.shown(&stage)
    };
    let failed: Vec<String> = in_turn.iter().filter_map(|w| shown(w).err().map(|e| e.to_string())).collect();
    scale("--replicas=1")?;
    at_once.reverse();
    let (waiting, failed) = (Mutex::new(at_once), Mutex::new(failed));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(next) = waiting.lock().ok().and_then(|mut all| all.pop()) {
                    if let (Err(why), Ok(mut failed)) = (next.shown(&stage), failed.lock()) {
                        failed.push(why.to_string());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner()?;
    let places = PLACES.iter().map(|p| p.namespace()).chain(["rights-full", "rights-wrong"].map(String::from));
    for namespace in places {
        mesh.kubectl(&["delete", "namespace", &namespace, "--wait=false"])?;
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
    Ok(())
}

/// A person whose kubeconfig may see what the mesh is made of and change nothing, and may not look into pods.
pub fn who_may_not_is_told(mesh: &mut Mesh) -> Result {
    let folder = Folder::new()?;
    let mut config: Value = serde_json::from_str(&mesh.kubectl(&["config", "view", "--raw", "-o", "json"])?)?;
    config["users"][0]["user"]["as"] = "visitor".into();
    let (file, kubeconfig) = (folder.path("visitor.yaml"), folder.path("visitor.json"));
    std::fs::write(&kubeconfig, config.to_string())?;
    std::fs::write(&file, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine, namespace: default}\n")?;
    // To see what the mesh sees.
    let mut rules = Rules::installed(mesh, "weft-control")?.cluster;
    rules.retain(|r| r["verbs"].to_string().contains("list") && r["resourceNames"].is_null());
    let more = ["configmaps", "secrets", "serviceaccounts", "replicasets", "jobs", "cronjobs"];
    rules.push(json!({"apiGroups": ["", "apps", "batch"], "resources": more}));
    rules.iter_mut().for_each(|r| r["verbs"] = json!(["get", "list"]));
    let role = object(&rbac("ClusterRole"), json!({"name": "visitor"}), json!({"rules": rules}));
    let to = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "visitor"});
    let subject = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "visitor"}]);
    let of = json!({"roleRef": to, "subjects": subject});
    mesh.apply(&format!("{role}\n---\n{}", object(&rbac("ClusterRoleBinding"), json!({"name": "visitor"}), of)))?;
    let kubeconfig = kubeconfig.to_string_lossy();
    let file = file.to_string_lossy();
    for (args, right) in [
        (&["apply", "-f", &file][..], r#"cannot patch resource "configmaps""#),
        (&["status"], r#"resource "pods/portforward""#),
        (&["stat", "-w", "1s"], r#"resource "pods/portforward""#),
    ] {
        let refused = mesh.meshctl(&[args, &["--kubeconfig", &kubeconfig]].concat());
        let said = refused.err().ok_or_else(|| format!("{args:?} was done"))?.to_string();
        ensure!(said.contains(right) && said.contains("exit status: 1"), "{args:?}: {said}");
    }
    mesh.meshctl(&["route", "list", "--kubeconfig", &kubeconfig])?;
    Ok(())
}
