//! Objects as the API server has them.

use super::Cluster;
use crate::edit::value;
use crate::error::{Error, Result};
use crate::runtime::wait;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::discovery::{Discovery, Scope};
use kube::{Api, Client};
use serde_json::Value as Json;
use std::sync::Arc;
use tokio::task::JoinSet;
use weft_dialects::Object;
use weft_dialects::kinds::{self, Kind};
use weft_policy::doc::Node;

/// At a time, so that no answer is huge.
const PAGE: u32 = 500;
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// What the server writes into `metadata`, and nobody else.
const SERVERS: [&str; 7] =
    ["uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "selfLink", "managedFields"];

/// Whether a kind has a say in what the mesh does.
pub fn is_heard(group: &str, kind: &str) -> bool {
    kinds::watched().iter().any(|k| k.group == group && k.kind == kind)
}

/// Objects of some kinds, and what of them could not be seen.
#[derive(Default)]
pub struct Listed {
    pub objects: Vec<Arc<Object>>,
    pub unseen: Vec<String>,
}

impl Cluster {
    /// All objects of those kinds we read and the server serves, of all namespaces; of one, for who may not see the others.
    pub fn objects(&self, wanted: impl Fn(&str, &str) -> bool) -> Result<Listed> {
        let kinds: Vec<&Kind> = kinds::all().into_iter().filter(|k| wanted(k.group, k.kind)).collect();
        wait(async {
            let served = self.served(&kinds).await?;
            let mut lists = JoinSet::new();
            for (i, (resource, scope)) in served.into_iter().enumerate() {
                let (client, namespace) = (self.client.clone(), self.namespace.clone());
                lists.spawn(async move { (i, list(client, &namespace, &resource, scope).await, resource) });
            }
            let mut all: Vec<(usize, Listed)> = Vec::new();
            while let Some(done) = lists.join_next().await {
                let (i, found, resource) = done.map_err(|e| format!("the listing of objects ended: {e}"))?;
                let what = || format!("{} cannot be listed", resource.plural);
                all.push((i, found.map_err(|e| self.failed(&what(), &e))?));
            }
            all.sort_by_key(|(i, _)| *i);
            let mut out = Listed::default();
            for (_, listed) in all {
                out.objects.extend(listed.objects);
                out.unseen.extend(listed.unseen);
            }
            Ok(out)
        })
    }

    /// How the server calls them, by the newest version that both know.
    async fn served(&self, kinds: &[&Kind]) -> Result<Vec<(ApiResource, Scope)>> {
        let groups: Vec<&str> = kinds.iter().map(|k| k.group).collect();
        let discovery = || Discovery::new(self.client.clone()).filter(&groups);
        let found = match discovery().run_aggregated().await {
            Ok(found) => found,
            // Servers of before 1.26 tell it group by group.
            Err(kube::Error::Api(status)) if status.code != 401 && status.code != 403 => {
                discovery().run().await.map_err(|e| self.failed("its kinds cannot be listed", &e))?
            }
            Err(e) => return Err(self.failed("its kinds cannot be listed", &e)),
        };
        let of = |kind: &&Kind| {
            kind.versions.iter().find_map(|version| {
                found.resolve_gvk(&GroupVersionKind::gvk(kind.group, version, kind.kind)).map(|(r, c)| (r, c.scope))
            })
        };
        Ok(kinds.iter().filter_map(of).collect())
    }

    /// The way to objects of a kind as somebody wrote it.
    pub(super) async fn resource(&self, api_version: &str, kind: &str) -> Result<(ApiResource, Scope)> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let wanted = GroupVersionKind::gvk(group, version, kind);
        let found = kube::discovery::pinned_kind(&self.client, &wanted).await;
        found.map(|(resource, capabilities)| (resource, capabilities.scope)).map_err(|e| {
            let unknown = match &e {
                kube::Error::Api(status) => status.code == 404,
                kube::Error::Discovery(_) => true,
                _ => false,
            };
            match unknown {
                true => Error::new(
                    format!("{self} serves no {kind} ({api_version})"),
                    "kubectl api-resources; meshctl install --crds brings those of meshes",
                ),
                false => self.failed(&format!("{kind} ({api_version})"), &e),
            }
        })
    }
}

