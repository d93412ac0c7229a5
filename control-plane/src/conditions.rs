//! Tells people what became of their objects, in the objects: conditions of Gateway API's routes, of Linkerd's, and of our policies
//! (`conditions/say.rs`). Only the replica that leads writes, only what is not written there already, and not faster than the API server
//! should be asked; what others wrote into a status stays, and each write names the version it changes. What is seen not to be there
//! any more is written again.

mod say;

use crate::source::Statuses;
use crate::world::Current;
use http::Request;
use k8s_openapi::jiff::{Timestamp, Unit};
use kube::{Client, Error};
pub use say::has_conditions;
use say::{About, Report};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_dialects::kinds::KINDS;
use weft_dialects::ledger::Finding;
use weft_dialects::{Object, object::ObjectRef};

pub const CONTROLLER: &str = "weft.dev/mesh";
/// Between two objects.
const BETWEEN: Duration = Duration::from_millis(10);
/// Those that could not be written are tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Two who do not agree should not keep the API server busy.
const RESTORE: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(10);

pub async fn follow(
    client: Client,
    mut worlds: watch::Receiver<Arc<Current>>,
    mut leads: watch::Receiver<bool>,
    statuses: watch::Sender<Statuses>,
) {
    let mut seen = statuses.subscribe();
    // What is in the API server, as far as we know.
    let mut written: BTreeMap<ObjectRef, Report> = BTreeMap::new();
    let mut told = BTreeSet::new();
    loop {
        let current = worlds.borrow_and_update().clone();
        let mut failed = false;
        seen.mark_unchanged();
        for (reference, status) in taken(&statuses) {
            if written.get(&reference).is_some_and(|report| say::merge(report, &status, CONTROLLER, "").is_some()) {
                written.remove(&reference);
            }
        }
        if *leads.borrow_and_update() {
            let reports = reports(&current);
            written.retain(|reference, _| reports.contains_key(reference));
            for (reference, (object, report)) in reports {
                if written.get(&reference) == Some(&report) || nothing(&report, written.contains_key(&reference)) {
                    continue;
                }
                match write(&client, object, &report).await {
                    Ok(()) => drop(written.insert(reference, report)),
                    Err(why) => {
                        failed = true;
                        // Once for a kind, for there may be thousands.
                        if told.insert(object.kind.clone()) {
                            tracing::warn!(object = %reference, why, "a status cannot be written");
                        }
                    }
                }
                tokio::time::sleep(BETWEEN).await;
                // What is newer is worth more.
                if worlds.has_changed().unwrap_or(true) || leads.has_changed().unwrap_or(true) {
                    break;
                }
            }
        } else {
            written.clear();
        }
        let again = async {
            match failed {
                true => tokio::time::sleep(AGAIN).await,
                false => std::future::pending().await,
            }
        };
        let other = async {
            // Its sender is ours.
            let _ = seen.changed().await;
            tokio::time::sleep(RESTORE).await;
        };
        tokio::select! {
            more = worlds.changed() => if more.is_err() { return },
            more = leads.changed() => if more.is_err() { return },
            () = again => {}
            () = other => {}
        }
    }
}

/// All of them, which are then no longer there.
fn taken(statuses: &watch::Sender<Statuses>) -> Statuses {
    let mut out = Statuses::new();
    statuses.send_if_modified(|all| {
        out = std::mem::take(all);
        false
    });
    out
}

/// No parent of it is ours, and none was.
fn nothing(report: &Report, known: bool) -> bool {
    !known && matches!(&report.about, About::Parents(parents) if parents.is_empty())
}

fn reports(current: &Current) -> BTreeMap<ObjectRef, (&Object, Report)> {
    let mut findings: BTreeMap<&ObjectRef, Vec<&Finding>> = BTreeMap::new();
    for finding in &current.ledger.findings {
        findings.entry(&finding.object).or_default().push(finding);
    }
    let of = |object: &'_ Arc<Object>| {
        let reference = object.reference();
        let found = findings.get(&reference).map(Vec::as_slice).unwrap_or_default();
        let report = say::report(object, found)?;
        Some((reference, report))
    };
    current.objects.0.iter().filter_map(|object| of(object).map(|(r, report)| (r, (&**object, report)))).collect()
}

async fn write(client: &Client, object: &Object, report: &Report) -> Result<(), String> {
    let plural = KINDS.iter().find(|kind| kind.is(object)).map(|kind| kind.plural()).unwrap_or_default();
    let (api, namespace, name) = (&object.api_version, &object.namespace, &object.name);
    let path = format!("/apis/{api}/namespaces/{namespace}/{plural}/{name}");
    // Somebody else may write between our two requests; then it is read anew.
    for _ in 0..3 {
        let Some(read) = ask(client, Request::get(&path), Vec::new()).await? else { return Ok(()) };
        let meta = &read["metadata"];
        // Gone and made anew, or changed since: what there is to say of that comes later.
        if meta["uid"] != *report.uid || meta["generation"] != report.generation {
            return Ok(());
        }
        let now = Timestamp::now().round(Unit::Second).unwrap_or_default().to_string();
        let Some(status) = say::merge(report, &read["status"], CONTROLLER, &now) else { return Ok(()) };
        let patch = json!({"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": status});
        let request = Request::patch(format!("{path}/status?fieldManager=weft-control"))
            .header("content-type", "application/merge-patch+json");
        match ask(client, request, patch.to_string().into_bytes()).await {
            Err(why) if why.starts_with(CONFLICT) => {}
            other => return other.map(|_| ()),
        }
    }
    Err("somebody else writes it all the time".into())
}

const CONFLICT: &str = "conflict";

/// `None`: it is not there.
async fn ask(client: &Client, request: http::request::Builder, body: Vec<u8>) -> Result<Option<Value>, String> {
    let request = request.body(body).map_err(|e| e.to_string())?;
    let asked = tokio::time::timeout(ANSWER, client.request::<Value>(request));
    match asked.await.map_err(|_| "no answer".to_string())? {
        Ok(value) => Ok(Some(value)),
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(Error::Api(status)) if status.code == 409 => Err(format!("{CONFLICT}: {}", status.message)),
        Err(error) => Err(error.to_string()),
    }
}
