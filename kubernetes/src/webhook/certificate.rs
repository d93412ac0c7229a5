//! The webhook server's certificate, in a Secret that all replicas share.
//!
//! Whoever comes first makes it. When two thirds of its time are over, one replica puts a new one into the Secret, of a new
//! authority, beside which the old one stays trusted for a while. A replica serves what it finds there once the webhook
//! configurations trust it, so no call fails. A Secret that is lost is written again; one that somebody else keeps
//! (cert-manager, say: it has no annotation of ours) is only read.

use super::issue::{certificates, issue, load};
use crate::watch::one;
use arc_swap::ArcSwapOption;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITIES: &str = "ca.crt";
/// When it was last changed by us, in seconds since 1970.
const SINCE: &str = "weft.dev/since";
const NAMES: &str = "weft.dev/names";
/// How often it is asked whether anything is due.
const TICK: Duration = Duration::from_secs(30);
/// How long two authorities are trusted after a change.
const SETTLE: Duration = Duration::from_secs(120);
/// API servers see a changed configuration much sooner.
const SPREAD: Duration = Duration::from_secs(1);
/// After that a new certificate is served though not every configuration trusts it.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

/// What is served now; empty until the Secret was read.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<ArcSwapOption<CertifiedKey>>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl Served {
    pub fn is_ready(&self) -> bool {
        self.0.load().is_some()
    }

    /// Whoever connects gets what is served then.
    pub fn config(&self) -> Arc<ServerConfig> {
        let versions = ServerConfig::builder_with_provider(weft_tls::config::provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13]);
        // The provider has TLS 1.3, always; without it there would be no mesh either.
        let builder = versions.unwrap_or_else(|_| ServerConfig::builder());
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// Which certificate, and where it is kept.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub namespace: String,
    pub secret: String,
    /// Names and addresses by which it is called.
    pub names: Vec<String>,
    pub lifetime: Duration,
}

/// What the Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    certificate: String,
    key: String,
    /// The one that signed comes first.
    authorities: String,
    since: SystemTime,
    names: String,
}

/// What the Secret needs.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Stay,
    Write(Stored),
    /// Not ours to change.
    Foreign(Unusable),
}

impl Certificate {
    /// That of a Service.
    pub fn of_service(service: &str, namespace: &str, secret: &str) -> Self {
        let names = ["", ".cluster.local"].map(|domain| format!("{service}.{namespace}.svc{domain}"));
        Self {
            namespace: namespace.into(),
            secret: secret.into(),
            names: names.to_vec(),
            lifetime: Duration::from_secs(90 * 24 * 3600),
        }
    }

    /// For ever. `trusted` is told what configurations have to trust, and `in_force` tells what they do.
    pub async fn keep(
        self,
        client: kube::Client,
        served: Served,
        trusted: watch::Sender<String>,
        in_force: watch::Receiver<String>,
    ) {
        let api: Api<Secret> = Api::namespaced(client, &self.namespace);
        let (found_in, mut found) = watch::channel(None::<Option<Secret>>);
        let look = one(api.clone(), &self.secret, found_in);
        let own = async {
            let mut held: Option<Stored> = None;
            loop {
                let current = found.borrow_and_update().clone();
                if let Some(secret) = current {
                    self.turn(&api, secret.as_ref(), &mut held, &served, &trusted, &in_force).await;
                }
                let tick = TICK.min(self.lifetime / 40);
                let changed = tokio::time::timeout(tick, found.changed()).await;
                if matches!(changed, Ok(Err(_))) {
                    return;
                }
            }
        };
        tokio::join!(look, own);
    }

