//! Rotation of a root that several replicas share. A step is one write of Secret `weft-ca`, from wherever; what it needs to have
//! happened is known to the replicas, each of which writes what it knows under its name into ConfigMap `weft-replicas`:
//! `have`, the pods that are where the next step wants them (hashes, for there may be many), and `need`, those it knows of that
//! are not, as far as it can tell. What anybody says a pod has, it has, also when who said so is gone.

use super::ca::{Authority, CaError, Stage, seconds};
use super::rotate::{self, newest, some};
use super::secret::{self, kube};
use crate::scope;
use crate::state::StateDir;
use crate::status::Status;
use crate::world::Current;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use weft_dialects::world::PodId;
use weft_tls::hex_sha256;

pub const NAME: &str = "weft-replicas";
const LOOK: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(10);
/// More than these are not named: too many anyway for the next step.
const NAMED: usize = 500;
/// What a refusal names.
const SHOWN: usize = 6;

pub struct Replica {
    pub client: Client,
    pub namespace: String,
    pub name: String,
    pub dir: StateDir,
}

/// Which step it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
struct About {
    root: String,
    stage: Stage,
    since: u64,
}

impl About {
    /// Nothing has to be known where there is one root.
    fn of(ca: &Authority) -> Option<Self> {
        let newest = ca.roots.last().filter(|_| ca.stage != Stage::Single)?;
        Some(Self { root: newest.id.clone(), stage: ca.stage, since: ca.since })
    }

    fn is(&self, said: &Value) -> bool {
        said["root"] == *self.root && said["stage"] == self.stage.word() && said["since"] == self.since
    }
}

fn name(pod: &PodId) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn hash(name: &str) -> String {
    hex_sha256(name.as_bytes()).chars().take(10).collect()
}

/// The texts of a list.
fn texts<'a>(said: &'a Value, key: &str) -> impl Iterator<Item = String> + use<'a> {
    said[key]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| Some(v.as_str()?.to_string()))
        .collect::<Vec<_>>()
        .into_iter()
}

impl Replica {
    fn api(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// While a rotation is under way: writes down what is known, when that has changed.
    pub async fn follow(
        self,
        authority: watch::Receiver<Arc<Authority>>,
        worlds: watch::Receiver<Arc<Current>>,
        status: Arc<Status>,
    ) {
        let (mut about, mut told) = (None, false);
        let (mut have, mut written) = (BTreeSet::new(), Value::Null);
        loop {
            // A long list is written less often.
            tokio::time::sleep(LOOK * (1 + have.len() as u32 / 1000)).await;
            let ca = authority.borrow().clone();
            let Some(now) = About::of(&ca) else { continue };
            if about.as_ref() != Some(&now) {
                // What this pod said before its container was started again stays said.
                let before = match self.said(&now).await {
                    Ok(before) => before,
                    Err(error) => {
                        if !std::mem::replace(&mut told, true) {
                            tracing::warn!(%error, "ConfigMap {NAME} cannot be read; trying again");
                        }
                        continue;
                    }
                };
                told = false;
                (have, written, about) = (before, Value::Null, Some(now.clone()));
            }
            let (dir, status, current) = (self.dir.clone(), status.clone(), worlds.borrow().clone());
            let stage = now.stage;
            let looked = tokio::task::spawn_blocking(move || look(&dir, &ca, stage, &status, &current)).await;
            let (now_have, need) = match looked {
                Ok(Ok(looked)) => looked,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "who knows which root cannot be told");
                    continue;
                }
                Err(_) => continue,
            };
            have.extend(now_have.iter().map(|p| hash(&name(p))));
            let need: Vec<String> = need.iter().map(name).filter(|n| !have.contains(&hash(n))).collect();
            let more = need.len() > NAMED;
            let need: Vec<String> = need.into_iter().take(NAMED).collect();
            let said = json!({
                "root": now.root, "stage": now.stage.word(), "since": now.since,
                "have": have, "need": need, "more": more,
            });
            if said != written {
                match tokio::time::timeout(ANSWER, self.say(&said)).await {
                    Ok(Ok(())) => written = said,
                    Ok(Err(error)) => tracing::warn!(%error, "ConfigMap {NAME} cannot be written; trying again"),
                    Err(_) => tracing::warn!("ConfigMap {NAME} cannot be written: no answer"),
                }
            }
        }
    }

    async fn said(&self, about: &About) -> kube::Result<BTreeSet<String>> {
        let map = self.api().get_opt(NAME).await?;
        let own =
            map.and_then(|m| m.data?.remove(&self.name)).and_then(|text| serde_json::from_str::<Value>(&text).ok());
        Ok(own.filter(|said| about.is(said)).map(|said| texts(&said, "have").collect()).unwrap_or_default())
    }

    async fn say(&self, said: &Value) -> kube::Result<()> {
        let data = json!({"data": {self.name.as_str(): said.to_string()}});
        let patched = self.api().patch(NAME, &PatchParams::default(), &Patch::Merge(&data)).await;
        match patched {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let labels = json!({"app.kubernetes.io/part-of": "weft", "app.kubernetes.io/name": "weft-control"});
                let mut map =
                    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "labels": labels}});
                map["data"] = data["data"].clone();
                let map = serde_json::from_value(map).map_err(kube::Error::SerdeError)?;
                self.api().create(&PostParams::default(), &map).await.map(|_| ())
            }
            patched => patched.map(|_| ()),
        }
    }
}

