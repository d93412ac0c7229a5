//! `meshctl lab DIR`: from manifests to running pods, and back to nothing.
//!
//! One loop owns everything. What should run is computed from the folder and from what `scale` and `restart` asked for; what
//! does run is compared with it whenever anything changes, and the difference is started or stopped.

use super::control::Control;
use super::forward::Forward;
use super::image::{Mapping, Program};
use super::inject::{self, Mesh};
use super::isolation::{self, Isolation};
use super::live::{self, Live};
use super::load::Traffic;
use super::loopback;
use super::manifest::{Folder, Manifests};
use super::net::{self, Netns, Network};
use super::otlp::Collector;
use super::pod::{self, Context, Phase, Plan, Status};
use super::process::Recorded;
use super::record::{self, Lab};
use super::service::{self, Kind as ServiceKind, Service, View};
use super::unit::Stop;
use super::workload::{self, Kind, Workload};
use super::{clean, dns, preflight, table};
use crate::error::{During, Error, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::transport::Endpoint;
use weft_injector::Namespace;

pub struct Options {
    pub folder: PathBuf,
    pub mesh: Mesh,
    pub images: Vec<Mapping>,
    /// Requests per second to each Service.
    pub load: Option<f64>,
    pub sampling: f64,
    pub otlp: Option<Endpoint>,
    pub control_args: Vec<String>,
    /// The one to have, whether the machine is one for it or not.
    pub isolation: Option<Isolation>,
    /// Who calls whom, drawn again every second while somebody looks.
    pub table: bool,
}

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_millis(300);
/// How long it may take until everything is ready before the table is shown all the same.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between a pod's leaving its services and its being told to end: whoever has not heard yet is still served.
const LEAVING: Duration = Duration::from_secs(2);
/// Until what is written for the control plane has reached the sidecars: it looks five times a second, and waits for a file to
/// stop changing.
const HEARING: Duration = Duration::from_secs(1);
/// When the whole lab ends nobody is served any more.
const FAREWELL: Duration = Duration::from_secs(3);
const MAX_LOG: u64 = 16 << 20;

struct Pod {
    plan: Arc<Plan>,
    status: Status,
    stop: watch::Sender<Stop>,
    stopping: bool,
    written: Option<Value>,
    begun: Instant,
}

struct Up {
    options: Options,
    context: Arc<Context>,
    reports: mpsc::UnboundedReceiver<(String, Status)>,
    folder: Folder,
    manifests: Manifests,
    workloads: Vec<Workload>,
    services: Vec<Service>,
    /// By namespace and name, as `Plan::file`.
    pods: BTreeMap<String, Pod>,
    view: watch::Sender<Arc<View>>,
    rules: String,
    forwards: Vec<Forward>,
    real_ports: loopback::Ports,
    traffic: Option<Traffic>,
    said: BTreeSet<String>,
    written: Value,
    /// When the control plane was last told something.
    told: Instant,
    began: Instant,
    settled: bool,
    live: Option<Live>,
}

struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self> {
        let of = |kind| signal(kind).during("signals");
        Ok(Self([of(SignalKind::interrupt())?, of(SignalKind::terminate())?, of(SignalKind::hangup())?]))
    }

    async fn any(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }
}

/// `guest` is what is done with the lab while it runs; the lab ends with it.
pub async fn run(options: Options, guest: impl AsyncFnOnce(Lab)) -> Result<()> {
    preflight::requirements(&options)?;
    let mut signals = Signals::new()?;
    let folder = Folder::open(&options.folder).during(options.folder.display())?;
    let manifests = folder.manifests();
    let (isolation, refused) = Isolation::choose(options.isolation)?;
    // All that can be wrong is said before anything is made, and said once.
    if !isolation::is_begun_again() {
        preflight::check(&manifests, &options)?;
        refused.iter().for_each(|why| live::say(why));
        // What they have left can be found from here and not from inside of a user namespace.
        for id in clean::dead().await {
            live::say(&format!("removed what lab {id} had left behind"));
        }
        if isolation == Isolation::Userns {
            return Err(isolation::begin_again());
        }
    }
    let (network, _held) = match isolation {
        Isolation::Loopback => loopback::network().map(|(network, held)| (network, Some(held)))?,
        _ => (Network::PODS, None),
    };
    let lab = Lab::create(&options.folder, isolation, network)?;
    let outcome = work(options, lab.clone(), folder, manifests, &mut signals, guest).await;
    clean::remove(&lab).await;
    if !Netns::of_lab(&lab).is_empty() {
        return Err(Error::new(format!("something of lab {} is left", lab.id), "meshctl lab clean"));
    }
    live::say(&format!("lab {} is gone, and nothing of it is left", lab.id));
    outcome
}

