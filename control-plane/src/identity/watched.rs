//! What is watched of the API server for identities: a list, then what changes, and a new list whenever that was lost.

use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::StreamExt;

const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

#[derive(Debug)]
pub enum News<K> {
    /// Everything there is; what was there before and is not among it is gone.
    All(Vec<K>),
    Now(K),
    Gone(K),
}

pub trait Watched: kube::Resource + Clone + Debug + k8s_openapi::serde::de::DeserializeOwned + Send + 'static {}
impl<K: kube::Resource + Clone + Debug + k8s_openapi::serde::de::DeserializeOwned + Send + 'static> Watched for K {}

/// Goes on for as long as somebody reads. `name`: only objects of this name.
pub async fn watch<K: Watched>(api: Api<K>, name: Option<&'static str>, out: mpsc::Sender<News<K>>) {
    let (mut pause, mut told) = (PAUSE.0, false);
    while !out.is_closed() {
        match once(&api, name, &out, &mut pause).await {
            Ok(()) => {}
            // That does not pass by itself: once is enough.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(why = %status.message, "a right is missing");
                }
            }
            // While the API server is away this is what happens all the time.
            Err(error) => tracing::debug!(%error, "watch of the API server"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// One list and the watches that follow it, until one of them fails.
async fn once<K: Watched>(
    api: &Api<K>,
    name: Option<&str>,
    out: &mpsc::Sender<News<K>>,
    pause: &mut Duration,
) -> kube::Result<()> {
    let (mut list, mut watch) = (ListParams::default(), WatchParams::default());
    if let Some(name) = name {
        let field = format!("metadata.name={name}");
        (list, watch) = (list.fields(&field), watch.fields(&field));
    }
    let all = api.list(&list).await?;
    let mut version = all.metadata.resource_version.clone().unwrap_or_default();
    if out.send(News::All(all.items)).await.is_err() {
        return Ok(());
    }
    loop {
        let mut events = pin!(api.watch(&watch, &version).await?);
        *pause = PAUSE.0;
        while let Some(event) = events.next().await {
            let news = match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => News::Now(object),
                WatchEvent::Deleted(object) => News::Gone(object),
                WatchEvent::Bookmark(mark) => {
                    version = mark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            };
            let (News::Now(object) | News::Gone(object)) = &news else { continue };
            if let Some(newer) = &object.meta().resource_version {
                version.clone_from(newer);
            }
            if out.send(news).await.is_err() {
                return Ok(());
            }
        }
    }
}
