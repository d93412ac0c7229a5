//! The stream of configuration: followed for as long as the process lives, over as many connections as that takes.
//!
//! Whatever a connection does, what is in force stays. A new one says what is there already, so that only differences come.

use super::backoff::Backoff;
use super::demand::Demand;
use super::dial::{Wrong, dial};
use super::link::Links;
use super::member::{Member, left};
use super::plan::{Plan, Taken};
use super::report::Client;
use super::state::Folder;
use super::{MAX_MESSAGE, Options, Update};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use weft_proto::v1::mesh_client::MeshClient;
use weft_proto::v1::watch_request::Kind;
use weft_proto::v1::{Applied, Hello, Resource, Subscribe, WatchRequest, WatchResponse};

const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// For the next message while something is owed, and for our own to be taken.
const PATIENCE: Duration = Duration::from_secs(30);
/// The plan is written at most once in one of these.
const SAVE: Duration = Duration::from_secs(1);
/// Between two looks at what may be forgotten.
const LOOK: Duration = Duration::from_secs(15);

pub struct Follower {
    pub options: Rc<Options>,
    pub folder: Folder,
    pub links: Links,
    pub member: Rc<Member>,
    pub updates: mpsc::Sender<Update>,
    pub plan: Plan,
    /// `None`: everything is subscribed to.
    pub demand: Option<Demand>,
    /// Who may be told what was counted.
    clients: watch::Sender<Client>,
    subscribed: BTreeSet<String>,
    /// Something is in force.
    started: bool,
    /// What has come is not in force yet.
    changed: bool,
    /// Not on disk yet.
    unsaved: bool,
    save_at: Instant,
}

/// The process is on its way out: nobody takes configuration any more.
struct Over;

enum Ended {
    Over,
    /// The connection's certificate is about to end, and there is a newer one.
    Outlived,
}

impl Follower {
    pub fn new(
        options: &Rc<Options>,
        folder: &Folder,
        links: &Links,
        member: &Rc<Member>,
        updates: mpsc::Sender<Update>,
        demand: Option<Demand>,
        clients: watch::Sender<Client>,
    ) -> Self {
        Self {
            plan: Plan::new(&options.namespace, &options.pod, folder.path().into()),
            options: options.clone(),
            folder: folder.clone(),
            links: links.clone(),
            member: member.clone(),
            updates,
            demand,
            clients,
            subscribed: BTreeSet::new(),
            started: false,
            changed: false,
            unsaved: false,
            save_at: Instant::now(),
        }
    }

