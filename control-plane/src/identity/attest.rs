//! Who a pod is, by its ServiceAccount token: the API server says whose token it is, and what it knows of that pod has to agree.
//!
//! A token is good as often as it is shown: the kubelet renews the file. What a certificate proves is asked again when
//! it is renewed or opens a stream: a pod that is gone, or whose name another one has now, is not renewed. Only while the API
//! server is away a certificate is believed alone. Questions are bounded in number and in time.

use super::caller::Caller;
use super::own;
use super::token::{Binding, is_name};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;
use weft_dialects::world::PodId;

/// What tokens for the mesh are made for, so that those for others are of no use here and the other way round.
pub const AUDIENCE: &str = "weft.dev";
/// A token of Kubernetes has about 1.5 KiB.
pub const MAX_TOKEN: usize = 8 * 1024;
const QUESTIONS: usize = 32;
/// For a place among them, and then for the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer counts for so long.
const FRESH: Duration = Duration::from_secs(5);
const REMEMBERED: usize = 100_000;
/// Clocks of machines differ.
const LATE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    #[error("{0}")]
    Refused(String),
    #[error("the API server cannot be asked who this is, try again: {0}")]
    Away(String),
}

fn refused(why: impl Into<String>) -> AttestError {
    AttestError::Refused(why.into())
}

/// Whom a token is for, and of the pod so much that a later one of the same name is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    pub binding: Binding,
    pub uid: String,
}

pub struct Attest {
    client: kube::Client,
    room: Semaphore,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    /// By pod: of which uid, when, and what was said. A later pod of the name takes the place of what was said of the earlier one.
    pods: HashMap<PodId, (String, Instant, Result<(), AttestError>)>,
    /// When the API server did not answer: so it is not waited for by everybody.
    away: Option<Instant>,
}

/// What is said of a pod, to be compared with what the API server knows.
struct Claim<'a> {
    pod: &'a str,
    /// Empty where nothing is said.
    uid: &'a str,
    account: &'a str,
    node: &'a str,
}

impl Attest {
    pub fn new(client: kube::Client) -> Self {
        Self { client, room: Semaphore::new(QUESTIONS), asked: Mutex::default() }
    }

    pub async fn token(&self, token: &str) -> Result<Attested, AttestError> {
        // Nothing else is worth a question.
        let parts = token.split('.').filter(|p| !p.is_empty()).count();
        if token.len() > MAX_TOKEN || parts != 3 || !token.is_ascii() {
            return Err(refused(format!(
                "this is no ServiceAccount token: the sidecar needs one of its pod for audience {AUDIENCE}, as the volume weft-token has it"
            )));
        }
        let review = TokenReview {
            spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.into()]), token: Some(token.into()) },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = self.ask(reviews.create(&PostParams::default(), &review)).await?;
        let who = reviewed(answer.status.unwrap_or_default())?;
        let Attested { binding, uid } = &who.0;
        let claim = Claim { pod: &binding.pod, uid, account: &binding.service_account, node: &who.1 };
        self.pod(&binding.namespace, &claim).await?;
        let pod = PodId { namespace: binding.namespace.clone(), name: binding.pod.clone() };
        self.remember(&pod, uid, &Ok(()));
        Ok(who.0)
    }

    /// Whether the pod of a certificate is still the one it was made for. That nobody can say is no reason against it.
    pub async fn still(&self, caller: &Caller) -> Result<(), AttestError> {
        {
            let asked = self.asked();
            let known = asked.pods.get(&caller.pod);
            if let Some((.., said)) = known.filter(|(uid, at, _)| *uid == caller.uid && at.elapsed() < FRESH) {
                return said.clone();
            }
            if asked.away.is_some_and(|at| at.elapsed() < FRESH) {
                return Ok(());
            }
        }
        let (_, account) = caller.id.workload().unwrap_or_default();
        let claim = Claim { pod: &caller.pod.name, uid: &caller.uid, account, node: "" };
        let found = self.pod(&caller.pod.namespace, &claim).await;
        if let Err(AttestError::Away(why)) = &found {
            tracing::warn!(pod = %caller.pod.name, namespace = %caller.pod.namespace, why, "a certificate is believed unasked");
            self.asked().away = Some(Instant::now());
            return Ok(());
        }
        self.remember(&caller.pod, &caller.uid, &found);
        found
    }

    fn remember(&self, pod: &PodId, uid: &str, said: &Result<(), AttestError>) {
        let mut asked = self.asked();
        if asked.pods.len() >= REMEMBERED {
            asked.pods.retain(|_, (_, at, _)| at.elapsed() < FRESH);
        }
        if asked.pods.len() < REMEMBERED {
            asked.pods.insert(pod.clone(), (uid.into(), Instant::now(), said.clone()));
        }
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pod(&self, namespace: &str, claim: &Claim<'_>) -> Result<(), AttestError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = self.ask(pods.get_opt(claim.pod)).await?;
        agrees(found.as_ref(), claim, SystemTime::now())
            .map_err(|why| refused(format!("{namespace}/{}: {why}", claim.pod)))
    }

    async fn ask<T>(&self, question: impl Future<Output = kube::Result<T>>) -> Result<T, AttestError> {
        let away = |why: &str| AttestError::Away(why.into());
        let room = tokio::time::timeout(PATIENCE, self.room.acquire()).await;
        let Ok(Ok(_room)) = room else { return Err(away("too many ask at once")) };
        match tokio::time::timeout(PATIENCE, question).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) => Err(away(&format!("it says: {:.300}", status.message))),
            Ok(Err(error)) => Err(away(&format!("{error:.300}"))),
            Err(_) => Err(away("no answer in time")),
        }
    }
}