async fn work(
    options: Options,
    lab: Lab,
    folder: Folder,
    manifests: Manifests,
    signals: &mut Signals,
    guest: impl AsyncFnOnce(Lab),
) -> Result<()> {
    let hub = Netns::hub(&lab);
    live::say(&format!("lab {} from {}\n{}", lab.id, options.folder.display(), lab.isolation.describe()));
    let (view, seen) = watch::channel(Arc::new(View::default()));
    let mut naming = None;
    if lab.isolation == Isolation::Loopback {
        live::say(loopback::DIFFERENCES);
    } else {
        net::create_hub(&hub).await?;
        let socket = hub.inside(|| std::net::UdpSocket::bind((net::HUB, dns::PORT))).await.during("the lab's DNS")?;
        socket.set_nonblocking(true).during("the lab's DNS")?;
        let socket = UdpSocket::from_std(socket).during("the lab's DNS")?;
        naming = Some(tokio::spawn(dns::serve(socket, seen.clone())));
    }
    let traffic = options.load.map(Traffic::new).transpose()?;
    let mut collector = None;
    let control = match options.mesh {
        Mesh::None => None,
        _ => {
            collector = Some(Collector::start(&lab, &hub, options.otlp.clone()).await?);
            live::say("starting the control plane");
            let mut args = vec![format!("--otlp={}", Collector::url(&lab)), format!("--sampling={}", options.sampling)];
            args.extend_from_slice(&options.control_args);
            let start = Control::start(&lab, &hub, &options.folder, &args);
            tokio::select! {
                control = start => Some(control?),
                () = signals.any() => return Ok(()),
            }
        }
    };
    let (reports, inbox) = mpsc::unbounded_channel();
    let real_ports = loopback::Ports::of(lab.network);
    let context = Arc::new(Context { lab, hub, control, view: seen, reports });
    let mut up = Up {
        options,
        context,
        reports: inbox,
        folder,
        manifests,
        workloads: Vec::new(),
        services: Vec::new(),
        pods: BTreeMap::new(),
        view,
        rules: String::new(),
        forwards: Vec::new(),
        real_ports,
        traffic,
        said: BTreeSet::new(),
        written: Value::Null,
        told: Instant::now(),
        began: Instant::now(),
        settled: false,
        live: None,
    };
    let lab = up.context.lab.clone();
    let outcome = tokio::select! {
        outcome = up.keep() => outcome,
        () = signals.any() => Ok(()),
        () = guest(lab) => Ok(()),
    };
    up.live = None;
    live::say("\nstopping (once more to stop at once)");
    up.end(signals).await;
    naming.inspect(JoinHandle::abort);
    drop(collector);
    outcome
}

