//! Which mesh a command is about: a running lab, or a folder of manifests.

use crate::error::{Error, Result};
use crate::lab::record::Lab;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Args, Clone, Debug, Default)]
pub struct Place {
    /// Which lab, if several run
    #[arg(long = "lab", value_name = "ID", conflicts_with = "dir")]
    id: Option<String>,
    /// A folder of manifests, whether a lab runs from it or not
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Place {
    /// The lab that runs; what is asked of a folder alone has no answer from a sidecar.
    pub fn lab(&self) -> Result<Lab> {
        let Some(dir) = &self.dir else { return Lab::find(self.id.as_deref()) };
        let same = |lab: &Lab| dir.canonicalize().is_ok_and(|d| d == Path::new(&lab.manifests));
        let found = Lab::all().into_iter().find(|lab| lab.runs.runs() && same(lab));
        let found = found.ok_or_else(|| {
            let dir = dir.display();
            Error::new(format!("no lab runs from {dir}"), format!("meshctl lab {dir} in another terminal"))
        })?;
        Lab::find(Some(&found.id))
    }

    /// Whether somebody said which, and did not leave it to be found.
    pub fn is_given(&self) -> bool {
        self.id.is_some() || self.dir.is_some()
    }

    /// Where its manifests are.
    pub fn folder(&self) -> Result<PathBuf> {
        match &self.dir {
            Some(dir) => Ok(dir.clone()),
            None => Lab::find(self.id.as_deref()).map(|lab| lab.manifests.into()).map_err(|e| match self.id {
                Some(_) => e,
                None => Error::new(
                    "which manifests? no lab is running",
                    "--dir DIR, or meshctl lab DIR in another terminal",
                ),
            }),
        }
    }
}
