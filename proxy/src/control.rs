//! What the admin interface is told and may change: the answers of this process, gathered from what workers and configuration
//! share.

use crate::admin::{Cert, Certs, Proxy, State};
use crate::config;
use crate::config::status::State as Taken;
use crate::telemetry::access_log::Log;
use crate::worker::{Phase, Shared};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use weft_policy::backend::Backend;
use x509_parser::extensions::GeneralName;

/// How a process ends, as far as somebody has asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    Run,
    Drain,
    /// Drain, then exit.
    Quit,
}

type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// The process's own log: standard error, by way of a bounded queue, so that a reader that stalls costs lines and nothing else.
pub struct Logging {
    log: Log,
    filter: Mutex<String>,
    set: SetFilter,
}

impl Logging {
    pub fn start(filter: &str, json: bool) -> Self {
        let log = Log::to(Box::new(std::io::stderr()));
        log.start();
        let writer = log.clone();
        let parsed = EnvFilter::try_new(filter);
        let (filter, wrong) = match &parsed {
            Ok(_) => (filter, None),
            Err(error) => ("info", Some(format!("--log {filter}: {error}; using info"))),
        };
        let lines = tracing_subscriber::fmt()
            .with_env_filter(parsed.unwrap_or_else(|_| EnvFilter::new("info")))
            .with_writer(move || Queue(writer.clone()))
            .with_ansi(false);
        // Only a second subscriber in one process is refused, which then has the first one's lines.
        let set: SetFilter = if json {
            let lines = lines.json().with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = lines.try_init();
            Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string()))
        } else {
            let lines = lines.with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = lines.try_init();
            Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string()))
        };
        if let Some(wrong) = wrong {
            tracing::error!("{wrong}");
        }
        Self { log, filter: Mutex::new(filter.to_owned()), set }
    }

    /// Waits a little for the last lines.
    pub fn settle(&self) {
        self.log.settle(Duration::from_millis(500));
    }
}

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

pub struct Control {
    pub shared: Arc<Shared>,
    pub config: Arc<config::Shared>,
    pub logging: Arc<Logging>,
    pub wish: watch::Sender<Wish>,
}

impl Control {
    fn wish(&self, wish: Wish) {
        self.wish.send_if_modified(|held| {
            let more = wish > *held;
            *held = wish.max(*held);
            more
        });
    }
}

impl Proxy for Control {
    fn state(&self) -> State {
        match *self.shared.phase.borrow() {
            Phase::Draining => State::Draining,
            Phase::Running if self.shared.ready.load(Ordering::Relaxed) => State::Live,
            Phase::Running => State::PreInitializing,
        }
    }

    fn config(&self) -> Value {
        let snapshot = self.shared.snapshot.load();
        let status = self.config.status.load();
        let mut listeners: Vec<_> = snapshot.listeners().collect();
        listeners.sort_by(|a, b| a.name.cmp(&b.name));
        let listeners: Vec<Value> = listeners
            .into_iter()
            .map(|l| {
                json!({
                    "name": &*l.name,
                    "role": l.role.word(),
                    "address": l.address.to_string(),
                    "bound": self.shared.bound(l).map(|a| a.to_string()),
                    "config": format!("{l:?}"),
                })
            })
            .collect();
        let mut services: Vec<_> = snapshot.each().map(|b| &b.plan).collect();
        services.sort_by(|a, b| (&a.id, a.port).cmp(&(&b.id, b.port)));
        services.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let services: Vec<Value> = services
            .into_iter()
            .map(|plan| {
                json!({
                    "service": plan.id.to_string(),
                    "port": plan.port,
                    "keys": plan.keys.iter().map(|k| format!("{k:?}")).collect::<Vec<_>>(),
                    "backends": plan.backends.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "plan": format!("{plan:?}"),
                })
            })
            .collect();
        let resources: Vec<Value> = status
            .resources
            .iter()
            .map(|r| {
                let errors: &[String] = match &r.state {
                    Taken::Applied => &[],
                    Taken::Refused(errors) => errors,
                };
                let since = r.since.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                json!({
                    "kind": r.kind, "name": r.name, "version": r.version, "since": since,
                    "applied": errors.is_empty(), "errors": errors,
                })
            })
            .collect();
        json!({
            "listeners": listeners,
            "services": services,
            "resources": resources,
            "file_errors": status.file_errors,
            "identity_error": status.identity_error,
        })
    }

    fn backends(&self) -> Vec<Arc<Backend>> {
        self.config.backends.load().to_vec()
    }

    fn listeners(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let snapshot = self.shared.snapshot.load();
        let bound = |l: &Arc<weft_policy::listener::Config>| Some((l.name.clone(), self.shared.bound(l)?));
        let mut listeners: Vec<_> = snapshot.listeners().filter_map(bound).collect();
        listeners.sort();
        listeners
    }

    fn certs(&self) -> Certs {
        let Some(live) = &self.shared.identity else { return Certs::default() };
        let material = live.load();
        Certs {
            chain: material.identity.chain().iter().filter_map(|der| describe(der)).collect(),
            roots: material.bundle.certificates().filter_map(|(_, der)| describe(der)).collect(),
        }
    }

    fn log_filter(&self) -> String {
        self.logging.filter.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), String> {
        let parsed = EnvFilter::try_new(filter).map_err(|e| e.to_string())?;
        (self.logging.set)(parsed)?;
        *self.logging.filter.lock().unwrap_or_else(PoisonError::into_inner) = filter.to_owned();
        Ok(())
    }

    fn drain(&self) {
        self.wish(Wish::Drain);
    }

    fn quit(&self) {
        self.wish(Wish::Quit);
    }
}

fn describe(der: &[u8]) -> Option<Cert> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = cert.subject_alternative_name().ok().flatten();
    let names = names.map(|n| n.value.general_names.as_slice()).unwrap_or_default();
    let pick = |of: fn(&GeneralName<'_>) -> Option<String>| names.iter().filter_map(of).collect();
    let at = |t: i64| UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(t).ok()?));
    Some(Cert {
        serial: cert.raw_serial_as_string().replace(':', ""),
        uris: pick(|n| if let GeneralName::URI(uri) = n { Some((*uri).to_owned()) } else { None }),
        dns: pick(|n| if let GeneralName::DNSName(name) = n { Some((*name).to_owned()) } else { None }),
        not_before: at(cert.validity().not_before.timestamp()).unwrap_or(SystemTime::UNIX_EPOCH),
        not_after: at(cert.validity().not_after.timestamp()).unwrap_or(SystemTime::UNIX_EPOCH),
    })
}