    async fn turn(
        &self,
        api: &Api<Secret>,
        secret: Option<&Secret>,
        held: &mut Option<Stored>,
        served: &Served,
        trusted: &watch::Sender<String>,
        in_force: &watch::Receiver<String>,
    ) {
        let stored = secret.map(read);
        match self.step(stored.as_ref(), held.as_ref(), SystemTime::now()) {
            Step::Stay => {}
            Step::Foreign(why) => {
                tracing::error!(secret = self.secret, %why, "the certificate cannot be used, and is not ours to change");
            }
            // What was written comes back as a change of the Secret.
            Step::Write(new) => match self.write(api, secret, &new).await {
                Ok(()) => return tracing::info!(secret = self.secret, "the webhook's certificate is written"),
                Err(kube::Error::Api(e)) if e.code == 409 => {
                    return tracing::debug!("another replica has written the certificate");
                }
                Err(error) => tracing::warn!(secret = self.secret, %error, "the certificate cannot be written"),
            },
        }
        let Some(Ok(Some(stored))) = stored.map(|s| s.map(|s| usable(&s).is_ok().then_some(s))) else { return };
        if held.as_ref() == Some(&stored) {
            return;
        }
        if held.as_ref().is_some_and(|h| h.certificate != stored.certificate) {
            let both = held.as_ref().map_or(String::new(), |h| together(&stored.authorities, &h.authorities));
            trusted.send_replace(both.clone());
            let mut in_force = in_force.clone();
            let known = in_force.wait_for(|now| *now == both);
            let in_time = tokio::time::timeout(PATIENCE, known).await.is_ok();
            match in_time {
                true => tokio::time::sleep(SPREAD).await,
                false => tracing::warn!("a new certificate is served before every configuration is known to trust it"),
            }
        }
        match load(&stored.certificate, &stored.key) {
            Ok((key, end)) => {
                served.0.store(Some(Arc::new(key)));
                let days = end.duration_since(SystemTime::now()).unwrap_or_default().as_secs() / (24 * 3600);
                tracing::info!(secret = self.secret, days, "the webhook's certificate is served");
            }
            Err(why) => return tracing::error!(%why, "the certificate cannot be served"),
        }
        trusted.send_replace(stored.authorities.clone());
        *held = Some(stored);
    }

    fn step(&self, stored: Option<&Result<Stored, Unusable>>, held: Option<&Stored>, now: SystemTime) -> Step {
        let good = |s: &&Stored| usable(s).is_ok_and(|end| end > now);
        let stored = match stored {
            // Lost: what is served is what is trusted.
            None => return held.filter(good).map_or_else(|| self.fresh(held, now), |s| Step::Write(s.clone())),
            Some(Err(why)) => return Step::Foreign(why.clone()),
            Some(Ok(stored)) => stored,
        };
        let ours = stored.since > UNIX_EPOCH || stored.certificate.is_empty();
        match usable(stored) {
            Ok(_) if !ours => Step::Stay,
            Err(why) if !ours => Step::Foreign(why),
            Ok(end) if end > now + self.lifetime / 3 && stored.names == self.names.join(" ") => {
                let settled = now.duration_since(stored.since).unwrap_or_default() >= SETTLE.min(self.lifetime / 8);
                match split(&stored.authorities).as_slice() {
                    [first, _, ..] if settled => Step::Write(Stored {
                        authorities: first.clone(),
                        since: now.max(UNIX_EPOCH + Duration::from_secs(1)),
                        ..stored.clone()
                    }),
                    _ => Step::Stay,
                }
            }
            Ok(_) => self.fresh(Some(stored), now),
            Err(_) => self.fresh(held, now),
        }
    }

    /// A new one, beside which the last one is still trusted.
    fn fresh(&self, last: Option<&Stored>, now: SystemTime) -> Step {
        match issue(&self.names, self.lifetime, now) {
            Ok(issued) => {
                let last = last.and_then(|l| split(&l.authorities).into_iter().next()).unwrap_or_default();
                Step::Write(Stored {
                    authorities: together(&issued.authority, &last),
                    certificate: issued.certificate,
                    key: issued.key,
                    since: now,
                    names: self.names.join(" "),
                })
            }
            Err(why) => Step::Foreign(why),
        }
    }

