//! Where configuration comes from and how it gets into force.
//!
//! ```text
//! yaml -> file (+ check) -> apply -> snapshot -> requests
//!            ^        ^      ^
//!          watch   control  dns
//! ```
//!
//! `Controller` owns all of it on the control thread; requests see one `Snapshot`, loaded once each. Whatever goes wrong after
//! the start, the last good configuration stays in force and the reason is logged and shown.

pub mod apply;
mod check;
pub mod control;
pub mod dns;
pub mod file;
pub mod identity;
pub mod snapshot;
pub mod status;
pub mod watch;

use apply::Applier;
use arc_swap::ArcSwap;
use file::ProxyConfig;
use snapshot::Snapshot;
use status::Status;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch as changes};
use watch::Watched;
use weft_policy::backend::Backend;
use weft_policy::diag::{Diags, Severity};
use weft_tls::Live;

/// What the rest of the process sees of configuration.
pub struct Shared {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// `None`: the file names no certificate.
    pub identity: Option<Live>,
    /// The file in force. Whoever opens listeners or writes telemetry follows it.
    pub current: changes::Receiver<Arc<ProxyConfig>>,
    pub status: ArcSwap<Status>,
    /// Every backend, for admin and for metrics.
    pub backends: ArcSwap<Vec<Arc<Backend>>>,
    /// Asks for the files to be read again, as SIGHUP does.
    pub reload: Notify,
    /// `None`: a file is followed, not a control plane.
    pub control: Option<control::Links>,
    /// Whom to ask for destinations; `None`: what is configured is all there is.
    pub demand: Option<control::Demand>,
}

/// A file that cannot be used, with everything that is wrong with it.
#[derive(Debug)]
pub struct Refused {
    pub file: PathBuf,
    pub diags: Diags,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::settings::render(&self.file, &self.diags, false))
    }
}

impl std::error::Error for Refused {}

/// A file that is followed, and those it names.
struct Followed {
    path: PathBuf,
    watched: Watched,
    /// As last looked at, good or bad.
    text: Result<String, String>,
    identity_files: Watched,
}

pub struct Controller {
    file: Option<Followed>,
    feed: Option<mpsc::Receiver<control::Update>>,
    applier: Applier,
    shared: Arc<Shared>,
    current: changes::Sender<Arc<ProxyConfig>>,
    unsettled: BTreeSet<Arc<str>>,
    poll: Duration,
    pace: dns::Pace,
}

impl Controller {
    /// Reads the file for the first time; the snapshot is complete but for the endpoints given by name.
    pub fn new(file: &Path) -> Result<Self, Refused> {
        let mut watched = Watched::new(std::iter::once(file));
        watched.look();
        let text = file::text(file);
        let (config, mut diags) = ProxyConfig::of(&text, file);
        let Some(config) = config else { return Err(Refused { file: file.into(), diags }) };
        warn_all(file, &diags);
        let mut identity_files = watch_identity(&config);
        identity_files.look();
        let live = match config.identity.as_ref().map(identity::read).transpose() {
            Ok(read) => read.map(|(identity, bundle)| Live::new(identity, bundle)),
            Err(why) => {
                // It was readable a moment ago, when the file was checked.
                diags.error(Default::default(), "identity", why, None);
                return Err(Refused { file: file.into(), diags });
            }
        };
        let followed = Followed { path: file.into(), watched, text, identity_files };
        Ok(Self::with(config, live, Some(followed), None))
    }

    /// The same from a control plane's first configuration, and those that follow it.
    pub fn fed(
        first: control::Update,
        feed: mpsc::Receiver<control::Update>,
        links: control::Links,
        demand: Option<control::Demand>,
    ) -> Self {
        let controller = Self::with(first.config, Some(first.live), None, Some((feed, (links, demand))));
        let _ = first.done.send(());
        controller
    }

