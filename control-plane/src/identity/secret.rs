//! The authority in a Secret that all replicas share. The state folder mirrors it, so what signs reads files, as elsewhere, and
//! goes on while the API server is away. The Secret's keys are the folder's files; `ca.json` says what the others are, and only
//! what can be loaded whole is taken. Who made the Secret beforehand gave a CA: as our files, or as `tls.crt` and `tls.key`.

use super::ca::{Authority, CaError, Stage};
use crate::state::StateDir;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use weft_kubernetes::watch::one;
use weft_policy::id::TrustDomain;
use weft_tls::hex_sha256;

pub const NAME: &str = "weft-ca";
const STATE: &str = "ca.json";
/// To find a first root; after that a new try is a new process.
const START: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);
/// A Secret that went is made anew from what we have, unless we are going as well.
const GONE: Duration = Duration::from_secs(10);

type Files = BTreeMap<String, String>;

pub fn kube(error: &kube::Error) -> CaError {
    CaError::Kube(match error {
        kube::Error::Api(status) => format!("{:.300}", status.message),
        other => format!("{other:.300}"),
    })
}

fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Those of a Secret's keys that are ours.
pub fn files(secret: &Secret) -> Result<Files, CaError> {
    let ours = secret.data.iter().flatten().filter(|(name, _)| is_ours(name));
    ours.map(|(name, content)| {
        let text = String::from_utf8(content.0.clone()).map_err(|_| CaError::Secret(format!("{name} is no text")))?;
        Ok((name.clone(), text))
    })
    .collect()
}

fn is_ours(name: &str) -> bool {
    name == STATE
        || (name.starts_with("root-") && (name.ends_with(".pem") || name.ends_with(".key")) && !name.contains('/'))
}

/// A Secret with these files, and all else of it as it was.
pub fn with(mut secret: Secret, files: Files) -> Secret {
    let data = secret.data.get_or_insert_default();
    data.retain(|name, _| !is_ours(name));
    data.extend(files.into_iter().map(|(name, text)| (name, ByteString(text.into_bytes()))));
    secret
}

/// The files of a folder that belong into the Secret: what `ca.json` names, and it.
pub fn read(dir: &StateDir) -> Result<Files, CaError> {
    let ca = Authority::load(dir)?.ok_or(CaError::None)?;
    let roots = ca.roots.iter().flat_map(|r| [format!("root-{}.pem", r.id), format!("root-{}.key", r.id)]);
    let mut files = Files::new();
    for name in roots.chain([STATE.to_string()]) {
        // The key of a root that does not sign any more may be gone.
        if let Some(text) = dir.read(&name)? {
            files.insert(name, text);
        }
    }
    Ok(files)
}

/// Writes them so that whoever looks finds either what was or what is; `ca.json` comes last.
pub fn write(dir: &StateDir, files: &Files) -> Result<(), CaError> {
    for (name, text) in files.iter().filter(|(name, _)| *name != STATE) {
        dir.write_secret(name, text)?;
    }
    if let Some(state) = files.get(STATE) {
        dir.write_secret(STATE, state)?;
    }
    for name in dir.names()? {
        if is_ours(&name) && !files.contains_key(&name) {
            dir.remove(&name)?;
        }
    }
    Ok(())
}

/// Takes a Secret into the folder, if it makes an authority; says whether anything is new.
fn take(dir: &StateDir, domain: &TrustDomain, secret: &Secret) -> Result<bool, CaError> {
    let files = files(secret)?;
    let _lock = dir.lock()?;
    if read(dir).is_ok_and(|now| now == files) {
        return Ok(false);
    }
    let incoming = dir.subdir("incoming")?;
    let loaded = write(&incoming, &files).and_then(|()| Authority::load(&incoming));
    std::fs::remove_dir_all(dir.path("incoming"))?;
    let ca = loaded?.ok_or_else(|| CaError::Secret(format!("there is no {STATE} in it")))?;
    if ca.domain != *domain {
        return Err(CaError::Domain(ca.domain, domain.clone()));
    }
    ca.bundle()?;
    write(dir, &files)?;
    Ok(true)
}

/// The CA that somebody gave as cert-manager gives one: the certificate that signs, which is what is trusted, and its key.
pub fn given(secret: &Secret) -> Result<Option<(String, Files)>, CaError> {
    let wrong = |what: &str, why: String| CaError::Secret(format!("{what}: {why}"));
    let data = secret.data.iter().flatten();
    let of = |key: &str| data.clone().find(|(name, _)| *name == key).map(|(_, content)| &content.0);
    let (Some(pem), Some(key)) = (of("tls.crt"), of("tls.key")) else { return Ok(None) };
    let der = CertificateDer::from_pem_slice(pem).map_err(|e| wrong("tls.crt", e.to_string()))?;
    let (_, cert) = x509_parser::parse_x509_certificate(&der).map_err(|e| wrong("tls.crt", e.to_string()))?;
    if !cert.is_ca() {
        return Err(wrong("tls.crt", "it is no certificate of a CA (cert-manager: isCA: true)".into()));
    }
    let text = String::from_utf8(key.clone()).map_err(|_| wrong("tls.key", "no PEM".into()))?;
    let pair = KeyPair::from_pem(&text).map_err(|e| wrong("tls.key", e.to_string()))?;
    if pair.subject_public_key_info() != cert.public_key().raw {
        return Err(wrong("tls.key", "it is not the key of tls.crt".into()));
    }
    let id: String = hex_sha256(&der).chars().take(8).collect();
    // The first one of a chain.
    const END: &str = "-----END CERTIFICATE-----";
    let chain = String::from_utf8_lossy(pem);
    let pem = chain.split_inclusive(END).next().map(|first| format!("{first}\n")).unwrap_or_default();
    Ok(Some((id.clone(), Files::from([(format!("root-{id}.pem"), pem), (format!("root-{id}.key"), text)]))))
}

