//! The state folder: the identity and the last plan, for a restart while the control plane is away.
//!
//! Each is one file, replaced by rename and readable by its owner alone. What cannot be written is warned of and tried again
//! with the next change; what cannot be read counts as not there.

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use weft_policy::id::TrustDomain;
use weft_tls::{Identity, TrustBundle, request};

const IDENTITY: &str = "identity.json";
const PLAN: &str = "plan.json";
/// Larger than anything that is ever written here.
const MAX_FILE: u64 = 512 << 20;

#[derive(Clone)]
pub struct Folder {
    path: PathBuf,
    failing: Arc<AtomicBool>,
}

/// An identity, with the key in a form that can be kept.
#[derive(Clone)]
pub struct Kept {
    pub identity: Identity,
    pub key_pem: String,
    pub bundle: Arc<TrustBundle>,
}

impl Folder {
    pub fn open(path: &Path) -> Self {
        let folder = Self { path: path.into(), failing: Arc::default() };
        if let Err(e) = fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
            folder.failed(&format!("{} cannot be made: {e}", path.display()));
        }
        folder
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn identity(&self) -> Option<Kept> {
        let saved = self.read(IDENTITY)?;
        match kept(&saved) {
            Some(kept) => Some(kept),
            None => {
                tracing::warn!(file = %self.path.join(IDENTITY).display(), "not a usable identity; a new one is asked for");
                None
            }
        }
    }

    pub fn plan(&self) -> Option<Value> {
        self.read(PLAN)
    }

    pub fn save_identity(&self, kept: &Kept) {
        let chain: Vec<String> = kept.identity.chain().iter().map(|c| request::pem(c)).collect();
        let trust: Vec<Value> = kept
            .bundle
            .certificates()
            .map(|(domain, root)| json!({"domain": domain.map(TrustDomain::as_str), "root": request::pem(root)}))
            .collect();
        self.write(IDENTITY, json!({"key": kept.key_pem, "chain": chain, "trust": trust}));
    }

    pub fn save_plan(&self, plan: Value) {
        self.write(PLAN, plan);
    }

    fn read(&self, name: &str) -> Option<Value> {
        let path = self.path.join(name);
        let mut bytes = Vec::new();
        match fs::File::open(&path).and_then(|f| f.take(MAX_FILE).read_to_end(&mut bytes)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot be read");
                return None;
            }
            Ok(_) => {}
        }
        match serde_json::from_slice(&bytes) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot be used");
                None
            }
        }
    }

    /// On a thread of its own: a slow disk holds up nothing but itself.
    fn write(&self, name: &'static str, value: Value) {
        let folder = self.clone();
        tokio::task::spawn_blocking(move || match folder.replace(name, &value) {
            Ok(()) => {
                if folder.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(folder = %folder.path.display(), "the state folder can be written again");
                }
            }
            Err(e) => folder.failed(&format!("{} cannot be written: {e}", folder.path.join(name).display())),
        });
    }

    fn failed(&self, what: &str) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!("{what}; the proxy goes on, but a restart without the control plane would find nothing new");
        }
    }

    /// The temporary name is the process's own: a successor may run beside its predecessor.
    fn replace(&self, name: &str, value: &Value) -> std::io::Result<()> {
        use std::sync::atomic::AtomicU64;
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let turn = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = self.path.join(format!(".{name}.{}.{turn}", std::process::id()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(value.to_string().as_bytes()))
            .and_then(|()| fs::rename(&temporary, self.path.join(name)));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

fn kept(saved: &Value) -> Option<Kept> {
    let key_pem = saved["key"].as_str()?.to_string();
    let chain: Option<Vec<&str>> = saved["chain"].as_array()?.iter().map(Value::as_str).collect();
    let identity = Identity::from_pem(chain?.concat().as_bytes(), key_pem.as_bytes()).ok()?;
    let mut bundle = TrustBundle::default();
    for root in saved["trust"].as_array()? {
        let domain = match root["domain"].as_str() {
            Some(domain) => Some(TrustDomain::parse(domain).ok()?),
            None => None,
        };
        bundle.add_pem(domain, root["root"].as_str()?.as_bytes()).ok()?;
    }
    Some(Kept { identity, key_pem, bundle: Arc::new(bundle) })
}
