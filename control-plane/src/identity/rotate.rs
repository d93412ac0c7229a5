//! Rotation of the root in three steps, each of which everybody survives: the new root is trusted beside the old one; it signs;
//! the old one goes once nothing that counts was signed by it. A step is one write of `ca.json`; the server sees it and passes
//! the news on. What a step needs to have happened before is checked here.

use super::ca::{Authority, CaError, ROOT_PEM, Root, Stage, seconds};
use crate::state::StateDir;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// Trust travels in a second or so to everybody who is connected; the rest of the time is for those who are not at the moment.
const SPREAD: Duration = Duration::from_secs(60);

/// Takes the next step and says what it was.
pub fn step(dir: &StateDir, force: bool, now: SystemTime) -> Result<String, CaError> {
    let _lock = dir.lock()?;
    let ca = Authority::load(dir)?.ok_or(CaError::None)?;
    let ids: Vec<&str> = ca.roots.iter().map(|r| r.id.as_str()).collect();
    let done = match (ca.stage, ids.as_slice()) {
        (Stage::Single, [old]) => {
            let new = Root::create(dir, &ca.domain)?;
            Authority::store(dir, &ca.domain, Stage::Introduced, &[old, &new], old, now)?;
            format!("root {new} is trusted beside {old}, which still signs; next: {new} signs")
        }
        (Stage::Introduced, [old, new]) => {
            let waited = seconds(now).saturating_sub(ca.since);
            if waited < SPREAD.as_secs() && !force {
                let left = SPREAD.as_secs() - waited;
                return Err(CaError::TooEarly(format!(
                    "root {new} has been trusted for {waited} s; wait {left} s more until every proxy has it, or use --force"
                )));
            }
            Authority::store(dir, &ca.domain, Stage::Switched, &[old, new], new, now)?;
            format!("root {new} signs; {old} is still trusted; next: {old} goes, when what it signed has expired")
        }
        (Stage::Switched, [old, new]) => {
            let records = Authority::records(dir)?;
            let at = seconds(now);
            let held = records.iter().filter(|r| r.issuer == *old && r.not_after > at);
            let (mut who, mut left) = (BTreeSet::new(), 0);
            for record in held {
                who.insert(if record.pod.is_empty() { &record.identity } else { &record.pod });
                left = left.max(record.not_after - at);
            }
            if !who.is_empty() && !force {
                let named: Vec<&str> = who.iter().take(5).map(|w| w.as_str()).collect();
                let more = if who.len() > named.len() { " and others" } else { "" };
                return Err(CaError::TooEarly(format!(
                    "certificates of root {old} still count for up to {left} s, those of {}{more}; wait, or use --force",
                    named.join(", ")
                )));
            }
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
        let subject = Subject { id: first.id("demo", "web").unwrap(), pod: "web-1".into() };
        let key = rcgen::KeyPair::generate().unwrap();
        let lifetime = Duration::from_secs(3600);
        let leaf = first.issue(&subject, &key, lifetime, now).unwrap();
        first.record(&dir, &subject, &leaf).unwrap();

        step(&dir, false, now).unwrap();
        let both = Authority::load(&dir).unwrap().unwrap();
        assert_eq!((both.stage, both.roots.len(), &both.signing), (Stage::Introduced, 2, &first.signing));
        assert_eq!(dir.read(ROOT_PEM).unwrap().unwrap().matches("BEGIN").count(), 2);

        assert!(matches!(step(&dir, false, now), Err(CaError::TooEarly(_))));
        step(&dir, false, now + SPREAD).unwrap();
        let switched = Authority::load(&dir).unwrap().unwrap();
        assert_eq!((switched.stage, switched.roots.len()), (Stage::Switched, 2));
        assert_eq!(switched.signing, both.roots[1].id);

        let early = step(&dir, false, now + SPREAD).unwrap_err().to_string();
        assert!(early.contains("web-1"), "{early}");
        step(&dir, false, now + lifetime).unwrap();
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
