//! What annotations ask for, in three dialects. One table says what is honoured, another what is refused and why; the rest of
//! the mesh's annotations are told to be without effect.
//!
//! A pod's word outweighs its namespace's (which only Linkerd's annotations and ours have). Where several dialects speak,
//! lists are put together and of single values ours counts, then Linkerd's.

use crate::settings::{LogFormat, Mode, Resources};
use crate::values::{self, Amount, MAX_VALUE};
use crate::workload::Template;
use crate::{Namespace, Warnings, shown, text};
use serde_json::Value;
use std::borrow::Cow;
use weft_policy::diag::Diags;
use weft_policy::yaml;

/// What was asked for; None where nobody said anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    pub mode: Option<Mode>,
    pub resources: Resources,
    pub log_level: Option<String>,
    pub log_format: Option<LogFormat>,
    pub workers: Option<u32>,
    pub hold: Option<bool>,
    pub rewrite_probes: Option<bool>,
    pub merge_metrics: Option<bool>,
    pub drain_seconds: Option<u32>,
    pub skip_inbound_ports: Option<Vec<String>>,
    pub inbound_ports: Option<Vec<String>>,
    pub skip_outbound_ports: Option<Vec<String>>,
    /// Whatever their addresses.
    pub outbound_ports: Option<Vec<String>>,
    pub skip_outbound_cidrs: Option<Vec<String>>,
    pub outbound_cidrs: Option<Vec<String>>,
    pub skip_uids: Option<Vec<String>>,
    pub ready_delay: Option<u32>,
    pub ready_period: Option<u32>,
    pub ready_failures: Option<u32>,
}

type Read = fn(&mut Wishes, &str, &mut Warnings) -> Result<(), String>;

/// An annotation that is honoured.
pub struct Honoured {
    pub name: &'static str,
    /// A value that changes something.
    pub example: &'static str,
    read: Read,
}

const fn honoured(name: &'static str, example: &'static str, read: Read) -> Honoured {
    Honoured { name, example, read }
}

/// For one that sets a single field.
macro_rules! set {
    ($($field:ident).+ = $read:expr) => {
        |w, v, _| {
            let read: fn(&str) -> Result<_, String> = $read;
            w.$($field).+ = Some(read(v)?);
            Ok(())
        }
    };
}

/// For one that adds to a list.
macro_rules! add {
    ($field:ident = $read:expr) => {
        |w, v, _| {
            let more = $read(v)?;
            let list = w.$field.get_or_insert_default();
            list.extend(more.into_iter().filter(|m| !list.contains(m)).collect::<Vec<_>>());
            Ok(())
        }
    };
}

fn cpu(value: &str) -> Result<String, String> {
    values::quantity(value, Amount::Cpu)
}

fn bytes(value: &str) -> Result<String, String> {
    values::quantity(value, Amount::Bytes)
}

fn mode(native: bool) -> Mode {
    if native { Mode::Native } else { Mode::Classic }
}

fn native(value: &str) -> Result<Mode, String> {
    values::yes_or_no(value).map(mode)
}

