//! The process: one control thread for whatever must never wait for traffic (or make it wait), and the workers.
//!
//! The control thread is the main thread. It follows the configuration file, answers the admin interface, gathers telemetry
//! and listens to signals; workers accept and carry. They meet in `worker::Shared` alone.

use crate::admin::{self, AdminState};
use crate::config::file::ProxyConfig;
use crate::config::{self, Controller, control};
use crate::process::{LogFilter, Process};
use crate::settings::{LogFormat, Settings};
use crate::telemetry::Hub;
use crate::telemetry::access_log::Log;
use crate::worker::{Phase, Shared, Worker};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};
use weft_policy::listener::Limits;

/// Wrong use, or a file or an address that cannot be used.
const UNUSABLE: u8 = 2;
const CUT: u8 = 3;
/// How long the end of the process waits for its last log lines to be read.
const LAST_LINES: Duration = Duration::from_millis(500);
/// For the spans of the last requests.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// For what was counted last to reach the control plane.
const LAST_REPORT: Duration = Duration::from_millis(500);
/// For what should take no time, should it hang.
const GRACE: Duration = Duration::from_secs(5);
/// For those who connected just before nobody listened any more, to send their request.
const LAST_CALL: Duration = Duration::from_millis(250);

pub fn main(settings: &Settings) -> ExitCode {
    if settings.validate {
        return settings.validate();
    }
    let lines = Log::to(Box::new(std::io::stderr()));
    lines.start();
    let log = start_log(settings, &lines);
    tell_panics();
    let files = crate::sys::limits::raise_open_files();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the control thread's runtime cannot be started");
            return ExitCode::from(UNUSABLE);
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), open_files = ?files, "weft-proxy");
    let code = LocalSet::new().block_on(&runtime, run(settings, log));
    lines.settle(LAST_LINES);
    code
}

async fn run(settings: &Settings, log: LogFilter) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "signals cannot be listened to");
            return ExitCode::from(UNUSABLE);
        }
    };
    let (controller, reporter) = match first_configuration(settings, &mut signals).await {
        Ok(first) => first,
        Err(code) => return code,
    };
    let (config, following) = (controller.shared(), controller.run());
    let first = config.current.borrow().clone();
    let id = config.identity.as_ref().and_then(|live| live.load().identity.spiffe().cloned());
    let (phase, following_phase) = watch::channel(Phase::Running);
    let shared = Arc::new(Shared {
        snapshot: config.snapshot.clone(),
        config: config.current.clone(),
        identity: config.identity.clone(),
        demand: config.demand.clone(),
        introduction: crate::introduction::encode(&first.workload),
        telemetry: Hub::new(first.telemetry.clone(), first.workload.clone(), id),
        phase: following_phase,
        ready: false.into(),
        ports: Default::default(),
        cut: 0.into(),
        mark: settings.mark,
    });
    tokio::task::spawn_local(following);
    tokio::task::spawn_local(telemetry(shared.clone()));
    let reporter = reporter.map(Rc::new);
    if let Some(reporter) = reporter.clone() {
        shared.telemetry.count_edges();
        let hub = shared.telemetry.clone();
        tokio::task::spawn_local(async move { reporter.run(&hub).await });
    }
    let (asked, mut drains) = mpsc::channel::<()>(1);
    let process = Arc::new(Process {
        shared: shared.clone(),
        config: config.clone(),
        leave: asked,
        log,
        filter: settings.log.clone().into(),
    });
    shared.telemetry.collect(process.clone());
    let admin = AdminState::new(shared.telemetry.clone(), process);
    let public = [settings.readiness.or(first.readiness), settings.metrics.or(first.metrics)];
    let opened = open_admin(settings.admin(&first), public, admin.clone()).and_then(|()| open_status(settings, admin));
    if let Err(why) = opened {
        tracing::error!("{why}");
        return ExitCode::from(UNUSABLE);
    }

    let mut workers = match start_workers(settings.workers(&first), &shared).await {
        Ok(workers) => workers,
        Err(why) => {
            tracing::error!("{why}");
            return ExitCode::from(UNUSABLE);
        }
    };
    tokio::task::spawn_local(become_ready(shared.clone(), config));

    let why = tokio::select! {
        why = signals.next() => why,
        _ = drains.recv() => "an admin's request",
        _ = workers.recv() => "a worker that ended",
    };
    shared.ready.store(false, Ordering::Relaxed);
    tracing::info!(reason = why, "draining");
    // All senders gone: all workers ended.
    let mut ended = pin!(async { while workers.recv().await.is_some() {} });
    let running = tokio::select! {
        () = &mut ended => false,
        () = drain(&phase, &shared, settings.drain()) => true,
        again = signals.next() => {
            tracing::warn!(signal = again, "not waiting any longer");
            true
        }
    };
    if running {
        phase.send_replace(Phase::Over);
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            tracing::error!("a worker did not end in time");
        }
    }
    if let Some(reporter) = reporter {
        // Who does not hear it in time will never.
        let _ = tokio::time::timeout(LAST_REPORT, reporter.tell(&shared.telemetry)).await;
    }
    if !shared.telemetry.spans.settle(LAST_SPANS).await {
        tracing::warn!("the collector did not take the last spans");
    }
    if !shared.telemetry.log.settle(LAST_LINES) {
        tracing::warn!("the access log's reader did not take its last lines");
    }
    match shared.cut.load(Ordering::Relaxed) {
        0 => {
            tracing::info!(cut = 0, "drained");
            ExitCode::SUCCESS
        }
        cut => {
            tracing::warn!(cut, "drained; connections had to be cut");
            ExitCode::from(CUT)
        }
    }
}

