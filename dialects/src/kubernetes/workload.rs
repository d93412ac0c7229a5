//! What makes pods: Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob. Pods are what counts here; of what makes them
//! only the labels and ports are read, for findings.

use crate::builder::Builder;
use crate::reader::Reader;

pub fn translate(reader: &Reader<'_>, _: &mut Builder<'_>) {
    reader.root().ignore("spec", "pods are read as they are, not as they are made");
}