/// Istio's before Linkerd's before ours: of single values the last one counts.
pub const HONOURED: &[Honoured] = &[
    honoured("sidecar.istio.io/nativeSidecar", "false", set!(mode = native)),
    honoured("sidecar.istio.io/proxyCPU", "70m", set!(resources.cpu_request = cpu)),
    honoured("sidecar.istio.io/proxyCPULimit", "3", set!(resources.cpu_limit = cpu)),
    honoured("sidecar.istio.io/proxyMemory", "70Mi", set!(resources.memory_request = bytes)),
    honoured("sidecar.istio.io/proxyMemoryLimit", "700Mi", set!(resources.memory_limit = bytes)),
    honoured("sidecar.istio.io/logLevel", "debug", set!(log_level = values::level)),
    honoured("sidecar.istio.io/rewriteAppHTTPProbers", "false", set!(rewrite_probes = values::yes_or_no)),
    honoured("prometheus.istio.io/merge-metrics", "false", set!(merge_metrics = values::yes_or_no)),
    honoured("proxy.istio.io/config", "concurrency: 2", proxy_config),
    honoured(
        "readiness.status.sidecar.istio.io/initialDelaySeconds",
        "7",
        set!(ready_delay = |v| values::number(v, 0, 3600)),
    ),
    honoured(
        "readiness.status.sidecar.istio.io/periodSeconds",
        "7",
        set!(ready_period = |v| values::number(v, 1, 3600)),
    ),
    honoured(
        "readiness.status.sidecar.istio.io/failureThreshold",
        "7",
        set!(ready_failures = |v| values::number(v, 1, 3600)),
    ),
    honoured("traffic.sidecar.istio.io/excludeInboundPorts", "9000", add!(skip_inbound_ports = values::ports)),
    honoured(
        "traffic.sidecar.istio.io/includeInboundPorts",
        "8080",
        set!(inbound_ports = |v| values::which(v, values::ports)),
    ),
    honoured("traffic.sidecar.istio.io/excludeOutboundPorts", "3306", add!(skip_outbound_ports = values::ports)),
    honoured(
        "traffic.sidecar.istio.io/excludeOutboundIPRanges",
        "10.1.0.0/16",
        add!(skip_outbound_cidrs = values::cidrs),
    ),
    honoured(
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
        "10.0.0.0/8",
        set!(outbound_cidrs = |v| values::which(v, values::cidrs)),
    ),
    honoured("traffic.sidecar.istio.io/includeOutboundPorts", "443", set!(outbound_ports = values::ports)),
    honoured("config.beta.linkerd.io/proxy-enable-native-sidecar", "false", set!(mode = native)),
    honoured("config.linkerd.io/proxy-enable-native-sidecar", "false", set!(mode = native)),
    honoured("config.linkerd.io/proxy-cpu-request", "70m", set!(resources.cpu_request = cpu)),
    honoured("config.linkerd.io/proxy-cpu-limit", "3", set!(resources.cpu_limit = cpu)),
    honoured("config.linkerd.io/proxy-memory-request", "70Mi", set!(resources.memory_request = bytes)),
    honoured("config.linkerd.io/proxy-memory-limit", "700Mi", set!(resources.memory_limit = bytes)),
    honoured("config.linkerd.io/proxy-ephemeral-storage-request", "70Mi", set!(resources.storage_request = bytes)),
    honoured("config.linkerd.io/proxy-ephemeral-storage-limit", "700Mi", set!(resources.storage_limit = bytes)),
    honoured("config.linkerd.io/proxy-log-level", "debug", linkerd_log),
    honoured(
        "config.linkerd.io/proxy-log-format",
        "json",
        set!(
            log_format = |v| match v {
                "plain" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                _ => Err("plain or json".into()),
            }
        ),
    ),
    honoured("config.linkerd.io/proxy-await", "disabled", set!(hold = values::yes_or_no)),
    honoured("config.linkerd.io/shutdown-grace-period", "7s", set!(drain_seconds = values::seconds)),
    honoured("config.linkerd.io/skip-inbound-ports", "9000", add!(skip_inbound_ports = values::ports)),
    honoured("config.linkerd.io/skip-outbound-ports", "3306", add!(skip_outbound_ports = values::ports)),
    honoured("config.linkerd.io/skip-subnets", "10.1.0.0/16", |w, v, warnings| {
        let more = values::cidrs(v)?;
        w.skip_outbound_cidrs.get_or_insert_default().extend(more);
        warnings.add(
            "config.linkerd.io/skip-subnets: for what the pod sends; what it is sent from there is taken all the same",
        );
        Ok(())
    }),
    honoured(
        "weft.dev/sidecar-mode",
        "classic",
        set!(
            mode = |v| match v {
                "native" => Ok(Mode::Native),
                "classic" => Ok(Mode::Classic),
                _ => Err("native or classic".into()),
            }
        ),
    ),
    honoured("weft.dev/cpu-request", "70m", set!(resources.cpu_request = cpu)),
    honoured("weft.dev/cpu-limit", "3", set!(resources.cpu_limit = cpu)),
    honoured("weft.dev/memory-request", "70Mi", set!(resources.memory_request = bytes)),
    honoured("weft.dev/memory-limit", "700Mi", set!(resources.memory_limit = bytes)),
    honoured("weft.dev/log-level", "debug", set!(log_level = values::level)),
    honoured(
        "weft.dev/log-format",
        "json",
        set!(
            log_format = |v| match v {
                "text" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                _ => Err("text or json".into()),
            }
        ),
    ),
    honoured("weft.dev/workers", "2", set!(workers = |v| values::number(v, 1, 64))),
    honoured("weft.dev/hold-application", "false", set!(hold = values::yes_or_no)),
    honoured("weft.dev/rewrite-probes", "false", set!(rewrite_probes = values::yes_or_no)),
    honoured("weft.dev/merge-metrics", "false", set!(merge_metrics = values::yes_or_no)),
    honoured("weft.dev/drain", "7s", set!(drain_seconds = values::seconds)),
    honoured("weft.dev/inbound-ports", "8080", set!(inbound_ports = |v| values::which(v, values::ports))),
    honoured("weft.dev/skip-inbound-ports", "9000", add!(skip_inbound_ports = values::ports)),
    honoured("weft.dev/skip-outbound-ports", "3306", add!(skip_outbound_ports = values::ports)),
    honoured("weft.dev/outbound-cidrs", "10.0.0.0/8", set!(outbound_cidrs = |v| values::which(v, values::cidrs))),
    honoured("weft.dev/outbound-ports", "443", set!(outbound_ports = values::ports)),
    honoured("weft.dev/skip-outbound-cidrs", "10.1.0.0/16", add!(skip_outbound_cidrs = values::cidrs)),
    honoured("weft.dev/skip-uids", "1001", add!(skip_uids = values::uids)),
];

