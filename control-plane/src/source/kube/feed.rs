//! One kind of a cluster, listed and then watched, for as long as somebody takes what comes. Written out, and not a library's: what
//! is not read of an object goes before the next one is looked at, and each way it can go wrong has a line.
//!
//! A watch that ends is taken up where it ended. One whose place is no longer known (410: compacted) begins with a list. While the
//! API server is away, nothing is said: the last state stays.

use super::prune;
use crate::source::Statuses;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use weft_dialects::Object;
use weft_dialects::kinds::Kind;

const PAGE: usize = 250;
/// A Node names all images that it has.
const PAGE_OF_NODES: usize = 50;
const MAX_PAGE: usize = 64 << 20;
/// etcd takes 1.5 MiB; JSON may be some of that longer.
const MAX_EVENT: usize = 16 << 20;
const ANSWER: Duration = Duration::from_secs(30);
/// Until we look whether a version that we like better is served too: those of a new kind come one after another.
const BETTER: Duration = Duration::from_secs(3);
/// So long is a watch kept open. A connection that died without a word is noticed a little later.
const WATCH: Duration = Duration::from_secs(180);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// What became of a kind.
#[derive(Debug)]
pub enum Event {
    /// All there is.
    Listed(Vec<Object>),
    Changed(Object),
    Deleted {
        namespace: String,
        name: String,
    },
    /// No version that we read is served.
    Absent,
    /// It may not be read; what the API server says.
    Denied(String),
}

/// What a feed goes by.
#[derive(Clone, Debug)]
pub struct Subject {
    pub kind: &'static Kind,
    /// Of its objects only the metadata: some are large, and nothing else is asked of them.
    pub metadata_only: bool,
    /// Takes what is seen of their status, if somebody wants to know.
    pub statuses: Option<watch::Sender<Statuses>>,
}

enum Trouble {
    /// A version that we like better is served.
    Better,
    /// The place in the history is no longer known.
    Expired,
    Absent,
    Denied(String),
    Away(String),
}

/// Nobody takes events any more.
struct Unheard;

/// `id` goes with each event.
pub async fn follow<I: Copy + Send>(client: Client, subject: Subject, id: I, out: mpsc::Sender<(I, Event)>) {
    let feed = Feed { client, subject, id, out };
    // The only way to end.
    let Err(Unheard) = feed.run().await;
}

struct Feed<I> {
    client: Client,
    subject: Subject,
    id: I,
    out: mpsc::Sender<(I, Event)>,
}

impl<I: Copy + Send> Feed<I> {
    async fn tell(&self, event: Event) -> Result<(), Unheard> {
        self.out.send((self.id, event)).await.map_err(|_| Unheard)
    }

    async fn run(&self) -> Result<std::convert::Infallible, Unheard> {
        let name = self.subject.kind.plural();
        let mut waits = Waits::default();
        loop {
            let (trouble, version) = match self.list().await {
                Ok((version, objects, place)) => {
                    tracing::debug!(kind = name, version, objects = objects.len(), "listed");
                    waits.over(&name);
                    self.tell(Event::Listed(objects)).await?;
                    (self.stay(version, place, &mut waits).await?, version)
                }
                Err(trouble) => (trouble, ""),
            };
            let mut most = LONGEST_WAIT;
            match trouble {
                Trouble::Better => continue,
                Trouble::Expired => tracing::info!(kind = name, version, "the watch is too old, listing again"),
                // A kind that was just defined is served a moment later, and an API server that has just begun allows later what it
                // denies now; nobody who waits for longer is in a hurry.
                Trouble::Absent => {
                    most = REFUSED_WAIT;
                    self.tell(Event::Absent).await?;
                }
                Trouble::Denied(why) => {
                    most = REFUSED_WAIT;
                    self.tell(Event::Denied(why)).await?;
                }
                Trouble::Away(why) => waits.begun(&name, &why),
            }
            tokio::time::sleep(waits.next(most)).await;
        }
    }

