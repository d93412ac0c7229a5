//! Puts the parts together and runs them.

use crate::admission::{self, Admission};
use crate::identity::attest::Attest;
use crate::identity::ca::{Authority, CaError};
use crate::identity::cluster::{InCluster, rotate as rotate_in_cluster};
use crate::identity::sign::Signer;
use crate::identity::token::{self, Binding};
use crate::identity::{own, rotate};
use crate::push::server::Server;
use crate::report::Edges;
use crate::settings::{Command, Serve, Settings};
use crate::source::dir::{self, Dirs};
use crate::source::kube as objects;
use crate::source::{Found, Statuses};
use crate::state::StateDir;
use crate::status::Status;
use crate::world::{self, Current, Translate};
use crate::{accept, admin, conditions};
use kube::Client;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tracing_subscriber::EnvFilter;
use weft_dialects::Options;
use weft_kubernetes::client::{self, Access, AccessError};
use weft_kubernetes::lease::Seat;
use weft_kubernetes::webhook::Figures;
use weft_policy::telemetry::Tracing;
use weft_tls::Live;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Ca(#[from] CaError),
    #[error("{what}: {why}{}", advice(.why))]
    Io { what: String, why: io::Error },
    #[error("--admin {0}: the admin interface is for loopback addresses")]
    Admin(SocketAddr),
    #[error("{0}")]
    Cluster(#[from] AccessError),
    #[error("--log: {0}")]
    Log(String),
}

/// What to do about it, where that is known.
fn advice(why: &io::Error) -> &'static str {
    match why.kind() {
        io::ErrorKind::AddrInUse => "; something else has this port: stop it, or choose another one",
        io::ErrorKind::AddrNotAvailable => "; this machine does not have that address",
        io::ErrorKind::PermissionDenied => "; this user may not: run as one who may, or choose another place",
        io::ErrorKind::StorageFull => "; make room and start again: nothing is lost",
        _ => "",
    }
}

/// A control plane that runs; it stops when dropped.
#[derive(Debug)]
pub struct Running {
    pub address: SocketAddr,
    pub admin: Option<SocketAddr>,
    pub status: Option<SocketAddr>,
    tasks: JoinSet<()>,
    lead: Option<Lead>,
}

/// What ends it, and the task that then gives the Lease back.
type Lead = (watch::Sender<()>, JoinHandle<()>);

pub fn main(settings: Settings) -> ExitCode {
    match settings {
        Settings { command: Some(command), .. } => run_command(command),
        Settings { serve: Some(serve), .. } => run(&serve),
        Settings { command: None, serve: None } => {
            eprintln!("weft-control: nothing to do; see --help");
            ExitCode::from(2)
        }
    }
}

/// What the dialects make of objects.
pub fn translation(serve: &Serve) -> Translate {
    let mesh_ranges = serve.mesh_range.iter().map(ToString::to_string).collect();
    let sampling_per_10k = (serve.sampling * 100.0).round() as u32;
    let tracing = Tracing { otlp: serve.otlp.clone(), sampling_per_10k, ..Tracing::default() };
    let trust_domain = serve.trust_domain.to_string();
    let access_log = serve.access_log.clone();
    let options = Options { trust_domain, mesh_ranges, tracing, access_log, ..Options::default() };
    Arc::new(move |objects| weft_dialects::translate(objects, &options))
}

/// Binds, makes or reads the authority, and begins.
pub async fn start(serve: &Serve, translate: Translate) -> Result<Running, StartError> {
    let failed = |what: String| move |why| StartError::Io { what, why };
    if let Some(address) = serve.admin.filter(|a| !a.ip().is_loopback()) {
        return Err(StartError::Admin(address));
    }
    let access = Access { kubeconfig: serve.kubeconfig.clone(), context: serve.context.clone() };
    let asks = serve.kube || serve.webhook.is_some();
    let api_server = if asks { Some(client::connect(&access).await?) } else { None };
    let state = StateDir::open(&serve.state).map_err(failed(serve.state.display().to_string()))?;
    let cluster = api_server.clone().map(InCluster::new);
    if let Some(cluster) = &cluster {
        cluster.take_authority(&state, &serve.trust_domain).await?;
    }
    let ca = Authority::load_or_create(&state, &serve.trust_domain)?;
    let live = Live::new(own::issue(&state, &ca, serve.leaf_lifetime)?, ca.bundle().map_err(CaError::from)?);
    // Who finds the port open finds the root made.
    let listener = TcpListener::bind(serve.listen).await.map_err(failed(format!("--listen {}", serve.listen)))?;
    let address = listener.local_addr().map_err(failed("--listen".into()))?;

    let (authority_in, authority) = watch::channel(Arc::new(ca));
    let (found_in, found) = watch::channel(Arc::new(Found::default()));
    let (world_in, worlds) = watch::channel(Arc::new(Current::default()));
    let (status, edges) = (Arc::new(Status::default()), Arc::new(Edges::default()));

    let mut tasks = JoinSet::new();
    let admission = serve.webhook.map(|_| Arc::new(Figures::default()));
    let mut pages = [("--admin", serve.admin, None), ("--status", serve.status, None)];
    for (flag, at, bound) in &mut pages {
        let Some(at) = *at else { continue };
        let listener = TcpListener::bind(at).await.map_err(failed(format!("{flag} {at}")))?;
        *bound = Some(listener.local_addr().map_err(failed(flag.to_string()))?);
        let (open, found, worlds) = (*flag == "--status", found.clone(), worlds.clone());
        let (status, edges, admission) = (status.clone(), edges.clone(), admission.clone());
        let known = admin::Admin { open, found, worlds, status, edges, admission };
        tasks.spawn(admin::serve(listener, known));
    }
    let [(.., admin), (.., status_at)] = pages;
    if let (Some(at), Some(client), Some(figures)) = (serve.webhook, &api_server, admission) {
        let listener = TcpListener::bind(at).await.map_err(failed(format!("--webhook {at}")))?;
        let admission = Admission::new(found.clone(), worlds.clone(), translate.clone());
        tasks.spawn(admission::serve(listener, serve.webhook_name.clone(), client.clone(), admission, figures));
    }
    let lead = match api_server.filter(|_| serve.kube) {
        Some(client) => {
            let (statuses, _) = watch::channel(Statuses::default());
            tasks.spawn(objects::watch(client.clone(), found_in, statuses.clone()));
            let (leads_in, leads) = watch::channel(false);
            tasks.spawn(conditions::follow(client.clone(), worlds.clone(), leads, statuses));
            Some(lead(client, leads_in))
        }
        None => {
            tasks.spawn(dir::watch(Dirs::new(&serve.dir, &serve.namespace), found_in));
            None
        }
    };
    tasks.spawn(world::follow(found, authority.clone(), translate, status.clone(), world_in));
    tasks.spawn(own::follow(state.clone(), serve.leaf_lifetime, live.clone(), authority_in));
    match &cluster {
        Some(cluster) => {
            let known = (authority.clone(), worlds.clone(), status.clone());
            cluster.follow(&mut tasks, &state, &serve.trust_domain, known);
        }
        None => {
            tasks.spawn(rotate::follow(state.clone(), authority.clone(), worlds.clone(), status.clone()));
        }
    }
    let signer = Arc::new(Signer::new(state, serve.leaf_lifetime));
    let server = Server {
        signer,
        authority,
        worlds,
        known: status.clone(),
        edges,
        signing: Server::room(),
        attest: cluster.map(|c| Arc::new(Attest::new(c.client))),
        siblings: Default::default(),
    };
    tasks.spawn(accept::serve(listener, live, server, status));
    Ok(Running { address, admin, status: status_at, tasks, lead })
}