const OPERATOR: &str = "which program runs is for whoever installs the mesh";
const FIXED: &str = "ports and user of the sidecar are fixed";
const ENVOY: &str = "there is no Envoy here";
const OWN_SPEC: &str = "write it into the pod's own spec";

/// What has no effect, and why: a name, or a beginning that ends in `*`.
pub const REFUSED: &[(&str, &str)] = &[
    ("sidecar.istio.io/proxyImage", OPERATOR),
    ("sidecar.istio.io/proxyImageType", OPERATOR),
    ("config.linkerd.io/proxy-image", OPERATOR),
    ("config.linkerd.io/proxy-version", OPERATOR),
    ("config.linkerd.io/image-pull-policy", OPERATOR),
    ("config.linkerd.io/init-image*", OPERATOR),
    ("config.linkerd.io/debug-image*", OPERATOR),
    ("sidecar.istio.io/userVolume", OWN_SPEC),
    ("sidecar.istio.io/userVolumeMount", OWN_SPEC),
    ("proxy.istio.io/overrides", "the sidecar's container is not for pods to change"),
    ("config.linkerd.io/proxy-additional-env", "the sidecar's environment is not for pods to change"),
    ("sidecar.istio.io/interceptionMode", "traffic is redirected, as with REDIRECT"),
    ("sidecar.istio.io/componentLogLevel", ENVOY),
    ("sidecar.istio.io/agentLogLevel", "there is one program with one log level"),
    ("sidecar.istio.io/bootstrapOverride", ENVOY),
    ("sidecar.istio.io/discoveryAddress", "the control plane is for whoever installs the mesh"),
    ("sidecar.istio.io/stats*", ENVOY),
    ("sidecar.istio.io/extraStatTags", ENVOY),
    ("status.sidecar.istio.io/port", FIXED),
    ("readiness.status.sidecar.istio.io/applicationPorts", "readiness is the sidecar's own; the app has its probes"),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", "virtual machines in pods are not supported"),
    ("traffic.sidecar.istio.io/excludeInterfaces", "all interfaces are redirected"),
    ("config.linkerd.io/admin-port", FIXED),
    ("config.linkerd.io/control-port", FIXED),
    ("config.linkerd.io/inbound-port", FIXED),
    ("config.linkerd.io/outbound-port", FIXED),
    ("config.linkerd.io/proxy-uid", FIXED),
    ("config.linkerd.io/proxy-gid", FIXED),
    ("config.linkerd.io/pod-inbound-ports", "the control plane goes by the ports that containers declare"),
    ("config.linkerd.io/proxy-cpu-ratio-limit", "give proxy-cpu-limit"),
    (
        "config.linkerd.io/proxy-admin-shutdown",
        "native sidecars end by themselves; a classic one takes POST :15020/quitquitquit",
    ),
    ("config.linkerd.io/access-log", "the access log is set for the whole mesh"),
    ("config.linkerd.io/enable-debug-sidecar", "use kubectl debug"),
    ("config.alpha.linkerd.io/proxy-wait-before-exit-seconds", "the sidecar ends after the app"),
];

/// What others read: the control plane, or this one's decision.
const ELSEWHERE: [&str; 8] = [
    "weft.dev/inject",
    "weft.dev/sidecar",
    "weft.dev/listens",
    "weft.dev/injected",
    "sidecar.istio.io/inject",
    "sidecar.istio.io/status",
    "config.linkerd.io/opaque-ports",
    "config.linkerd.io/default-inbound-policy",
];

/// Whose annotations are about sidecars, so that one nobody knows is a mistake.
const OURS: [&str; 9] = [
    "weft.dev/",
    "sidecar.istio.io/",
    "traffic.sidecar.istio.io/",
    "proxy.istio.io/",
    "status.sidecar.istio.io/",
    "readiness.status.sidecar.istio.io/",
    "config.linkerd.io/",
    "config.alpha.linkerd.io/",
    "config.beta.linkerd.io/",
];

