//! `caBundle` of every webhook in the configurations that name us. Whatever somebody else writes there is put right again as soon as
//! it is seen; a configuration that is not there is waited for.

use crate::watch::{Seen, follow};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::api::{Api, Patch, PatchParams, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fmt::Debug;
use std::future::ready;
use std::ops::ControlFlow;
use std::time::Duration;
use tokio::sync::watch;

/// Between two writes, so that two who disagree do not keep an API server busy.
const BETWEEN: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Configuration {
    Mutating(String),
    Validating(String),
}

trait Webhooks: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope> {
    /// Name and bundle of each.
    fn bundles(&self) -> Vec<(String, Option<ByteString>)>;
}

impl Webhooks for MutatingWebhookConfiguration {
    fn bundles(&self) -> Vec<(String, Option<ByteString>)> {
        let all = self.webhooks.iter().flatten();
        all.map(|w| (w.name.clone(), w.client_config.ca_bundle.clone())).collect()
    }
}

impl Webhooks for ValidatingWebhookConfiguration {
    fn bundles(&self) -> Vec<(String, Option<ByteString>)> {
        let all = self.webhooks.iter().flatten();
        all.map(|w| (w.name.clone(), w.client_config.ca_bundle.clone())).collect()
    }
}

/// For ever. Nothing is written while `trusted` is empty. `in_force` tells what all of them are known to trust.
pub async fn keep(
    client: kube::Client,
    configurations: Vec<Configuration>,
    trusted: watch::Receiver<String>,
    in_force: watch::Sender<String>,
) {
    let mut all = tokio::task::JoinSet::new();
    let mut known = Vec::new();
    for configuration in configurations {
        let (known_in, one) = watch::channel(String::new());
        known.push(one);
        let (client, trusted) = (client.clone(), trusted.clone());
        all.spawn(async move {
            match configuration {
                Configuration::Mutating(name) => {
                    one_of::<MutatingWebhookConfiguration>(client, &name, trusted, known_in).await;
                }
                Configuration::Validating(name) => {
                    one_of::<ValidatingWebhookConfiguration>(client, &name, trusted, known_in).await;
                }
            }
        });
    }
    for one in known.clone() {
        let (known, in_force) = (known.clone(), in_force.clone());
        all.spawn(async move {
            let mut one = one;
            while one.changed().await.is_ok() {
                let now = one.borrow_and_update().clone();
                if known.iter().all(|k| *k.borrow() == now) {
                    in_force.send_replace(now);
                }
            }
        });
    }
    all.join_all().await;
}

async fn one_of<K>(client: kube::Client, name: &str, mut trusted: watch::Receiver<String>, known: watch::Sender<String>)
where
    K: Webhooks + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<K> = Api::all(client);
    let (found_in, mut found) = watch::channel(None::<Option<Vec<(String, Option<ByteString>)>>>);
    let look = follow(api.clone(), Some(name), |seen| {
        let now = match seen {
            Seen::All(all) => all.first().map(Webhooks::bundles),
            Seen::One(one) => Some(one.bundles()),
            Seen::Gone(_) => None,
        };
        found_in.send_replace(Some(now));
        ready(ControlFlow::Continue(()))
    });
    let heal = async {
        loop {
            let (current, bundle) = (found.borrow_and_update().clone(), trusted.borrow_and_update().clone());
            let right = |held: &Option<ByteString>| held.as_ref().is_some_and(|b| b.0 == bundle.as_bytes());
            match current {
                None => {}
                _ if bundle.is_empty() => {}
                Some(Some(webhooks)) if !webhooks.iter().all(|(_, held)| right(held)) => {
                    let done = write(&api, name, &webhooks, &bundle).await;
                    if let Err(error) = &done {
                        tracing::warn!(configuration = name, %error, "caBundle cannot be written");
                    }
                    let pause = if done.is_ok() { BETWEEN } else { AGAIN };
                    // What was written comes back as a change; what was not is tried again.
                    let _ = tokio::time::timeout(pause, found.changed()).await;
                    if done.is_ok() {
                        tokio::time::sleep(BETWEEN).await;
                    }
                    continue;
                }
                // Of one that is not there nobody can call with anything else.
                Some(_) => {
                    known.send_if_modified(|k| {
                        let new = *k != bundle;
                        k.clone_from(&bundle);
                        new
                    });
                }
            }
            let more = tokio::select! {
                more = found.changed() => more,
                more = trusted.changed() => more,
            };
            if more.is_err() {
                return;
            }
        }
    };
    tokio::join!(look, heal);
}

async fn write<K>(api: &Api<K>, name: &str, webhooks: &[(String, Option<ByteString>)], bundle: &str) -> kube::Result<()>
where
    K: Webhooks + Clone + DeserializeOwned + Debug,
{
    let bundle = ByteString(bundle.as_bytes().to_vec());
    let of =
        |(webhook, _): &(String, Option<ByteString>)| json!({"name": webhook, "clientConfig": {"caBundle": &bundle}});
    // Known by their names, so everything else of them stays.
    let patch = json!({"webhooks": webhooks.iter().map(of).collect::<Vec<_>>()});
    tracing::info!(configuration = name, "caBundle is written");
    api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
}
