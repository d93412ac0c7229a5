//! What changes, told one after the other, for as long as anybody listens: a list, then a watch, and after whatever goes wrong a
//! list again. For few and small objects; the control plane's source has its own.

use futures_util::StreamExt;
use kube::api::{Api, ListParams, Resource, WatchEvent, WatchParams};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::future::ready;
use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

const FIRST: Duration = Duration::from_millis(250);
const MOST: Duration = Duration::from_secs(15);
/// The API server ends it by itself then.
const SECONDS: u32 = 290;

#[derive(Debug)]
pub enum Seen<K> {
    /// All there are.
    All(Vec<K>),
    /// New, or changed.
    One(K),
    Gone(K),
}

/// Whose name, or all.
fn fields(name: Option<&str>) -> Option<String> {
    name.map(|name| format!("metadata.name={name}"))
}

/// Never ends by itself: it ends when `tell` breaks. What comes waits until `tell` is done.
pub async fn follow<K, F>(api: Api<K>, name: Option<&str>, mut tell: impl FnMut(Seen<K>) -> F)
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
    F: Future<Output = ControlFlow<()>>,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let list = ListParams { field_selector: fields(name), ..ListParams::default() };
    let watch = WatchParams { field_selector: fields(name), ..WatchParams::default() }.timeout(SECONDS);
    let (mut pause, mut told) = (FIRST, false);
    loop {
        let failed = match round(&api, &list, &watch, &mut tell, &mut pause).await {
            Ok(flow) if flow.is_break() => return,
            // A watch that has ended in order is taken up at once.
            Ok(_) => continue,
            Err(error) => error,
        };
        // While the API server is away this is what happens all the time.
        match pause == FIRST {
            // This does not pass by itself: once is enough.
            _ if matches!(&failed, kube::Error::Api(status) if status.code == 403) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(kind, why = %failed, "a right is missing");
                }
            }
            true => tracing::warn!(kind, error = %failed, "the watch is lost; trying again"),
            false => tracing::debug!(kind, error = %failed, "the watch is lost"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MOST);
    }
}

/// The one object of a name: `None` before anything is known of it, `Some(None)` while it is not there.
pub async fn one<K>(api: Api<K>, name: &str, out: watch::Sender<Option<Option<K>>>)
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let tell = |seen| {
        let now = match seen {
            Seen::All(all) => all.into_iter().next(),
            Seen::One(one) => Some(one),
            Seen::Gone(_) => None,
        };
        out.send_replace(Some(now));
        ready(ControlFlow::Continue(()))
    };
    follow(api, Some(name), tell).await;
}

/// All of it, in its order.
pub async fn send<K>(api: Api<K>, name: Option<&str>, out: mpsc::Sender<Seen<K>>)
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let tell = |seen| {
        let sent = out.send(seen);
        async move { if sent.await.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) } }
    };
    follow(api, name, tell).await;
}

async fn round<K, F>(
    api: &Api<K>,
    list: &ListParams,
    watch: &WatchParams,
    tell: &mut impl FnMut(Seen<K>) -> F,
    pause: &mut Duration,
) -> kube::Result<ControlFlow<()>>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    F: Future<Output = ControlFlow<()>>,
{
    let all = api.list(list).await?;
    let version = all.metadata.resource_version.unwrap_or_default();
    if tell(Seen::All(all.items)).await.is_break() {
        return Ok(ControlFlow::Break(()));
    }
    let mut events = pin!(api.watch(watch, &version).await?);
    *pause = FIRST;
    while let Some(event) = events.next().await {
        let flow = match event? {
            WatchEvent::Added(one) | WatchEvent::Modified(one) => tell(Seen::One(one)).await,
            WatchEvent::Deleted(one) => tell(Seen::Gone(one)).await,
            WatchEvent::Bookmark(_) => ControlFlow::Continue(()),
            // Too old: the list that follows knows everything.
            WatchEvent::Error(status) if status.code == 410 => break,
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}
