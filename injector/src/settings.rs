//! What an install says once for all pods. The defaults are a mesh that runs; a chart or `--settings` fills in the rest.

pub mod file;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// Where the control plane lives; nothing there is injected.
    pub namespace: String,
    /// Of the sidecar, and of the container that sets the rules of redirection.
    pub image: String,
    pub pull_policy: PullPolicy,
    /// Secrets that pods need to pull the image.
    pub pull_secrets: Vec<String>,
    pub trust_domain: String,
    /// The control plane, HOST:PORT.
    pub control: String,
    pub profile: Profile,
    /// What `istio.io/rev` may say to mean this mesh.
    pub revisions: Vec<String>,
    pub mode: Mode,
    /// Pods that nobody speaks of get a sidecar too.
    pub by_default: bool,
    pub resources: Resources,
    pub init_resources: Resources,
    /// Of the token by which a sidecar proves who it is.
    pub token_audience: String,
    pub token_seconds: u32,
    /// The ConfigMap with the trust root, which the control plane keeps in every namespace, and its key.
    pub root_config_map: String,
    pub root_key: String,
    pub log_level: String,
    pub log_format: LogFormat,
    /// Threads that carry traffic.
    pub workers: u16,
    pub rewrite_probes: bool,
    pub merge_metrics: bool,
    /// Apps start when their sidecar is ready.
    pub hold: bool,
    /// What a sidecar may take to finish what is in flight, as far as the pod's grace period allows.
    pub drain_seconds: u32,
    /// How long a classic sidecar serves on after the pod is told to end, so that the app's last requests have one. A native
    /// one is told after the app is gone.
    pub linger_seconds: u32,
}

/// Which profile was installed; it is told to nobody but people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    #[default]
    Default,
    Demo,
    Minimal,
    Ha,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    #[default]
    IfNotPresent,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// An init container that keeps running: it is there before everybody and after everybody, and no Job waits for it.
    #[default]
    Native,
    /// A container beside the app's.
    Classic,
}

impl Mode {
    pub fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Classic => "classic",
        }
    }
}

/// Whose users asked: they look for the sidecar by its container's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    #[default]
    Weft,
    Istio,
    Linkerd,
}

impl Dialect {
    pub fn container(self) -> &'static str {
        match self {
            Self::Weft => "weft-proxy",
            Self::Istio => "istio-proxy",
            Self::Linkerd => "linkerd-proxy",
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Istio => "istio",
            Self::Linkerd => "linkerd",
        }
    }
}

/// Requests and limits, as Kubernetes writes quantities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_request: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_request: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_request: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_limit: Option<String>,
}

impl Resources {
    pub fn of(cpu: [&str; 2], memory: [&str; 2]) -> Self {
        let own = |text: &str| Some(text.to_string());
        Self {
            cpu_request: own(cpu[0]),
            cpu_limit: own(cpu[1]),
            memory_request: own(memory[0]),
            memory_limit: own(memory[1]),
            ..Self::default()
        }
    }

    /// As a container has them.
    pub fn document(&self) -> Value {
        let side = |of: [(&str, &Option<String>); 3]| {
            let given = of.into_iter().filter_map(|(name, value)| Some((name.to_string(), value.clone()?.into())));
            given.collect::<Map<String, Value>>()
        };
        let requests = side([
            ("cpu", &self.cpu_request),
            ("memory", &self.memory_request),
            ("ephemeral-storage", &self.storage_request),
        ]);
        let limits = side([
            ("cpu", &self.cpu_limit),
            ("memory", &self.memory_limit),
            ("ephemeral-storage", &self.storage_limit),
        ]);
        let mut out = json!({});
        for (name, side) in [("requests", requests), ("limits", limits)] {
            if !side.is_empty() {
                out[name] = side.into();
            }
        }
        out
    }
}

impl Default for Settings {
    fn default() -> Self {
        let own = |text: &str| text.to_string();
        Self {
            namespace: own("weft-system"),
            image: format!("weft/proxy:{}", env!("CARGO_PKG_VERSION")),
            pull_policy: PullPolicy::default(),
            pull_secrets: Vec::new(),
            trust_domain: own("cluster.local"),
            control: own("weft-control.weft-system.svc:15012"),
            profile: Profile::default(),
            revisions: vec![own("default")],
            mode: Mode::default(),
            by_default: false,
            resources: Resources::of(["50m", "2"], ["32Mi", "512Mi"]),
            init_resources: Resources::of(["10m", "1"], ["16Mi", "64Mi"]),
            token_audience: own("weft.dev"),
            token_seconds: 3600,
            root_config_map: own("weft-root"),
            root_key: own("root.pem"),
            log_level: own("info"),
            log_format: LogFormat::default(),
            workers: 1,
            rewrite_probes: true,
            merge_metrics: true,
            hold: true,
            drain_seconds: 25,
            linger_seconds: 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_written() {
        let given: Settings = serde_json::from_value(json!({"image": "a/b:1", "mode": "classic"})).unwrap();
        assert_eq!((given.image.as_str(), given.mode), ("a/b:1", Mode::Classic));
        assert_eq!(given.control, Settings::default().control);
        let again: Settings = serde_json::from_value(serde_json::to_value(&given).unwrap()).unwrap();
        assert_eq!(again, given);
        assert!(serde_json::from_value::<Settings>(json!({"imgae": "a"})).is_err());
        assert!(serde_json::from_value::<Settings>(json!({"resources": {"cpu": "1"}})).is_err());
    }
}