/// Whom a review says the token is of, and on which node.
fn reviewed(status: TokenReviewStatus) -> Result<(Attested, String), AttestError> {
    if status.authenticated != Some(true) {
        let said = status.error.unwrap_or_default();
        return Err(refused(format!("the API server refuses the token: {}", advice(&said))));
    }
    if !status.audiences.unwrap_or_default().iter().any(|a| a == AUDIENCE) {
        return Err(refused(format!("the token is for another audience: ask for one for {AUDIENCE}")));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account.filter(|(n, a)| is_name(n) && is_name(a)) else {
        return Err(refused(format!("{name:.300?} is no ServiceAccount")));
    };
    if (namespace, account) == (own::NAMESPACE, own::ACCOUNT) {
        return Err(refused("this account is the control plane's own: who had its identity could speak for it"));
    }
    let extra = user.extra.unwrap_or_default();
    let of = |what: &str| one(&extra, what).unwrap_or_default();
    let (pod, uid) = (of("pod-name"), of("pod-uid"));
    if !is_name(&pod) || !is_name(&uid) {
        return Err(refused(
            "the token is not bound to a pod: take the one that the kubelet puts into the pod's volume weft-token, not a Secret's",
        ));
    }
    let binding = Binding { namespace: namespace.into(), service_account: account.into(), pod };
    Ok((Attested { binding, uid }, of("node-name")))
}

fn one(extra: &BTreeMap<String, Vec<String>>, what: &str) -> Option<String> {
    extra.get(&format!("authentication.kubernetes.io/{what}"))?.first().cloned()
}

/// What the API server says, and what to do about it.
fn advice(said: &str) -> String {
    let has = |word: &str| said.contains(word);
    let then = if has("audience") {
        "it has to be made for audience weft.dev, as the volume weft-token asks"
    } else if has("expired") {
        "the kubelet renews the file of a projected volume: read it anew"
    } else if has("does not match") {
        "it is of an earlier pod or account of that name"
    } else if has("invalidated") || has("not found") || has("deleted") {
        "the pod or the account it was made for is gone"
    } else {
        "is it of this cluster?"
    };
    format!(
        "{} ({then})",
        if said.is_empty() { "not authenticated" } else { said }.chars().take(300).collect::<String>()
    )
}

/// Why the pod is not the one that is spoken of.
fn agrees(pod: Option<&Pod>, claim: &Claim<'_>, now: SystemTime) -> Result<(), String> {
    let Some(pod) = pod else { return Err("there is no such pod: it was deleted".into()) };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if !claim.uid.is_empty() && uid != claim.uid {
        return Err(format!("this is of an earlier pod of that name ({}); the one there now is {uid}", claim.uid));
    }
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|s| s.service_account_name.as_deref()).filter(|a| !a.is_empty()).unwrap_or("default");
    if account != claim.account {
        return Err(format!("the pod runs as {account}, and this is of {}", claim.account));
    }
    let node = spec.and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    if !claim.node.is_empty() && node != claim.node {
        return Err(format!("the pod is on node {node:?}, and this comes from {}", claim.node));
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(format!("the pod has ended ({phase})"));
    }
    // It lies as far in the future as the pod's grace period is long; until then what is in flight needs an identity.
    let end = pod.metadata.deletion_timestamp.as_ref().map(|t| SystemTime::from(t.0));
    if end.is_some_and(|end| end + LATE < now) {
        return Err("the pod was deleted, and its grace period is over".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim<'a>(uid: &'a str, account: &'a str, node: &'a str) -> Claim<'a> {
        Claim { pod: "web-0", uid, account, node }
    }

    fn pod(change: serde_json::Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "web-0", "uid": "1-1"},
            "spec": {"serviceAccountName": "web", "nodeName": "one", "containers": []},
            "status": {"phase": "Running"},
        });
        for (part, fields) in change.as_object().unwrap() {
            for (name, value) in fields.as_object().unwrap() {
                pod[part][name] = value.clone();
            }
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn the_pod_has_to_be_as_it_is_said() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let said = |change, claim| agrees(Some(&pod(change)), &claim, now);
        let good = || claim("1-1", "web", "one");
        said(json!({}), good()).unwrap();
        said(json!({}), claim("", "web", "")).unwrap();
        said(json!({"metadata": {"deletionTimestamp": "2027-01-15T08:00:05Z"}}), good()).unwrap();
        for (change, claim, why) in [
            (json!({}), claim("2-2", "web", "one"), "earlier pod"),
            (json!({}), claim("1-1", "db", "one"), "runs as web"),
            (json!({}), claim("1-1", "web", "two"), "on node"),
            (json!({"spec": {"serviceAccountName": ""}}), good(), "runs as default"),
            (json!({"status": {"phase": "Succeeded"}}), good(), "has ended"),
            (json!({"metadata": {"deletionTimestamp": "2027-01-15T07:59:00Z"}}), good(), "grace period is over"),
        ] {
            let refused = said(change, claim).unwrap_err();
            assert!(refused.contains(why), "{why}: {refused}");
        }
        assert!(agrees(None, &good(), now).unwrap_err().contains("no such pod"));
    }

    #[test]
    fn reviews() {
        let status = |change: serde_json::Value| {
            let mut status = json!({
                "authenticated": true,
                "audiences": ["weft.dev"],
                "user": {"username": "system:serviceaccount:demo:web", "extra": {
                    "authentication.kubernetes.io/pod-name": ["web-0"],
                    "authentication.kubernetes.io/pod-uid": ["1-1"],
                    "authentication.kubernetes.io/node-name": ["one"],
                }},
            });
            for (field, value) in change.as_object().unwrap() {
                status[field] = value.clone();
            }
            reviewed(serde_json::from_value(status).unwrap())
        };
        let (who, node) = status(json!({})).unwrap();
        let binding = Binding { namespace: "demo".into(), service_account: "web".into(), pod: "web-0".into() };
        assert_eq!((who, node.as_str()), (Attested { binding, uid: "1-1".into() }, "one"));
        let extra = json!({"authentication.kubernetes.io/pod-name": ["web-0"]});
        for (change, why) in [
            (json!({"authenticated": false, "error": "token has expired"}), "read it anew"),
            (json!({"authenticated": null}), "not authenticated"),
            (json!({"audiences": ["api"]}), "another audience"),
            (json!({"audiences": null}), "another audience"),
            (json!({"user": {"username": "admin"}}), "no ServiceAccount"),
            (json!({"user": {"username": "system:serviceaccount:../x:web"}}), "no ServiceAccount"),
            (json!({"user": {"username": "system:serviceaccount:weft-system:weft-control"}}), "control plane's own"),
            (json!({"user": {"username": "system:serviceaccount:demo:web", "extra": extra}}), "not bound to a pod"),
        ] {
            let refused = status(change).unwrap_err().to_string();
            assert!(refused.contains(why), "{why}: {refused}");
        }
    }
}