/// From the file, or from the control plane as soon as that is possible, which is told then what is counted. An error has been
/// told.
async fn first_configuration(
    settings: &Settings,
    signals: &mut Signals,
) -> Result<(Controller, Option<control::Reporter>), ExitCode> {
    let unusable = ExitCode::from(UNUSABLE);
    let Some(options) = settings.control() else {
        let file = settings.config.as_deref().unwrap_or(Path::new(""));
        return Controller::new(file).map(|controller| (controller, None)).map_err(|refused| {
            // For people, with lines and columns; not a line of the log.
            eprint!("{refused}");
            unusable
        });
    };
    if let Err(why) = options.check() {
        eprintln!("{why}");
        return Err(unusable);
    }
    let hub = Hub::new(Default::default(), Default::default(), None);
    let links = control::Links::new(&options.target);
    let (leave, mut asked) = mpsc::channel(1);
    let waiting = control::Waiting { links: links.clone(), filter: settings.log.clone(), leave };
    // The configuration may name another address, and does not exist yet.
    let address = settings.admin(&ProxyConfig::default());
    let bound = crate::sys::sockopt::listen(address).and_then(TcpListener::from_std);
    let door =
        bound.map(|socket| tokio::task::spawn_local(admin::serve(socket, AdminState::new(hub, Arc::new(waiting)))));
    if let Err(error) = &door {
        tracing::error!(%address, %error, "the admin address cannot be opened");
        return Err(unusable);
    }
    let (mut updates, demand, reporter, following) = control::follow(options, links.clone());
    tokio::task::spawn_local(following);
    let first = tokio::select! {
        first = updates.recv() => first,
        why = signals.next() => {
            tracing::info!(reason = why, "ended before there was a configuration");
            return Err(ExitCode::SUCCESS);
        }
        _ = asked.recv() => return Err(ExitCode::SUCCESS),
    };
    if let Ok(door) = door {
        door.abort();
    }
    match first {
        Some(first) => Ok((Controller::fed(first, updates, links, demand), Some(reporter))),
        None => {
            tracing::error!("the control plane's client has ended");
            Err(unusable)
        }
    }
}

/// Leads the workers through a drain, up to the point where no more time is left.
async fn drain(phase: &watch::Sender<Phase>, shared: &Shared, told: Option<Duration>) {
    let began = Instant::now();
    let (limit, delay) = {
        let snapshot = shared.snapshot.load();
        let longest =
            |of: fn(&Limits) -> Duration| snapshot.listeners().map(|l| of(&l.limits)).max().unwrap_or_default();
        (told.unwrap_or_else(|| longest(|l| l.drain)), longest(|l| l.drain_delay))
    };
    phase.send_replace(Phase::Draining);
    sleep_until(began + delay.min(limit)).await;
    phase.send_replace(Phase::Closed);
    sleep_until(began + (delay + LAST_CALL).min(limit)).await;
    phase.send_replace(Phase::Ending);
    sleep_until(began + limit).await;
}

