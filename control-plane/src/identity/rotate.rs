//! Rotation of the root in three steps, each of which everybody survives: the new root is trusted beside the old one; it signs;
//! the old one goes once nothing that is in use was signed by it. A step is one write of `ca.json`; the server sees it and passes
//! the news on. What a step needs to have happened before is checked here: for the second one the server writes down who has
//! not heard of the new root yet.

use super::ca::{Authority, CaError, ROOT_PEM, Root, Stage, seconds};

pub use super::ca::Record;
use crate::scope;
use crate::state::StateDir;
use crate::status::Status;
use crate::world::Current;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use weft_dialects::world::PodId;
use weft_policy::id::SpiffeId;

/// Of the newest root: since when it is trusted, and who has yet to hear of it.
const SPREAD: &str = "spread.json";
const LOOK: Duration = Duration::from_secs(1);

/// How far a rotation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    /// Seconds since 1970 at which the stage began.
    pub since: u64,
    /// Those that are trusted, the older one first.
    pub roots: Vec<String>,
    pub signing: String,
    /// What the next step has to wait for.
    pub waits: Option<String>,
}

impl Progress {
    /// `ready`: whether the next step can be taken.
    pub fn of(ca: &Authority, ready: Result<(), CaError>) -> Result<Self, CaError> {
        let waits = match ready {
            Ok(()) => None,
            Err(CaError::TooEarly(why)) => Some(why),
            Err(error) => return Err(error),
        };
        let roots = ca.roots.iter().map(|r| r.id.clone()).collect();
        Ok(Self { stage: ca.stage, since: ca.since, roots, signing: ca.signing.clone(), waits })
    }
}

/// As it is now.
pub fn progress(dir: &StateDir, now: SystemTime) -> Result<Progress, CaError> {
    let _lock = dir.lock()?;
    let ca = Authority::load(dir)?.ok_or(CaError::None)?;
    Progress::of(&ca, is_ready(dir, &ca, now))
}

/// Whether everybody is where the next step wants them.
fn is_ready(dir: &StateDir, ca: &Authority, now: SystemTime) -> Result<(), CaError> {
    match (ca.stage, ca.roots.as_slice()) {
        (Stage::Introduced, [_, new]) => is_spread(dir, ca, &new.id),
        (Stage::Switched, [old, _]) => is_renewed(dir, &old.id, now),
        _ => Ok(()),
    }
}

/// Takes the next step and says what it was.
pub fn step(dir: &StateDir, force: bool, now: SystemTime) -> Result<String, CaError> {
    step_to(dir, None, force, now)
}

/// With a root that is not made here, but given: its files are in the folder already.
pub fn step_to(dir: &StateDir, given: Option<String>, force: bool, now: SystemTime) -> Result<String, CaError> {
    let _lock = dir.lock()?;
    let ca = Authority::load(dir)?.ok_or(CaError::None)?;
    if !force {
        is_ready(dir, &ca, now)?;
    }
    let ids: Vec<&str> = ca.roots.iter().map(|r| r.id.as_str()).collect();
    let done = match (ca.stage, ids.as_slice()) {
        (Stage::Single, [old]) => {
            let new = given.map_or_else(|| Root::create(dir, &ca.domain), Ok)?;
            Authority::store(dir, &ca.domain, Stage::Introduced, &[old, &new], old, now)?;
            format!("root {new} is trusted beside {old}, which still signs; next: {new} signs")
        }
        (Stage::Introduced, [old, new]) => {
            Authority::store(dir, &ca.domain, Stage::Switched, &[old, new], new, now)?;
            format!(
                "root {new} signs; {old} is still trusted; next: {old} goes, when what it signed is no longer in use"
            )
        }
        (Stage::Switched, [old, new]) => {
            Authority::store(dir, &ca.domain, Stage::Single, &[new], new, now)?;
            Root::remove_key(dir, old)?;
            format!("root {old} is gone; {new} is the only one")
        }
        (stage, ids) => {
            return Err(CaError::State(format!("stage {} does not go with {} roots", stage.word(), ids.len())));
        }
    };
    let ca = Authority::load(dir)?.ok_or(CaError::None)?;
    dir.write(ROOT_PEM, &ca.pem())?;
    Ok(done)
}

/// The last certificate of each: who has a newer one has put the older away.
pub fn newest(records: Vec<Record>) -> BTreeMap<(String, String), Record> {
    records.into_iter().map(|r| ((r.identity.clone(), r.pod.clone()), r)).collect()
}

fn is_renewed(dir: &StateDir, old: &str, now: SystemTime) -> Result<(), CaError> {
    let at = seconds(now);
    let records = newest(Authority::records(dir)?);
    let held: Vec<&Record> = records.values().filter(|r| r.issuer == *old && r.not_after > at).collect();
    let Some(left) = held.iter().map(|r| r.not_after - at).max() else { return Ok(()) };
    let who = held.iter().map(|r| if r.pod.is_empty() { r.identity.as_str() } else { r.pod.as_str() });
    Err(CaError::TooEarly(format!(
        "certificates of root {old} are still in use, for up to {left} s, by {}; wait until they are renewed, or use --force",
        some(who)
    )))
}

fn is_spread(dir: &StateDir, ca: &Authority, new: &str) -> Result<(), CaError> {
    let spread: Value = dir.read(SPREAD)?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let waiting = spread["waiting"].as_array().filter(|_| spread["since"] == ca.since && spread["root"] == new);
    match waiting {
        Some(waiting) if waiting.is_empty() => Ok(()),
        Some(waiting) => Err(CaError::TooEarly(format!(
            "root {new} is not known yet to {}; wait until they are connected, or use --force",
            some(waiting.iter().filter_map(Value::as_str))
        ))),
        None => Err(CaError::TooEarly(format!(
            "it is not known yet who has heard of root {new}; ask again in a few seconds, with the control plane running, or use --force"
        ))),
    }
}

