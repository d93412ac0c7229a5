//! Objects in, a view out. One task has each change translated off the event loop, and publishes: the first one after a quiet time
//! at once, and those that come close upon another when they have settled. A translation that fails leaves the last view in force.

use crate::identity::Authority;
use crate::scope::View;
use crate::source::Found;
use crate::status::{Status, count};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use weft_dialects::{Ledger, Objects, World};

/// Pure; a parameter so that tests can hand in worlds.
pub type Translate = Arc<dyn Fn(&Objects) -> (World, Ledger) + Send + Sync>;

/// Nothing new for as long, or something new all the time for as long.
const QUIET: Duration = Duration::from_millis(25);
const PATIENCE: Duration = Duration::from_millis(500);

/// What is in force.
#[derive(Debug, Default)]
pub struct Current {
    pub view: View,
    pub ledger: Ledger,
    /// What it was made from.
    pub objects: Arc<Objects>,
    /// Theirs; 0 before the first.
    pub generation: u64,
}

pub async fn follow(
    mut found: watch::Receiver<Arc<Found>>,
    mut authority: watch::Receiver<Arc<Authority>>,
    translate: Translate,
    status: Arc<Status>,
    out: watch::Sender<Arc<Current>>,
) {
    loop {
        let begun = Instant::now();
        let objects = found.borrow_and_update().clone();
        let ca = authority.borrow_and_update().clone();
        // Before the first look there is nothing to say; an empty folder is something else.
        if objects.generation > 0 {
            let (previous, translate) = (out.borrow().clone(), translate.clone());
            let made = tokio::task::spawn_blocking(move || {
                let (world, ledger) = translate(&objects.objects);
                let view = View::new(&world, &ca.document(), &previous.view);
                Current { view, ledger, objects: objects.objects.clone(), generation: objects.generation }
            });
            match made.await {
                Ok(current) => {
                    count(&status.counters.translations);
                    let (services, pods) = (current.view.services(), current.view.pods());
                    let withheld = current.view.withheld.len();
                    tracing::info!(services, pods, withheld, findings = current.ledger.findings.len(), "world");
                    out.send_replace(Arc::new(current));
                }
                Err(error) => tracing::error!(%error, "translation failed; the last world stays"),
            }
        }
        // A large world rests for as long as it takes.
        let (idle, rest) = (Instant::now(), begun.elapsed().max(QUIET));
        tokio::select! {
            more = found.changed() => if more.is_err() { return },
            more = authority.changed() => if more.is_err() { return },
        }
        if idle.elapsed() > rest {
            continue;
        }
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            tokio::select! {
                more = found.changed() => if more.is_err() { return },
                () = tokio::time::sleep(QUIET) => break,
            }
        }
    }
}
