//! What is to be told of the control plane: whether it is there, since when, and what it was refused.

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

#[derive(Clone, Debug)]
pub struct Link {
    pub target: Arc<str>,
    pub connected: bool,
    /// Of being connected, or not.
    pub since: SystemTime,
    /// When something was last heard.
    pub heard: Option<SystemTime>,
    pub last_error: Option<String>,
    /// What the start waits for.
    pub waiting: Option<&'static str>,
    pub resources: usize,
    /// Why, by resource; the last good version of each is in force.
    pub refused: BTreeMap<String, String>,
}

/// Written by the client, read by the admin interface.
#[derive(Clone)]
pub struct Links(Arc<ArcSwap<Link>>);

impl Links {
    pub fn new(target: &str) -> Self {
        metrics::gauge!("weft_control_connected").set(0.0);
        Self(Arc::new(ArcSwap::from_pointee(Link {
            target: target.into(),
            connected: false,
            since: SystemTime::now(),
            heard: None,
            last_error: None,
            waiting: Some("a certificate"),
            resources: 0,
            refused: BTreeMap::new(),
        })))
    }

    pub fn set(&self, change: impl FnOnce(&mut Link)) {
        let mut link = Link::clone(&self.0.load());
        change(&mut link);
        self.0.store(Arc::new(link));
    }

    /// Whether that is news.
    pub fn connected(&self, connected: bool) -> bool {
        let news = self.0.load().connected != connected;
        if news {
            metrics::gauge!("weft_control_connected").set(if connected { 1.0 } else { 0.0 });
            self.set(|link| (link.connected, link.since) = (connected, SystemTime::now()));
        }
        news
    }

    /// Whether that is another error than before.
    pub fn failed(&self, why: &str) -> bool {
        let news = self.0.load().last_error.as_deref() != Some(why);
        if news {
            self.set(|link| link.last_error = Some(why.into()));
        }
        news
    }

    /// Why the proxy is not ready, for people.
    pub fn waiting(&self) -> Option<String> {
        let link = self.0.load();
        let what = link.waiting?;
        let why = link.last_error.as_ref().map(|e| format!(": {e}")).unwrap_or_default();
        Some(format!("waiting for {what} from {}{why}", link.target))
    }

    pub fn json(&self) -> Value {
        let link = self.0.load();
        let ago = |at: SystemTime| SystemTime::now().duration_since(at).map_or(0, |d| d.as_secs());
        json!({
            "address": &*link.target,
            "connected": link.connected,
            "forSeconds": ago(link.since),
            "lastHeardSecondsAgo": link.heard.map(ago),
            "lastError": link.last_error,
            "waitingFor": link.waiting,
            "resources": link.resources,
            "refused": link.refused,
        })
    }
}
