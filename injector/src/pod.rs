//! The pod with its sidecar: what is added where, in which order, and a record of it by which it can be taken out again.
//!
//! A native sidecar and the container that sets the rules come before all others, so that the app's init containers have the
//! network already. A classic one starts after all of these, so the rules are set last, and what init containers send goes
//! past it.

use crate::decide::VOLUMES;
use crate::probes;
use crate::record::Record;
use crate::settings::{Dialect, Mode, Settings};
use crate::wishes::Wishes;
use crate::workload::{self, Template, name};
use crate::{Injected, LINKERD_ADMIN, METRICS, Namespace, OUTBOUND, Outcome, READY, Request, Warnings};
use crate::{json_patch, metrics, redirect, sidecar};
use serde_json::{Map, Value, json};
use std::ops::RangeInclusive;

/// Everything that is decided before anything is written.
pub struct Plan<'a> {
    pub settings: &'a Settings,
    pub dialect: Dialect,
    pub mode: Mode,
    pub wishes: Wishes,
    /// How long a classic sidecar waits before it ends.
    pub linger: u32,
    /// What it then has for what is in flight.
    pub drain: u32,
    /// What the kubelet asked of the app, for the sidecar to ask.
    pub probes: Map<String, Value>,
    /// Where the app's own metrics are.
    pub metrics: Option<Value>,
}

pub fn build(
    settings: &Settings,
    request: &Request<'_>,
    dialect: Dialect,
    why: String,
    warnings: &mut Warnings,
) -> Outcome {
    let mut object = request.object.clone();
    let Some(template) = workload::template(request.object) else {
        return Outcome::Skipped("it has no pod template".into());
    };
    let wishes = Wishes::read(request.namespace, &template, warnings);
    let mode = wishes.mode.unwrap_or(settings.mode);
    let mut record = Record::new(dialect);
    let rewrite = wishes.rewrite_probes.unwrap_or(settings.rewrite_probes);
    advise(request.namespace, &template, mode, rewrite, warnings);

    let mut plan = times(settings, wishes, dialect, mode, &template, warnings);
    let Some(pod) = workload::pointer(request.object).and_then(|p| object.pointer_mut(p)) else {
        return Outcome::Skipped("it has no pod template".into());
    };
    let hold = plan.wishes.hold.unwrap_or(settings.hold);
    if rewrite {
        plan.probes = probes::rewrite(pod, hold, &mut record, warnings);
    }
    let merge = plan.wishes.merge_metrics.unwrap_or(settings.merge_metrics);
    let mut annotations = vec![("weft.dev/sidecar".to_string(), "true".to_string())];
    if let Some(found) = merge.then(|| metrics::merge(&template, warnings)).flatten() {
        annotations.extend(found.annotations);
        plan.metrics = found.app;
    }
    if let Some(first) = template.list("containers").first() {
        for key in ["kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"] {
            if template.annotation(key).is_none() {
                annotations.push((key.into(), name(first).into()));
            }
        }
    }
    let labels = labels(settings, dialect, request, &template);

    let container = sidecar::container(&plan, warnings);
    let init = redirect::container(&plan);
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return Outcome::Skipped("it has no pod template".into());
    };
    match mode {
        Mode::Native => record.list(spec, "initContainers", |list| drop(list.splice(0..0, [init, container]))),
        Mode::Classic => {
            record.list(spec, "initContainers", |list| list.push(init));
            // The kubelet starts one after the other, and waits for a hook before the next.
            record.list(spec, "containers", |list| list.insert(if hold { 0 } else { list.len() }, container));
        }
    }
    record.list(spec, "volumes", |list| list.extend(volumes(settings)));
    record.secrets(spec, &settings.pull_secrets);
    record.write(pod, annotations, labels);

    let patch = json_patch::diff(request.object, &object);
    Outcome::Injected(Box::new(Injected { object, patch, dialect, mode, container: dialect.container().into(), why }))
}

/// How the pod's grace period is divided.
fn times<'a>(
    settings: &'a Settings,
    wishes: Wishes,
    dialect: Dialect,
    mode: Mode,
    template: &Template<'_>,
    warnings: &mut Warnings,
) -> Plan<'a> {
    let grace = template.spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64);
    let grace = grace.map_or(30, |g| u32::try_from(g).unwrap_or(u32::MAX));
    let linger = match mode {
        Mode::Native => 0,
        // What remains is for what is in flight.
        Mode::Classic => settings.linger_seconds.min(grace / 2),
    };
    // A second to leave in.
    let most = grace.saturating_sub(linger).saturating_sub(1);
    let drain = wishes.drain_seconds.unwrap_or(settings.drain_seconds);
    if wishes.drain_seconds.is_some_and(|asked| asked > most) {
        warnings.add(format!("{drain} s to drain are cut to {most} s: terminationGracePeriodSeconds is {grace}"));
    }
    let (probes, metrics) = Default::default();
    Plan { settings, dialect, mode, wishes, linger, drain: drain.min(most), probes, metrics }
}