/// Who has what the next step wants, and who of those that are known has not. In the first stage that is to trust the new root, in
/// the second one to have a certificate of it.
fn look(
    dir: &StateDir,
    ca: &Authority,
    stage: Stage,
    status: &Status,
    current: &Current,
) -> Result<(BTreeSet<PodId>, BTreeSet<PodId>), CaError> {
    let now = seconds(SystemTime::now());
    let records = newest(Authority::records(dir)?);
    let of = |wanted: &dyn Fn(&rotate::Record) -> bool| -> BTreeSet<PodId> {
        records.values().filter(|r| wanted(r)).filter_map(rotate::pod).collect()
    };
    let have = match stage {
        Stage::Switched => of(&|r| r.issuer == ca.signing),
        _ => status.have("trust", &scope::version(&ca.document())),
    };
    let in_use = of(&|r| r.not_after > now);
    // Without a world everybody counts; who asks for the step looks whether they are there.
    let exists = |p: &PodId| current.view.pods() == 0 || current.view.owner(p).is_some();
    let need = in_use.into_iter().chain(status.present()).filter(|p| exists(p) && !have.contains(p)).collect();
    Ok((have, need))
}

/// Takes the next step and says what it was.
pub async fn step(client: Client, namespace: &str, force: bool, now: SystemTime) -> Result<String, CaError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let held = api.get_opt(secret::NAME).await.map_err(|e| kube(&e))?;
    let held = held.ok_or_else(|| {
        CaError::Secret(format!(
            "there is none in namespace {namespace}: the control plane makes it when it first runs"
        ))
    })?;
    let scratch = Scratch::new()?;
    secret::write(&scratch.0, &secret::files(&held)?)?;
    let ca = Authority::load(&scratch.0)?.ok_or(CaError::None)?;
    if let Some(about) = About::of(&ca).filter(|_| !force) {
        is_spread(&client, namespace, &about).await?;
    }
    // A CA that was given, and has been replaced since by whoever gives it: that is the new root.
    let given = match secret::given(&held)? {
        Some((id, files)) if ca.stage == Stage::Single && ca.roots.iter().all(|r| r.id != id) => {
            for (name, text) in &files {
                scratch.0.write_secret(name, text)?;
            }
            Some(id)
        }
        _ => None,
    };
    let done = rotate::step_to(&scratch.0, given, true, now)?;
    let next = secret::with(held, secret::read(&scratch.0)?);
    // With the version that was read: of two who take a step at once one is told.
    match api.replace(secret::NAME, &PostParams::default(), &next).await {
        Ok(_) => Ok(done),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(CaError::TooEarly(
            "somebody else has changed Secret weft-ca at the same time: look, and try again".into(),
        )),
        Err(error) => Err(kube(&error)),
    }
}

/// Whether everybody is where the next step wants them, by what the replicas have written.
async fn is_spread(client: &Client, namespace: &str, about: &About) -> Result<(), CaError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let said = maps.get_opt(NAME).await.map_err(|e| kube(&e))?.and_then(|m| m.data).unwrap_or_default();
    let said = said.into_iter().filter_map(|(name, text)| Some((name, serde_json::from_str::<Value>(&text).ok()?)));
    let said: Vec<(String, Value)> = said.filter(|(_, said)| about.is(said)).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let ours =
        pods.list(&ListParams::default().labels("app.kubernetes.io/name=weft-control")).await.map_err(|e| kube(&e))?;
    let runs = |p: &Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    let silent = ours.iter().filter(|p| runs(p)).map(ResourceExt::name_any);
    let silent: Vec<String> = silent.filter(|n| said.iter().all(|(name, _)| name != n)).collect();
    if said.is_empty() || !silent.is_empty() {
        let who = some(silent.iter().map(String::as_str));
        return Err(CaError::TooEarly(format!(
            "it is not known yet who has heard of root {}; ask again in a few seconds, with the control plane running{}, or use --force",
            about.root,
            if who.is_empty() { who } else { format!(" (nothing from {who})") }
        )));
    }
    let have: BTreeSet<String> = said.iter().flat_map(|(_, said)| texts(said, "have")).collect();
    let need: BTreeSet<String> = said.iter().flat_map(|(_, said)| texts(said, "need")).collect();
    let more = said.iter().any(|(_, said)| said["more"] == true);
    let mut waiting = Vec::new();
    for name in need.iter().filter(|n| !have.contains(&hash(n))) {
        if waiting.len() < SHOWN && exists(client, name).await? {
            waiting.push(name.as_str());
        }
    }
    if waiting.is_empty() && !more {
        return Ok(());
    }
    let who = some(waiting.into_iter());
    Err(CaError::TooEarly(match about.stage {
        Stage::Switched => format!(
            "certificates of the old root are still in use by {who}; wait until they are renewed, or use --force"
        ),
        _ => format!("root {} is not known yet to {who}; wait until they are connected, or use --force", about.root),
    }))
}

/// A pod that has ended stays for a while, with nobody in it who could hear of anything.
async fn exists(client: &Client, name: &str) -> Result<bool, CaError> {
    let (namespace, name) = name.split_once('/').unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = pods.get_opt(name).await.map_err(|e| kube(&e))?;
    let ended = |p: &Pod| {
        let phase = p.status.as_ref().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    Ok(found.is_some_and(|p| !ended(&p)))
}

/// A folder for keys, in memory where that is possible, which goes with its holder.
struct Scratch(StateDir);

impl Scratch {
    fn new() -> Result<Self, CaError> {
        let shared = std::path::Path::new("/dev/shm");
        let base = if shared.is_dir() { shared.to_path_buf() } else { std::env::temp_dir() };
        let name = super::ca::hex(&super::ca::random::<8>()?);
        Ok(Self(StateDir::open(&base.join(format!("weft-rotate-{name}")))?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.path(""));
    }
}
