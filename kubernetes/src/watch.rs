//! What changes, told one after the other, for as long as anybody listens: a list, then a watch, and after whatever goes wrong a
//! list again. For few and small objects; the control plane's source has its own.

use futures_util::StreamExt;
use kube::api::{Api, ListParams, Resource, WatchEvent, WatchParams};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;

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

/// Never ends by itself: it ends when `tell` breaks.
pub async fn follow<K>(api: Api<K>, name: Option<&str>, mut tell: impl FnMut(Seen<K>) -> ControlFlow<()>)
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let list = ListParams { field_selector: fields(name), ..ListParams::default() };
    let watch = WatchParams { field_selector: fields(name), ..WatchParams::default() }.timeout(SECONDS);
    let mut pause = FIRST;
    loop {
        let failed = match round(&api, &list, &watch, &mut tell, &mut pause).await {
            Ok(flow) if flow.is_break() => return,
            // A watch that has ended in order is taken up at once.
            Ok(_) => continue,
            Err(error) => error,
        };
        tracing::warn!(kind, error = %failed, "the watch is lost; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MOST);
    }
}

async fn round<K>(
    api: &Api<K>,
    list: &ListParams,
    watch: &WatchParams,
    tell: &mut impl FnMut(Seen<K>) -> ControlFlow<()>,
    pause: &mut Duration,
) -> kube::Result<ControlFlow<()>>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let all = api.list(list).await?;
    let version = all.metadata.resource_version.unwrap_or_default();
    if tell(Seen::All(all.items)).is_break() {
        return Ok(ControlFlow::Break(()));
    }
    let mut events = pin!(api.watch(watch, &version).await?);
    *pause = FIRST;
    while let Some(event) = events.next().await {
        let flow = match event? {
            WatchEvent::Added(one) | WatchEvent::Modified(one) => tell(Seen::One(one)),
            WatchEvent::Deleted(one) => tell(Seen::Gone(one)),
            WatchEvent::Bookmark(_) => ControlFlow::Continue(()),
            // Too old, mostly: the list that follows knows everything.
            WatchEvent::Error(_) => break,
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}
