//! What is asked of an API server here: objects as JSON, found by kind and name.

use crate::error::{Error, Result};
use clap::Args;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, ValidationDirective};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use weft_kubernetes::client::{Access, connect};

/// Who has set what: the API server keeps it for each field.
const MANAGER: &str = "meshctl";
/// Of one question; a server that takes longer is as good as away.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args, Clone, Debug, Default)]
pub struct Reach {
    /// Which cluster; without it, the one that kubectl would ask
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig other than its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

pub struct Server {
    client: Client,
}

/// What there is of a kind, or where one object is: `apiVersion`, `kind`, namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub &'static str, pub &'static str);

impl Reach {
    pub async fn server(&self) -> Result<Server> {
        let access = Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() };
        let client =
            connect(&access).await.map_err(|e| Error::new(e.to_string(), "--kubeconfig FILE, or KUBECONFIG"))?;
        Ok(Server { client })
    }
}

impl Server {
    /// Major and minor.
    pub async fn version(&self) -> Result<(u32, u32)> {
        let info = within(self.client.apiserver_version()).await.map_err(|e| e.during("the API server"))?;
        let number = |text: &str| text.trim_end_matches('+').parse().unwrap_or(0);
        Ok((number(&info.major), number(&info.minor)))
    }

    /// As it is then; only tried when `dry`.
    pub async fn apply(&self, object: &Value, dry: bool) -> Result<Value> {
        let mut params = PatchParams::apply(MANAGER).force();
        params.dry_run = dry;
        params.field_validation = Some(ValidationDirective::Strict);
        let api = self.api(text(object, "apiVersion"), text(object, "kind"), object["metadata"]["namespace"].as_str());
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let done = within(api.patch(name, &params, &Patch::Apply(object))).await;
        done.map(json).map_err(|e| e.during(&shown(object)))
    }

    pub async fn get(&self, kind: Kind, namespace: Option<&str>, name: &str) -> Result<Option<Value>> {
        let found = within(self.api(kind.0, kind.1, namespace).get_opt(name)).await;
        found.map(|o| o.map(json)).map_err(|e| e.during(&format!("{} {name}", kind.1)))
    }

    pub async fn get_same(&self, object: &Value) -> Result<Option<Value>> {
        let api = self.api(text(object, "apiVersion"), text(object, "kind"), object["metadata"]["namespace"].as_str());
        let found = within(api.get_opt(object["metadata"]["name"].as_str().unwrap_or_default())).await;
        found.map(|o| o.map(json)).map_err(|e| e.during(&shown(object)))
    }

    /// Of all namespaces, page by page; nothing where the server has no such kind.
    pub async fn list(&self, kind: Kind, labels: &str, fields: &str) -> Result<Vec<Value>> {
        let api = self.api(kind.0, kind.1, None);
        let (mut out, mut params) = (Vec::new(), ListParams::default().limit(500));
        params.label_selector = (!labels.is_empty()).then(|| labels.to_string());
        params.field_selector = (!fields.is_empty()).then(|| fields.to_string());
        loop {
            let page = match within(api.list(&params)).await {
                Err(Trouble::Kube(kube::Error::Api(status))) if status.code == 404 => return Ok(out),
                other => other.map_err(|e| e.during(&format!("every {}", kind.1)))?,
            };
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            // A list's elements do not say what they are.
            out.extend(page.items.into_iter().map(|o| {
                let mut o = json(o);
                (o["apiVersion"], o["kind"]) = (kind.0.into(), kind.1.into());
                o
            }));
            if params.continue_token.is_none() {
                return Ok(out);
            }
        }
    }

    /// How many there are of a kind of somebody's.
    pub async fn count(&self, group: &str, version: &str, kind: &str) -> Result<usize> {
        let page =
            within(self.api(&format!("{group}/{version}"), kind, None).list(&ListParams::default().limit(500))).await;
        let page = page.map_err(|e| e.during(&format!("every {kind}")))?;
        Ok(page.items.len() + usize::try_from(page.metadata.remaining_item_count.unwrap_or(0)).unwrap_or(0))
    }

    /// Whether there was one.
    pub async fn delete(&self, object: &Value) -> Result<bool> {
        let api = self.api(text(object, "apiVersion"), text(object, "kind"), object["metadata"]["namespace"].as_str());
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        match within(api.delete(name, &DeleteParams::background())).await {
            Ok(_) => Ok(true),
            Err(Trouble::Kube(kube::Error::Api(status))) if status.code == 404 => Ok(false),
            Err(e) => Err(e.during(&shown(object))),
        }
    }

    /// What the server answers to an object that is a question: a SelfSubjectAccessReview, say.
    pub async fn ask(&self, question: &Value) -> Result<Value> {
        let api = self.api(text(question, "apiVersion"), text(question, "kind"), None);
        let data = serde_json::from_value(question.clone()).map_err(|e| Error::from(e.to_string()))?;
        within(api.create(&Default::default(), &data)).await.map(json).map_err(|e| e.during(text(question, "kind")))
    }

    fn api(&self, version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }
}

enum Trouble {
    Kube(kube::Error),
    Late,
}

async fn within<T>(future: impl Future<Output = kube::Result<T>>) -> std::result::Result<T, Trouble> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done.map_err(Trouble::Kube),
        Err(_) => Err(Trouble::Late),
    }
}

impl Trouble {
    fn during(self, what: &str) -> Error {
        match self {
            Self::Late => Error::new(
                format!("{what}: no answer within {} s", PATIENCE.as_secs()),
                "kubectl cluster-info says whether the API server is there",
            ),
            Self::Kube(kube::Error::Api(status)) => {
                let hint = match status.code {
                    401 => "kubectl auth whoami says who the kubeconfig makes you",
                    403 => "an install wants the rights of cluster-admin; meshctl check --pre says which are missing",
                    _ => "",
                };
                Error::new(format!("{what}: {}", status.message), hint)
            }
            Self::Kube(error) => {
                // The outermost says only that something failed.
                let mut deepest: &dyn std::error::Error = &error;
                while let Some(source) = deepest.source() {
                    deepest = source;
                }
                let hint = "kubectl cluster-info says whether the API server is there";
                Error::new(format!("{what}: the API server is not reached: {deepest}"), hint)
            }
        }
    }
}

fn json(object: DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn text<'o>(object: &'o Value, field: &str) -> &'o str {
    object[field].as_str().unwrap_or_default()
}

/// `Deployment weft-system/weft-control`.
pub fn shown(object: &Value) -> String {
    let meta = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    match meta("namespace") {
        "" => format!("{} {}", text(object, "kind"), meta("name")),
        namespace => format!("{} {namespace}/{}", text(object, "kind"), meta("name")),
    }
}