    /// Watches from a place, as often as it takes, until that cannot go on.
    async fn stay(&self, version: &'static str, mut place: String, waits: &mut Waits) -> Result<Trouble, Unheard> {
        let name = self.subject.kind.plural();
        let mut open = if self.better(version).is_empty() { WATCH } else { BETTER };
        loop {
            let begun = Instant::now();
            match self.watch(version, &mut place, open, waits).await? {
                Ok(()) => {
                    for better in self.better(version) {
                        if self.get(better, "limit=1").await.is_ok() {
                            return Ok(Trouble::Better);
                        }
                    }
                    open = WATCH;
                    // One that ends at once must not begin at once.
                    if begun.elapsed() < FIRST_WAIT {
                        tokio::time::sleep(FIRST_WAIT).await;
                    }
                }
                Err(Trouble::Away(why)) => {
                    waits.begun(&name, &why);
                    tokio::time::sleep(waits.next(LONGEST_WAIT)).await;
                }
                Err(trouble) => return Ok(trouble),
            }
        }
    }

    /// Versions that we would rather have.
    fn better(&self, version: &str) -> &'static [&'static str] {
        let all = self.subject.kind.versions;
        all.iter().position(|v| *v == version).map_or(&[], |at| &all[..at])
    }

    /// The objects in the first of its versions that is served, and the place in the history they are from.
    async fn list(&self) -> Result<(&'static str, Vec<Object>, String), Trouble> {
        for version in self.subject.kind.versions {
            match self.list_version(version).await {
                Err(Trouble::Absent) => {}
                Err(trouble) => return Err(trouble),
                Ok((objects, place)) => return Ok((version, objects, place)),
            }
        }
        Err(Trouble::Absent)
    }

    async fn list_version(&self, version: &str) -> Result<(Vec<Object>, String), Trouble> {
        let (mut objects, mut place, mut next) = (Vec::new(), None, String::new());
        let most = if self.subject.kind.kind == "Node" { PAGE_OF_NODES } else { PAGE };
        loop {
            let query = match next.as_str() {
                "" => format!("limit={most}"),
                next => format!("limit={most}&continue={next}"),
            };
            let body = self.get(version, &query).await?;
            let whole = http_body_util::Limited::new(body, MAX_PAGE).collect();
            let bytes = timeout(ANSWER, whole).await.map_err(|_| away("a list did not end"))?;
            let bytes = bytes.map_err(|e| away(format!("a list broke off: {e}")))?.to_bytes();
            let mut page: Value = serde_json::from_slice(&bytes).map_err(|e| away(format!("no list: {e}")))?;
            drop(bytes);
            let text = |page: &Value, name: &str| page["metadata"][name].as_str().unwrap_or_default().to_string();
            // Those of later pages are the first one's.
            place.get_or_insert_with(|| text(&page, "resourceVersion"));
            next = text(&page, "continue");
            if let Value::Array(items) = page["items"].take() {
                objects.extend(items.into_iter().filter_map(|item| self.object(version, item)));
            }
            if next.is_empty() {
                return Ok((objects, place.unwrap_or_default()));
            }
        }
    }

    /// `Ok(Ok)`: it has come to its regular end.
    async fn watch(
        &self,
        version: &str,
        place: &mut String,
        open: Duration,
        waits: &mut Waits,
    ) -> Result<Result<(), Trouble>, Unheard> {
        let seconds = (open.as_secs_f64() * (0.5 + 0.5 * chance())).ceil() as u64;
        let query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={place}");
        let body = match self.get(version, &query).await {
            Ok(body) => body,
            Err(trouble) => return Ok(Err(trouble)),
        };
        // It is there again, whether or not there is news.
        waits.over(&self.subject.kind.plural());
        let mut lines = Lines { body, buffer: Vec::new(), seen: 0 };
        loop {
            let line = match timeout(WATCH + ANSWER, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => return Ok(Ok(())),
                Ok(Err(why)) => return Ok(Err(away(why))),
                Err(_) => return Ok(Err(away("nothing came for long"))),
            };
            let mut event: Value = match serde_json::from_slice(&line) {
                Ok(event) => event,
                Err(e) => return Ok(Err(away(format!("no event: {e}")))),
            };
            let object = event["object"].take();
            let at = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_string();
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => match self.object(version, object) {
                    Some(object) => self.tell(Event::Changed(object)).await?,
                    None => continue,
                },
                Some("DELETED") => {
                    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_string();
                    self.tell(Event::Deleted { namespace: text("namespace"), name: text("name") }).await?;
                }
                Some("BOOKMARK") => {}
                Some("ERROR") => return Ok(Err(trouble(object["code"].as_u64().unwrap_or(0), &object))),
                _ => continue,
            }
            if !at.is_empty() {
                *place = at;
            }
        }
    }

    fn object(&self, version: &str, mut json: Value) -> Option<Object> {
        let seen = self.subject.statuses.as_ref().map(|to| (to, json["status"].take()));
        let group = self.subject.kind.group;
        let api_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
        let object = prune::object(self.subject.kind, &api_version, json)?;
        if let Some((to, status)) = seen {
            to.send_modify(|all| drop(all.insert(object.reference(), status)));
        }
        Some(object)
    }

    async fn get(&self, version: &str, query: &str) -> Result<Body, Trouble> {
        let (group, plural) = (self.subject.kind.group, self.subject.kind.plural());
        let path = match group {
            "" => format!("/api/{version}/{plural}?{query}"),
            group => format!("/apis/{group}/{version}/{plural}?{query}"),
        };
        let accept = match self.subject.metadata_only {
            true if query.starts_with("watch") => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            true => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            false => "application/json",
        };
        let request = Request::get(path).header(header::ACCEPT, accept).header(header::ACCEPT_ENCODING, "identity");
        let request = request.body(Body::empty()).map_err(|e| away(e.to_string()))?;
        let sent = timeout(ANSWER, self.client.send(request)).await.map_err(|_| away("no answer"))?;
        let response = sent.map_err(|e| away(whole(&e)))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response.into_body());
        }
        let told = http_body_util::Limited::new(response.into_body(), 64 << 10).collect();
        let told = timeout(ANSWER, told).await.ok().and_then(Result::ok).map(|b| b.to_bytes()).unwrap_or_default();
        Err(trouble(status.as_u16().into(), &serde_json::from_slice(&told).unwrap_or(Value::Null)))
    }
}

