//! Changes of objects by the API server, which has the last word: its admission may refuse them.

use super::Cluster;
use super::objects::{complete, object};
use crate::error::{Error, Result};
use crate::runtime::wait;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::discovery::Scope;
use serde_json::Value as Json;
use weft_dialects::Object;

/// Who has written a field, for those who ask.
const MANAGER: &str = "meshctl";

pub enum Write<'j> {
    Create(&'j Json),
    /// In the place of this one, unless somebody else was faster.
    Replace(&'j Json, &'j Json),
    /// By server-side apply.
    Apply(&'j Json),
    Delete(&'j Json),
}

impl Write<'_> {
    fn about(&self) -> &Json {
        match self {
            Self::Create(json) | Self::Replace(json, _) | Self::Apply(json) | Self::Delete(json) => json,
        }
    }
}

impl Cluster {
    /// `dry`: as if, and nothing stays.
    pub fn write(&self, write: &Write<'_>, dry: bool) -> Result<()> {
        let text = |field: &str| write.about()["metadata"][field].as_str().unwrap_or_default();
        let name = text("name");
        wait(async {
            let (api, _) = self.api(write.about()).await?;
            let post = PostParams { dry_run: dry, field_manager: Some(MANAGER.into()) };
            let done = match write {
                Write::Create(wanted) => match typed(wanted) {
                    Ok(wanted) => api.create(&post, &wanted).await.map(drop),
                    Err(e) => return Err(e),
                },
                Write::Replace(wanted, live) => match typed(&complete(wanted, live)) {
                    Ok(wanted) => api.replace(name, &post, &wanted).await.map(drop),
                    Err(e) => return Err(e),
                },
                Write::Apply(given) => api.patch(name, &apply(dry), &Patch::Apply(given)).await.map(drop),
                Write::Delete(live) => {
                    let uid = live["metadata"]["uid"].as_str().map(str::to_string);
                    let same = Preconditions { uid, ..Preconditions::default() };
                    let how = DeleteParams { dry_run: dry, ..DeleteParams::background() }.preconditions(same);
                    api.delete(name, &how).await.map(drop)
                }
            };
            done.map_err(|e| self.failed(&said(write.about()), &e))
        })
    }

    /// What is there of an object, and what would be there after a server-side apply of it: the server itself says so. It is
    /// completed with the namespace, if it has to have one.
    pub fn try_apply(
        &self,
        given: &mut Json,
        namespace: &str,
        is_new: impl Fn(&str) -> bool,
    ) -> Result<(Option<Object>, Object)> {
        wait(async {
            let (api, (resource, scope)) = self.api_in(given, namespace).await?;
            let name = given["metadata"]["name"].as_str().unwrap_or_default().to_string();
            let failed = |e: kube::Error| self.failed(&said(given), &e);
            let live = api.get_opt(&name).await.map_err(failed)?.map(|live| object(live, &resource));
            let after = match api.patch(&name, &apply(true), &Patch::Apply(&*given)).await {
                Ok(after) => object(after, &resource),
                // Its namespace comes with the same command.
                Err(kube::Error::Api(status))
                    if status.code == 404 && scope == Scope::Namespaced && is_new(namespace_of(given)) =>
                {
                    object(typed(given)?, &resource)
                }
                Err(e) => return Err(failed(e)),
            };
            Ok((live, after))
        })
    }

    async fn api_in(&self, given: &mut Json, namespace: &str) -> Result<(Api<DynamicObject>, (ApiResource, Scope))> {
        let word = |field: &str| given[field].as_str().unwrap_or_default();
        let (resource, scope) = self.resource(word("apiVersion"), word("kind")).await?;
        match scope {
            Scope::Cluster => drop(given["metadata"].as_object_mut().map(|meta| meta.remove("namespace"))),
            Scope::Namespaced if namespace_of(given).is_empty() => given["metadata"]["namespace"] = namespace.into(),
            Scope::Namespaced => {}
        }
        let api = match scope {
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), namespace_of(given), &resource),
        };
        Ok((api, (resource, scope)))
    }

    async fn api(&self, about: &Json) -> Result<(Api<DynamicObject>, (ApiResource, Scope))> {
        self.api_in(&mut about.clone(), &self.namespace).await
    }
}

/// Somebody who applies an object means it, whoever wrote the fields before.
fn apply(dry: bool) -> PatchParams {
    let how = PatchParams::apply(MANAGER).force().validation_strict();
    if dry { how.dry_run() } else { how }
}

fn namespace_of(json: &Json) -> &str {
    json["metadata"]["namespace"].as_str().unwrap_or_default()
}

fn typed(json: &Json) -> Result<DynamicObject> {
    serde_json::from_value(json.clone()).map_err(|e| Error::from(format!("{}: {e}", said(json))))
}

/// `virtualservice/web.shop`
fn said(json: &Json) -> String {
    let name = json["metadata"]["name"].as_str().unwrap_or_default();
    let kind = json["kind"].as_str().unwrap_or_default().to_ascii_lowercase();
    match namespace_of(json) {
        "" => format!("{kind}/{name}"),
        namespace => format!("{kind}/{name}.{namespace}"),
    }
}