impl Up {
    /// Brings the lab up and keeps it as its folder says, until it is dropped.
    async fn keep(&mut self) -> Result<()> {
        self.read();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.reconcile()?;
            self.publish().await?;
            tokio::select! {
                Some(report) = self.reports.recv() => {
                    self.take(report);
                    // Many change at once.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    while let Ok(report) = self.reports.try_recv() {
                        self.take(report);
                    }
                }
                _ = look.tick() => {
                    if self.folder.look() {
                        self.manifests = self.folder.manifests();
                        self.read();
                    }
                    self.trim_logs();
                }
            }
        }
    }

    /// What the manifests say now.
    fn read(&mut self) {
        let mut problems = self.manifests.problems.clone();
        self.workloads = workload::workloads(&self.manifests.objects, &mut problems);
        self.services = service::services(&self.manifests.objects, &mut problems);
        if self.settled {
            problems.into_iter().for_each(|p| self.say(format!("warning: {p}")));
        } else {
            self.said.extend(problems.into_iter().map(|p| format!("warning: {p}")));
        }
    }

    /// Each thing once.
    fn say(&mut self, text: String) {
        if self.said.insert(text.clone()) {
            live::say(&text);
        }
    }

    fn take(&mut self, (key, status): (String, Status)) {
        let Some(pod) = self.pods.get_mut(&key) else { return };
        if status.phase == Phase::Gone {
            let _ = std::fs::remove_file(self.context.lab.pods().join(format!("{key}.yaml")));
            self.pods.remove(&key);
            return;
        }
        let (before, name) = (std::mem::replace(&mut pod.status, status), pod.plan.name.clone());
        let now = &pod.status;
        let line = if pod.stopping {
            None
        } else if now.ready && !before.ready {
            Some(format!("{name} is ready after {:.1} s", pod.begun.elapsed().as_secs_f64()))
        } else if now.restarts > before.restarts {
            Some(format!("{name} was restarted ({})", if now.note.is_empty() { "it ended" } else { &now.note }))
        } else if matches!(now.phase, Phase::Completed | Phase::Failed) && now.phase != before.phase {
            Some(format!("{name}: {} {}", now.phase.word(), now.note))
        } else if before.ready && !now.ready {
            Some(format!("{name} is not ready any more ({})", now.note))
        } else {
            None
        };
        if let Some(line) = line {
            live::say(line.trim_end());
        }
    }

    /// Starts and stops what differs from what should be.
    fn reconcile(&mut self) -> Result<()> {
        let wishes = self.context.lab.wishes();
        let mut wanted = BTreeSet::new();
        for workload in self.workloads.clone() {
            let programs = match preflight::programs(&workload, &self.options.images) {
                Ok(programs) => programs,
                Err(error) => {
                    self.say(format!("{}: {error}", workload.at));
                    // What runs of it keeps running.
                    wanted.extend(self.pods_of(&workload).map(|(key, _)| key.clone()));
                    continue;
                }
            };
            let wish = &wishes[&format!("{}/{}", workload.namespace, workload.name)];
            let replicas = wish["replicas"].as_u64().map_or(workload.replicas, |n| n.min(1000) as u32) as usize;
            let meshed = inject::is_meshed(self.options.mesh, &self.namespace(&workload.namespace), &workload.template);
            let version = version(&workload, &programs, meshed, &wish["restarted"]);
            let mut current: Vec<(&String, &Pod)> =
                self.pods_of(&workload).filter(|(_, pod)| pod.plan.version == version && !pod.stopping).collect();
            // Those that serve stay, and of them the oldest.
            if workload.kind != Kind::StatefulSet {
                current.sort_by_key(|(_, pod)| (!pod.status.ready, pod.begun));
            }
            let current: Vec<String> = current.into_iter().map(|(key, _)| key.clone()).collect();
            wanted.extend(current.iter().take(replicas).cloned());
            for _ in current.len()..replicas {
                if let Some(key) = self.begin(&workload, &version, programs.clone(), meshed, replicas)? {
                    wanted.insert(key);
                }
            }
            // Pods of an older template go when those of the new one have taken over.
            let ready = current.iter().take(replicas).filter(|k| self.pods.get(*k).is_some_and(|p| p.status.ready));
            let taken_over = ready.count() >= replicas;
            let fixed = matches!(workload.kind, Kind::StatefulSet | Kind::Pod);
            if !taken_over && !fixed {
                wanted
                    .extend(self.pods_of(&workload).filter(|(_, p)| p.plan.version != version).map(|(k, _)| k.clone()));
            }
        }
        for (key, pod) in &mut self.pods {
            if !wanted.contains(key) && !pod.stopping {
                pod.stopping = true;
                live::say(&format!("{} is going", pod.plan.name));
                let (stop, grace) = (pod.stop.clone(), pod.plan.template().grace);
                tokio::spawn(async move {
                    tokio::time::sleep(LEAVING).await;
                    stop.send_if_modified(|s| {
                        let first = *s == Stop::No;
                        if first {
                            *s = Stop::Within(grace);
                        }
                        first
                    });
                });
            }
        }
        Ok(())
    }

    fn pods_of<'u>(&'u self, workload: &'u Workload) -> impl Iterator<Item = (&'u String, &'u Pod)> {
        self.pods.iter().filter(move |(_, pod)| {
            let of = &pod.plan.workload;
            (of.kind, &of.namespace, &of.name) == (workload.kind, &workload.namespace, &workload.name)
        })
    }

    fn namespace(&self, name: &str) -> Namespace {
        let found = self.manifests.objects.of("", "Namespace").find(|o| o.name == name);
        found.map_or_else(Namespace::default, |o| Namespace {
            name: name.into(),
            labels: o.labels.clone(),
            annotations: o.annotations.clone(),
        })
    }

    /// Starts a pod; `None` if it cannot be started yet.
    fn begin(
        &mut self,
        workload: &Workload,
        version: &str,
        programs: Vec<Program>,
        meshed: bool,
        replicas: usize,
    ) -> Result<Option<String>> {
        let name = match workload.kind {
            // Not its own: the control plane reads the manifest as well, and that says nothing of where it runs.
            Kind::Pod => format!("{}-0", workload.name),
            Kind::StatefulSet => {
                let taken =
                    |n: &usize| self.pods.contains_key(&format!("{}.{}-{n}", workload.namespace, workload.name));
                // Names are places: the lowest one that is free.
                match (0..replicas).find(|n| !taken(n)) {
                    Some(n) => format!("{}-{n}", workload.name),
                    None => return Ok(None),
                }
            }
            Kind::Deployment => format!("{}-{version}-{}", workload.name, record::random(5)?),
            Kind::DaemonSet | Kind::Job => format!("{}-{}", workload.name, record::random(5)?),
        };
        let key = format!("{}.{name}", workload.namespace);
        // A fixed name is free when the pod before has gone.
        if self.pods.contains_key(&key) || self.is_waiting_for_old(workload, version) {
            return Ok(None);
        }
        let used: BTreeSet<u16> = self.pods.values().map(|p| p.plan.n).collect();
        let Some(n) = (0..8000).find(|n| !used.contains(n)) else { return Ok(None) };
        let mut plan = Plan {
            workload: workload.clone(),
            version: version.into(),
            name,
            uid: record::uid()?,
            n,
            address: self.context.lab.network.address(n),
            host_address: self.context.lab.network.hub(),
            ports: self.ports(workload),
            meshed,
            programs,
            environment: Vec::new(),
        };
        if let Err(problem) = plan.environment(&self.manifests.objects) {
            self.say(format!("{}: {} {}: {problem}", workload.at, workload.kind.name(), workload.name));
            return Ok(None);
        }
        let (stop, stops) = watch::channel(Stop::No);
        let plan = Arc::new(plan);
        tokio::spawn(pod::run(plan.clone(), self.context.clone(), stops));
        let status = Status::default();
        let pod = Pod { plan, status, stop, stopping: false, written: None, begun: Instant::now() };
        self.pods.insert(key.clone(), pod);
        Ok(Some(key))
    }

    /// Where the programs of a new pod listen in the place of its ports, where pods share a network.
    fn ports(&mut self, workload: &Workload) -> Vec<(u16, u16)> {
        if self.context.lab.isolation != Isolation::Loopback {
            return Vec::new();
        }
        let template = &workload.template;
        let declared = template.containers.iter().flat_map(|c| &c.ports).filter(|p| !p.udp).map(|p| p.number);
        // Ports need not be declared to be served.
        let means = |s: &&Service| {
            let labels = &template.labels;
            !s.selector.is_empty()
                && s.namespace == workload.namespace
                && s.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
        };
        let services = self.services.iter().filter(means).flat_map(|s| &s.ports).filter(|p| !p.udp);
        let served = services.filter_map(|p| p.target.find(&template.containers));
        let wanted: BTreeSet<u16> = declared.chain(served).collect();
        self.real_ports.map(wanted)
    }

    /// Pods with fixed names cannot stand beside their successors.
    fn is_waiting_for_old(&self, workload: &Workload, version: &str) -> bool {
        workload.kind == Kind::StatefulSet && self.pods_of(workload).any(|(_, p)| p.plan.version != version)
    }

    /// Tells everybody what there is: names, rules, the control plane, `ps`, the person.
    async fn publish(&mut self) -> Result<()> {
        let pods: Vec<service::Pod> =
            self.pods.values().map(|p| p.plan.as_service_sees_it(p.status.ready && !p.stopping)).collect();
        let view = View { services: self.services.clone(), pods };
        let rules = view.rules();
        if rules != self.rules && self.context.lab.isolation != Isolation::Loopback {
            self.context.hub.nft(&rules).await?;
            self.rules = rules;
        }
        if let Some(traffic) = self.traffic.as_mut().filter(|_| self.settled) {
            let able = self.pods.values().filter(|p| p.plan.meshed && p.status.ready && !p.stopping).map(|p| &p.plan);
            traffic.keep(&self.context, &view, able).into_iter().for_each(|line| self.say(line));
        }
        self.view.send_if_modified(|old| {
            let differs = **old != view;
            if differs {
                *old = Arc::new(view);
            }
            differs
        });
        let folder = self.context.lab.pods();
        for (key, pod) in &mut self.pods {
            let object = pod.plan.object(&pod.status, pod.stopping);
            if pod.written.as_ref() != Some(&object) {
                let file = folder.join(format!("{key}.yaml"));
                record::write(&file, format!("{object:#}\n").as_bytes()).during(file.display())?;
                pod.written = Some(object);
                self.told = Instant::now();
            }
        }
        self.open().await?;
        let status = self.status();
        if status != self.written {
            let text = status.to_string();
            record::write(&self.context.lab.folder.join("ps.json"), text.as_bytes()).during("ps.json")?;
            self.written = status;
        }
        if !self.settled && (self.is_settled() || self.began.elapsed() > PATIENCE) {
            self.settled = true;
            let all = table::lab(&self.written, crate::terminal::coloured());
            let folder = self.options.folder.display();
            live::say(&format!("\n{all}\nIt follows its manifests, until Ctrl-C: edit a file of {folder} and see."));
            if self.options.table && self.context.control.is_some() {
                self.live = Live::start(self.context.lab.clone());
            }
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        let heard = self.context.control.is_none() || self.told.elapsed() >= HEARING;
        heard
            && !self.pods.is_empty()
            && self.pods.values().all(|p| p.status.ready || matches!(p.status.phase, Phase::Completed | Phase::Failed))
    }

    /// Ways in for Services that have become open, and none for those that are no more.
    async fn open(&mut self) -> Result<()> {
        let mut wanted = BTreeSet::new();
        let wishes = self.context.lab.wishes();
        let asked: BTreeSet<&str> =
            wishes["forward"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for service in &self.services {
            let open = matches!(service.kind, ServiceKind::Virtual { open: true, .. });
            for port in service.ports.iter().filter(|p| !p.udp) {
                let name = format!("{}.{}:{}", service.name, service.namespace, port.number);
                if open || asked.contains(name.as_str()) {
                    wanted.insert((service.namespace.clone(), service.name.clone(), port.number));
                }
            }
        }
        let key = |f: &Forward| (f.namespace.clone(), f.service.clone(), f.port);
        self.forwards.retain(|f| wanted.contains(&key(f)));
        for (namespace, name, port) in wanted {
            if !self.forwards.iter().any(|f| key(f) == (namespace.clone(), name.clone(), port)) {
                let view = self.view.subscribe();
                self.forwards.push(Forward::open(self.context.hub.clone(), view, &namespace, &name, port).await?);
            }
        }
        Ok(())
    }

    /// What `ps` shows and `clean` goes by.
    fn status(&self) -> Value {
        let pods: Vec<Value> = self
            .pods
            .values()
            .map(|pod| {
                let (plan, status) = (&pod.plan, &pod.status);
                let process =
                    |(name, p): &(String, Recorded)| json!({"name": name, "pid": p.pid, "started": p.started});
                json!({
                    "namespace": plan.workload.namespace,
                    "name": plan.name,
                    "workload": plan.workload.name,
                    "kind": plan.workload.kind.name(),
                    "ready": status.ready && !pod.stopping,
                    "status": if pod.stopping { "Terminating" } else { status.phase.word() },
                    "containersReady": status.containers_ready,
                    "containers": plan.template().containers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
                    "sidecar": plan.meshed,
                    "sidecarReady": status.sidecar_ready,
                    "address": plan.address.to_string(),
                    "netns": Netns::pod(&self.context.lab, plan.n).name(),
                    "restarts": status.restarts,
                    "note": status.note,
                    "processes": status.processes.iter().map(process).collect::<Vec<_>>(),
                })
            })
            .collect();
        let urls: Vec<Value> = self
            .forwards
            .iter()
            .map(|f| {
                json!({
                    "namespace": f.namespace, "service": f.service, "port": f.port, "url": format!("http://{}", f.local),
                })
            })
            .collect();
        let mut services: Vec<String> = self
            .services
            .iter()
            .flat_map(|s| s.ports.iter().filter(|p| !p.udp).map(|p| format!("{}.{}:{}", s.name, s.namespace, p.number)))
            .collect();
        services.sort();
        let workloads: Vec<Value> =
            self.workloads.iter().map(|w| json!({"namespace": w.namespace, "name": w.name})).collect();
        let lab = &self.context.lab;
        let control = self.context.control.as_ref().map(Control::state);
        json!({
            "lab": lab.id,
            "pid": lab.runs.pid,
            "manifests": lab.manifests,
            "isolation": lab.isolation.name(),
            "hub": self.context.hub.name(),
            "mesh": self.options.mesh != Mesh::None,
            "settled": self.settled,
            "control": control.map(|s| json!({"ready": s.ready, "restarts": s.restarts, "note": s.note})),
            "pods": pods,
            "urls": urls,
            "services": services,
            "workloads": workloads,
        })
    }

    /// A log that has grown too long begins again; what was in it is kept once.
    fn trim_logs(&self) {
        let logs = std::fs::read_dir(self.context.lab.logs()).into_iter().flatten().flatten();
        for path in logs.map(|l| l.path()).filter(|p| p.extension().is_some_and(|e| e == "log")) {
            if std::fs::metadata(&path).is_ok_and(|m| m.len() > MAX_LOG) && copy_and_empty(&path).is_err() {
                live::say(&format!("warning: {} is long and cannot be cut", path.display()));
            }
        }
    }

    /// Stops every pod, in the time there is; at once when asked again.
    async fn end(&mut self, signals: &mut Signals) {
        self.traffic = None;
        for pod in self.pods.values() {
            let _ = pod.stop.send(Stop::Within(FAREWELL));
        }
        let patience = tokio::time::sleep(3 * FAREWELL);
        tokio::pin!(patience);
        while !self.pods.is_empty() {
            tokio::select! {
                Some((key, status)) = self.reports.recv() => {
                    if status.phase == Phase::Gone {
                        self.pods.remove(&key);
                    }
                }
                () = signals.any() => {
                    for pod in self.pods.values() {
                        let _ = pod.stop.send(Stop::Now);
                    }
                }
                // What is left then is killed with its namespace.
                () = &mut patience => break,
            }
        }
        if let Some(control) = &self.context.control {
            control.stop(Stop::Within(FAREWELL)).await;
        }
    }
}

fn copy_and_empty(log: &Path) -> std::io::Result<()> {
    std::fs::copy(log, log.with_extension("log.1"))?;
    // Its writers append, so they go on at the new end.
    std::fs::File::options().write(true).open(log)?.set_len(0)
}

/// Ten letters that stand for a template, as in a Deployment's pods' names.
fn version(workload: &Workload, programs: &[Program], meshed: bool, restarted: &Value) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    format!("{:?}{programs:?}{meshed}{restarted}", workload.template).hash(&mut hasher);
    let mut rest = hasher.finish();
    let letters = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = String::new();
    for _ in 0..8 {
        text.push(letters[(rest % 27) as usize] as char);
        rest /= 27;
    }
    text
}
