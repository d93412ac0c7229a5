//! The control plane's own identity and the news about the authority: another process may take a step of a rotation, and our
//! certificate ends like everybody's.

use super::ca::{Authority, CaError, ROOT_PEM, Subject};
use crate::state::StateDir;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use weft_tls::{Identity, Live};

pub const NAMESPACE: &str = "weft-system";
pub const ACCOUNT: &str = "weft-control";
const LOOK: Duration = Duration::from_millis(500);
/// After a failure.
const REST: Duration = Duration::from_secs(5);

/// A certificate for ourselves, with a key that lives in memory only.
pub fn issue(dir: &StateDir, ca: &Authority, lifetime: Duration) -> Result<Identity, CaError> {
    let subject = Subject { id: ca.id(NAMESPACE, ACCOUNT)?, pod: String::new(), uid: String::new() };
    let key = rcgen::KeyPair::generate()?;
    let issued = ca.issue(&subject, &key, lifetime, SystemTime::now())?;
    ca.record(dir, &subject, &issued)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Identity::from_der(vec![issued.der], key)?)
}

/// Follows `ca.json` and renews our certificate at half its life. What cannot be read changes nothing.
pub async fn follow(dir: StateDir, lifetime: Duration, live: Live, authority: watch::Sender<Arc<Authority>>) {
    let mut seen = modified(&dir);
    let mut tried = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        let now_modified = modified(&dir);
        let changed = now_modified != seen;
        // The rest of its life, not the middle: it counts from before it was made. And not all the time at the end of a root's.
        let left = live.load().identity.not_after().duration_since(SystemTime::now()).unwrap_or_default();
        let due = left < lifetime / 2 && tried.elapsed() > lifetime / 20;
        if !changed && !due {
            continue;
        }
        tried = Instant::now();
        let (dir, current) = (dir.clone(), authority.borrow().clone());
        let renewed = tokio::task::spawn_blocking(move || {
            let fresh = if changed { Authority::load(&dir)?.map(Arc::new) } else { None };
            // Who took the step may have been killed before this.
            if let Some(ca) = &fresh {
                dir.write(ROOT_PEM, &ca.pem())?;
            }
            let ca = fresh.unwrap_or(current);
            let identity = issue(&dir, &ca, lifetime)?;
            let bundle = ca.bundle()?;
            Ok::<_, CaError>((ca, identity, bundle))
        });
        match renewed.await {
            Ok(Ok((ca, identity, bundle))) => {
                seen = now_modified;
                live.store(identity, bundle);
                if changed {
                    tracing::info!(stage = ca.stage.word(), roots = ca.roots.len(), signing = %ca.signing, "authority changed");
                    authority.send_replace(ca);
                }
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the authority's state cannot be used; the last one stays");
                tokio::time::sleep(REST).await;
            }
            Err(error) => tracing::error!(%error, "renewing our own certificate"),
        }
    }
}

fn modified(dir: &StateDir) -> Option<(SystemTime, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(Authority::file(dir)).ok()?;
    Some((meta.modified().ok()?, meta.ino()))
}
