//! Namespace: its labels and annotations are read where they are needed; its spec is nobody's.

use crate::builder::Builder;
use crate::reader::Reader;

pub fn translate(reader: &Reader<'_>, _: &mut Builder<'_>) {
    reader.root().ignore("spec", "Kubernetes' own");
}
