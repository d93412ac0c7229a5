//! Where a cluster lives: its folder, its names, its addresses, and who answers for it.
//!
//! A cluster of number n has nodes in 10.(32+n).0.0/24, pods in 10.(244-n).0.0/16 and Services in 10.(96+n).0.0/16, so that
//! several can be joined. Everything about it follows from its name and its number, so whoever finds the folder can
//! remove what belongs to it.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{During, Error, Result};

const NUMBERS: u8 = 32;

#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    number: u8,
    folder: PathBuf,
}

/// What is known of a cluster from its folder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    /// Its start is under way, or it belongs to a running test.
    Held,
    /// It runs until somebody takes it down.
    Up,
    /// Whoever started it has gone and left it.
    Orphan,
}

/// One folder for all clusters, below none of those that a cluster sees its own of (`node.rs`).
fn home() -> PathBuf {
    std::env::var_os("WEFT_CLUSTER_HOME").map_or_else(|| "/var/opt/weft-cluster".into(), PathBuf::from)
}

impl Place {
    /// Takes a name and the lowest free number; `held` by this process until it is `released`.
    pub fn claim(name: &str) -> Result<Self> {
        let right = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty()
            || name.len() > 20
            || !name.chars().all(right)
            || name.starts_with('-')
            || name.ends_with('-')
        {
            return Err(Error::new(
                format!("{name:?} is no name for a cluster"),
                "up to 20 lower-case letters, digits and dashes",
            ));
        }
        let home = home();
        DirBuilder::new().recursive(true).mode(0o700).create(&home).during(home.display())?;
        if home.metadata().during(home.display())?.uid() != 0 {
            return Err(format!("{} belongs to somebody else", home.display()).into());
        }
        // Two who claim at once would take the same number.
        let _lock = lock(&home)?;
        let taken: Vec<u8> = Self::all()?.iter().map(|p| p.number).collect();
        let number = (0..NUMBERS)
            .find(|n| !taken.contains(n))
            .ok_or_else(|| Error::new(format!("{NUMBERS} clusters run already"), "weft-cluster down --all"))?;
        let place = Self { name: name.into(), number, folder: home.join(name) };
        DirBuilder::new().mode(0o700).create(&place.folder).map_err(|e| {
            let there = e.kind() == std::io::ErrorKind::AlreadyExists;
            let message = if there { format!("the cluster {name} exists already") } else { format!("{name}: {e}") };
            Error::new(message, format!("weft-cluster down --name {name}"))
        })?;
        place.write_state(Some(std::process::id()))?;
        Ok(place)
    }

    pub fn find(name: &str) -> Result<Option<Self>> {
        Ok(Self::all()?.into_iter().find(|p| p.name == name))
    }

    pub fn all() -> Result<Vec<Self>> {
        let entries = match std::fs::read_dir(home()) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(format!("{}: {e}", home().display()).into()),
        };
        let mut all: Vec<Self> = entries
            .flatten()
            .filter(|e| e.path().is_dir())
            .filter_map(|e| {
                let (name, folder) = (e.file_name().into_string().ok()?, e.path());
                let number = read_state(&folder)["number"].as_u64().and_then(|n| u8::try_from(n).ok());
                Some(Self { name, number: number.filter(|n| *n < NUMBERS).unwrap_or(0), folder })
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Those that nobody answers for; one that is just being claimed is none of them.
    pub fn orphans() -> Result<Vec<Self>> {
        if !home().exists() {
            return Ok(Vec::new());
        }
        let _lock = lock(&home())?;
        Ok(Self::all()?.into_iter().filter(|p| p.state() == State::Orphan).collect())
    }

    /// The cluster goes on without this process.
    pub fn release(&self) -> Result<()> {
        self.write_state(None)
    }

    fn write_state(&self, holder: Option<u32>) -> Result<()> {
        let holder = holder.map(|pid| json!({"pid": pid, "started": started(pid)}));
        let text = json!({"number": self.number, "holder": holder}).to_string();
        // By rename: whoever reads sees the old state or the new one.
        let (new, file) = (self.folder.join(".state"), self.folder.join("state.json"));
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file)).during(file.display())
    }

    pub fn state(&self) -> State {
        let state = read_state(&self.folder);
        let Some(pid) = state["holder"]["pid"].as_u64().and_then(|p| u32::try_from(p).ok()) else {
            return if state["holder"].is_null() && state["number"].is_u64() { State::Up } else { State::Orphan };
        };
        match started(pid) {
            // The same number may be another process by now.
            Some(at) if state["holder"]["started"].as_str() == Some(&at) => State::Held,
            _ => State::Orphan,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.join(below)
    }

    pub fn log(&self, part: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{part}.log"))
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    pub fn containerd(&self) -> PathBuf {
        self.folder.join("run/containerd/containerd.sock")
    }

    /// The name of its network namespace, of its control groups and of its node.
    pub fn node(&self) -> String {
        format!("weft-{}", self.name)
    }

    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(self.node())
    }

    pub fn address(&self) -> String {
        format!("10.{}.0.1", 32 + self.number)
    }

    /// Where the default route leads: nobody is there.
    pub fn gateway(&self) -> String {
        format!("10.{}.0.254", 32 + self.number)
    }

    pub fn pods(&self) -> String {
        format!("10.{}.0.0/16", 244 - self.number)
    }

    /// Of the one node.
    pub fn node_pods(&self) -> String {
        format!("10.{}.0.0/24", 244 - self.number)
    }

    pub fn services(&self) -> String {
        format!("10.{}.0.0/16", 96 + self.number)
    }

    pub fn api_service(&self) -> String {
        format!("10.{}.0.1", 96 + self.number)
    }

    pub fn dns(&self) -> String {
        format!("10.{}.0.10", 96 + self.number)
    }
}

fn lock(home: &Path) -> Result<File> {
    let file = File::create(home.join("lock")).during("lock")?;
    file.lock().during("lock")?;
    Ok(file)
}

fn read_state(folder: &Path) -> Value {
    let text = std::fs::read(folder.join("state.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// When a process began, in the kernel's ticks; none if it is gone.
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.get(stat.rfind(')')? + 2..)?;
    if after.starts_with('Z') {
        return None;
    }
    after.split(' ').nth(19).map(String::from)
}