/// Who writes what only one of us should.
fn lead(client: Client, leads: watch::Sender<bool>) -> Lead {
    let own = |name: &str, otherwise: String| std::env::var(name).ok().filter(|v| !v.is_empty()).unwrap_or(otherwise);
    let seat = Seat {
        client,
        namespace: own("POD_NAMESPACE", "weft-system".into()),
        name: "weft-control".into(),
        holder: own("POD_NAME", format!("weft-control-{}", std::process::id())),
    };
    let (stop, mut stopped) = watch::channel(());
    let hold = seat.hold(leads, async move {
        // Nobody sends anything: it is dropped.
        let _ = stopped.changed().await;
    });
    (stop, tokio::spawn(hold))
}

impl Running {
    /// What others should not have to wait for is given back.
    pub async fn stop(&mut self) {
        if let Some((stop, giving_back)) = self.lead.take() {
            drop(stop);
            let _ = giving_back.await;
        }
    }

    /// Only if a part gave up, which none does.
    pub async fn ended(&mut self) {
        self.tasks.join_next().await;
    }
}

fn run(serve: &Serve) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return wrong(&StartError::Io { what: "runtime".into(), why: error }),
    };
    let served = runtime.block_on(async {
        // While the API server is away its client says so with every call; we say so once.
        let filter = EnvFilter::try_new(format!("kube_client=off,{}", serve.log)).map_err(|e| StartError::Log(e.to_string()))?;
        // Log lines are not what was asked for, so they stay off standard output.
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
        let signals = |kind| signal(kind).map_err(|why| StartError::Io { what: "signals".into(), why });
        let (mut term, mut int) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
        let mut running = start(serve, translation(serve)).await?;
        tracing::info!(address = %running.address, admin = ?running.admin, status = ?running.status, trust_domain = %serve.trust_domain, "serving");
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = running.ended() => tracing::error!("a part of the control plane ended"),
        }
        tracing::info!("stopping");
        running.stop().await;
        Ok::<_, StartError>(())
    });
    // A folder on a dead disk must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => wrong(&error),
    }
}

fn run_command(command: Command) -> ExitCode {
    let now = SystemTime::now();
    let open = |path: &std::path::Path| StateDir::open(path).map_err(CaError::from);
    let done = match command {
        Command::Token { state, namespace, service_account, pod, ttl } => {
            let binding = Binding { namespace, service_account, pod };
            open(&state).and_then(|dir| token::create(&dir, &binding, ttl, now)).map(|token| token + "\n")
        }
        Command::Root { state } => {
            open(&state).and_then(|dir| Authority::load(&dir)?.ok_or(CaError::None)).map(|ca| ca.pem())
        }
        Command::RotateRoot { state: Some(state), force, .. } => {
            open(&state).and_then(|dir| rotate::step(&dir, force, now)).map(|said| said + "\n")
        }
        Command::RotateRoot { state: None, force, kubeconfig, context, namespace, .. } => {
            let access = weft_kubernetes::client::Access { kubeconfig, context };
            rotate_in_cluster(&access, &namespace, force).map(|said| said + "\n")
        }
    };
    match done {
        Ok(text) => {
            // A reader that went away has seen enough.
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error @ CaError::TooEarly(_)) => {
            eprintln!("weft-control: {error}");
            ExitCode::from(1)
        }
        Err(error) => wrong(&error.into()),
    }
}

fn wrong(error: &StartError) -> ExitCode {
    eprintln!("weft-control: {error}");
    ExitCode::from(2)
}
