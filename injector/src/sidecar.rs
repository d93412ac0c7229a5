//! The sidecar's own container. It passes the restricted level of pod security: no root, no capability, nothing to write but
//! its state, which is in memory.

use crate::pod::Plan;
use crate::settings::{Dialect, LogFormat, Mode, Resources};
use crate::values::nanos;
use crate::{AGENT, LINKERD_ADMIN, METRICS, READY, UID, Warnings};
use serde_json::{Value, json};

const FOLDER: &str = "/run/weft";

pub fn container(plan: &Plan<'_>, warnings: &mut Warnings) -> Value {
    let (settings, wishes) = (plan.settings, &plan.wishes);
    let ready = |path: &str| json!({"path": path, "port": READY, "scheme": "HTTP"});
    let mut out = json!({
        "name": plan.dialect.container(),
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["weft-proxy"],
        "args": args(plan),
        "env": environment(plan),
        "ports": ports(plan.dialect),
        "resources": resources(&settings.resources, &wishes.resources, warnings).document(),
        "readinessProbe": {
            "httpGet": ready("/ready"),
            "initialDelaySeconds": wishes.ready_delay.unwrap_or(0),
            "periodSeconds": wishes.ready_period.unwrap_or(15),
            "failureThreshold": wishes.ready_failures.unwrap_or(4),
            "timeoutSeconds": 3,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": UID,
            "runAsNonRoot": true,
            "runAsUser": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "weft-token", "mountPath": format!("{FOLDER}/token"), "readOnly": true},
            {"name": "weft-root", "mountPath": format!("{FOLDER}/root"), "readOnly": true},
            {"name": "weft-state", "mountPath": format!("{FOLDER}/state")},
        ],
    });
    let hold = wishes.hold.unwrap_or(settings.hold);
    match plan.mode {
        Mode::Native => {
            out["restartPolicy"] = "Always".into();
            // Without it the app's containers start as soon as this one runs.
            if hold {
                out["startupProbe"] = json!({
                    "httpGet": ready("/ready"), "periodSeconds": 1, "failureThreshold": 600, "timeoutSeconds": 3,
                });
            }
        }
        Mode::Classic => {
            let mut lifecycle = json!({});
            if hold {
                lifecycle["postStart"] =
                    json!({"exec": {"command": ["pilot-agent", "wait", "--timeoutSeconds", "120"]}});
            }
            // Both are told to end at once, and the app's last requests need a sidecar.
            if plan.linger > 0 {
                lifecycle["preStop"] = json!({"sleep": {"seconds": plan.linger}});
            }
            if lifecycle.as_object().is_some_and(|l| !l.is_empty()) {
                out["lifecycle"] = lifecycle;
            }
        }
    }
    out
}

fn args(plan: &Plan<'_>) -> Vec<String> {
    let (settings, wishes) = (plan.settings, &plan.wishes);
    let mut args = Vec::new();
    let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    flag("control", settings.control.clone());
    flag("trust-root", format!("{FOLDER}/root/{}", settings.root_key));
    flag("token-file", format!("{FOLDER}/token/token"));
    flag("pod", "$(POD_NAMESPACE)/$(POD_NAME)".into());
    flag("state", format!("{FOLDER}/state"));
    for (name, port) in [("status", AGENT), ("readiness", READY), ("metrics", METRICS)] {
        flag(name, format!("0.0.0.0:{port}"));
    }
    flag("workers", wishes.workers.unwrap_or(settings.workers.into()).to_string());
    flag("log", wishes.log_level.clone().unwrap_or_else(|| settings.log_level.clone()));
    let format = match wishes.log_format.unwrap_or(settings.log_format) {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    flag("log-format", format.into());
    args
}

fn environment(plan: &Plan<'_>) -> Vec<Value> {
    let from = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let is = |name: &str, value: String| json!({"name": name, "value": value});
    let mut out = vec![
        from("POD_NAME", "metadata.name"),
        from("POD_NAMESPACE", "metadata.namespace"),
        from("POD_UID", "metadata.uid"),
        from("POD_IP", "status.podIP"),
        from("NODE_NAME", "spec.nodeName"),
        from("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        is("WEFT_DIALECT", plan.dialect.word().into()),
        is("WEFT_TRUST_DOMAIN", plan.settings.trust_domain.clone()),
        is("WEFT_DRAIN_SECONDS", plan.drain.to_string()),
    ];
    if !plan.probes.is_empty() {
        out.push(is("WEFT_APP_PROBES", literal(&plan.probes.clone().into())));
    }
    if let Some(metrics) = &plan.metrics {
        out.push(is("WEFT_APP_METRICS", literal(metrics)));
    }
    out
}

/// JSON in which the kubelet finds no variable to put in.
fn literal(value: &Value) -> String {
    value.to_string().replace('$', "$$")
}

fn ports(dialect: Dialect) -> Value {
    let (port, name) = match dialect {
        Dialect::Istio => (METRICS, "http-envoy-prom"),
        Dialect::Linkerd => (LINKERD_ADMIN, "linkerd-admin"),
        Dialect::Weft => (METRICS, "weft-metrics"),
    };
    json!([{"containerPort": port, "name": name, "protocol": "TCP"}])
}

/// What was asked for in the place of what is usual. A request above its limit would keep the pod from being made.
fn resources(usual: &Resources, asked: &Resources, warnings: &mut Warnings) -> Resources {
    let mut pair = |what: &str, usual: [&Option<String>; 2], asked: [&Option<String>; 2]| {
        let [mut request, mut limit] = [0, 1].map(|i| asked[i].clone().or_else(|| usual[i].clone()));
        let above = match (&request, &limit) {
            (Some(request), Some(limit)) => nanos(request) > nanos(limit),
            _ => false,
        };
        if above {
            match asked {
                [Some(_), None] => limit = request.clone(),
                [None, _] => request = limit.clone(),
                [Some(_), Some(_)] => {
                    warnings.add(format!("the sidecar's {what} request is above its limit; both have no effect"));
                    [request, limit] = usual.map(Clone::clone);
                }
            }
        }
        [request, limit]
    };
    let cpu = pair("CPU", [&usual.cpu_request, &usual.cpu_limit], [&asked.cpu_request, &asked.cpu_limit]);
    let memory =
        pair("memory", [&usual.memory_request, &usual.memory_limit], [&asked.memory_request, &asked.memory_limit]);
    let storage = pair(
        "ephemeral storage",
        [&usual.storage_request, &usual.storage_limit],
        [&asked.storage_request, &asked.storage_limit],
    );
    let ([cpu_request, cpu_limit], [memory_request, memory_limit]) = (cpu, memory);
    let [storage_request, storage_limit] = storage;
    Resources { cpu_request, cpu_limit, memory_request, memory_limit, storage_request, storage_limit }
}
