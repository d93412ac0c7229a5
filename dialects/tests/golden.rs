//! Each `golden/NAME.yaml` is translated, and the whole outcome is `golden/NAME.out.json`: services as each kind of client sees
//! them, pods, what became of every field, and findings. `UPDATE_GOLDEN=1` writes what comes out now.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod trial;

use std::path::Path;

#[test]
fn goldens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut inputs: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    inputs.retain(|p| p.extension().is_some_and(|e| e == "yaml"));
    inputs.sort();
    assert!(inputs.len() >= 7, "{} goldens", inputs.len());
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut differ = Vec::new();
    for input in inputs {
        let (world, ledger) = trial::world(&std::fs::read_to_string(&input).unwrap());
        let out = format!("{:#}\n", trial::shown(&world, &ledger));
        let golden = input.with_extension("out.json");
        if update {
            std::fs::write(&golden, out).unwrap();
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != out {
            differ.push(input.file_stem().unwrap().to_string_lossy().into_owned());
            eprintln!("{}", diff(&std::fs::read_to_string(&golden).unwrap_or_default(), &out));
        }
    }
    assert!(differ.is_empty(), "these came out differently (UPDATE_GOLDEN=1 writes them): {differ:?}");
}

/// The first lines that differ.
fn diff(old: &str, new: &str) -> String {
    let pairs = old.lines().zip(new.lines()).enumerate().filter(|(_, (a, b))| a != b);
    pairs.take(5).map(|(i, (a, b))| format!("line {}:\n- {a}\n+ {b}\n", i + 1)).collect()
}
