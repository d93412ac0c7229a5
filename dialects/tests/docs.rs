//! The table of kinds in the docs is the one in the code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;
use weft_dialects::kinds::KINDS;

#[test]
fn every_kind_is_documented() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/dialects.md")).unwrap();
    let row = |line: &str| {
        let cells: Vec<String> = line.split('|').map(|c| c.trim().to_string()).collect();
        (cells.len() == 6).then(|| (cells[1].clone(), cells[2].clone(), cells[3].clone()))
    };
    let documented: BTreeSet<_> = text.lines().filter_map(row).filter(|(g, ..)| g != "group" && g != "---").collect();
    let read: BTreeSet<_> = KINDS
        .iter()
        .map(|k| {
            let group = if k.group.is_empty() { "core" } else { k.group };
            (group.to_string(), k.kind.to_string(), k.versions.join(", "))
        })
        .collect();
    assert_eq!(documented, read, "docs/dialects.md and KINDS differ");
}
