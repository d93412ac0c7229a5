//! `meshctl install` and `meshctl upgrade`: the chart into a cluster.
//!
//! Applied server-side, so what others have set stays theirs, in an order in which nothing is asked before it can answer. CRDs
//! that are there are left as they are: they may be those of Istio, Linkerd or Gateway API themselves.

pub mod chart;
pub mod server;
mod template;
pub mod values;

use crate::check::mesh;
use crate::edit::{value, write};
use crate::error::{During, Error, Result};
use crate::objects::diff;
use crate::terminal::{Tone, coloured, paint};
use clap::{Args, ValueEnum};
use serde_json::Value;
use server::{Kind, Reach, Server, shown};
use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub const NAMESPACE: &str = "weft-system";
/// Of everything that is ours, and of nothing else.
pub const LABEL: &str = "app.kubernetes.io/part-of";
pub const OWN: &str = "app.kubernetes.io/part-of=weft";
pub const CRD: Kind = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition");
pub const DEPLOYMENT: Kind = Kind("apps/v1", "Deployment");

/// Install the mesh into a cluster, or print what would be installed
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl install\n  \
    meshctl install --profile ha --set trustDomain=example.org -y\n  \
    meshctl install --crds -y && meshctl install -y       in two steps, for two people\n  \
    meshctl install --dry-run > weft.yaml                 YAML; so does a pipe without -y\n  \
    meshctl install --show-values                         what --set and --values may say\n\n\
    CRDs that are there already stay as they are. What is there of an earlier install is changed;\n\
    meshctl upgrade shows how before it does that.\n\
    Exit codes: 0 done, 1 failed, 2 wrong use. docs/kubernetes.md has more.")]
pub struct Install {
    #[command(flatten)]
    options: Options,
    /// Print YAML, and change nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Only the definitions of kinds
    #[arg(long)]
    crds: bool,
    /// Print the values that this would install with, and stop
    #[arg(long)]
    show_values: bool,
}

/// Bring an installed mesh to this version and these values; its CA and its kinds stay
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl upgrade                        shows what changes, and asks\n  \
    meshctl upgrade --values mesh.yaml -y\n  \
    meshctl upgrade --dry-run              only shows\n\n\
    Values are those of the flags, as for install: what an earlier install was told is not remembered.\n\
    Sidecars that run keep their version until their pods are made anew: meshctl check --proxy names them.\n\
    Exit codes: 0 done, 1 failed, 2 wrong use.")]