/// What is going to hurt, told before it does.
fn advise(namespace: &Namespace, template: &Template<'_>, mode: Mode, rewrite: bool, warnings: &mut Warnings) {
    let level = namespace.labels.get("pod-security.kubernetes.io/enforce").map(String::as_str);
    if let Some(level @ ("restricted" | "baseline")) = level {
        warnings.add(format!(
            "the namespace enforces pod security {level}, which refuses weft-init: it needs NET_ADMIN to redirect traffic"
        ));
    }
    let restart = template.spec.get("restartPolicy").and_then(Value::as_str).unwrap_or("Always");
    if mode == Mode::Classic && restart != "Always" {
        warnings.add("a classic sidecar outlives the app: the pod ends after POST :15020/quitquitquit; a native one needs nothing");
    }
    if mode == Mode::Classic && !template.list("initContainers").is_empty() {
        warnings.add("init containers run before a classic sidecar: what they send goes past the mesh");
    }
    const OWN: [RangeInclusive<u16>; 4] = [OUTBOUND - 1..=OUTBOUND, 15006..=15006, 15020..=READY, METRICS..=METRICS];
    for container in template.containers() {
        let ports = container.get("ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let numbers = ports.iter().filter_map(|p| u16::try_from(p.get("containerPort")?.as_u64()?).ok());
        for number in numbers.filter(|n| OWN.iter().any(|own| own.contains(n))) {
            warnings.add(format!(
                "container port {number} is the sidecar's own: who of both starts last cannot listen there"
            ));
        }
        for hook in ["postStart", "preStop"] {
            let of = container.get("lifecycle").and_then(|l| l.get(hook)?.get("httpGet"));
            if of.is_some() && !rewrite {
                warnings.add(format!("the kubelet calls {hook}.httpGet without mTLS, which STRICT refuses; use exec"));
            }
        }
    }
}

fn volumes(settings: &Settings) -> [Value; 3] {
    let [token, root, state] = VOLUMES;
    [
        json!({"name": token, "projected": {"sources": [{"serviceAccountToken": {
            "audience": settings.token_audience, "expirationSeconds": settings.token_seconds, "path": "token",
        }}]}}),
        json!({"name": root, "configMap": {"name": settings.root_config_map}}),
        // In memory: there is a key in it.
        json!({"name": state, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
    ]
}

/// By which each dialect's tools find pods with a sidecar.
fn labels(settings: &Settings, dialect: Dialect, request: &Request<'_>, pod: &Template<'_>) -> Vec<(String, String)> {
    let owner = workload::owner(request.object);
    let first = |names: &[&str]| names.iter().find_map(|n| pod.label(n)).map(|v| v.into_owned());
    let found: Vec<(String, Option<String>)> = match dialect {
        Dialect::Weft => return Vec::new(),
        Dialect::Istio => vec![
            ("security.istio.io/tlsMode".into(), Some("istio".into())),
            (
                "service.istio.io/canonical-name".into(),
                first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]).or(owner.map(|o| o.1)),
            ),
            (
                "service.istio.io/canonical-revision".into(),
                first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
                    .or(Some("latest".into())),
            ),
        ],
        Dialect::Linkerd => vec![
            ("linkerd.io/control-plane-ns".into(), Some(settings.namespace.clone())),
            ("linkerd.io/workload-ns".into(), Some(request.namespace.name.clone())),
            match owner.filter(|(kind, _)| LINKERD_OWNERS.contains(&kind.as_str())) {
                Some((kind, name)) => (format!("linkerd.io/proxy-{kind}"), Some(name)),
                None => (String::new(), None),
            },
        ],
    };
    // A label's value is short; a name may be longer.
    let fits = |v: &String| (1..=63).contains(&v.len());
    found.into_iter().filter_map(|(k, v)| Some((k, v.filter(fits)?))).collect()
}

const LINKERD_OWNERS: [&str; 7] =
    ["deployment", "statefulset", "daemonset", "replicaset", "replicationcontroller", "job", "cronjob"];

impl Plan<'_> {
    /// The sidecar's ports that are reached from outside, past the rules.
    pub fn own_ports(&self) -> Vec<u16> {
        let linkerd = (self.dialect == Dialect::Linkerd).then_some(LINKERD_ADMIN);
        [crate::AGENT, READY, METRICS].into_iter().chain(linkerd).collect()
    }
}