    fn with(
        config: ProxyConfig,
        identity: Option<Live>,
        file: Option<Followed>,
        feed: Option<(mpsc::Receiver<control::Update>, (control::Links, Option<control::Demand>))>,
    ) -> Self {
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let mut applier = Applier::new(snapshot.clone());
        applier.apply(&config, SystemTime::now());
        let (tx, rx) = changes::channel(Arc::new(config));
        let (feed, control) = feed.unzip();
        let (control, demand) = control.unzip();
        let shared = Arc::new(Shared {
            snapshot,
            identity,
            current: rx,
            status: ArcSwap::default(),
            backends: ArcSwap::default(),
            reload: Notify::new(),
            control,
            demand: demand.flatten(),
        });
        let mut controller = Self {
            file,
            feed,
            unsettled: applier.names(),
            applier,
            shared,
            current: tx,
            poll: Duration::from_millis(500),
            pace: dns::Pace::default(),
        };
        controller.succeeded();
        controller.publish();
        controller
    }

    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// The whole of it: what others share, and what must run on the control thread's runtime for as long as the process does.
    pub fn start(file: &Path) -> Result<(Arc<Shared>, impl Future<Output = ()> + use<>), Refused> {
        let controller = Self::new(file)?;
        Ok((controller.shared(), controller.run()))
    }