pub struct Upgrade {
    #[command(flatten)]
    options: Options,
    /// Show what would change, and change nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

#[derive(Args)]
struct Options {
    /// A set of values to begin with
    #[arg(long, value_name = "PROFILE", default_value = "default")]
    profile: Profile,
    /// Also what users of another mesh are used to
    #[arg(long, value_name = "MESH")]
    compat: Vec<Compat>,
    /// Values in a file, over those of the profile; may be given several times
    #[arg(long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// One value, over all others; may be given several times
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Do not wait until everything runs
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for it
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Profile {
    Default,
    Demo,
    Minimal,
    Ha,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Compat {
    Istio,
    Linkerd,
}

fn duration(text: &str) -> std::result::Result<Duration, String> {
    weft_policy::doc::parse_duration(text).ok_or_else(|| "a duration such as 90s or 5m".into())
}

impl Options {
    fn values(&self) -> Result<Value> {
        let mut out = values::defaults()?;
        let (profile, compat) = (word(&self.profile), self.compat.iter().map(word));
        let named = |files: &'static [(&str, &str)], name: &str| files.iter().find(|(n, _)| *n == name);
        let files = named(chart::PROFILES, &profile).into_iter();
        for (name, text) in files.chain(compat.filter_map(|c| named(chart::COMPAT, &c))) {
            values::overlay(&mut out, name, text)?;
        }
        for file in &self.values {
            let text = std::fs::read_to_string(file).during(file.display())?;
            values::overlay(&mut out, &file.display().to_string(), &text)?;
        }
        self.set.iter().try_for_each(|set| values::set(&mut out, set))?;
        values::check(&out)?;
        Ok(out)
    }

    fn objects(&self) -> Result<Vec<Value>> {
        let objects = chart::objects(&self.values()?)?;
        values::check_settings(&objects)?;
        Ok(objects)
    }
}

fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
}

impl Install {
    pub fn run(self) -> Result<ExitCode> {
        if self.show_values {
            print(&[self.options.values()?]);
            return Ok(ExitCode::SUCCESS);
        }
        let objects = if self.crds { Vec::new() } else { self.options.objects()? };
        if self.dry_run || (!self.options.yes && !std::io::stdout().is_terminal()) {
            // Two steps are for who applies them with another tool: an object before its kind is there would be refused.
            let crds = if self.crds { chart::crds()? } else { Vec::new() };
            print(&crds.into_iter().chain(objects).collect::<Vec<_>>());
            return Ok(ExitCode::SUCCESS);
        }
        block_on(async {
            let server = self.options.reach.server().await?;
            let plan = Plan::of(&server, objects).await?;
            plan.tell();
            if plan.is_nothing() {
                println!("There is nothing to do.");
                return Ok(ExitCode::SUCCESS);
            }
            if !self.options.yes && !agreed("Install it?")? {
                return Ok(ExitCode::from(1));
            }
            plan.carry_out(&server, &self.options).await?;
            match self.crds {
                true => println!("\nThe kinds are there. Next: meshctl install"),
                false => println!("{}", next()),
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Upgrade {
    pub fn run(self) -> Result<ExitCode> {
        let objects = self.options.objects()?;
        block_on(async {
            let server = self.options.reach.server().await?;
            if server.get(DEPLOYMENT, Some(NAMESPACE), "weft-control").await?.is_none() {
                return Err(Error::new(format!("no mesh is installed in {NAMESPACE}"), "meshctl install"));
            }
            let plan = Plan::of(&server, objects).await?;
            let mut changes = 0;
            for object in &plan.objects {
                let (before, after) = (server.get_same(object).await?, server.apply(object, true).await?);
                let text = |object: &Value| yaml(&plain(object.clone()));
                let change = diff::unified(
                    &shown(object),
                    before.as_ref().map(text).as_deref(),
                    Some(&text(&after)),
                    coloured(),
                );
                changes += usize::from(!change.is_empty());
                print!("{change}");
            }
            let stale = plan.stale(&server).await?;
            stale.iter().for_each(|object| println!("{} goes", shown(object)));
            plan.crds.iter().for_each(|crd| println!("{} comes", shown(crd)));
            if changes + stale.len() + plan.crds.len() == 0 {
                println!("Nothing changes.");
                return Ok(ExitCode::SUCCESS);
            }
            if self.dry_run {
                return Ok(ExitCode::SUCCESS);
            }
            if !self.options.yes && !agreed("Change it?")? {
                return Ok(ExitCode::from(1));
            }
            plan.carry_out(&server, &self.options).await?;
            for object in &stale {
                server.delete(object).await?;
                done(&format!("{} is gone", shown(object)));
            }
            println!("\nNext: meshctl check --proxy     which pods still have the sidecar of before");
            Ok(ExitCode::SUCCESS)
        })
    }
}

struct Plan {
    /// Those that are missing.
    crds: Vec<Value>,
    /// Those that somebody else has brought.
    others: Vec<String>,
    objects: Vec<Value>,
    there: bool,
}

impl Plan {
    async fn of(server: &Server, objects: Vec<Value>) -> Result<Self> {
        let known = server.list(CRD, "", "").await?;
        let by_name: BTreeMap<&str, &Value> =
            known.iter().filter_map(|c| Some((c["metadata"]["name"].as_str()?, c))).collect();
        let (mut crds, mut others) = (Vec::new(), Vec::new());
        for mut crd in chart::crds()? {
            match crd["metadata"]["name"].as_str().and_then(|name| by_name.get(name)) {
                Some(there) if there["metadata"]["labels"][LABEL] != "weft" => {
                    others.extend(there["metadata"]["name"].as_str().map(ToString::to_string));
                }
                Some(_) => {}
                None => {
                    // So that it can be told apart from what others bring.
                    crd["metadata"]["labels"][LABEL] = "weft".into();
                    crds.push(crd);
                }
            }
        }
        let there = server.get(DEPLOYMENT, Some(NAMESPACE), "weft-control").await?.is_some();
        Ok(Self { crds, others, objects, there })
    }

    fn is_nothing(&self) -> bool {
        self.crds.is_empty() && self.objects.is_empty()
    }

    fn tell(&self) {
        if self.there && !self.objects.is_empty() {
            println!("A mesh is installed in {NAMESPACE}; it is brought to these values (meshctl upgrade shows how).");
        }
        if !self.crds.is_empty() {
            println!("{} kinds are defined:", self.crds.len());
            let of = |crd: &Value| {
                let names = &crd["spec"]["names"];
                format!(
                    "{} ({})",
                    names["kind"].as_str().unwrap_or_default(),
                    crd["spec"]["group"].as_str().unwrap_or_default()
                )
            };
            self.crds.iter().for_each(|crd| println!("  {}", of(crd)));
        }
        if !self.others.is_empty() {
            println!("{} kinds are there already, and stay as they are.", self.others.len());
        }
        if !self.objects.is_empty() {
            println!("In the cluster:");
            self.objects.iter().for_each(|object| println!("  {}", shown(object)));
        }
    }

    async fn carry_out(&self, server: &Server, options: &Options) -> Result<()> {
        let end = Instant::now() + options.timeout;
        for crd in &self.crds {
            server.apply(crd, false).await?;
        }
        for crd in &self.crds {
            wait(end, &shown(crd), async || {
                let now = server.get_same(crd).await?.unwrap_or_default();
                Ok(if is_so(&now, "Established") { Ok(()) } else { Err("is not established".into()) })
            })
            .await?;
        }
        if !self.crds.is_empty() {
            done(&format!("{} kinds are defined", self.crds.len()));
        }
        for object in &self.objects {
            server.apply(object, false).await?;
            done(&shown(object));
        }
        if options.no_wait {
            return Ok(());
        }
        for object in self.objects.iter().filter(|o| o["kind"] == "Deployment") {
            let begun = Instant::now();
            wait(end, &shown(object), async || {
                let now = server.get_same(object).await?.unwrap_or_default();
                Ok(rolled_out(&now))
            })
            .await?;
            done(&format!("{} is ready ({:.0} s)", shown(object), begun.elapsed().as_secs_f32()));
        }
        // Whoever labels a namespace next must not find the webhook on its way still: its pods would come without a sidecar.
        if self.objects.iter().any(|o| o["kind"] == "MutatingWebhookConfiguration") {
            wait(end, "sidecars for pods:", async || Ok(mesh::tried(server).await)).await?;
            done("pods that ask for a sidecar get one");
        }
        Ok(())
    }

    /// What an install with other values left, and this one has not: admission, or a second replica's budget.
    async fn stale(&self, server: &Server) -> Result<Vec<Value>> {
        let mut out = Vec::new();
        for kind in [
            Kind("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
            Kind("policy/v1", "PodDisruptionBudget"),
        ] {
            for object in server.list(kind, OWN, "").await? {
                let same =
                    |o: &&Value| o["kind"] == object["kind"] && o["metadata"]["name"] == object["metadata"]["name"];
                if self.objects.iter().find(same).is_none() {
                    out.push(object);
                }
            }
        }
        Ok(out)
    }
}

/// Until `ready` has no more to complain of, or it is too late.
async fn wait(
    end: Instant,
    what: &str,
    mut ready: impl AsyncFnMut() -> Result<std::result::Result<(), String>>,
) -> Result<()> {
    let live = std::io::stdout().is_terminal();
    loop {
        let why = match ready().await? {
            Ok(()) => {
                if live {
                    print!("\r\x1b[K");
                }
                return Ok(());
            }
            Err(why) => why,
        };
        if Instant::now() >= end {
            if live {
                println!();
            }
            let hint = format!("kubectl -n {NAMESPACE} get pods,events; --timeout 10m waits longer");
            return Err(Error::new(format!("{what} {why}"), hint));
        }
        if live {
            print!("\r\x1b[K  {what} {why}");
            std::io::stdout().flush().during("the terminal")?;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

pub fn is_so(object: &Value, condition: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == condition && c["status"] == "True")
}

/// Every pod that is wanted is ready, and of the newest template.
pub fn rolled_out(deployment: &Value) -> std::result::Result<(), String> {
    let number = |path: &str| deployment.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let wanted = number("/spec/replicas");
    if number("/status/observedGeneration") < number("/metadata/generation") {
        return Err("is not seen yet".into());
    }
    let ready = number("/status/updatedReplicas").min(number("/status/availableReplicas"));
    match ready >= wanted && number("/status/replicas") == wanted {
        true => Ok(()),
        false => Err(format!("has {ready} of {wanted} pods ready")),
    }
}

/// Without what only the API server has to say of it.
fn plain(mut object: Value) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.remove("status");
    }
    if let Some(meta) = object["metadata"].as_object_mut() {
        for field in ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"] {
            meta.remove(field);
        }
    }
    object
}

fn yaml(object: &Value) -> String {
    write::document(&value::from_json(object), &write::Hand::default())
}

fn print(objects: &[Value]) {
    let text: Vec<String> = objects.iter().map(yaml).collect();
    // A reader that went away has seen enough.
    let _ = std::io::stdout().lock().write_all(text.join("---\n").as_bytes());
}

pub fn done(what: &str) {
    println!("{} {what}", paint("√", Tone::Good, coloured()));
}

/// What a person answers; nobody is no.
pub fn agreed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new("nobody can be asked here", "-y if it is meant"));
    }
    print!("{question} [y/N] ");
    std::io::stdout().flush().during("the terminal")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).during("the answer")?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().during("the runtime")?.block_on(future)
}

fn next() -> String {
    "\nNext:\n  \
     meshctl check                                              whether all of it works\n  \
     kubectl label namespace default istio-injection=enabled    sidecars for a namespace's new pods\n  \
     kubectl rollout restart deployment -n default              and for those it has"
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn when_a_deployment_is_there() {
        let now = |replicas: i64, updated: i64, available: i64, seen: i64| {
            rolled_out(&json!({
                "metadata": {"generation": 2}, "spec": {"replicas": 2},
                "status": {"observedGeneration": seen, "replicas": replicas, "updatedReplicas": updated,
                    "availableReplicas": available}
            }))
        };
        assert!(now(2, 2, 2, 2).is_ok());
        for not in [now(3, 2, 3, 2), now(2, 1, 2, 2), now(2, 2, 1, 2), now(2, 2, 2, 1)] {
            assert!(not.is_err());
        }
    }

    #[test]
    fn what_is_compared() {
        let object = json!({"metadata": {"name": "a", "uid": "x", "managedFields": []}, "status": {}, "spec": 1});
        assert_eq!(plain(object), json!({"metadata": {"name": "a"}, "spec": 1}));
    }
}
