//! A mesh in a Kubernetes cluster, as its API server shows it: the objects, the pods, and by port-forward what pods say of themselves.
//!
//! Whoever asks needs no more rights than the question takes: to read the kinds it is about, and `pods/portforward` for what only
//! a sidecar or the control plane knows.

pub mod forward;
pub mod objects;
pub mod pods;
pub mod write;

use crate::error::{Error, Result};
use crate::runtime::wait;
use kube::Client;
use kube::config::Kubeconfig;
use std::path::Path;
use weft_kubernetes::client::{Access, connect};

/// Where the control plane is.
pub const SYSTEM: &str = "weft-system";

#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// The context's own, as with kubectl.
    pub namespace: String,
    pub context: String,
}

impl std::fmt::Display for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.context.is_empty() {
            true => f.write_str("the cluster"),
            false => write!(f, "the cluster {}", self.context),
        }
    }
}

/// Whether kubectl would know of one.
pub fn is_known() -> bool {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let usual = || named("HOME").is_some_and(|home| Path::new(&home).join(".kube/config").is_file());
    named("KUBECONFIG").is_some() || named("KUBERNETES_SERVICE_HOST").is_some() || usual()
}

impl Cluster {
    /// Nothing is asked of it yet.
    pub fn open(access: &Access) -> Result<Self> {
        let client = wait(async {
            let hint = "kubectl config get-contexts shows what there is";
            connect(access).await.map_err(|e| Error::new(e.to_string(), hint))
        })?;
        let read = match &access.kubeconfig {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let current = || read.ok().and_then(|read| read.current_context).unwrap_or_default();
        let context = access.context.clone().unwrap_or_else(current);
        Ok(Self { namespace: client.default_namespace().into(), client, context })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What went wrong with a request, for somebody who wanted `what`.
    fn failed(&self, what: &str, error: &kube::Error) -> Error {
        if let kube::Error::Api(status) = error {
            let message = format!("{what}: {}", status.message);
            return match status.code {
                401 => Error::new(message, "kubectl auth whoami tells whom the kubeconfig is for"),
                403 => Error::new(message, "kubectl auth can-i --list tells what you may do"),
                409 => Error::conflict(message, "the same command again"),
                _ => Error::new(message, ""),
            };
        }
        let error: &dyn std::error::Error = error;
        let mut deepest = error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        let hint = "kubectl cluster-info, or another --context";
        Error::new(format!("{what}: {self} does not answer: {deepest}"), hint)
    }
}
