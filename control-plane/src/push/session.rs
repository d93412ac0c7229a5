//! One proxy's stream. The loop has nothing to decide: it hears, it looks at the newest view when there is room for an answer,
//! and it sends. A proxy that is slow is told the newest state when it is back, not every one in between; one that takes
//! nothing for a minute is cut off, as is one whose certificate has ended.

use super::delta::{Delta, Had};
use super::siblings::{Siblings, Uses};
use crate::identity::Caller;
use crate::scope::Wanted;
use crate::status::Seat;
use crate::world::Current;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant as Moment, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::{Status, Streaming};
use weft_proto::v1::watch_request::Kind;
use weft_proto::v1::{Hello, WatchRequest, WatchResponse};

const FIRST_MESSAGE: Duration = Duration::from_secs(10);
const STALLED: Duration = Duration::from_secs(60);
const MAX_SUBSCRIPTIONS: usize = 10_000;
const MAX_NAME: usize = 512;

pub type Out = mpsc::Sender<Result<WatchResponse, Status>>;

pub struct Session {
    caller: Arc<Caller>,
    seat: Seat,
    had: Had,
    subscriptions: BTreeSet<String>,
    siblings: Arc<Siblings>,
    /// From when the pod's workload is known.
    uses: Option<Uses>,
    /// The first Subscribe has come.
    begun: bool,
    /// A Subscribe waits for its answer.
    answer: bool,
    /// Something may have to be sent.
    due: bool,
}

/// Until the stream ends, by either side; what the error says has been told to the proxy.
pub async fn run(
    caller: Arc<Caller>,
    seat: Seat,
    mut requests: Streaming<WatchRequest>,
    out: Out,
    mut worlds: watch::Receiver<Arc<Current>>,
    siblings: Arc<Siblings>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE, first(&mut requests)).await;
    let mut session = match first.map_err(|_| Status::deadline_exceeded("no hello within 10 s"))?? {
        Some(Kind::Hello(hello)) => Session::new(caller, seat, hello, siblings)?,
        _ => return Err(Status::invalid_argument("a stream begins with hello")),
    };
    let life = session.caller.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let end = Instant::now() + life;
    let mut queue: Option<Delta> = None;
    let mut waiting_since = Instant::now();
    loop {
        if queue.is_none() && session.due {
            let current = worlds.borrow_and_update().clone();
            queue = session.difference(&current)?;
            waiting_since = Instant::now();
        }
        tokio::select! {
            message = requests.message() => match message? {
                None => return Ok(()),
                Some(message) => session.hear(message)?,
            },
            changed = worlds.changed() => match changed {
                Ok(()) => session.due = session.begun,
                Err(_) => return Err(Status::unavailable("the control plane is going away")),
            },
            room = out.reserve(), if queue.is_some() => {
                // Nobody listens any more.
                let Ok(room) = room else { return Ok(()) };
                if let Some(delta) = &mut queue {
                    let (message, last) = delta.message();
                    room.send(Ok(message));
                    waiting_since = Instant::now();
                    if last {
                        queue = None;
                    }
                }
            },
            () = tokio::time::sleep_until(waiting_since + STALLED), if queue.is_some() => {
                return Err(Status::resource_exhausted("nothing was read for 60 s"));
            },
            () = tokio::time::sleep_until(end) => {
                return Err(Status::unauthenticated("the certificate of this connection has ended; come with the next one"));
            },
        }
    }
}

/// The first message that is understood; one of a newer proxy may come before it.
async fn first(requests: &mut Streaming<WatchRequest>) -> Result<Option<Kind>, Status> {
    while let Some(message) = requests.message().await? {
        if message.kind.is_some() {
            return Ok(message.kind);
        }
    }
    Ok(None)
}

impl Session {
    fn new(caller: Arc<Caller>, seat: Seat, hello: Hello, siblings: Arc<Siblings>) -> Result<Self, Status> {
        if hello.have.len() > 3 * MAX_SUBSCRIPTIONS || hello.have.iter().any(|(n, v)| n.len().max(v.len()) > MAX_NAME) {
            return Err(Status::invalid_argument("hello has more than a proxy can have"));
        }
        seat.hello(&hello.version, &hello.have);
        let had = Had::new(hello.have);
        Ok(Self {
            caller,
            seat,
            had,
            subscriptions: BTreeSet::new(),
            siblings,
            uses: None,
            begun: false,
            answer: false,
            due: false,
        })
    }

    fn hear(&mut self, message: WatchRequest) -> Result<(), Status> {
        match message.kind {
            Some(Kind::Subscribe(subscribe)) => {
                for name in subscribe.remove {
                    self.subscriptions.remove(&name);
                    self.had.asked(&name);
                }
                for name in subscribe.add {
                    if name.len() > MAX_NAME {
                        return Err(Status::invalid_argument("a name has at most 512 bytes"));
                    }
                    self.had.asked(&name);
                    self.subscriptions.insert(name);
                    if self.subscriptions.len() > MAX_SUBSCRIPTIONS {
                        return Err(Status::resource_exhausted("more than 10000 subscriptions"));
                    }
                }
                (self.begun, self.answer, self.due) = (true, true, true);
                Ok(())
            }
            Some(Kind::Applied(applied)) => {
                self.seat.applied(&applied.name, &applied.version, &applied.error);
                Ok(())
            }
            Some(Kind::Hello(_)) => Err(Status::invalid_argument("hello comes once")),
            // Of a newer proxy.
            None => Ok(()),
        }
    }

    fn difference(&mut self, current: &Current) -> Result<Option<Delta>, Status> {
        let mut wanted = self.wanted(current)?;
        if self.uses.is_none()
            && let Some(owner) = current.view.owner(&self.caller.pod).filter(|_| wanted.placed)
        {
            let workload = (self.caller.id.clone(), owner);
            let ahead = self.siblings.ahead(&workload, Moment::now());
            self.uses = Some(Uses::new(&self.siblings, workload));
            // Who asks for everything needs nothing ahead, and who comes back knows already what it calls.
            if !ahead.is_empty() && !self.subscriptions.iter().any(|name| name == "*" || is_destination(name)) {
                self.subscriptions.extend(ahead);
                wanted = self.wanted(current)?;
            }
        }
        if let Some(uses) = &mut self.uses {
            let leads = |name: &&str| wanted.pieces.contains_key(*name) && is_destination(name);
            uses.are(self.subscriptions.iter().map(String::as_str).filter(leads), Moment::now());
        }
        let delta = self.had.delta(&wanted, self.answer);
        (self.answer, self.due) = (false, false);
        if let Some(delta) = &delta {
            self.seat.sent(delta, wanted.placed);
        }
        Ok(delta)
    }

    fn wanted(&self, current: &Current) -> Result<Wanted, Status> {
        let wanted = current.view.wanted(&self.caller.pod, &self.caller.id, &self.subscriptions);
        wanted.map_err(|other| {
            let pod = &self.caller.pod;
            let why = format!("pod {}/{} is {}, not {}", pod.namespace, pod.name, other.expected, self.caller.id);
            tracing::warn!("{why}");
            Status::permission_denied(why)
        })
    }
}

fn is_destination(name: &str) -> bool {
    name.starts_with("host/") || name.starts_with("address/")
}
