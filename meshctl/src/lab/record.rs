//! What a lab writes down about itself, so that other commands find it and nothing is left when it dies.
//!
//! One folder per lab, under `/run/weft` for root and `$XDG_RUNTIME_DIR/weft` for others (`WEFT_LAB_HOME` for another place): `lab.json` says which process runs it, `ps.json` what
//! runs in it, `wishes.json` what `scale`, `restart` and `forward` ask for; beside them logs, pods, and the control plane's state.

use super::isolation::{self, Isolation};
use super::net::Network;
use super::process::Recorded;
use crate::error::{During, Error, Result};
use rustix::process::geteuid;
use serde_json::{Value, json};
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub fn home() -> PathBuf {
    if let Some(told) = std::env::var_os("WEFT_LAB_HOME") {
        return told.into();
    }
    let user = geteuid();
    if user.is_root() {
        return "/run/weft".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir()) {
        Some(folder) => folder.join("weft"),
        None => format!("/tmp/weft-{}", user.as_raw()).into(),
    }
}

/// What others have put in a place of that name is not for us: it would say what to run and whom to kill.
fn is_ours(home: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(home).is_ok_and(|m| m.is_dir() && m.uid() == geteuid().as_raw())
}

#[derive(Clone, Debug)]
pub struct Lab {
    pub id: String,
    pub folder: PathBuf,
    pub runs: Recorded,
    pub manifests: String,
    pub isolation: Isolation,
    pub network: Network,
}

