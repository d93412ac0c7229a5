//! Which mesh a command is about: a running lab, a cluster, or a folder of manifests.

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::lab::record::Lab;
use crate::running::Running;
use clap::Args;
use std::path::{Path, PathBuf};
use weft_kubernetes::client::Access;

const HOW: &str = "--dir DIR, --kubeconfig FILE, or meshctl lab DIR in another terminal";

#[derive(Args, Clone, Debug, Default)]
pub struct Place {
    /// Which lab, if several run
    #[arg(long = "lab", value_name = "ID", conflicts_with_all = ["dir", "kubeconfig", "context"])]
    id: Option<String>,
    /// A folder of manifests, whether a lab runs from it or not
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    dir: Option<PathBuf>,
    /// A cluster; without a word it is the one kubectl has, if no lab runs
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Another context of the kubeconfig than its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// Where objects are.
pub enum Source {
    Folder(PathBuf),
    Cluster(Cluster),
}

impl Place {
    /// What has sidecars and a control plane: a lab, or a cluster.
    pub fn running(&self) -> Result<Running> {
        if self.is_cluster() { self.cluster().map(Running::Cluster) } else { self.lab().map(Running::Lab) }
    }

    pub fn source(&self) -> Result<Source> {
        if self.is_cluster() { self.cluster().map(Source::Cluster) } else { self.folder().map(Source::Folder) }
    }

    /// Whether somebody said which, and did not leave it to be found.
    pub fn is_given(&self) -> bool {
        self.id.is_some() || self.dir.is_some() || self.kubeconfig.is_some() || self.context.is_some()
    }

    fn cluster(&self) -> Result<Cluster> {
        Cluster::open(&Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() })
    }

    /// Named, or the only one there is: a lab that runs goes before it.
    pub fn is_cluster(&self) -> bool {
        let named = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let runs = || named("WEFT_LAB") || Lab::all().iter().any(|lab| lab.runs.runs());
        self.kubeconfig.is_some()
            || self.context.is_some()
            || (!self.is_given() && crate::cluster::is_known() && !runs())
    }

    /// The lab that runs; what is asked of a folder alone has no answer from a sidecar.
    fn lab(&self) -> Result<Lab> {
        let Some(dir) = &self.dir else {
            return Lab::find(self.id.as_deref())
                .map_err(|e| if self.nothing_runs() { none("which mesh?") } else { e });
        };
        let same = |lab: &Lab| dir.canonicalize().is_ok_and(|d| d == Path::new(&lab.manifests));
        let found = Lab::all().into_iter().find(|lab| lab.runs.runs() && same(lab));
        let found = found.ok_or_else(|| {
            let dir = dir.display();
            Error::new(format!("no lab runs from {dir}"), format!("meshctl lab {dir} in another terminal"))
        })?;
        Lab::find(Some(&found.id))
    }

    /// Where its manifests are.
    pub fn folder(&self) -> Result<PathBuf> {
        match &self.dir {
            Some(dir) => Ok(dir.clone()),
            None => Lab::find(self.id.as_deref())
                .map(|lab| lab.manifests.into())
                .map_err(|e| if self.nothing_runs() { none("which manifests?") } else { e }),
        }
    }

    fn nothing_runs(&self) -> bool {
        self.id.is_none() && !Lab::all().iter().any(|lab| lab.runs.runs())
    }
}

fn none(which: &str) -> Error {
    Error::new(format!("{which} no lab is running, and there is no kubeconfig"), HOW)
}
