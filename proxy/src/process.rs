//! What the process tells its admin interface, and does for it.

use crate::admin::{Cert, Certs, Proxy, State};
use crate::config;
use crate::config::status::State as Applied;
use crate::telemetry::metrics::{Collect, Kind, Labels, Text};
use crate::worker::{Phase, Shared};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tracing_subscriber::{EnvFilter, Registry, reload};
use weft_policy::backend::Backend;

pub type LogFilter = reload::Handle<EnvFilter, Registry>;

pub struct Process {
    pub shared: Arc<Shared>,
    pub config: Arc<config::Shared>,
    /// Asks the main loop to drain and exit.
    pub leave: mpsc::Sender<()>,
    pub log: LogFilter,
    pub filter: Mutex<String>,
}

impl Proxy for Process {
    fn state(&self) -> State {
        if *self.shared.phase.borrow() != Phase::Running {
            return State::Draining;
        }
        match self.shared.ready.load(Ordering::Relaxed) {
            true => State::Live,
            false => State::PreInitializing,
        }
    }

    fn config(&self) -> Value {
        let status = self.config.status.load();
        let resources: Vec<Value> = status
            .resources
            .iter()
            .map(|r| {
                let (state, why) = match &r.state {
                    Applied::Applied => ("applied", Vec::new()),
                    Applied::Refused(why) => ("refused", why.clone()),
                };
                json!({"kind": r.kind, "name": r.name, "version": r.version, "state": state, "why": why,
                       "since": seconds(r.since)})
            })
            .collect();
        json!({
            "config": &*self.config.current.borrow().document,
            "resources": resources,
            "fileErrors": status.file_errors,
            "identityError": status.identity_error,
            "lastSuccess": status.last_success.map(seconds),
            "control": self.control(),
        })
    }

    fn control(&self) -> Option<Value> {
        self.config.control.as_ref().map(|links| links.json())
    }

    fn backends(&self) -> Vec<Arc<Backend>> {
        self.config.backends.load().to_vec()
    }

    fn listeners(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let snapshot = self.shared.snapshot.load();
        snapshot.listeners().map(|l| (l.name.clone(), self.shared.bound(l).unwrap_or(l.address))).collect()
    }

    fn certs(&self) -> Certs {
        let Some(live) = &self.shared.identity else { return Certs::default() };
        let material = live.load();
        Certs {
            chain: material.identity.chain().iter().filter_map(|der| read_cert(der)).collect(),
            roots: material.bundle.certificates().filter_map(|(_, der)| read_cert(der)).collect(),
        }
    }

    fn log_filter(&self) -> String {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), String> {
        let parsed = EnvFilter::try_new(filter).map_err(|e| e.to_string())?;
        self.log.reload(parsed).map_err(|e| e.to_string())?;
        *self.filter.lock().unwrap_or_else(PoisonError::into_inner) = filter.to_string();
        Ok(())
    }

    fn drain(&self) {
        let _ = self.leave.try_send(());
    }

    fn quit(&self) {
        let _ = self.leave.try_send(());
    }
}

impl Collect for Process {
    /// What is not counted but simply so.
    fn collect(&self, out: &mut Text) {
        crate::telemetry::metrics::backends::Backends(|| self.backends()).collect(out);
        if let Some(count) = crate::sys::malloc::allocations() {
            let name = "weft_memory_allocations_total";
            out.family(name, Kind::Counter, "Allocations made by the process.");
            out.sample(name, Labels::default().as_str(), count);
        }
        let Some(live) = &self.shared.identity else { return };
        let name = "weft_cert_expiration_timestamp_seconds";
        out.family(name, Kind::Gauge, "When the proxy's certificate ends.");
        out.sample(name, Labels::default().as_str(), seconds(live.load().identity.not_after()));
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn read_cert(der: &[u8]) -> Option<Cert> {
    use x509_parser::extensions::GeneralName;
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let at = |t: i64| UNIX_EPOCH + std::time::Duration::from_secs(t.max(0) as u64);
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    if let Ok(Some(names)) = cert.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => uris.push(uri.to_string()),
                GeneralName::DNSName(name) => dns.push(name.to_string()),
                _ => {}
            }
        }
    }
    let validity = cert.validity();
    Some(Cert {
        serial: cert.raw_serial_as_string().replace(':', ""),
        uris,
        dns,
        not_before: at(validity.not_before.timestamp()),
        not_after: at(validity.not_after.timestamp()),
    })
}
