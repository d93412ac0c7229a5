//! What is to run: Deployments, StatefulSets, DaemonSets, Jobs and bare Pods, each with its pods' template.

use super::manifest::{DEFAULT_NAMESPACE, json, list, port, text, texts};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use weft_dialects::object::{Object, Objects};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Deployment,
    StatefulSet,
    DaemonSet,
    Job,
    Pod,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::Job => "Job",
            Self::Pod => "Pod",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    pub replicas: u32,
    pub template: Template,
    /// `file:line`
    pub at: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub service_account: String,
    pub containers: Vec<Container>,
    pub restart: Restart,
    pub grace: Duration,
    pub host_network: bool,
    /// The headless Service that gives its pods names.
    pub subdomain: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    #[default]
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    pub name: String,
    pub image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    /// As written; `environment.rs` looks up what it refers to.
    pub env: Vec<Value>,
    pub env_from: Vec<Value>,
    pub ports: Vec<Port>,
    pub readiness: Option<Probe>,
    pub liveness: Option<Probe>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    pub name: Option<String>,
    pub number: u16,
    pub udp: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    pub check: Check,
    pub delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub failures: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Check {
    Http { port: Target, path: String, headers: Vec<(String, String)> },
    Tcp { port: Target },
    Exec { command: Vec<String> },
}

/// A port by number or by a container port's name.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Number(u16),
    Name(String),
}

impl Target {
    pub fn read(value: &Value) -> Option<Self> {
        match value {
            // A number in quotes is one as well.
            Value::String(name) => Some(name.parse().map_or_else(|_| Self::Name(name.clone()), Self::Number)),
            other => port(other).map(Self::Number),
        }
    }

    pub fn find<'c>(&self, containers: impl IntoIterator<Item = &'c Container>) -> Option<u16> {
        match self {
            Self::Number(n) => Some(*n),
            Self::Name(name) => {
                let mut ports = containers.into_iter().flat_map(|c| &c.ports);
                ports.find(|p| p.name.as_ref() == Some(name)).map(|p| p.number)
            }
        }
    }
}

/// All workloads, and what in them a lab passes over.
pub fn workloads(objects: &Objects, problems: &mut Vec<String>) -> Vec<Workload> {
    let mut found = Vec::new();
    for object in &objects.0 {
        let kind = match (object.group(), object.kind.as_str()) {
            ("apps", "Deployment") => Kind::Deployment,
            ("apps", "StatefulSet") => Kind::StatefulSet,
            ("apps", "DaemonSet") => Kind::DaemonSet,
            ("batch", "Job") => Kind::Job,
            ("", "Pod") => Kind::Pod,
            _ => continue,
        };
        found.push(workload(kind, object, problems));
    }
    found
}

fn workload(kind: Kind, object: &Object, problems: &mut Vec<String>) -> Workload {
    let at = format!("{}:{}", object.file, object.node.at.line);
    let whole = json(&object.node);
    let spec = &whole["spec"];
    // A Pod is its own template.
    let pod = if kind == Kind::Pod { &whole } else { &spec["template"] };
    let template = template(pod, spec, &format!("{at}: {}", object.reference()), problems);
    let replicas = match kind {
        Kind::Deployment | Kind::StatefulSet => spec["replicas"].as_u64().map_or(1, |n| n.min(1000) as u32),
        // One node, one pod; a Job's pods run one after the other here.
        Kind::DaemonSet | Kind::Job | Kind::Pod => 1,
    };
    let namespace = if object.namespace.is_empty() { DEFAULT_NAMESPACE.into() } else { object.namespace.clone() };
    Workload { kind, namespace, name: object.name.clone(), replicas, template, at }
}

fn template(pod: &Value, owner: &Value, at: &str, problems: &mut Vec<String>) -> Template {
    let spec = &pod["spec"];
    for (field, why) in [("initContainers", "are not run in a lab"), ("volumes", "are not mounted in a lab")] {
        if !list(&spec[field]).is_empty() {
            problems.push(format!("{at}: {field} {why}"));
        }
    }
    let containers: Vec<Container> = list(&spec["containers"]).iter().map(container).collect();
    if containers.is_empty() {
        problems.push(format!("{at}: has no containers"));
    }
    Template {
        labels: texts(&pod["metadata"]["labels"]),
        annotations: texts(&pod["metadata"]["annotations"]),
        service_account: text(&spec["serviceAccountName"]).unwrap_or_else(|| "default".into()),
        containers,
        restart: match spec["restartPolicy"].as_str() {
            Some("OnFailure") => Restart::OnFailure,
            Some("Never") => Restart::Never,
            _ => Restart::Always,
        },
        grace: Duration::from_secs(spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30).min(600)),
        host_network: spec["hostNetwork"] == true,
        subdomain: text(&spec["subdomain"]).or_else(|| text(&owner["serviceName"])),
    }
}

