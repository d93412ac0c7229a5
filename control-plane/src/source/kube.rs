//! A cluster. Each kind that we read has a feed of its own (`kube/feed.rs`), which lists and watches it; this one task takes what
//! they tell, keeps it (`kube/store.rs`), and publishes when something is different. Of an object only what is read is kept
//! (`kube/prune.rs`), so what else changes in it is no change.
//!
//! Kinds that are not Kubernetes' own are followed while their CustomResourceDefinitions are there, each in the first of the
//! versions we read that is served. First something is published when every kind has answered.

mod feed;
mod prune;
mod store;

use super::{Found, Statuses};
use crate::conditions::has_conditions;
use feed::{Event, Subject};
use kube::Client;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use store::Store;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use weft_dialects::kinds::{self, Kind};

/// What feeds may be ahead of us.
const WAITING: usize = 256;

static DEFINITIONS: Kind =
    Kind { group: "apiextensions.k8s.io", kind: "CustomResourceDefinition", versions: &["v1"], translate: |_, _| {} };
/// Their place among the kinds; the others are for the world.
const FIRST: usize = 0;

/// A feed, and which of those its kind had: one that was ended may have told something that still waits.
type Id = (usize, u64);

struct Feeds {
    client: Client,
    kinds: Vec<&'static Kind>,
    store: Store,
    tasks: JoinSet<()>,
    running: BTreeMap<usize, (u64, AbortHandle)>,
    begun: u64,
    out: mpsc::Sender<(Id, Event)>,
    statuses: watch::Sender<Statuses>,
}

/// Follows a cluster until nobody listens. Whoever writes status empties `statuses`.
pub async fn watch(client: Client, out: watch::Sender<Arc<Found>>, statuses: watch::Sender<Statuses>) {
    let (told_in, mut told) = mpsc::channel(WAITING);
    let kinds: Vec<&'static Kind> = [&DEFINITIONS].into_iter().chain(kinds::watched()).collect();
    let mut feeds = Feeds {
        client,
        store: Store::new(kinds.clone()),
        kinds,
        tasks: JoinSet::new(),
        running: BTreeMap::new(),
        begun: 0,
        out: told_in,
        statuses,
    };
    let built_in = |kind: &&'static Kind| kind.is_built_in();
    let own: Vec<usize> = (1..feeds.kinds.len()).filter(|i| built_in(&feeds.kinds[*i])).collect();
    [FIRST].into_iter().chain(own).for_each(|kind| feeds.begin(kind));
    let (mut generation, mut changed) = (0, false);
    loop {
        let due = feeds.store.due();
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = told.recv() => {
                let Some((id, event)) = event else { return };
                changed |= feeds.take(id, event);
                // What is there already goes together.
                while let Ok((id, event)) = told.try_recv() {
                    changed |= feeds.take(id, event);
                }
            }
            () = wait => changed |= feeds.store.settle(Instant::now()),
            () = out.closed() => return,
        }
        if changed && feeds.store.is_complete() {
            (generation, changed) = (generation + 1, false);
            out.send_replace(Arc::new(feeds.store.found(generation, |kind| kind != FIRST)));
        }
    }
}

impl Feeds {
    fn begin(&mut self, kind: usize) {
        self.begun += 1;
        let of = self.kinds[kind];
        let statuses = has_conditions(of.group, of.kind).then(|| self.statuses.clone());
        let subject = Subject { kind: of, metadata_only: kind == FIRST, statuses };
        let feed = feed::follow(self.client.clone(), subject, (kind, self.begun), self.out.clone());
        self.running.insert(kind, (self.begun, self.tasks.spawn(feed)));
        self.store.begin(kind);
    }

    fn end(&mut self, kind: usize) -> bool {
        if let Some((_, task)) = self.running.remove(&kind) {
            task.abort();
        }
        // Those that have ended leave nothing behind.
        while self.tasks.try_join_next().is_some() {}
        self.store.end(kind)
    }

    fn take(&mut self, (kind, begun): Id, event: Event) -> bool {
        if self.running.get(&kind).is_none_or(|(current, _)| *current != begun) {
            return false;
        }
        let changed = self.store.take(kind, event, Instant::now());
        if kind == FIRST { self.defined() | changed } else { changed }
    }

    /// Kinds whose definitions came or went.
    fn defined(&mut self) -> bool {
        // Who may not see the definitions has to try.
        let all = self.store.is_denied(FIRST);
        let there: Vec<String> = self.store.objects(FIRST).map(|o| o.name.clone()).collect();
        let mut changed = false;
        for kind in 1..self.kinds.len() {
            let of = self.kinds[kind];
            if of.is_built_in() {
                continue;
            }
            let name = format!("{}.{}", of.plural(), of.group);
            match (all || there.contains(&name), self.running.contains_key(&kind)) {
                (true, false) => {
                    tracing::info!(name, "is followed");
                    self.begin(kind);
                }
                (false, true) => {
                    tracing::info!(name, "is gone, and all objects of it");
                    changed |= self.end(kind);
                }
                _ => {}
            }
        }
        changed
    }
}
