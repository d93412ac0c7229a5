//! Which cluster, and the way to it.

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::PathBuf;
use std::time::Duration;

/// Longer than the API server keeps a watch open without a word.
const READ: Duration = Duration::from_secs(330);
const CONNECT: Duration = Duration::from_secs(10);

/// From the command line; with nothing given, as `kubectl` finds it, or the cluster whose pod this runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("kubeconfig {0}: {1}")]
    Kubeconfig(String, String),
    #[error("no cluster: {0}; give --kubeconfig FILE, or run this in a pod")]
    None(String),
    #[error("the cluster's client cannot be made: {0}")]
    Client(String),
}

impl Access {
    async fn config(&self) -> Result<Config, AccessError> {
        let options = KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let wrong = |e: kube::config::KubeconfigError| {
                    AccessError::Kubeconfig(file.display().to_string(), e.to_string())
                };
                let read = Kubeconfig::read_from(file).map_err(wrong)?;
                Config::from_custom_kubeconfig(read, &options).await.map_err(wrong)?
            }
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|e| AccessError::None(e.to_string()))?
            }
            None => Config::infer().await.map_err(|e| AccessError::None(e.to_string()))?,
        };
        (config.connect_timeout, config.read_timeout) = (Some(CONNECT), Some(READ));
        Ok(config)
    }
}

/// Connects when it is first used; a server that is away makes the calls fail, not this.
pub async fn connect(access: &Access) -> Result<Client, AccessError> {
    let config = access.config().await?;
    Client::try_from(config).map_err(|e| AccessError::Client(e.to_string()))
}
