//! All that can be wrong, said before anything is made.

use super::control::Control;
use super::image::{self, Mapping, Program};
use super::inject::Mesh;
use super::live;
use super::manifest::Manifests;
use super::up::Options;
use super::workload::{self, Workload};
use crate::error::{Error, Result};

pub fn requirements(options: &Options) -> Result<()> {
    if options.mesh != Mesh::None {
        Control::programs()?;
    }
    Ok(())
}

pub fn check(manifests: &Manifests, options: &Options) -> Result<()> {
    let mut problems = manifests.problems.clone();
    let workloads = workload::workloads(&manifests.objects, &mut problems);
    problems.iter().for_each(|p| live::say(&format!("warning: {p}")));
    if workloads.is_empty() {
        return Err(Error::new(
            format!("no Deployment, StatefulSet, DaemonSet, Job or Pod in {}", options.folder.display()),
            "a folder with the manifests that you would give to kubectl apply",
        ));
    }
    let mut wrong = Vec::new();
    for workload in &workloads {
        if let Err(error) = programs(workload, &options.images) {
            wrong.push(format!("{}: {error}", workload.at));
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Error::new(format!("nothing was started\n  {}", wrong.join("\n  ")), "")),
    }
}

/// What each container of a workload runs.
pub fn programs(workload: &Workload, images: &[Mapping]) -> Result<Vec<Program>> {
    let app = workload.template.labels.get("app").unwrap_or(&workload.name);
    let mut all = Vec::new();
    for container in &workload.template.containers {
        let program = image::program(container, app, images)?;
        let name = program.argv.first().cloned().unwrap_or_default();
        if image::on_path(&name).is_none() {
            let hint = format!("install it, or --image {}=ANOTHER", container.image);
            return Err(Error::new(format!("container {}: there is no program {name:?} here", container.name), hint));
        }
        all.push(program);
    }
    Ok(all)
}
