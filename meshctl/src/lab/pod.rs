//! One pod's life: its network, its sidecar, its containers, and its end.

use super::control::Control;
use super::environment::{self, Facts};
use super::image::Program;
use super::isolation::Isolation;
use super::loopback::{self, Front};
use super::net::{self, Excluded, Netns, SIDECAR};
use super::probe::{Ready, Resolved};
use super::process::{Inside, Recorded, kill};
use super::record::Lab;
use super::unit::{State, Stop, Unit, hurrying, last_line, stopping, supervise};
use super::workload::{Restart, Template, Workload};
use super::{dns, service};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use weft_dialects::object::Objects;

/// Everything that is decided before a pod starts.
#[derive(Debug)]
pub struct Plan {
    pub workload: Workload,
    /// Tells a template from the one before it.
    pub version: String,
    pub name: String,
    pub uid: String,
    /// Its place in the network.
    pub n: u16,
    pub address: Ipv4Addr,
    pub host_address: Ipv4Addr,
    /// Where its programs listen in the place of their ports, where pods share a network.
    pub ports: Vec<(u16, u16)>,
    pub meshed: bool,
    pub programs: Vec<Program>,
    pub environment: Vec<Vec<(String, String)>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    pub phase: Phase,
    pub ready: bool,
    pub sidecar_ready: bool,
    pub containers_ready: usize,
    pub restarts: u32,
    pub note: String,
    pub processes: Vec<(String, Recorded)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    CrashLoop,
    Completed,
    Failed,
    Gone,
}