    pub async fn run(mut self) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => Some(hangup),
            Err(e) => {
                tracing::warn!(error = %e, "SIGHUP cannot be listened to; changes of the file are noticed all the same");
                None
            }
        };
        let (mut names, mut answers) = self.names();
        self.want(names.as_mut());
        let shared = self.shared.clone();
        let mut tick = tokio::time::interval(self.poll);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = tick.tick() => false,
                Some(()) = async { hangup.as_mut()?.recv().await } => true,
                () = shared.reload.notified() => true,
                Some(answer) = answers.recv() => {
                    self.applier.answer(&answer.host, answer.addresses);
                    self.unsettled.remove(&answer.host);
                    self.publish();
                    continue;
                }
                Some(update) = async { self.feed.as_mut()?.recv().await } => {
                    self.take(update.config);
                    self.want(names.as_mut());
                    let _ = update.done.send(());
                    continue;
                }
            };
            let Some(file) = &mut self.file else { continue };
            if asked || file.watched.look() {
                self.reload(asked);
                self.want(names.as_mut());
            }
            if asked || self.file.as_mut().is_some_and(|file| file.identity_files.look()) {
                self.rotate();
            }
        }
    }

    fn names(&self) -> (Option<dns::Names>, mpsc::Receiver<dns::Answer>) {
        let servers = self.current.borrow().dns_servers.clone();
        match dns::Names::new(&servers, self.pace) {
            Ok((names, answers)) => (Some(names), answers),
            Err(e) => {
                tracing::error!(error = %e, "names of endpoints cannot be resolved; is /etc/resolv.conf readable?");
                (None, mpsc::channel(1).1)
            }
        }
    }

    fn want(&mut self, names: Option<&mut dns::Names>) {
        let wanted = self.applier.names();
        self.unsettled.retain(|name| wanted.contains(name));
        if let Some(names) = names {
            names.want(&wanted);
        }
    }

    /// Reads the file again, and takes it if it is whole and right.
    fn reload(&mut self, asked: bool) {
        let Some(file) = &mut self.file else { return };
        let text = file::text(&file.path);
        if text == file.text && !asked {
            return;
        }
        let (config, diags) = ProxyConfig::of(&text, &file.path);
        file.text = text;
        let path = file.path.clone();
        warn_all(&path, &diags);
        let Some(config) = config else {
            count("refused");
            let errors = lines(&path, &diags);
            tracing::error!(file = %path.display(), errors = errors.len(), "refused, the last good configuration stays");
            for line in &errors {
                tracing::error!("{line}");
            }
            self.set_status(|s| s.file_errors = errors);
            return;
        };
        if config.identity != self.current.borrow().identity {
            file.identity_files = watch_identity(&config);
        }
        let changed = self.take(config);
        tracing::info!(file = %path.display(), changed, "configuration taken");
    }

    /// Puts a configuration into force. Whether anything that requests see has changed.
    fn take(&mut self, config: ProxyConfig) -> bool {
        let old = self.current.borrow().clone();
        self.needs_restart(&old, &config);
        let before = self.applier.names();
        let changed = self.applier.apply(&config, SystemTime::now());
        self.unsettled.extend(self.applier.names().difference(&before).cloned());
        if *old != config {
            self.current.send_replace(Arc::new(config));
        }
        count(if changed { "applied" } else { "unchanged" });
        tracing::debug!(changed, "configuration in force");
        self.succeeded();
        self.publish();
        changed
    }

    /// Takes certificate, key and roots together, or none of them.
    fn rotate(&mut self) {
        let current = self.current.borrow().clone();
        let (Some(files), Some(live)) = (&current.identity, &self.shared.identity) else { return };
        let error = match identity::read(files) {
            Err(why) => Some(why),
            Ok((identity, bundle)) => {
                let held = live.load();
                let same =
                    held.identity.chain() == identity.chain() && held.bundle.certificates().eq(bundle.certificates());
                if !same {
                    let serial = identity.sha256();
                    live.store(identity, bundle);
                    tracing::info!(sha256 = %serial, "identity taken from rotated files");
                }
                None
            }
        };
        if self.shared.status.load().identity_error != error {
            if let Some(why) = &error {
                tracing::error!(error = %why, "identity files refused, the earlier ones stay in use");
            }
            self.set_status(|s| s.identity_error = error);
        }
    }

    fn needs_restart(&self, old: &ProxyConfig, new: &ProxyConfig) {
        let changes = [
            ("admin", old.admin != new.admin),
            ("readiness", old.readiness != new.readiness),
            ("metrics", old.metrics != new.metrics),
            ("workers", old.workers != new.workers),
            ("workload", old.workload != new.workload),
            ("dns", old.dns_servers != new.dns_servers),
            ("identity", old.identity.is_some() != new.identity.is_some()),
        ];
        for (field, _) in changes.iter().filter(|(_, changed)| *changed) {
            tracing::warn!(field, "changed; takes effect after a restart");
        }
    }

    fn succeeded(&mut self) {
        let now = SystemTime::now();
        if let Ok(since) = now.duration_since(SystemTime::UNIX_EPOCH) {
            metrics::gauge!("weft_config_last_success_timestamp_seconds").set(since.as_secs_f64());
        }
        self.set_status(|s| {
            s.file_errors = Vec::new();
            s.last_success = Some(now);
        });
    }

    fn publish(&mut self) {
        let mut backends: Vec<_> = self.applier.registry().all().cloned().collect();
        backends.sort_by(|a, b| a.id.cmp(&b.id));
        self.shared.backends.store(Arc::new(backends));
        let (resources, settled) = (self.applier.resources(), self.unsettled.is_empty());
        self.set_status(|s| {
            s.resources = resources;
            s.names_settled = settled;
        });
    }

    fn set_status(&self, change: impl FnOnce(&mut Status)) {
        let mut status = Status::clone(&self.shared.status.load());
        change(&mut status);
        metrics::gauge!("weft_config_refused").set(if status.file_errors.is_empty() { 0.0 } else { 1.0 });
        self.shared.status.store(Arc::new(status));
    }
}

fn watch_identity(config: &ProxyConfig) -> Watched {
    Watched::new(config.identity.iter().flat_map(|files| files.paths()))
}

fn count(result: &'static str) {
    metrics::counter!("weft_config_reloads_total", "result" => result).increment(1);
}

fn lines(file: &Path, diags: &Diags) -> Vec<String> {
    let errors = diags.0.iter().filter(|d| d.severity == Severity::Error);
    errors.map(|d| crate::settings::line(file, d)).collect()
}

fn warn_all(file: &Path, diags: &Diags) {
    for d in diags.0.iter().filter(|d| d.severity == Severity::Warning) {
        tracing::warn!("{}", crate::settings::line(file, d));
    }
}