fn away(why: impl Into<String>) -> Trouble {
    Trouble::Away(why.into())
}

/// With what it comes from: the client's own words alone say little.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = source.source();
    }
    text
}

/// Of a status code, as of an answer or in an event.
fn trouble(code: u64, status: &Value) -> Trouble {
    let message = status["message"].as_str().unwrap_or_default();
    match code {
        410 => Trouble::Expired,
        404 => Trouble::Absent,
        401 | 403 => Trouble::Denied(message.chars().take(512).collect()),
        code => away(format!("{code} {message}")),
    }
}

/// A body, line by line.
struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// So far there is no end of a line.
    seen: usize,
}

impl Lines {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            if let Some(end) = self.buffer[self.seen..].iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(self.seen + end + 1);
                self.seen = 0;
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            self.seen = self.buffer.len();
            if self.seen > MAX_EVENT {
                return Err("an event is too large".into());
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d)),
                Some(Err(e)) => return Err(e.to_string()),
                None => return Ok(None),
            }
        }
    }
}

/// Longer and longer, and not all at once.
#[derive(Default)]
struct Waits {
    failed: u32,
    told: bool,
}

impl Waits {
    fn next(&mut self, most: Duration) -> Duration {
        let longest = FIRST_WAIT.saturating_mul(1 << self.failed.min(10)).min(most);
        self.failed = self.failed.saturating_add(1);
        longest.mul_f64(0.5 + 0.5 * chance())
    }

    fn begun(&mut self, kind: &str, why: &str) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(kind, why, "the API server does not answer; the last state stays");
        }
    }

    fn over(&mut self, kind: &str) {
        if std::mem::take(&mut self.told) {
            tracing::info!(kind, "the API server answers again");
        }
        self.failed = 0;
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    (std::hash::RandomState::new().hash_one(0u8) >> 11) as f64 / (1u64 << 53) as f64
}
