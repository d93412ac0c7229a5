//! Identity in Kubernetes, put together: which cluster, which namespace is ours, and what goes on there for as long as we run.

use super::ca::{Authority, CaError};
use super::own;
use super::replicas::{self, Replica};
use super::roots::Roots;
use super::secret::CaSecret;
use crate::state::StateDir;
use crate::status::Status;
use crate::world::Current;
use kube::{Api, Client};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use weft_kubernetes::client::{Access, connect};
use weft_policy::id::TrustDomain;

type Known = (watch::Receiver<Arc<Authority>>, watch::Receiver<Arc<Current>>, Arc<Status>);

pub struct InCluster {
    pub client: Client,
    /// Where we run, and as which pod.
    namespace: String,
    pod: String,
}

impl InCluster {
    pub fn new(client: Client) -> Self {
        let of = |name: &str, default: &str| {
            std::env::var(name).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| default.into())
        };
        let (namespace, pod) = (of("POD_NAMESPACE", own::NAMESPACE), of("POD_NAME", own::ACCOUNT));
        Self { client, namespace, pod }
    }

    fn secret(&self, dir: &StateDir, domain: &TrustDomain) -> CaSecret {
        let api = Api::namespaced(self.client.clone(), &self.namespace);
        CaSecret { api, dir: dir.clone(), domain: domain.clone() }
    }

    /// Into the state folder, before anybody loads it from there.
    pub async fn take_authority(&self, dir: &StateDir, domain: &TrustDomain) -> Result<(), CaError> {
        self.secret(dir, domain).prepare().await
    }

    /// Keeps the folder as the Secret is, the roots in every namespace, and written down who knows which root.
    pub fn follow(&self, tasks: &mut JoinSet<()>, dir: &StateDir, domain: &TrustDomain, known: Known) {
        let (authority, worlds, status) = known;
        tasks.spawn(self.secret(dir, domain).follow());
        tasks.spawn(Roots::new(self.client.clone()).follow(authority.clone()));
        let replica = Replica {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            name: self.pod.clone(),
            dir: dir.clone(),
        };
        tasks.spawn(replica.follow(authority, worlds, status));
    }
}

/// `weft-control rotate-root --kube`.
pub fn rotate(access: &Access, namespace: &str, force: bool) -> Result<String, CaError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = connect(access).await.map_err(|e| CaError::Kube(e.to_string()))?;
        replicas::step(client, namespace, force, SystemTime::now()).await
    })
}
