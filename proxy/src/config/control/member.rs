//! The proxy's identity: joined for with a token, renewed with itself, kept in the state folder.
//!
//! A new leaf goes live in `weft_tls::Live`, as one from rotated files does: new handshakes use it, connections stay. While
//! the control plane is away the leaf is used until it ends, and asked for again all the time.

use super::backoff::{Backoff, random};
use super::dial::{Wrong, dial};
use super::link::Links;
use super::state::{Folder, Kept};
use super::{MAX_MESSAGE, Options};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_policy::id::TrustDomain;
use weft_proto::v1::mesh_client::MeshClient;
use weft_proto::v1::{SignRequest, TrustBundle as WireBundle};
use weft_tls::{Identity, Live, Material, PeerIdentity, Request, TrustBundle};

/// A CA that signs slowly has a queue; one that says nothing at all is not there.
const SIGN: Duration = Duration::from_secs(30);
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(150));
/// A token is short: a join token has 64 bytes, a ServiceAccount's up to 4 KiB.
const MAX_TOKEN: u64 = 64 << 10;

pub struct Member {
    options: Rc<Options>,
    folder: Folder,
    links: Links,
    pub live: Live,
    key_pem: RefCell<String>,
    due: Cell<Instant>,
    doubted: Notify,
}

struct Signed {
    kept: Kept,
    renew_after: Duration,
}

impl Member {
    /// From the state folder, or by joining, for as long as it takes.
    pub async fn join(options: &Rc<Options>, folder: &Folder, links: &Links) -> Rc<Self> {
        let now = SystemTime::now();
        let kept = folder.identity().filter(|kept| {
            let ended = kept.identity.not_after() <= now;
            if ended {
                tracing::warn!(folder = %folder.path().display(), "the identity kept there has expired; joining anew");
            }
            let other = options.other_domain(&kept.identity);
            if let Some(why) = &other {
                tracing::warn!(folder = %folder.path().display(), why, "the identity kept there is of another mesh; joining anew");
            }
            !ended && other.is_none()
        });
        let signed = match kept {
            Some(kept) => Signed { renew_after: half(&kept.identity, now), kept },
            None => {
                let mut backoff = Backoff::new(RETRY.0, Duration::from_secs(10));
                loop {
                    match join(options, None).await {
                        Ok(signed) => break signed,
                        Err(wrong) => {
                            if links.failed(&wrong.why) {
                                tracing::warn!(control = %options.target, error = %wrong.why, "not joined yet; trying again");
                            }
                        }
                    }
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        };
        let live = Live::new(signed.kept.identity.clone(), TrustBundle::clone(&signed.kept.bundle));
        let member = Self {
            options: options.clone(),
            folder: folder.clone(),
            links: links.clone(),
            live,
            key_pem: RefCell::default(),
            due: Cell::new(Instant::now()),
            doubted: Notify::new(),
        };
        member.taken(signed);
        Rc::new(member)
    }

    /// The control plane does not know the certificate any more: it is not waited for its time.
    pub fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Takes other roots; those of our own domain cannot all go.
    pub fn trust(&self, bundle: TrustBundle) -> Result<(), String> {
        let material = self.live.load();
        holds_own(&bundle, &material.identity)?;
        if *material.bundle != bundle {
            tracing::info!(roots = bundle.len(), "trust taken");
            let proven = is_proven(&material.identity, &bundle);
            self.live.store_bundle(bundle);
            self.keep();
            if !proven {
                tracing::warn!("the root of our own certificate is gone: peers refuse it until there is another");
                self.doubt();
            }
        }
        Ok(())
    }

    /// Renews for as long as the process lives.
    pub async fn renew(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.due.get()) => {}
                () = self.doubted.notified() => {}
            }
            let mut backoff = Backoff::new(RETRY.0, RETRY.1);
            loop {
                let material = self.live.load();
                match self.sign(&material).await {
                    Ok(signed) => {
                        self.live.store(signed.kept.identity.clone(), signed.kept.bundle.clone());
                        self.taken(signed);
                        break;
                    }
                    Err(wrong) => {
                        let left = left(&material.identity);
                        metrics::counter!("weft_control_renewal_failures_total").increment(1);
                        self.links.failed(&wrong.why);
                        if left.is_zero() {
                            tracing::error!(error = %wrong.why, "the certificate has expired and is not renewed: mesh peers refuse it");
                        } else {
                            tracing::warn!(error = %wrong.why, expires_in_s = left.as_secs(), "certificate not renewed; trying again");
                        }
                        // The nearer the end, the more often; a short leaf has little time.
                        let limit = if left.is_zero() { RETRY.1 / 30 } else { (left / 8).max(RETRY.0 / 2) };
                        tokio::time::sleep(backoff.next().min(limit)).await;
                    }
                }
            }
        }
    }

    async fn sign(&self, material: &Material) -> Result<Signed, Wrong> {
        // What nobody believes any more is not worth showing.
        if left(&material.identity).is_zero() || !is_proven(&material.identity, &material.bundle) {
            return join(&self.options, Some(&material.bundle)).await;
        }
        let renewed = sign(&self.options, Some(material), Some(&material.bundle), String::new()).await;
        match renewed {
            // The CA was replaced, or this is another mesh at the same address: what proved us the first time may do so again.
            Err(wrong) if wrong.refused => join(&self.options, Some(&material.bundle)).await.map_err(|again| Wrong {
                why: format!("renewal: {}; joining: {}", wrong.why, again.why),
                refused: true,
            }),
            renewed => renewed,
        }
    }

    fn taken(&self, signed: Signed) {
        let identity = &signed.kept.identity;
        let pod = &self.options.namespace;
        match identity.spiffe() {
            Some(id) if id.workload().is_some_and(|(namespace, _)| namespace != pod) => {
                tracing::warn!(%id, pod, "the certificate is of another namespace than --pod says");
            }
            _ => {}
        }
        tracing::info!(
            id = %identity.spiffe().map(ToString::to_string).unwrap_or_default(),
            sha256 = %identity.sha256(),
            expires_in_s = left(identity).as_secs(),
            renewed_in_s = signed.renew_after.as_secs(),
            "identity in force"
        );
        // Who started together does not renew together.
        self.due.set(Instant::now() + signed.renew_after.mul_f64(0.9 + 0.2 * random()));
        *self.key_pem.borrow_mut() = signed.kept.key_pem;
        self.keep();
    }

    fn keep(&self) {
        let material = self.live.load();
        let key_pem = self.key_pem.borrow().clone();
        let kept = Kept { identity: material.identity.clone(), key_pem, bundle: material.bundle.clone() };
        self.folder.save_identity(&kept);
    }
}