/// Each worker on a thread of its own. Ok once all of them listen; the channel closes when all of them have ended.
async fn start_workers(count: usize, shared: &Arc<Shared>) -> Result<mpsc::Receiver<()>, String> {
    let (alive, workers) = mpsc::channel::<()>(1);
    let (tell, mut bound) = mpsc::unbounded_channel();
    for id in 0..count {
        let (shared, alive, tell) = (shared.clone(), alive.clone(), tell.clone());
        thread::Builder::new()
            .name(format!("worker-{id}"))
            .spawn(move || {
                let _ended = Ended(alive);
                work(id, shared, tell);
            })
            .map_err(|e| format!("worker {id} cannot be started: {e}"))?;
    }
    for _ in 0..count {
        bound.recv().await.ok_or("a worker ended before it listened")??;
    }
    Ok(workers)
}

/// Tells that a worker ended, also when it panicked: the kernel must not go on handing connections to its siblings only.
struct Ended(mpsc::Sender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

fn work(id: usize, shared: Arc<Shared>, tell: mpsc::UnboundedSender<Result<(), String>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = tell.send(Err(format!("worker {id}: no runtime: {error}")));
            return;
        }
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let worker = Rc::new(Worker::new(id, shared));
        worker.run(|bound| drop(tell.send(bound))).await;
    });
}

/// Ready once every endpoint's name was asked for; listeners and identity stand already.
async fn become_ready(shared: Arc<Shared>, config: Arc<config::Shared>) {
    const PATIENCE: u32 = 100;
    for _ in 0..PATIENCE {
        if config.status.load().names_settled {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if *shared.phase.borrow() == Phase::Running {
        shared.ready.store(true, Ordering::Relaxed);
        tracing::info!("ready");
    }
}

async fn telemetry(shared: Arc<Shared>) {
    let hub = &shared.telemetry;
    let upkeep = async {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            hub.upkeep();
            crate::sys::malloc::empty_cache();
            crate::sys::malloc::give_back();
        }
    };
    let mut config = shared.config.clone();
    let follow = async {
        while config.changed().await.is_ok() {
            let telemetry = config.borrow_and_update().telemetry.clone();
            hub.configure(telemetry);
        }
    };
    tokio::join!(upkeep, follow, hub.export_spans());
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The admin interface, and its read-only part on further addresses.
fn open_admin(admin: SocketAddr, public: [Option<SocketAddr>; 2], state: Arc<AdminState>) -> Result<(), String> {
    tokio::task::spawn_local(admin::serve(bind(admin, "the admin address")?, state.clone()));
    for addr in public.into_iter().flatten() {
        tokio::task::spawn_local(admin::serve_public(bind(addr, "the address")?, state.clone()));
    }
    Ok(())
}

/// What others ask the app for through its sidecar, and Linkerd's tools.
fn open_status(settings: &Settings, state: Arc<AdminState>) -> Result<(), String> {
    if let Some(addr) = settings.linkerd_admin() {
        tokio::task::spawn_local(admin::serve_linkerd(bind(addr, "Linkerd's admin address")?, state.clone()));
    }
    let Some(addr) = settings.status else { return Ok(()) };
    let app = Arc::new(admin::app::App::from_env(settings.mark)?);
    tokio::task::spawn_local(admin::serve_status(bind(addr, "the status address")?, state, app));
    Ok(())
}

fn bind(addr: SocketAddr, what: &str) -> Result<TcpListener, String> {
    // A successor of this process opens the same doors while this one drains.
    let socket = crate::sys::sockopt::listen(addr).and_then(TcpListener::from_std);
    socket.map_err(|e| format!("{what} {addr} cannot be opened: {e}"))
}

/// Lines on their way to standard error: a reader that stalls costs lines, and never holds a worker up.
struct Queue(Log);

impl std::io::Write for Queue {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn start_log(settings: &Settings, queue: &Log) -> LogFilter {
    use tracing_subscriber::prelude::*;
    use tracing_subscriber::{EnvFilter, fmt, reload};
    let filter = EnvFilter::try_new(&settings.log).unwrap_or_else(|error| {
        eprintln!("--log {:?}: {error}; using info", settings.log);
        EnvFilter::new("info")
    });
    let (filter, handle) = reload::Layer::new(filter);
    let queue = queue.clone();
    let lines = fmt::layer().with_writer(move || Queue(queue.clone()));
    let lines = match settings.log_format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    // Only a second subscriber in one process is refused, which then has the first one's lines.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    handle
}

/// A panic costs the connection it happened in; the log says where.
fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("(no message)");
        tracing::error!(place, message, thread = thread::current().name(), "panic");
    }));
}