/// The first few of many.
pub fn some<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.collect();
    let more = if names.len() > 5 { " and others" } else { "" };
    names.into_iter().take(5).collect::<Vec<_>>().join(", ") + more
}

/// While a second root is trusted and does not sign: writes down which of the world's pods that have a certificate in use have
/// not taken it into force.
pub async fn follow(
    dir: StateDir,
    authority: watch::Receiver<Arc<Authority>>,
    worlds: watch::Receiver<Arc<Current>>,
    status: Arc<Status>,
) {
    let mut written = Value::Null;
    loop {
        tokio::time::sleep(LOOK).await;
        let ca = authority.borrow().clone();
        if ca.stage != Stage::Introduced {
            continue;
        }
        let (dir, status, current, before) = (dir.clone(), status.clone(), worlds.borrow().clone(), written.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let told = status.have("trust", &scope::version(&ca.document()));
            let now = seconds(SystemTime::now());
            let in_use = newest(Authority::records(&dir)?).into_values().filter(|r| r.not_after > now);
            let pods: BTreeSet<PodId> =
                in_use.filter_map(|r| pod(&r)).filter(|p| current.view.owner(p).is_some()).collect();
            let waiting: Vec<&str> = pods.difference(&told).map(|p| p.name.as_str()).collect();
            let root = ca.roots.last().map(|r| r.id.as_str());
            let spread = json!({"root": root, "since": ca.since, "waiting": waiting});
            // The first look may be older than the world.
            if spread != before && current.generation > 0 {
                dir.write(SPREAD, &spread.to_string())?;
            }
            Ok::<_, CaError>(spread)
        });
        match looked.await {
            Ok(Ok(spread)) => written = spread,
            Ok(Err(error)) => tracing::warn!(%error, "who has heard of the new root cannot be written down"),
            Err(error) => tracing::error!(%error, "looking who has heard of the new root"),
        }
    }
}

pub fn pod(record: &Record) -> Option<PodId> {
    let id = SpiffeId::parse(&record.identity).ok()?;
    let (namespace, _) = id.workload().filter(|_| !record.pod.is_empty())?;
    Some(PodId { namespace: namespace.into(), name: record.pod.clone() })
}

#[cfg(test)]
mod tests {
    use super::super::ca::Subject;
    use super::*;
    use weft_policy::id::TrustDomain;
    use weft_testkit::dir::TempDir;

    #[test]
    fn three_steps_none_of_them_early() {
        let temp = TempDir::new();
        let dir = StateDir::open(temp.path()).unwrap();
        let now = SystemTime::now();
        assert!(matches!(step(&dir, false, now), Err(CaError::None)));
        let first = Authority::load_or_create(&dir, &TrustDomain::parse("a.b").unwrap()).unwrap();
        let subject = Subject { id: first.id("demo", "web").unwrap(), pod: "web-1".into(), uid: String::new() };
        let key = rcgen::KeyPair::generate().unwrap();
        let lifetime = Duration::from_secs(3600);
        let leaf = first.issue(&subject, &key, lifetime, now).unwrap();
        first.record(&dir, &subject, &leaf).unwrap();

        step(&dir, false, now).unwrap();
        let both = Authority::load(&dir).unwrap().unwrap();
        assert_eq!((both.stage, both.roots.len(), &both.signing), (Stage::Introduced, 2, &first.signing));
        assert_eq!(dir.read(ROOT_PEM).unwrap().unwrap().matches("BEGIN").count(), 2);

        assert!(matches!(step(&dir, false, now), Err(CaError::TooEarly(_))));
        let spread = |waiting: Value| {
            let text = json!({"root": both.roots[1].id, "since": both.since, "waiting": waiting}).to_string();
            dir.write(SPREAD, &text).unwrap();
        };
        spread(json!(["web-1"]));
        assert!(step(&dir, false, now).unwrap_err().to_string().contains("web-1"));
        spread(json!([]));
        step(&dir, false, now).unwrap();
        let switched = Authority::load(&dir).unwrap().unwrap();
        assert_eq!((switched.stage, switched.roots.len()), (Stage::Switched, 2));
        assert_eq!(switched.signing, both.roots[1].id);

        let early = step(&dir, false, now).unwrap_err().to_string();
        assert!(early.contains("web-1"), "{early}");
        // It goes when the certificate has ended, or has been renewed.
        let renewed = switched.issue(&subject, &key, lifetime, now).unwrap();
        switched.record(&dir, &subject, &renewed).unwrap();
        step(&dir, false, now).unwrap();
        let last = Authority::load(&dir).unwrap().unwrap();
        assert_eq!((last.stage, last.roots.len(), &last.signing), (Stage::Single, 1, &switched.signing));
        assert!(dir.read(&format!("root-{}.key", first.signing)).unwrap().is_none());
    }

    /// A crash before the last write of a step: files that nothing names change nothing.
    #[test]
    fn half_a_step_is_none() {
        let temp = TempDir::new();
        let dir = StateDir::open(temp.path()).unwrap();
        let domain = TrustDomain::parse("a.b").unwrap();
        let first = Authority::load_or_create(&dir, &domain).unwrap();
        Root::create(&dir, &domain).unwrap();
        let again = Authority::load_or_create(&dir, &domain).unwrap();
        assert_eq!((again.signing, again.roots.len()), (first.signing, 1));
    }
}