fn container(value: &Value) -> Container {
    let words = |field: &str| list(&value[field]).iter().filter_map(text).collect();
    let ports = list(&value["ports"]).iter().filter_map(|p| {
        Some(Port { name: text(&p["name"]), number: port(&p["containerPort"])?, udp: p["protocol"] == "UDP" })
    });
    Container {
        name: text(&value["name"]).unwrap_or_else(|| "app".into()),
        image: text(&value["image"]).unwrap_or_default(),
        command: words("command"),
        args: words("args"),
        env: list(&value["env"]).to_vec(),
        env_from: list(&value["envFrom"]).to_vec(),
        ports: ports.collect(),
        readiness: probe(&value["readinessProbe"]),
        liveness: probe(&value["livenessProbe"]),
    }
}

fn probe(value: &Value) -> Option<Probe> {
    let check = if let Some(http) = value.get("httpGet") {
        let headers = list(&http["httpHeaders"]).iter().filter_map(|h| Some((text(&h["name"])?, text(&h["value"])?)));
        Check::Http {
            port: Target::read(&http["port"])?,
            path: text(&http["path"]).unwrap_or_else(|| "/".into()),
            headers: headers.collect(),
        }
    } else if let Some(command) = value.get("exec") {
        Check::Exec { command: list(&command["command"]).iter().filter_map(text).collect() }
    } else {
        // Whether a gRPC server is up is told by its port.
        let socket = value.get("tcpSocket").or_else(|| value.get("grpc"))?;
        Check::Tcp { port: Target::read(&socket["port"])? }
    };
    let seconds = |field: &str, usual: u64| Duration::from_secs(value[field].as_u64().unwrap_or(usual).min(3600));
    Some(Probe {
        check,
        delay: seconds("initialDelaySeconds", 0),
        period: seconds("periodSeconds", 10).max(Duration::from_secs(1)),
        timeout: seconds("timeoutSeconds", 1).max(Duration::from_secs(1)),
        failures: value["failureThreshold"].as_u64().unwrap_or(3).clamp(1, 1000) as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_policy::diag::Diags;

    pub fn objects(text: &str) -> Objects {
        let mut diags = Diags::default();
        let found = weft_dialects::object::read(&"a.yaml".into(), text, DEFAULT_NAMESPACE, &mut diags);
        assert!(diags.0.is_empty(), "{:?}", diags.0);
        Objects(found.unwrap().into_iter().map(std::sync::Arc::new).collect())
    }

    #[test]
    fn each_kind_says_how_many_and_what() {
        let all = objects(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec:\n  replicas: 3\n  template:\n    \
             metadata: {labels: {app: web, version: 1.5}}\n    spec:\n      serviceAccountName: shopper\n      volumes: [{name: v}]\n      containers:\n      \
             - {name: main, image: a/b, args: [-x, 5], ports: [{name: http, containerPort: 8080}], readinessProbe: {httpGet: {port: http, path: /up}}}\n\
             ---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db}\nspec: {serviceName: dbs, template: {spec: {containers: [{name: a, image: b}]}}}\n\
             ---\napiVersion: batch/v1\nkind: Job\nmetadata: {name: once}\nspec: {template: {spec: {restartPolicy: Never, containers: [{name: a, image: b}]}}}\n\
             ---\napiVersion: v1\nkind: Pod\nmetadata: {name: lone, labels: {app: lone}}\nspec: {containers: [{name: a, image: b}]}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\n",
        );
        let mut problems = Vec::new();
        let found = workloads(&all, &mut problems);
        let names: Vec<_> = found.iter().map(|w| (w.kind.name(), w.name.as_str(), w.replicas)).collect();
        assert_eq!(names, [("Deployment", "web", 3), ("StatefulSet", "db", 1), ("Job", "once", 1), ("Pod", "lone", 1)]);
        assert_eq!(problems, ["a.yaml:1: deployment/web.shop: volumes are not mounted in a lab"]);
        let (web, main) = (&found[0].template, &found[0].template.containers[0]);
        assert_eq!((web.service_account.as_str(), web.labels["version"].as_str()), ("shopper", "1.5"));
        assert_eq!(main.args, ["-x", "5"]);
        let Some(Probe { check: Check::Http { port, path, .. }, .. }) = &main.readiness else { panic!("{main:?}") };
        assert_eq!((port.find([main]), path.as_str()), (Some(8080), "/up"));
        assert_eq!(found[1].template.subdomain.as_deref(), Some("dbs"));
        assert_eq!(found[2].template.restart, Restart::Never);
        assert_eq!(found[3].template.labels["app"], "lone");
        assert_eq!(found[1].namespace, DEFAULT_NAMESPACE);
    }
}