impl Phase {
    /// As `kubectl get pods` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::CrashLoop => "CrashLoopBackOff",
            Self::Completed => "Completed",
            Self::Failed => "Error",
            Self::Gone => "Gone",
        }
    }

    fn in_kubernetes(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running | Self::CrashLoop => "Running",
            Self::Completed | Self::Gone => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// What all pods of a lab share.
#[derive(Debug)]
pub struct Context {
    pub lab: Lab,
    pub hub: Netns,
    /// None in a lab without a mesh.
    pub control: Option<Control>,
    pub view: watch::Receiver<Arc<service::View>>,
    pub reports: mpsc::UnboundedSender<(String, Status)>,
}

impl Plan {
    /// `file` names it in folders: namespaces and names have no dots in common, so none is like another.
    pub fn file(&self) -> String {
        format!("{}.{}", self.workload.namespace, self.name)
    }

    pub fn template(&self) -> &Template {
        &self.workload.template
    }

    /// Looks up what the containers' environments refer to.
    pub fn environment(&mut self, objects: &Objects) -> Result<(), String> {
        let (ip, host_ip) = (self.address.to_string(), self.host_address.to_string());
        let template = &self.workload.template;
        let facts = Facts {
            name: &self.name,
            namespace: &self.workload.namespace,
            uid: &self.uid,
            ip,
            host_ip,
            service_account: &template.service_account,
            labels: &template.labels,
            annotations: &template.annotations,
        };
        let all = template.containers.iter().map(|c| environment::variables(c, objects, &facts));
        self.environment = all.collect::<Result<_, _>>()?;
        Ok(())
    }

    pub fn as_service_sees_it(&self, ready: bool) -> service::Pod {
        let template = self.template();
        let ports = template.containers.iter().flat_map(|c| &c.ports);
        service::Pod {
            namespace: self.workload.namespace.clone(),
            name: self.name.clone(),
            subdomain: template.subdomain.clone(),
            address: self.address,
            labels: template.labels.clone(),
            ports: ports.filter_map(|p| Some((p.name.clone()?, p.number))).collect(),
            ready,
        }
    }

    /// The Pod object that the control plane reads.
    pub fn object(&self, status: &Status, stopping: bool) -> Value {
        let template = self.template();
        let mut annotations = template.annotations.clone();
        if self.meshed {
            annotations.insert("weft.dev/sidecar".into(), "true".into());
        }
        if !self.ports.is_empty() || self.address.is_loopback() {
            let apps = self.ports.iter().map(|(port, real)| format!("{port}={}:{real}", Ipv4Addr::LOCALHOST));
            annotations.insert("weft.dev/listens".into(), apps.collect::<Vec<_>>().join(","));
        }
        let containers: Vec<Value> = template
            .containers
            .iter()
            .map(|c| {
                let ports = c.ports.iter().map(|p| {
                    let mut port = json!({"containerPort": p.number, "protocol": if p.udp { "UDP" } else { "TCP" }});
                    if let Some(name) = &p.name {
                        port["name"] = name.as_str().into();
                    }
                    port
                });
                json!({"name": c.name, "image": c.image, "ports": ports.collect::<Vec<_>>()})
            })
            .collect();
        let ready = status.ready && !stopping;
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": self.workload.namespace,
                "uid": self.uid,
                "labels": template.labels,
                "annotations": annotations,
                "ownerReferences": [{"kind": self.workload.kind.name(), "name": self.workload.name}],
            },
            "spec": {
                "serviceAccountName": template.service_account,
                "nodeName": "lab",
                "subdomain": template.subdomain,
                "containers": containers,
            },
            "status": {
                "phase": status.phase.in_kubernetes(),
                "podIP": self.address.to_string(),
                "podIPs": [{"ip": self.address.to_string()}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        });
        // One that is going takes no new work, but its sidecar needs its configuration to the end.
        if stopping {
            object["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
        }
        object
    }
}

/// A unit and what it is at.
struct Running {
    name: String,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

fn begin(unit: Unit, changed: &Arc<Notify>, stop: &watch::Receiver<Stop>) -> Running {
    let (name, (sender, state)) = (unit.name.clone(), watch::channel(State::default()));
    let (changed, stop) = (changed.clone(), stop.clone());
    let task = tokio::spawn(async move {
        supervise(unit, sender, changed.clone(), stop).await;
        changed.notify_one();
    });
    Running { name, state, task }
}

impl Running {
    fn has_ended(&self) -> bool {
        // Whoever supervised it has let go of the other end.
        self.state.has_changed().is_err()
    }
}

/// Runs a pod from its network to its end. It reports whenever something about it changes, and last that it is gone.
pub async fn run(plan: Arc<Plan>, context: Arc<Context>, stop: watch::Receiver<Stop>) {
    let netns = Netns::pod(&context.lab, plan.n);
    let report = |status: Status| {
        let _ = context.reports.send((plan.file(), status));
    };
    if let Err(error) = live(&plan, &context, &netns, stop.clone(), &report).await {
        report(Status { phase: Phase::Failed, note: error, ..Status::default() });
        stopping(&mut stop.clone()).await;
    }
    netns.processes().into_iter().for_each(kill);
    netns.remove().await;
    let _ = std::fs::remove_dir_all(context.lab.folder.join("etc").join(plan.file()));
    let _ = std::fs::remove_dir_all(context.lab.folder.join("state").join(plan.file()));
    report(Status { phase: Phase::Gone, ..Status::default() });
}

async fn live(
    plan: &Plan,
    context: &Context,
    netns: &Netns,
    mut stop: watch::Receiver<Stop>,
    report: &impl Fn(Status),
) -> Result<(), String> {
    let namespace = &plan.workload.namespace;
    let shared = context.lab.isolation == Isolation::Loopback;
    if shared {
        loopback::are_free(plan.address, &plan.ports)?;
    } else {
        net::create_pod(&context.hub, netns, plan.n, plan.address).await.map_err(|e| e.to_string())?;
    }
    let inside = Inside::of(&context.lab, netns.clone(), &plan.file(), &plan.name, plan.address);
    let hosts = format!("127.0.0.1 localhost\n{} {}\n", plan.address, plan.name);
    inside.write(&dns::resolv_conf(plan.host_address, namespace), &hosts).map_err(|e| e.to_string())?;

    let changed = Arc::new(Notify::new());
    let (stop_sidecar, sidecar_stops) = watch::channel(Stop::No);
    let mut sidecar = None;
    if plan.meshed
        && let Some(control) = &context.control
    {
        if !shared {
            netns
                .nft(&net::redirection(&Excluded::read(&plan.template().annotations)))
                .await
                .map_err(|e| e.to_string())?;
        }
        let unit = control.sidecar(plan, &context.lab, inside.clone()).map_err(|e| e.to_string())?;
        let log = unit.log.clone();
        let begun = begin(unit, &changed, &sidecar_stops);
        // The app's first request must find its sidecar ready.
        while !begun.state.borrow().ready {
            let state = begun.state.borrow().clone();
            let said = last_line(&log).map(|l| format!("; it last said: {l}")).unwrap_or_default();
            report(Status {
                note: format!("waits for its sidecar: {}{said}", state.note),
                restarts: state.restarts,
                processes: state.process.map(|p| ("sidecar".to_string(), p)).into_iter().collect(),
                ..Status::default()
            });
            tokio::select! {
                () = changed.notified() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = stopping(&mut stop) => break,
            }
        }
        sidecar = Some(begun);
    }
    let _front = match shared && sidecar.is_none() {
        true => Some(Front::open(plan.address, &plan.ports, namespace, &context.view).await?),
        false => None,
    };
    let mut containers = Vec::new();
    if *stop.borrow() == Stop::No {
        for (i, container) in plan.template().containers.iter().enumerate() {
            let (Some(program), Some(variables)) = (plan.programs.get(i), plan.environment.get(i)) else { continue };
            let expand = |word: &String| environment::expand(word, variables);
            let mut program = Program { argv: program.argv.iter().map(expand).collect(), env: program.env.clone() };
            let mut variables = variables.clone();
            if shared {
                let own = container.ports.iter().find(|p| !p.udp).map(|p| p.number);
                loopback::rewrite(&mut program, &mut variables, &plan.ports, own);
            }
            let mut env = program.env;
            env.extend(variables);
            let real = |port| loopback::real(&plan.ports, port);
            let unit = Unit {
                name: container.name.clone(),
                inside: inside.clone(),
                // With an address of its own it may listen there only.
                address: if shared { Ipv4Addr::LOCALHOST } else { plan.address },
                group: None,
                argv: program.argv,
                env,
                log: Unit::log_of(&context.lab.logs(), &plan.file(), &container.name),
                restart: plan.template().restart,
                ready: Ready::of(container, real),
                alive: container.liveness.as_ref().and_then(|p| Resolved::of(p, container, real)),
                before: None,
            };
            containers.push(begin(unit, &changed, &stop));
        }
    }
    // Until it is told to go, and its containers have.
    loop {
        report(status(&containers, sidecar.as_ref()));
        let told = *stop.borrow() != Stop::No;
        if told && containers.iter().all(Running::has_ended) {
            break;
        }
        tokio::select! {
            () = changed.notified() => {}
            () = stopping(&mut stop), if !told => {}
        }
    }
    if let Some(sidecar) = sidecar {
        // The sidecar carried the containers' last answers; now it may go. Impatience reaches it as well.
        let _ = stop_sidecar.send(*stop.borrow());
        let mut task = sidecar.task;
        tokio::select! {
            _ = &mut task => {}
            () = hurrying(&mut stop) => {
                let _ = stop_sidecar.send(Stop::Now);
                let _ = task.await;
            }
        }
    }
    Ok(())
}

fn status(containers: &[Running], sidecar: Option<&Running>) -> Status {
    let mut status = Status { phase: Phase::Running, ..Status::default() };
    let states: Vec<State> = containers.iter().map(|c| c.state.borrow().clone()).collect();
    for (running, state) in containers.iter().zip(&states) {
        status.containers_ready += usize::from(state.ready);
        status.restarts += state.restarts;
        status.processes.extend(state.process.map(|p| (running.name.clone(), p)));
        if status.note.is_empty() && !state.note.is_empty() {
            status.note = format!("{}: {}", running.name, state.note);
        }
    }
    if let Some(sidecar) = sidecar {
        let state = sidecar.state.borrow().clone();
        status.sidecar_ready = state.ready;
        status.restarts += state.restarts;
        status.processes.extend(state.process.map(|p| (sidecar.name.clone(), p)));
        if !state.ready && status.note.is_empty() {
            status.note = format!("sidecar: {}", state.note);
        }
    }
    let sidecar_ready = sidecar.is_none() || status.sidecar_ready;
    status.ready = !states.is_empty() && states.iter().all(|s| s.ready) && sidecar_ready;
    if !states.is_empty() && states.iter().all(|s| s.over.is_some()) {
        let well = states.iter().all(|s| s.over == Some(true));
        status.phase = if well { Phase::Completed } else { Phase::Failed };
    } else if states.iter().any(|s| s.failing) {
        status.phase = Phase::CrashLoop;
    }
    status
}

impl Control {
    /// The unit of a pod's sidecar.
    fn sidecar(&self, plan: &Plan, lab: &Lab, inside: Inside) -> crate::error::Result<Unit> {
        let state = lab.folder.join("state").join(plan.file());
        let (argv, before) = self.sidecar_command(plan, lab, &state)?;
        Ok(Unit {
            name: "sidecar".into(),
            address: plan.address,
            group: (lab.isolation == Isolation::Netns).then_some(SIDECAR),
            argv,
            env: Vec::new(),
            log: Unit::log_of(&lab.logs(), &plan.file(), "sidecar"),
            restart: Restart::Always,
            ready: Control::sidecar_ready(),
            alive: None,
            before: Some(before),
            inside,
        })
    }
}