    pub async fn follow(mut self) {
        self.links.set(|link| link.waiting = Some("its first configuration"));
        if let Some(saved) = self.folder.plan() {
            self.plan.restore(&saved);
            if self.put_into_force().await.is_err() {
                return;
            }
            if self.started {
                tracing::info!(resources = self.plan.count(), "the last plan from the state folder is in force");
            }
        }
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let generation = self.member.live.generation();
            let watched = self.watch(&mut backoff).await;
            self.clients.send_replace(None);
            let wrong = match watched {
                Ok(Ended::Over) => return,
                Ok(Ended::Outlived) => continue,
                Err(wrong) => wrong,
            };
            let was = self.links.connected(false);
            let news = self.links.failed(&wrong.why);
            if was || news {
                let kept = if self.started { "what is in force stays" } else { "nothing is in force yet" };
                tracing::warn!(control = %self.options.target, error = %wrong.why, "no control plane; {kept}");
            }
            if wrong.refused && generation == self.member.live.generation() {
                self.member.doubt();
            }
            if self.unsaved {
                self.save();
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// One connection's life.
    async fn watch(&mut self, backoff: &mut Backoff) -> Result<Ended, Wrong> {
        let material = self.member.live.load();
        let channel =
            dial(&self.options.target, &self.options.trust_root, Some(&material), Some(&material.bundle)).await?;
        let mut client = MeshClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let (say, said) = mpsc::channel(16);
        let have = self.plan.versions().map(|(name, version)| (name.to_string(), version.to_string())).collect();
        let hello = Hello { version: env!("CARGO_PKG_VERSION").into(), have };
        tell(&say, Kind::Hello(hello)).await?;
        let add = match &self.demand {
            Some(demand) => {
                // Also what was sent without being asked for, or was asked for before a restart.
                let held = self.plan.destinations().map(str::to_string);
                self.subscribed = demand.names().into_iter().chain(held).collect();
                self.subscribed.iter().cloned().collect()
            }
            None => vec!["*".into()],
        };
        tell(&say, Kind::Subscribe(Subscribe { add, remove: Vec::new() })).await?;
        let silent = || Wrong::new(format!("{} says nothing", self.options.target));
        let watching = timeout(PATIENCE, client.watch(ReceiverStream::new(said))).await;
        let mut stream = watching.map_err(|_| silent())?.map_err(Wrong::at_first)?.into_inner();
        metrics::counter!("weft_control_streams_total").increment(1);
        if self.links.connected(true) {
            tracing::info!(control = %self.options.target, "control plane connected");
        }
        self.clients.send_replace(Some(client));
        let mut complete = false;
        let mut old_age = std::pin::pin!(tokio::time::sleep(left(&material.identity).mul_f64(0.9)));
        let mut aged = false;
        let mut look = tokio::time::interval(LOOK);
        loop {
            let (owed, save_at) = (Instant::now() + PATIENCE, self.save_at);
            let message = tokio::select! {
                message = stream.message() => message?,
                () = tokio::time::sleep_until(owed), if !complete => {
                    return Err(Wrong::new(format!("{} has not told everything for this pod yet", self.options.target)));
                }
                () = tokio::time::sleep_until(save_at), if self.unsaved => {
                    self.save();
                    continue;
                }
                () = &mut old_age, if !aged => {
                    aged = true;
                    if self.member.live.load().identity != material.identity {
                        return Ok(Ended::Outlived);
                    }
                    continue;
                }
                () = wanting(self.demand.as_ref()) => {
                    self.subscribe(&say).await?;
                    continue;
                }
                _ = look.tick(), if self.demand.is_some() => {
                    self.unsubscribe(&say).await?;
                    continue;
                }
                () = self.updates.closed() => return Ok(Ended::Over),
            };
            let Some(message) = message else {
                return Err(Wrong::new(format!("{} ended the stream", self.options.target)));
            };
            if message.complete {
                complete = true;
                backoff.reset();
                self.links.set(|link| link.last_error = None);
            }
            let told = self.take(message);
            self.changed |= told.changes;
            // The first plan goes into force whole.
            if (self.started || complete) && self.changed && self.put_into_force().await.is_err() {
                return Ok(Ended::Over);
            }
            if complete && !self.started {
                let why = format!("{} has no `proxy` resource for this workload", self.options.target);
                if self.links.failed(&why) {
                    tracing::warn!("{why}; not ready without one");
                }
            }
            self.answer(&told.unknown);
            for applied in told.applied {
                tell(&say, Kind::Applied(applied)).await?;
            }
        }
    }

    /// Takes a message's resources, each on its own.
    fn take(&mut self, message: WatchResponse) -> Told {
        let mut told = Told { unknown: message.unknown, ..Told::default() };
        let mut refused = Vec::new();
        let mut good = message.removed.clone();
        for Resource { name, version, document } in message.changed {
            let taken = match self.plan.put(&name, &version, &document) {
                Ok(Taken::Trust(bundle)) => self.member.trust(bundle).map(|()| {
                    self.plan.taken_elsewhere(&name, &version);
                    false
                }),
                Ok(taken) => Ok(taken == Taken::Config),
                Err(why) => Err(why),
            };
            let error = match taken {
                Ok(changes) => {
                    told.changes |= changes;
                    good.push(name.clone());
                    String::new()
                }
                Err(why) => {
                    let kind = kind(&name);
                    metrics::counter!("weft_control_refused_total", "kind" => kind).increment(1);
                    tracing::error!(resource = %name, version, error = %why, "refused, its last good version stays");
                    refused.push((name.clone(), why.clone()));
                    why
                }
            };
            told.applied.push(Applied { name, version, error });
        }
        for name in &message.removed {
            told.changes |= self.plan.remove(name);
        }
        let resources = self.plan.count();
        self.links.set(|link| {
            link.heard = Some(SystemTime::now());
            link.resources = resources;
            good.iter().for_each(|name| drop(link.refused.remove(name)));
            link.refused.extend(refused.into_iter().take(MAX_REFUSED));
        });
        told
    }

    /// Lets those go on who wait for what is in force now, or is not there.
    fn answer(&self, unknown: &[String]) {
        if let Some(demand) = &self.demand {
            demand.answered(|name| self.plan.leads(name), unknown);
        }
    }

    /// Asks for what the workload has begun to call.
    async fn subscribe(&mut self, say: &mpsc::Sender<WatchRequest>) -> Result<(), Wrong> {
        let names = self.demand.iter().flat_map(Demand::names);
        let add: Vec<String> = names.filter(|name| !self.subscribed.contains(name)).collect();
        if add.is_empty() {
            return Ok(());
        }
        self.subscribed.extend(add.iter().cloned());
        tell(say, Kind::Subscribe(Subscribe { add, remove: Vec::new() })).await
    }

    /// Lets go of what leads nowhere and is not called any more.
    async fn unsubscribe(&mut self, say: &mpsc::Sender<WatchRequest>) -> Result<(), Wrong> {
        let remove = self.demand.as_ref().map(|demand| demand.forget(Instant::now().into())).unwrap_or_default();
        if remove.is_empty() {
            return Ok(());
        }
        self.subscribed.retain(|name| !remove.contains(name));
        tell(say, Kind::Subscribe(Subscribe { add: Vec::new(), remove })).await
    }

    async fn put_into_force(&mut self) -> Result<(), Over> {
        self.changed = false;
        let Some(config) = self.plan.config() else { return Ok(()) };
        let (done, in_force) = oneshot::channel();
        let update = Update { config, live: self.member.live.clone(), done };
        self.updates.send(update).await.map_err(|_| Over)?;
        in_force.await.map_err(|_| Over)?;
        if !self.started {
            self.started = true;
            self.links.set(|link| link.waiting = None);
        }
        self.unsaved = true;
        Ok(())
    }

    fn save(&mut self) {
        self.folder.save_plan(self.plan.saved());
        self.unsaved = false;
        self.save_at = Instant::now() + SAVE;
    }
}

async fn wanting(demand: Option<&Demand>) {
    match demand {
        Some(demand) => demand.wanting().await,
        None => std::future::pending().await,
    }
}

/// Reasons that are kept to be shown.
const MAX_REFUSED: usize = 1000;

/// What a message led to.
#[derive(Default)]
struct Told {
    changes: bool,
    applied: Vec<Applied>,
    unknown: Vec<String>,
}

async fn tell(say: &mpsc::Sender<WatchRequest>, kind: Kind) -> Result<(), Wrong> {
    match say.send_timeout(WatchRequest { kind: Some(kind) }, PATIENCE).await {
        Ok(()) => Ok(()),
        Err(_) => Err(Wrong::new("the control plane does not read what it is told")),
    }
}

/// For a metric: whatever the other side makes up is one word.
fn kind(name: &str) -> &'static str {
    let first = name.split('/').next().unwrap_or_default();
    ["proxy", "service", "endpoints", "trust", "host", "address"].into_iter().find(|k| *k == first).unwrap_or("other")
}
