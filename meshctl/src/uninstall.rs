//! `meshctl uninstall`: takes the mesh out again, webhooks first, so that nothing waits for what is gone.

use crate::error::{Error, Result};
use crate::install::server::{Kind, Reach, Server, shown};
use crate::install::{self, CRD, LABEL, NAMESPACE, OWN};
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Take the mesh out of a cluster
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl uninstall                 the CA stays, and what users wrote: an install goes on where it was\n  \
    meshctl uninstall --purge -y      leaves nothing: the CA, the kinds that install brought, all objects of them\n\n\
    Sidecars stay in pods that have one, and go on as they are: take the switches from namespaces and\n\
    restart what runs there first (docs/kubernetes.md).\n\
    Exit codes: 0 done, 1 failed, 2 wrong use.")]
pub struct Uninstall {
    /// Also the CA, the kinds that meshctl install brought with all their objects, and the roots in namespaces
    #[arg(long)]
    purge: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// How long to wait until all of it is gone
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    reach: Reach,
}

fn duration(text: &str) -> std::result::Result<Duration, String> {
    weft_policy::doc::parse_duration(text).ok_or_else(|| "a duration such as 90s or 5m".into())
}

const NAMESPACES: Kind = Kind("v1", "Namespace");
const SECRETS: Kind = Kind("v1", "Secret");
const CONFIG_MAPS: Kind = Kind("v1", "ConfigMap");
const PODS: Kind = Kind("v1", "Pod");
/// In the order in which they go: first who would be called, then who answers, then what they may.
const FIRST: [Kind; 4] = [
    Kind("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    Kind("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    Kind("policy/v1", "PodDisruptionBudget"),
    Kind("apps/v1", "Deployment"),
];
const THEN: [Kind; 9] = [
    Kind("v1", "Service"),
    CONFIG_MAPS,
    Kind("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    Kind("rbac.authorization.k8s.io/v1", "ClusterRole"),
    Kind("rbac.authorization.k8s.io/v1", "RoleBinding"),
    Kind("rbac.authorization.k8s.io/v1", "Role"),
    Kind("v1", "ServiceAccount"),
    Kind("coordination.k8s.io/v1", "Lease"),
    SECRETS,
];
const ROOT: &str = "weft-root";
/// Without it, everybody's identity would be another one after the next install.
const CA: &str = "weft-ca";

impl Uninstall {
    pub fn run(self) -> Result<ExitCode> {
        install::block_on(async {
            let server = self.reach.server().await?;
            let objects = self.objects(&server).await?;
            if objects.is_empty() {
                println!("There is nothing of the mesh in this cluster.");
                return Ok(ExitCode::SUCCESS);
            }
            println!("These go:");
            let mut users = 0;
            for object in &objects {
                match object["kind"] == CRD.1 {
                    true => {
                        let count = instances(&server, object).await?;
                        users += count;
                        println!("  {} with {count} objects", shown(object));
                    }
                    false => println!("  {}", shown(object)),
                }
            }
            let question = match users {
                0 => "Remove it?".to_string(),
                n => format!("Remove it, and {n} objects that users wrote?"),
            };
            if !self.yes && !install::agreed(&question)? {
                return Ok(ExitCode::from(1));
            }
            let end = Instant::now() + self.timeout;
            // Programs that still run would make again what they keep.
            let (first, then): (Vec<Value>, Vec<Value>) =
                objects.into_iter().partition(|o| FIRST.iter().any(|kind| o["kind"] == kind.1));
            remove(&server, first, end).await?;
            gone(&server, server.list(PODS, OWN, "").await?, end).await?;
            remove(&server, then, end).await?;
            match self.purge {
                true => println!("\nNothing of the mesh is left but sidecars in pods that run."),
                false => println!("\nThe CA and the kinds stay: meshctl uninstall --purge removes them too."),
            }
            Ok(ExitCode::SUCCESS)
        })
    }

    async fn objects(&self, server: &Server) -> Result<Vec<Value>> {
        let mut out: Vec<Value> = Vec::new();
        for kind in FIRST.into_iter().chain(THEN) {
            out.extend(server.list(kind, OWN, "").await?);
        }
        // What the programs made themselves is known by its name, whatever its labels.
        let made = [(SECRETS, CA), (SECRETS, "weft-injector-webhook"), (SECRETS, "weft-control-webhook")];
        let made = made
            .into_iter()
            .chain([(Kind("coordination.k8s.io/v1", "Lease"), "weft-control"), (CONFIG_MAPS, "weft-replicas")]);
        for (kind, name) in made {
            if let Some(mut object) = server.get(kind, Some(NAMESPACE), name).await? {
                (object["apiVersion"], object["kind"]) = (kind.0.into(), kind.1.into());
                add(&mut out, object);
            }
        }
        let roots = server.list(CONFIG_MAPS, "", &format!("metadata.name={ROOT}")).await?;
        roots.into_iter().filter(|o| o["data"]["root.pem"].is_string()).for_each(|o| add(&mut out, o));
        if self.purge {
            out.extend(server.list(CRD, OWN, "").await?);
            // Last, with all that is still in it.
            out.extend(
                server.get(NAMESPACES, None, NAMESPACE).await?.filter(|n| n["metadata"]["labels"][LABEL] == "weft"),
            );
        } else {
            out.retain(|o| !(o["kind"] == SECRETS.1 && o["metadata"]["name"] == CA) && o["metadata"]["name"] != ROOT);
        }
        Ok(out)
    }
}

fn add(out: &mut Vec<Value>, object: Value) {
    let place = |o: &Value| json!([o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]]);
    if !out.iter().any(|o| place(o) == place(&object)) {
        out.push(object);
    }
}

/// How many objects of a kind there are, which go with it.
async fn instances(server: &Server, crd: &Value) -> Result<usize> {
    let versions = crd["spec"]["versions"].as_array();
    let stored = versions.into_iter().flatten().find(|v| v["served"] == true).and_then(|v| v["name"].as_str());
    let (Some(version), Some(group)) = (stored, crd["spec"]["group"].as_str()) else { return Ok(0) };
    server.count(group, version, crd["spec"]["names"]["kind"].as_str().unwrap_or_default()).await
}

async fn remove(server: &Server, objects: Vec<Value>, end: Instant) -> Result<()> {
    let mut left = Vec::new();
    for object in objects {
        if server.delete(&object).await? {
            install::done(&format!("{} is removed", shown(&object)));
            left.push(object);
        }
    }
    gone(server, left, end).await
}

/// Some things take a while: a namespace waits for what is in it.
async fn gone(server: &Server, mut left: Vec<Value>, end: Instant) -> Result<()> {
    while let Some(object) = left.last() {
        match server.get_same(object).await? {
            None => drop(left.pop()),
            Some(_) if Instant::now() > end => {
                let hint = "kubectl get it -o yaml: finalizers say who it waits for";
                return Err(Error::new(format!("{} is not gone yet", shown(object)), hint));
            }
            Some(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
    Ok(())
}
