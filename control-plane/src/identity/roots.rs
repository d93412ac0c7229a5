//! The mesh's roots in every namespace, as ConfigMap `weft-root`, from which pods that have no certificate yet know us. Each replica
//! keeps them: what is missing is made at once, what somebody changed or deleted is put right a second later, and so is what
//! another replica wrote that has heard of a rotation later or sooner than we.

use super::ca::Authority;
use super::watched::{self, News};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub const NAME: &str = "weft-root";
pub const KEY: &str = "root.pem";
/// What was there and is not as it should be waits so long; so does what could not be written.
const SOON: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(10);
/// What the API server says of a namespace that is going.
const GOING: &str = "being terminated";

#[derive(Default)]
struct Place {
    /// The namespace exists and is not about to go.
    wanted: bool,
    /// What the ConfigMap has.
    has: Option<String>,
    /// When it is looked at, if it has to be.
    due: Option<Instant>,
}

pub struct Roots {
    client: Client,
    places: BTreeMap<String, Place>,
}

impl Roots {
    pub fn new(client: Client) -> Self {
        Self { client, places: BTreeMap::new() }
    }

    pub async fn follow(mut self, mut authority: watch::Receiver<Arc<Authority>>) {
        let ((namespaces_in, mut namespaces), (maps_in, mut maps)) = (mpsc::channel(64), mpsc::channel(64));
        let api: (Api<Namespace>, Api<ConfigMap>) = (Api::all(self.client.clone()), Api::all(self.client.clone()));
        let watching = async {
            tokio::join!(watched::watch(api.0, None, namespaces_in), watched::watch(api.1, Some(NAME), maps_in))
        };
        let keeping = async {
            // Without the list of what is there, everything would seem to be missing.
            let mut listed = false;
            loop {
                let due = self.places.values().filter_map(|p| p.due).min().filter(|_| listed);
                tokio::select! {
                    news = namespaces.recv() => match news {
                        Some(news) => self.namespaces(news),
                        None => return,
                    },
                    news = maps.recv() => match news {
                        Some(news) => {
                            listed = true;
                            self.maps(news);
                        }
                        None => return,
                    },
                    changed = authority.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        self.places.values_mut().for_each(|p| p.due = Some(Instant::now()));
                    }
                    () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                        let pem = authority.borrow().pem();
                        self.settle(&pem).await;
                    }
                }
            }
        };
        tokio::join!(watching, keeping);
    }

    fn namespaces(&mut self, news: News<Namespace>) {
        let now = Instant::now();
        let stays = |n: &Namespace| {
            let phase = n.status.as_ref().and_then(|s| s.phase.as_deref());
            n.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
        };
        match news {
            News::All(all) => {
                self.places.values_mut().for_each(|p| p.wanted = false);
                for namespace in &all {
                    let place = self.places.entry(namespace.name_any()).or_default();
                    (place.wanted, place.due) = (stays(namespace), Some(now));
                }
                self.places.retain(|_, p| p.wanted || p.has.is_some());
            }
            News::Now(namespace) => {
                let place = self.places.entry(namespace.name_any()).or_default();
                if !place.wanted {
                    place.due = Some(now);
                }
                place.wanted = stays(&namespace);
            }
            News::Gone(namespace) => {
                self.places.remove(&namespace.name_any());
            }
        }
    }

    fn maps(&mut self, news: News<ConfigMap>) {
        let pem = |map: &ConfigMap| map.data.as_ref().and_then(|d| d.get(KEY)).cloned();
        let (later, now) = (Instant::now() + SOON, Instant::now());
        match news {
            News::All(all) => {
                for place in self.places.values_mut() {
                    (place.has, place.due) = (None, Some(now));
                }
                for map in &all {
                    let place = self.places.entry(map.namespace().unwrap_or_default()).or_default();
                    (place.has, place.due) = (pem(map), Some(now));
                }
            }
            News::Now(map) => {
                let place = self.places.entry(map.namespace().unwrap_or_default()).or_default();
                (place.has, place.due) = (pem(&map), place.due.or(Some(later)));
            }
            News::Gone(map) => {
                if let Some(place) = self.places.get_mut(&map.namespace().unwrap_or_default()) {
                    (place.has, place.due) = (None, Some(later));
                }
            }
        }
    }

    /// Writes what is due and not as it should be.
    async fn settle(&mut self, pem: &str) {
        let now = Instant::now();
        for (namespace, place) in self.places.iter_mut().filter(|(_, p)| p.due.is_some_and(|due| due <= now)) {
            place.due = None;
            if !place.wanted || place.has.as_deref() == Some(pem) {
                continue;
            }
            let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
            match tokio::time::timeout(ANSWER, write(&api, pem, place.has.is_some())).await {
                Ok(Ok(())) => {
                    place.has = Some(pem.into());
                    tracing::debug!(namespace, "roots written");
                }
                // A namespace that is going takes nothing any more, and will tell.
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                    let (why, going) = (&status.message, status.code == 404 || status.message.contains(GOING));
                    match going {
                        true => tracing::debug!(namespace, why, "roots cannot be written there"),
                        false => tracing::warn!(namespace, why, "roots cannot be written there; pods cannot join"),
                    }
                    place.due = Some(now + 10 * SOON);
                }
                Ok(Err(error)) => {
                    tracing::warn!(namespace, %error, "roots cannot be written; trying again");
                    place.due = Some(now + SOON);
                }
                Err(_) => {
                    tracing::warn!(namespace, "roots cannot be written: no answer");
                    place.due = Some(now + SOON);
                    // The others would wait as long each.
                    return;
                }
            }
        }
    }
}

async fn write(api: &Api<ConfigMap>, pem: &str, there: bool) -> kube::Result<()> {
    let labels = json!({"app.kubernetes.io/part-of": "weft", "app.kubernetes.io/name": "weft-control"});
    let metadata = json!({"name": NAME, "labels": labels});
    if !there {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: pem}});
        let map: ConfigMap = serde_json::from_value(map).map_err(kube::Error::SerdeError)?;
        match api.create(&PostParams::default(), &map).await {
            // Another replica's, or one without our key.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => return made.map(|_| ()),
        }
    }
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}, "data": {KEY: pem}}));
    api.patch(NAME, &PatchParams::default(), &patch).await.map(|_| ())
}
