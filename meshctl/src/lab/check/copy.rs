//! A copy of the lab's folder, so that steps may edit it. It is among the lab's records and goes with the check; one whose check
//! was killed goes with the next start, or with `lab clean`.

use super::steps::FILE;
use crate::error::{During, Error, Result};
use crate::lab::process::Recorded;
use crate::lab::record;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const MAX_DEPTH: usize = 16;

pub struct Copy(PathBuf);

fn place() -> PathBuf {
    record::home().join("checks")
}

impl Copy {
    /// Of all files, or of those that are named.
    pub fn of(folder: &Path, only: Option<&[String]>) -> Result<Self> {
        let own = Recorded::of(std::process::id() as i32)
            .ok_or_else(|| Error::new("/proc does not show this process", "mount /proc"))?;
        let copy = Self(place().join(format!("{}-{}", own.pid, own.started)));
        // A lab in a user namespace is this process once more.
        let _ = std::fs::remove_dir_all(&copy.0);
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&copy.0).during(format!("making {}", copy.0.display()))?;
        match only {
            None => all(folder, &copy.0, 0).during(format!("copying {}", folder.display()))?,
            Some(names) => {
                for name in names {
                    let from = folder.join(name);
                    std::fs::copy(&from, copy.0.join(name)).during(format!("{FILE}: start: {}", from.display()))?;
                }
            }
        }
        Ok(copy)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        // These go with the last of them.
        let _ = std::fs::remove_dir(place());
        let _ = std::fs::remove_dir(record::home());
    }
}

fn all(from: &Path, to: &Path, depth: usize) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = std::fs::metadata(&from)?;
        if kind.is_file() {
            std::fs::copy(&from, &to)?;
        } else if kind.is_dir() && depth < MAX_DEPTH {
            std::fs::create_dir(&to)?;
            all(&from, &to, depth + 1)?;
        }
    }
    Ok(())
}

/// Those of checks that are no more.
pub fn sweep() {
    for path in std::fs::read_dir(place()).into_iter().flatten().flatten().map(|e| e.path()) {
        let owner = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.split_once('-'));
        let owner =
            owner.and_then(|(pid, started)| Some(Recorded { pid: pid.parse().ok()?, started: started.parse().ok()? }));
        if owner.is_some_and(|owner| !owner.runs()) {
            let _ = std::fs::remove_dir_all(path);
        }
    }
    let _ = std::fs::remove_dir(place());
    let _ = std::fs::remove_dir(record::home());
}
