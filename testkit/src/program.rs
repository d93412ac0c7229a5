//! Programs of the workspace beside the one under test. Cargo builds a package's own for its tests; others are built here, if they
//! are not there yet or are older than their sources.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::SystemTime;

/// `ours` is the path of the program that Cargo has built, `sources` the folder of the other's package.
pub fn beside(ours: &str, program: &str, sources: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = Path::new(ours).parent().expect("a folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = folder.join(program);
    let built = std::fs::metadata(&path).and_then(|m| m.modified());
    if built.is_ok_and(|built| newest(&root.join(sources).join("src")) <= built) {
        return path;
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(&root).args(["build", "--bin", program]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().expect("cargo").success(), "{program} does not build");
    path
}

/// When a folder was last changed, with all below it.
fn newest(folder: &Path) -> SystemTime {
    let entries = std::fs::read_dir(folder).expect("sources").map(|e| e.expect("an entry").path());
    let time = |p: &PathBuf| p.metadata().and_then(|m| m.modified()).expect("a time");
    entries.map(|p| if p.is_dir() { newest(&p) } else { time(&p) }).max().unwrap_or(SystemTime::UNIX_EPOCH)
}