impl Wishes {
    pub fn read(namespace: &Namespace, pod: &Template<'_>, warnings: &mut Warnings) -> Self {
        let heard = ["weft.dev/", "config.linkerd.io/", "config.beta.linkerd.io/"];
        let there = namespace.annotations.iter().map(|(k, v)| (k.as_str(), Cow::Borrowed(v.as_str())));
        let there: Vec<_> = there.filter(|(k, _)| heard.iter().any(|h| k.starts_with(h))).collect();
        let here = pod.meta("annotations").into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), text(v)?)));
        let here: Vec<_> = here.collect();
        let mut all = Self::of(&there, "the namespace's ", warnings);
        all.outweighed_by(Self::of(&here, "", warnings));
        all
    }

    fn of(annotations: &[(&str, Cow<'_, str>)], whose: &str, warnings: &mut Warnings) -> Self {
        let mut wishes = Self::default();
        // In the table's order, whatever the annotations'.
        for Honoured { name, read, .. } in HONOURED {
            let Some((_, value)) = annotations.iter().find(|(k, _)| k == name) else { continue };
            let read = match value.len() > MAX_VALUE {
                true => Err(format!("at most {MAX_VALUE} bytes")),
                false => read(&mut wishes, value, warnings),
            };
            if let Err(right) = read {
                warnings.add(format!("{whose}{name}: {} is refused; it has no effect ({right})", shown(value)));
            }
        }
        for (name, value) in annotations {
            let is = |pattern: &str| match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => *name == pattern,
            };
            // What it says is how it is anyway.
            if *name == "sidecar.istio.io/interceptionMode" && value == "REDIRECT" {
                continue;
            }
            if let Some((_, why)) = REFUSED.iter().find(|(pattern, _)| is(pattern)) {
                warnings.add(format!("{whose}{name} has no effect: {why}"));
            } else if OURS.iter().any(|o| name.starts_with(o))
                && !ELSEWHERE.contains(name)
                && !HONOURED.iter().any(|h| h.name == *name)
            {
                warnings.add(format!("{whose}{} has no effect: it is not known here", shown(name)));
            }
        }
        wishes
    }

    fn outweighed_by(&mut self, other: Self) {
        let Self { resources: more, .. } = &other;
        let resources = &mut self.resources;
        macro_rules! or {
            ($($to:expr, $from:expr;)*) => { $(if $from.is_some() { $to = $from.clone(); })* };
        }
        or! {
            resources.cpu_request, more.cpu_request;
            resources.cpu_limit, more.cpu_limit;
            resources.memory_request, more.memory_request;
            resources.memory_limit, more.memory_limit;
            resources.storage_request, more.storage_request;
            resources.storage_limit, more.storage_limit;
            self.mode, other.mode;
            self.log_level, other.log_level;
            self.log_format, other.log_format;
            self.workers, other.workers;
            self.hold, other.hold;
            self.rewrite_probes, other.rewrite_probes;
            self.merge_metrics, other.merge_metrics;
            self.drain_seconds, other.drain_seconds;
            self.skip_inbound_ports, other.skip_inbound_ports;
            self.inbound_ports, other.inbound_ports;
            self.skip_outbound_ports, other.skip_outbound_ports;
            self.outbound_ports, other.outbound_ports;
            self.skip_outbound_cidrs, other.skip_outbound_cidrs;
            self.outbound_cidrs, other.outbound_cidrs;
            self.skip_uids, other.skip_uids;
            self.ready_delay, other.ready_delay;
            self.ready_period, other.ready_period;
            self.ready_failures, other.ready_failures;
        }
    }
}

/// Istio's ProxyConfig, as YAML in an annotation.
fn proxy_config(wishes: &mut Wishes, value: &str, warnings: &mut Warnings) -> Result<(), String> {
    let right = || "a map in YAML, such as concurrency: 2".to_string();
    let node = yaml::parse(value, &mut Diags::default()).ok_or_else(right)?;
    let Value::Object(fields) = yaml::json(&node) else { return Err(right()) };
    for (name, value) in &fields {
        let word = text(value).unwrap_or_default();
        let read = match name.as_str() {
            "concurrency" => values::number(&word, 1, 64).map(|n| wishes.workers = Some(n)),
            "holdApplicationUntilProxyStarts" => values::yes_or_no(&word).map(|b| wishes.hold = Some(b)),
            "terminationDrainDuration" => values::seconds(&word).map(|s| wishes.drain_seconds = Some(s)),
            _ => Err("not known here".to_string()),
        };
        if let Err(why) = read {
            warnings.add(format!("proxy.istio.io/config: {} has no effect ({why})", shown(name)));
        }
    }
    Ok(())
}

/// `warn,linkerd=info`: the level for everything; the others are of parts that are not here.
fn linkerd_log(wishes: &mut Wishes, value: &str, warnings: &mut Warnings) -> Result<(), String> {
    let (plain, parts): (Vec<&str>, Vec<&str>) = value.split(',').map(str::trim).partition(|p| !p.contains('='));
    let level = plain.last().ok_or("a level, such as warn")?;
    wishes.log_level = Some(values::level(level)?);
    if !parts.is_empty() {
        warnings.add("config.linkerd.io/proxy-log-level: only the level for everything is taken");
    }
    Ok(())
}