    async fn write(&self, api: &Api<Secret>, before: Option<&Secret>, new: &Stored) -> kube::Result<()> {
        let data = [(CERTIFICATE, &new.certificate), (KEY, &new.key), (AUTHORITIES, &new.authorities)];
        let data = data.map(|(name, text)| (name.to_string(), ByteString(text.clone().into_bytes())));
        let since = new.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
        let annotations = [(SINCE, since), (NAMES, new.names.clone())].map(|(k, v)| (k.to_string(), v));
        let mut secret = before.cloned().unwrap_or_else(|| Secret {
            metadata: ObjectMeta {
                name: Some(self.secret.clone()),
                labels: Some(BTreeMap::from([("app.kubernetes.io/part-of".into(), "weft".into())])),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".into()),
            ..Secret::default()
        });
        secret.metadata.annotations.get_or_insert_default().extend(annotations);
        secret.data = Some(BTreeMap::from(data));
        let params = PostParams { field_manager: Some("weft".into()), ..PostParams::default() };
        match before {
            // With the version that was read, so that of two replicas one wins.
            Some(_) => api.replace(&self.secret, &params, &secret).await.map(drop),
            None => api.create(&params, &secret).await.map(drop),
        }
    }
}

fn read(secret: &Secret) -> Result<Stored, Unusable> {
    let data = secret.data.clone().unwrap_or_default();
    let text = |name: &str| match data.get(name) {
        None => Ok(String::new()),
        Some(bytes) => String::from_utf8(bytes.0.clone()).map_err(|_| Unusable(format!("{name} is no PEM"))),
    };
    let note = |name: &str| secret.metadata.annotations.as_ref().and_then(|a| a.get(name)).cloned();
    let since = note(SINCE).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok(Stored {
        certificate: text(CERTIFICATE)?,
        key: text(KEY)?,
        authorities: text(AUTHORITIES)?,
        since: UNIX_EPOCH.checked_add(Duration::from_secs(since)).unwrap_or(UNIX_EPOCH),
        names: note(NAMES).unwrap_or_default(),
    })
}

/// Until when.
fn usable(stored: &Stored) -> Result<SystemTime, Unusable> {
    if certificates(&stored.authorities)?.is_empty() {
        return Err(Unusable("ca.crt has no certificate".into()));
    }
    load(&stored.certificate, &stored.key).map(|(_, end)| end)
}

/// One PEM each, written as we write it.
fn split(authorities: &str) -> Vec<String> {
    let all = pem::parse_many(authorities).unwrap_or_default();
    all.iter().map(pem::encode).map(|text| text.replace("\r\n", "\n")).collect()
}

/// Without doubles.
fn together(first: &str, second: &str) -> String {
    let mut all = split(first);
    for one in split(second) {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn certificate() -> Certificate {
        Certificate::of_service("weft-injector", "weft-system", "s")
    }

    fn written(step: Step) -> Stored {
        match step {
            Step::Write(stored) => stored,
            other => panic!("{other:?}"),
        }
    }

    /// As it comes back from the API server.
    fn kept(stored: &Stored) -> Result<Stored, Unusable> {
        let seconds = stored.since.duration_since(UNIX_EPOCH).unwrap().as_secs();
        Ok(Stored { since: UNIX_EPOCH + Duration::from_secs(seconds), ..stored.clone() })
    }

    #[test]
    fn made_rotated_and_settled() {
        let (own, now) = (certificate(), SystemTime::now());
        let first = written(own.step(None, None, now));
        assert_eq!(split(&first.authorities).len(), 1);
        assert_eq!(own.step(Some(&kept(&first)), None, now), Step::Stay);
        assert_eq!(own.step(Some(&kept(&first)), None, now + 59 * DAY), Step::Stay);

        let due = now + 61 * DAY;
        let second = written(own.step(Some(&kept(&first)), Some(&first), due));
        let (old, new) = (split(&first.authorities), split(&second.authorities));
        assert!(new.len() == 2 && new[1] == old[0] && second.certificate != first.certificate);
        assert_eq!(own.step(Some(&kept(&second)), None, due + Duration::from_secs(60)), Step::Stay);
        let third = written(own.step(Some(&kept(&second)), None, due + Duration::from_secs(200)));
        assert_eq!((&third.certificate, third.authorities.as_str()), (&second.certificate, new[0].as_str()));
        assert_eq!(own.step(Some(&kept(&third)), None, due + DAY), Step::Stay);
    }

    #[test]
    fn lost_broken_renamed_and_foreign() {
        let (own, now) = (certificate(), SystemTime::now());
        let first = written(own.step(None, None, now));
        assert_eq!(own.step(None, Some(&first), now), Step::Write(first.clone()), "what is served stays");
        assert_ne!(written(own.step(None, Some(&first), now + 91 * DAY)).certificate, first.certificate);

        let other = written(own.step(None, None, now));
        let mixed = Stored { key: other.key.clone(), ..first.clone() };
        let healed = written(own.step(Some(&kept(&mixed)), Some(&first), now));
        assert!(split(&healed.authorities).contains(&split(&first.authorities)[0]), "what is served is trusted on");

        let renamed = Certificate { names: vec!["127.0.0.1".into()], ..certificate() };
        assert_eq!(written(renamed.step(Some(&kept(&first)), None, now)).names, "127.0.0.1");

        let foreign = Stored { since: UNIX_EPOCH, ..first.clone() };
        assert_eq!(own.step(Some(&Ok(foreign)), None, now + 80 * DAY), Step::Stay);
        let broken = Stored { since: UNIX_EPOCH, ..mixed };
        assert!(matches!(own.step(Some(&Ok(broken)), None, now), Step::Foreign(_)));
    }

    #[test]
    fn authorities_are_put_together_once() {
        let (own, now) = (certificate(), SystemTime::now());
        let of = |s: Step| written(s).authorities;
        let (a, b) = (of(own.step(None, None, now)), of(own.step(None, None, now)));
        let both = together(&a, &b);
        assert_eq!((together(&both, &a), together(&both, &b)), (both.clone(), both.clone()));
        assert_eq!(split(&both).concat(), both, "it reads what it wrote");
    }
}