async fn list(client: Client, namespace: &str, kind: &ApiResource, scope: Scope) -> kube::Result<Listed> {
    match pages(Api::all_with(client.clone(), kind), kind).await {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let all = match scope {
                Scope::Cluster => Vec::new(),
                Scope::Namespaced => pages(Api::namespaced_with(client, namespace, kind), kind).await?,
            };
            let which =
                if scope == Scope::Cluster { String::new() } else { format!(" of namespaces other than {namespace}") };
            let unseen =
                format!("{}{which} are not seen, and what they say does not count: you may not list them", kind.plural);
            Ok(Listed { objects: all, unseen: vec![unseen] })
        }
        found => Ok(Listed { objects: found?, unseen: Vec::new() }),
    }
}

async fn pages(api: Api<DynamicObject>, kind: &ApiResource) -> kube::Result<Vec<Arc<Object>>> {
    let mut out = Vec::new();
    let mut which = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&which).await?;
        out.extend(page.items.into_iter().map(|item| Arc::new(object(item, kind))));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => which = ListParams::default().limit(PAGE).continue_token(&token),
            None => return Ok(out),
        }
    }
}

/// It stands in no file, and so has no lines.
pub fn object(mut item: DynamicObject, kind: &ApiResource) -> Object {
    item.metadata.managed_fields = None;
    let json = whole(&item, kind);
    let meta = item.metadata;
    Object {
        file: "".into(),
        api_version: kind.api_version.clone(),
        kind: kind.kind.clone(),
        namespace: meta.namespace.unwrap_or_default(),
        name: meta.name.unwrap_or_default(),
        labels: meta.labels.unwrap_or_default(),
        annotations: meta.annotations.unwrap_or_default(),
        created: json["metadata"]["creationTimestamp"].as_str().map(str::to_string),
        node: value::from_json(&json),
    }
}

/// With what lists leave out, in the order in which people write it.
fn whole(item: &DynamicObject, kind: &ApiResource) -> Json {
    let mut out = serde_json::json!({
        "apiVersion": kind.api_version, "kind": kind.kind,
        "metadata": serde_json::to_value(&item.metadata).unwrap_or_default(),
    });
    if let (Json::Object(out), Json::Object(data)) = (&mut out, &item.data) {
        out.extend(data.clone().into_iter().filter(|(key, _)| key != "apiVersion" && key != "kind"));
    }
    out
}

/// What somebody wrote of an object, without what the server has added.
pub fn written(node: &Node) -> Node {
    let mut out = node.clone();
    value::remove(&mut out, "status");
    value::within(&mut out, "metadata", |meta| {
        SERVERS.iter().for_each(|name| value::remove(meta, name));
        let Some(mut annotations) = value::get(meta, "annotations").cloned() else { return };
        value::remove(&mut annotations, LAST_APPLIED);
        match &annotations.value {
            weft_policy::doc::Value::Map(items) if items.is_empty() => value::remove(meta, "annotations"),
            _ => value::put(meta, "annotations", annotations),
        }
    });
    out
}

/// The other way: what somebody wants, with what the server has of it.
pub fn complete(wanted: &Json, live: &Json) -> Json {
    let mut out = wanted.clone();
    if let Some(status) = live.get("status") {
        out["status"] = status.clone();
    }
    for name in SERVERS {
        if let Some(own) = live["metadata"].get(name) {
            out["metadata"][name] = own.clone();
        }
    }
    if let Some(last) = live["metadata"]["annotations"].get(LAST_APPLIED) {
        out["metadata"]["annotations"][LAST_APPLIED] = last.clone();
    }
    out
}
