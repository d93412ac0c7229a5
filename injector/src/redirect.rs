//! The container that redirects the pod's traffic and ends: `weft-proxy redirect`, once, before anything else runs.

use crate::decide::INIT;
use crate::pod::Plan;
use crate::settings::Dialect;
use crate::{INBOUND, OUTBOUND, UID};
use serde_json::{Value, json};

/// Linkerd leaves these alone unless it is told otherwise (a MySQL cluster's own).
const LINKERD_SKIPS: [&str; 2] = ["4567", "4568"];

pub fn container(plan: &Plan<'_>) -> Value {
    let mut args = vec!["redirect".to_string()];
    let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    flag("outbound-port", OUTBOUND.to_string());
    flag("inbound-port", INBOUND.to_string());
    flag("uid", UID.to_string());
    let wishes = &plan.wishes;
    let usual = || match plan.dialect {
        Dialect::Linkerd => LINKERD_SKIPS.map(String::from).to_vec(),
        Dialect::Istio | Dialect::Weft => Vec::new(),
    };
    let own = plan.own_ports().into_iter().map(|p| p.to_string());
    let skipped = wishes.skip_inbound_ports.clone().unwrap_or_else(usual);
    flag("skip-inbound-ports", own.chain(skipped).collect::<Vec<_>>().join(","));
    let lists = [
        ("inbound-ports", wishes.inbound_ports.clone()),
        ("outbound-ports", wishes.outbound_ports.clone()),
        (
            "skip-outbound-ports",
            Some(wishes.skip_outbound_ports.clone().unwrap_or_else(usual)).filter(|l| !l.is_empty()),
        ),
        ("outbound-cidrs", wishes.outbound_cidrs.clone()),
        ("skip-outbound-cidrs", wishes.skip_outbound_cidrs.clone()),
        ("skip-uids", wishes.skip_uids.clone()),
    ];
    for (name, list) in lists {
        if let Some(list) = list {
            flag(name, list.join(","));
        }
    }
    json!({
        "name": INIT,
        "image": plan.settings.image,
        "imagePullPolicy": plan.settings.pull_policy,
        "command": ["weft-proxy"],
        "args": args,
        "resources": plan.settings.init_resources.document(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        // Rules need NET_ADMIN, and a capability reaches a user other than root only by way of the file.
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}
