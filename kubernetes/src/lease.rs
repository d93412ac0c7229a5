//! Which of several replicas leads: the one whose name is in a Lease of the API server.
//!
//! Whoever holds it renews it every few seconds. The others look, and take it when it was given back or was not renewed for as long as
//! it counts, by their own clocks: times that others write are not compared with anything. Each write names the version it is
//! about, so of two who try, one wins. A holder that cannot renew steps back before anybody else may come.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Error};
use std::future::Future;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

/// How long a lease counts that is not renewed.
const COUNTS: Duration = Duration::from_secs(15);
/// A holder that could not renew for as long steps back.
const TRUSTED: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(4);

pub struct Seat {
    pub client: Client,
    pub namespace: String,
    /// Of the Lease.
    pub name: String,
    /// Ours, and nobody else's: the pod's.
    pub holder: String,
}

/// The Lease as another holds it, and since when it has been like that for us.
type Seen = (Option<String>, Instant);

impl Seat {
    /// Says on `leads` whether we lead, until `stop` has come; then it is given back.
    pub async fn hold(self, leads: watch::Sender<bool>, stop: impl Future<Output = ()>) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut stop = std::pin::pin!(stop);
        let mut ours: Option<Lease> = None;
        let (mut seen, mut good, mut told): (Option<Seen>, Instant, bool) = (None, Instant::now(), false);
        loop {
            let begun = Instant::now();
            let step = timeout(CALL, self.step(&api, ours.take(), &mut seen));
            let outcome = tokio::select! {
                outcome = step => outcome.unwrap_or_else(|_| Err("no answer".into())),
                () = &mut stop => break,
            };
            match outcome {
                Ok(lease) => {
                    (good, told) = (begun, false);
                    self.lead(&leads, lease.is_some());
                    ours = lease;
                }
                Err(why) => {
                    if !std::mem::replace(&mut told, true) {
                        let (namespace, name) = (&self.namespace, &self.name);
                        tracing::warn!(why, "the Lease {namespace}/{name} cannot be read or written");
                    }
                }
            }
            let next = begun + if *leads.borrow() { RENEW } else { LOOK };
            // Without an answer we may lead for as long as nobody else can.
            let end = good + TRUSTED;
            let leading = *leads.borrow() && ours.is_none();
            tokio::select! {
                () = sleep_until(if leading { next.min(begun + LOOK) } else { next }) => {}
                () = &mut stop => break,
            }
            if *leads.borrow() && Instant::now() >= end {
                self.lead(&leads, false);
            }
        }
        if leads.send_replace(false) {
            let _ = timeout(CALL, self.give_back(&api)).await;
        }
    }

    fn lead(&self, leads: &watch::Sender<bool>, is: bool) {
        if leads.send_replace(is) != is {
            tracing::info!(
                lease = self.name,
                holder = self.holder,
                "{}",
                if is { "leading" } else { "no longer leading" }
            );
        }
    }

    /// The Lease, if it is ours now.
    async fn step(
        &self,
        api: &Api<Lease>,
        ours: Option<Lease>,
        seen: &mut Option<Seen>,
    ) -> Result<Option<Lease>, String> {
        let lease = match ours {
            Some(lease) => lease,
            None => match api.get_opt(&self.name).await.map_err(|e| e.to_string())? {
                Some(lease) => lease,
                None => {
                    let meta = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                    let new = Lease { metadata: meta, spec: Some(self.spec(None)) };
                    return won(api.create(&PostParams::default(), &new).await);
                }
            },
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let held = spec.holder_identity.clone().filter(|h| !h.is_empty());
        if held.as_ref().is_some_and(|holder| *holder != self.holder) {
            let version = lease.metadata.resource_version.clone();
            let (_, since) = match seen.take().filter(|(before, _)| *before == version) {
                Some(same) => seen.insert(same),
                None => seen.insert((version, Instant::now())),
            };
            let counts = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
            if since.elapsed() < counts.map_or(COUNTS, Duration::from_secs).min(4 * COUNTS) {
                return Ok(None);
            }
        }
        *seen = None;
        let spec = self.spec(Some(&spec));
        won(api.replace(&self.name, &PostParams::default(), &Lease { spec: Some(spec), ..lease }).await)
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let same = before.filter(|b| b.holder_identity.as_ref() == Some(&self.holder));
        let changes = before.map_or(0, |b| b.lease_transitions.unwrap_or(0) + i32::from(same.is_none()));
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(COUNTS.as_secs() as i32),
            acquire_time: same.map_or(now.clone(), |b| b.acquire_time.clone()),
            renew_time: now,
            lease_transitions: Some(changes),
            ..LeaseSpec::default()
        }
    }

    async fn give_back(&self, api: &Api<Lease>) -> Result<(), Error> {
        let mut lease = api.get(&self.name).await?;
        if let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_ref() == Some(&self.holder)) {
            (spec.holder_identity, spec.lease_duration_seconds) = (None, Some(1));
            api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

/// Whoever was faster has it.
fn won(written: Result<Lease, Error>) -> Result<Option<Lease>, String> {
    match written {
        Ok(lease) => Ok(Some(lease)),
        Err(Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