impl Lab {
    /// A new one, run by this process. Its folder appears whole.
    pub fn create(manifests: &Path, isolation: Isolation, network: Network) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let (id, home) = (random(6)?, home());
        let (folder, hidden) = (home.join(&id), home.join(format!(".{id}")));
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&home).during(format!("making {}", home.display()))?;
        if !is_ours(&home) {
            let message = format!("{} belongs to somebody else", home.display());
            return Err(Error::new(message, "WEFT_LAB_HOME=FOLDER, one of your own"));
        }
        for part in ["logs", "pods", "etc", "state", "netns"] {
            private.create(hidden.join(part)).during(format!("making {}", hidden.display()))?;
        }
        let runs = Recorded::of(std::process::id() as i32)
            .ok_or_else(|| Error::new("/proc does not show this process", "mount /proc"))?;
        let manifests = manifests.display().to_string();
        let text = json!({
            "id": id, "pid": runs.pid, "started": runs.started, "manifests": manifests, "isolation": isolation.name(),
            "network": network.0,
        });
        std::fs::write(hidden.join("lab.json"), text.to_string()).during("lab.json")?;
        std::fs::rename(&hidden, &folder).during(format!("making {}", folder.display()))?;
        Ok(Self { id, folder, runs, manifests, isolation, network })
    }

    /// Every lab that was ever written down here and has not been cleaned.
    pub fn all() -> Vec<Self> {
        let home = home();
        if !is_ours(&home) {
            return Vec::new();
        }
        let entries = std::fs::read_dir(home).into_iter().flatten().flatten();
        let mut found: Vec<Self> = entries.filter_map(|entry| Self::read(&entry.path())).collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
    }

    fn read(folder: &Path) -> Option<Self> {
        let doc: Value = serde_json::from_slice(&std::fs::read(folder.join("lab.json")).ok()?).ok()?;
        // One that was about to be made: its process is gone, or will give it its name.
        let name = folder.file_name()?.to_str()?.trim_start_matches('.');
        let id = doc["id"].as_str().filter(|id| *id == name)?.to_string();
        let runs = Recorded { pid: i32::try_from(doc["pid"].as_i64()?).ok()?, started: doc["started"].as_u64()? };
        let isolation = Isolation::named(doc["isolation"].as_str()?)?;
        let octet = |i: usize| doc["network"][i].as_u64().and_then(|n| u8::try_from(n).ok());
        let network = Network([octet(0)?, octet(1)?]);
        let manifests = doc["manifests"].as_str()?.into();
        Some(Self { id, folder: folder.into(), runs, manifests, isolation, network })
    }

    /// The running lab that is meant: the one named, here or in `WEFT_LAB`, or the only one. This program goes on inside of its
    /// user namespace, if it has one.
    pub fn find(id: Option<&str>) -> Result<Self> {
        let lab = Self::meant(id)?;
        isolation::join(&lab)?;
        Ok(lab)
    }

    fn meant(id: Option<&str>) -> Result<Self> {
        let named = std::env::var("WEFT_LAB").ok().filter(|named| !named.is_empty());
        let id = id.or(named.as_deref());
        let mut running: Vec<Self> = Self::all().into_iter().filter(|lab| lab.runs.runs()).collect();
        if let Some(id) = id {
            let known = running.iter().map(|l| l.id.clone()).collect::<Vec<_>>().join(", ");
            return running.into_iter().find(|lab| lab.id == id).ok_or_else(|| {
                Error::new(
                    format!("no lab {id:?} is running"),
                    if known.is_empty() { "meshctl lab DIR".into() } else { format!("one of {known}") },
                )
            });
        }
        match (running.pop(), running.len()) {
            (None, _) => Err(Error::new("no lab is running", "meshctl lab DIR in another terminal")),
            (Some(lab), 0) => Ok(lab),
            (Some(last), _) => {
                running.push(last);
                let all: Vec<String> = running.iter().map(|l| format!("--lab {} ({})", l.id, l.manifests)).collect();
                Err(Error::new("several labs are running", all.join(" or ")))
            }
        }
    }

    /// The files that stand for its network namespaces, where it is in a user namespace.
    pub fn namespaces(&self) -> PathBuf {
        self.folder.join("netns")
    }

    /// Where the programs of a pod with that address have their admin interfaces: on loopback, which each pod has for itself or
    /// shares with the whole machine.
    pub fn admin_at(&self, pod: Ipv4Addr) -> Ipv4Addr {
        if self.isolation == Isolation::Loopback { pod } else { Ipv4Addr::LOCALHOST }
    }

    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// The control plane's own: keys and roots.
    pub fn control_state(&self) -> PathBuf {
        self.folder.join("control")
    }

    pub fn pods(&self) -> PathBuf {
        self.folder.join("pods")
    }

    /// What runs in it, as it last said.
    pub fn status(&self) -> Result<Value> {
        let bytes = std::fs::read(self.folder.join("ps.json")).during("the lab has not said yet what runs in it")?;
        serde_json::from_slice(&bytes).map_err(|e| format!("ps.json: {e}").into())
    }

    pub fn wishes(&self) -> Value {
        let bytes = std::fs::read(self.folder.join("wishes.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    pub fn wish(&self, wishes: &Value) -> Result<()> {
        write(&self.folder.join("wishes.json"), wishes.to_string().as_bytes()).during("wishes.json")
    }
}

/// A folder that was being made when its lab died: too young ones may become labs yet.
pub fn unfinished() -> Vec<PathBuf> {
    let home = home();
    if !is_ours(&home) {
        return Vec::new();
    }
    let entries = std::fs::read_dir(home).into_iter().flatten().flatten();
    let old = |path: &PathBuf| {
        let changed = std::fs::metadata(path).and_then(|m| m.modified());
        changed.is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age > Duration::from_secs(60)))
    };
    let hidden = entries.filter(|e| e.file_name().as_encoded_bytes().starts_with(b".")).map(|e| e.path());
    hidden.filter(old).collect()
}

/// Whole or not at all.
pub fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let hidden = file.with_file_name(format!(".{name}.{}", std::process::id()));
    std::fs::write(&hidden, bytes)?;
    std::fs::rename(&hidden, file)
}

/// Letters and digits that cannot be misread, as in pods' names.
pub fn random(length: usize) -> Result<String> {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).during("/dev/urandom")?;
    Ok(bytes.iter().map(|b| ALPHABET[usize::from(*b) % ALPHABET.len()] as char).collect())
}

/// As Kubernetes gives its objects.
pub fn uid() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").during("/proc/sys/kernel/random/uuid")?;
    Ok(text.trim().into())
}