fn is_proven(identity: &Identity, bundle: &TrustBundle) -> bool {
    identity.chain().first().is_none_or(|leaf| PeerIdentity::of(leaf).is_proven_by(bundle))
}

async fn join(options: &Options, known: Option<&TrustBundle>) -> Result<Signed, Wrong> {
    let token = options.token().map_err(Wrong::new)?;
    sign(options, None, known, token).await
}

async fn sign(
    options: &Options,
    own: Option<&Material>,
    known: Option<&TrustBundle>,
    join_token: String,
) -> Result<Signed, Wrong> {
    let request = Request::new().map_err(|e| Wrong::new(e.to_string()))?;
    let channel = dial(&options.target, &options.trust_root, own, known).await?;
    let mut client = MeshClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let ask = SignRequest { csr: request.csr().to_vec(), join_token };
    let answer = match tokio::time::timeout(SIGN, client.sign(ask)).await {
        Ok(answer) => answer.map_err(Wrong::at_first)?.into_inner(),
        Err(_) => return Err(Wrong::new(format!("{}: no certificate within {SIGN:?}", options.target))),
    };
    let wrong = |why: String| Wrong::new(format!("{}: the certificate it sent cannot be used: {why}", options.target));
    let identity = request.answered(answer.chain).map_err(|e| wrong(e.to_string()))?;
    if identity.spiffe().is_none() {
        return Err(wrong("it names no SPIFFE id".into()));
    }
    if let Some(why) = options.other_domain(&identity) {
        return Err(wrong(why));
    }
    if left(&identity).is_zero() {
        return Err(wrong("it has expired; are the clocks right?".into()));
    }
    if let Ok(early) = identity.not_before().duration_since(SystemTime::now()) {
        return Err(wrong(format!("it does not count before {} s from now; are the clocks right?", early.as_secs())));
    }
    let bundle = match (bundle(answer.trust).map_err(wrong)?, own) {
        (sent, Some(own)) if sent.is_empty() => own.bundle.clone(),
        (sent, _) => Arc::new(sent),
    };
    holds_own(&bundle, &identity).map_err(wrong)?;
    let most = half(&identity, SystemTime::now());
    let renew_after = match answer.renew_after_seconds {
        0 => most,
        told => Duration::from_secs(told).min(left(&identity).mul_f64(0.8)),
    };
    Ok(Signed { kept: Kept { identity, key_pem: request.key_pem(), bundle }, renew_after })
}

fn bundle(wire: Vec<WireBundle>) -> Result<TrustBundle, String> {
    let mut bundle = TrustBundle::default();
    for of in wire {
        let domain = TrustDomain::parse(&of.trust_domain).map_err(|e| format!("{:?}: {e}", of.trust_domain))?;
        for root in of.roots {
            bundle.add_der(Some(domain.clone()), root.into()).map_err(|e| e.to_string())?;
        }
    }
    Ok(bundle)
}

fn holds_own(bundle: &TrustBundle, identity: &Identity) -> Result<(), String> {
    let own = identity.spiffe().map(|id| id.trust_domain());
    match bundle.domains().any(|d| d == own) {
        true => Ok(()),
        false => Err(format!("no root of our own trust domain {}", own.map(TrustDomain::as_str).unwrap_or_default())),
    }
}

pub fn left(identity: &Identity) -> Duration {
    identity.not_after().duration_since(SystemTime::now()).unwrap_or_default()
}

/// Until half of the lifetime is over.
fn half(identity: &Identity, now: SystemTime) -> Duration {
    let whole = identity.not_after().duration_since(identity.not_before()).unwrap_or_default();
    (identity.not_before() + whole / 2).duration_since(now).unwrap_or_default()
}

impl Options {
    /// Why an identity is not one of the mesh that we were told we are in.
    fn other_domain(&self, identity: &Identity) -> Option<String> {
        let told = self.trust_domain.as_ref()?;
        let got = identity.spiffe()?.trust_domain();
        (got != told).then(|| {
            format!(
                "it is of trust domain {got}, and this sidecar is told {told} (--trust-domain, WEFT_TRUST_DOMAIN): \
                 injector and control plane have to be set to the same one, and the pod made anew"
            )
        })
    }

    fn token(&self) -> Result<String, String> {
        use std::io::Read;
        let mut text = String::new();
        let read = std::fs::File::open(&self.token_file).and_then(|f| f.take(MAX_TOKEN).read_to_string(&mut text));
        let file = self.token_file.display();
        read.map_err(|e| format!("--token-file {file} cannot be read: {e}"))?;
        match text.trim() {
            "" => Err(format!("--token-file {file} is empty; it holds what the control plane made for this workload")),
            token => Ok(token.to_string()),
        }
    }
}