/// The Secret of the authority, and the folder that mirrors it.
#[derive(Clone)]
pub struct CaSecret {
    pub api: Api<Secret>,
    pub dir: StateDir,
    pub domain: TrustDomain,
}

impl CaSecret {
    /// So that the folder has an authority when this returns: the Secret's, or if there is none, one that is in it from now on.
    pub async fn prepare(&self) -> Result<(), CaError> {
        let begun = Instant::now();
        loop {
            match self.meet().await {
                Ok(true) => return Ok(()),
                // Somebody else was faster: it is theirs then.
                Ok(false) => {}
                Err(CaError::Kube(why)) if Authority::load(&self.dir)?.is_some() => {
                    tracing::warn!(why, "Secret {NAME} cannot be asked for: going on with what the state folder has");
                    return Ok(());
                }
                Err(CaError::Kube(why)) if begun.elapsed() < START => {
                    tracing::warn!(why, "Secret {NAME} cannot be had yet; trying again");
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// False: it has changed under our hands.
    async fn meet(&self) -> Result<bool, CaError> {
        match self.api.get_opt(NAME).await.map_err(|e| kube(&e))? {
            Some(secret) if files(&secret)?.contains_key(STATE) => self.took(secret).await.map(|_| true),
            Some(secret) => {
                let Some((id, given)) = given(&secret)? else {
                    return Err(CaError::Secret(format!("it has neither {STATE} nor tls.crt and tls.key")));
                };
                let incoming = self.dir.subdir("given")?;
                let made = write(&incoming, &given)
                    .and_then(|()| {
                        Authority::store(&incoming, &self.domain, Stage::Single, &[&id], &id, SystemTime::now())
                    })
                    .and_then(|()| read(&incoming));
                std::fs::remove_dir_all(self.dir.path("given"))?;
                match self.api.replace(NAME, &PostParams::default(), &with(secret, made?)).await {
                    Ok(secret) => self.took(secret).await.map(|_| true),
                    Err(error) if has_code(&error, 409) => Ok(false),
                    Err(error) => Err(kube(&error)),
                }
            }
            None => {
                Authority::load_or_create(&self.dir, &self.domain)?;
                self.create().await
            }
        }
    }

    async fn create(&self) -> Result<bool, CaError> {
        let labels = [("app.kubernetes.io/part-of", "weft"), ("app.kubernetes.io/name", "weft-control")];
        let labels = labels.map(|(k, v)| (k.to_string(), v.to_string()));
        let metadata = ObjectMeta { name: Some(NAME.into()), labels: Some(labels.into()), ..ObjectMeta::default() };
        let secret = with(Secret { metadata, ..Secret::default() }, read(&self.dir)?);
        match self.api.create(&PostParams::default(), &secret).await {
            Ok(_) => {
                tracing::info!("the authority is in Secret {NAME} now");
                Ok(true)
            }
            Err(error) if has_code(&error, 409) => Ok(false),
            Err(error) => Err(kube(&error)),
        }
    }

    async fn took(&self, secret: Secret) -> Result<bool, CaError> {
        let (dir, domain) = (self.dir.clone(), self.domain.clone());
        let taken = tokio::task::spawn_blocking(move || take(&dir, &domain, &secret)).await;
        taken.map_err(|e| CaError::Secret(e.to_string()))?
    }

    /// Every change of the Secret goes into the folder; what cannot be used changes nothing.
    pub async fn follow(self) {
        let (found_in, mut found) = watch::channel(None);
        let watching = one(self.api.clone(), NAME, found_in);
        let taking = async {
            while found.changed().await.is_ok() {
                let secret = found.borrow_and_update().clone().flatten();
                match secret {
                    Some(secret) => match self.took(secret).await {
                        Ok(true) => tracing::info!("Secret {NAME} has changed: taken"),
                        Ok(false) => {}
                        Err(error) => {
                            tracing::error!(%error, "Secret {NAME} cannot be used; the last good one stays");
                        }
                    },
                    None => {
                        tracing::error!("Secret {NAME} is gone; it is made anew from what this replica has");
                        tokio::time::sleep(GONE).await;
                        // If somebody made one meanwhile, the watch brings it.
                        if let Err(error) = self.create().await {
                            tracing::error!(%error, "Secret {NAME} cannot be made anew");
                        }
                    }
                }
            }
        };
        tokio::join!(watching, taking);
    }
}
