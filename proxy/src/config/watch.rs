//! Notices that files change: in place, replaced, or through a symbolic link that is turned to another folder, as mounted
//! ConfigMaps and Secrets are. Looks twice a second; that costs one stat per file, needs no kernel queue that can overflow,
//! and works on every file system.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What a look at a file tells without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

fn stamp(path: &Path) -> Option<(Stamp, SystemTime)> {
    let meta = std::fs::metadata(path).ok()?;
    let stamp = Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    };
    Some((stamp, meta.modified().unwrap_or(SystemTime::UNIX_EPOCH)))
}

/// A set of files that are read together.
#[derive(Debug, Default)]
pub struct Watched {
    files: Vec<(PathBuf, Option<Stamp>)>,
}

/// Stamps are as coarse as the file system's clock: a file so young may be written again without a new one.
const YOUNG: Duration = Duration::from_secs(2);

impl Watched {
    pub fn new<'a>(paths: impl Iterator<Item = &'a Path>) -> Self {
        Self { files: paths.map(|p| (p.to_path_buf(), None)).collect() }
    }

    pub fn watches<'a>(&self, mut paths: impl Iterator<Item = &'a Path>) -> bool {
        let mut held = self.files.iter().map(|(p, _)| p.as_path());
        loop {
            match (held.next(), paths.next()) {
                (None, None) => return true,
                (a, b) if a == b => {}
                _ => return false,
            }
        }
    }

    /// Whether the files should be read: something has changed, or may have without showing it. Call before reading, so that
    /// what is written meanwhile is seen the next time.
    pub fn look(&mut self) -> bool {
        let now = SystemTime::now();
        let mut due = false;
        for (path, seen) in &mut self.files {
            let is = stamp(path);
            let young = is.is_some_and(|(_, at)| now.duration_since(at).is_ok_and(|age| age < YOUNG));
            let is = is.map(|(stamp, _)| stamp);
            due |= young || is != *seen;
            *seen = is;
        }
        due
    }
}
