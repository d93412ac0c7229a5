//! The state folder: the only thing the control plane cannot make again. Files appear whole or not at all, keys are readable by
//! their owner only, and what several processes change (a server and a command beside it) is changed under one lock.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

/// Held as long as nobody else may change what is in the folder.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

impl StateDir {
    /// Makes the folder if it is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(path.to_path_buf()))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn subdir(&self, name: &str) -> io::Result<Self> {
        Self::open(&self.0.join(name))
    }

    /// Waits for it; goes with its holder, however that ends.
    pub fn lock(&self) -> io::Result<Lock> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.path("lock"))?;
        file.lock()?;
        Ok(Lock(file))
    }

    /// `None` if there is none.
    pub fn read(&self, name: &str) -> io::Result<Option<String>> {
        match fs::read_to_string(self.path(name)) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// For the owner's eyes only.
    pub fn write_secret(&self, name: &str, content: &str) -> io::Result<()> {
        self.write_mode(name, content, 0o600)
    }

    pub fn write(&self, name: &str, content: &str) -> io::Result<()> {
        self.write_mode(name, content, 0o644)
    }

    /// The file's content and its name are both on the disk when this returns.
    fn write_mode(&self, name: &str, content: &str, mode: u32) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = self.path(&format!(".{name}.{}.{n}", std::process::id()));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, self.path(name))?;
            File::open(&self.0)?.sync_all()
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Whether it was there, and this call is the one that removed it.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        match fs::remove_file(self.path(name)) {
            Ok(()) => File::open(&self.0)?.sync_all().map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub fn append(&self, name: &str, line: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.path(name))?;
        let before = file.metadata()?.len();
        // One write, so that lines of two processes do not mix.
        let written = file.write_all(format!("{line}\n").as_bytes());
        if written.is_err() {
            // Half a line, as a full disk leaves it, would spoil the next one.
            let _ = file.set_len(before);
        }
        written
    }

    pub fn names(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.0)?.filter_map(|e| e.ok()?.file_name().into_string().ok());
        Ok(names.filter(|n| !n.starts_with('.')).collect())
    }
}
