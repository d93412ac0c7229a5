//! The admin interface: what an operator, a probe or a scraper asks the proxy. Runs on the control thread, so no question
//! slows a request.
//!
//! Answers are text or JSON, never HTML. Changes need POST from a loopback peer, and the Host must name this machine, so
//! neither another pod nor a web page in somebody's browser can drain a proxy. Further listeners, for the pod's address, only
//! know readiness and metrics; one of them, the status port, the app's health and metrics too.

pub mod app;
pub mod clusters;
pub mod dump;
pub mod rules;
pub mod server;
pub mod stats;

#[cfg(test)]
mod tests;

pub use server::{serve, serve_linkerd, serve_public, serve_status};

use crate::telemetry::Hub;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;
use weft_policy::backend::Backend;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The first configuration is not applied yet.
    PreInitializing,
    Live,
    Draining,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            State::PreInitializing => "PRE_INITIALIZING",
            State::Live => "LIVE",
            State::Draining => "DRAINING",
        }
    }
}

/// A certificate, for `/certs`.
#[derive(Clone, Debug)]
pub struct Cert {
    pub serial: String,
    /// URIs and DNS names.
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Our chain and the roots we trust, as far as the file names any.
#[derive(Clone, Debug, Default)]
pub struct Certs {
    pub chain: Vec<Cert>,
    pub roots: Vec<Cert>,
}

/// What the process tells the admin interface, and does for it. Called on the control thread; none of it may block.
pub trait Proxy: Send + Sync + 'static {
    fn state(&self) -> State;
    /// The effective configuration and each resource's status. Keys never belong in it; `dump` takes out what looks like one.
    fn config(&self) -> serde_json::Value;
    /// How it stands with the control plane; `None` where a file is followed.
    fn control(&self) -> Option<serde_json::Value> {
        None
    }
    /// Why the proxy is not ready, where that is known.
    fn waiting_for(&self) -> Option<String> {
        None
    }
    fn backends(&self) -> Vec<Arc<Backend>>;
    /// Name and bound address.
    fn listeners(&self) -> Vec<(Arc<str>, SocketAddr)>;
    fn certs(&self) -> Certs;
    /// The log filter in force.
    fn log_filter(&self) -> String;
    /// Sets the log filter; the error is for people.
    fn set_log_filter(&self, filter: &str) -> Result<(), String>;
    /// Stop taking connections, finish what is in flight.
    fn drain(&self);
    /// Drain, then exit.
    fn quit(&self);
}

/// How long a changed log level stays.
const LOG_RESET: Duration = Duration::from_secs(15 * 60);
/// Changes of the log level in one of these at most one.
const LOG_PACE: Duration = Duration::from_secs(1);
/// Questions answered at a time; more get 503.
const QUESTIONS: usize = 32;

pub struct AdminState {
    pub hub: Arc<Hub>,
    pub proxy: Arc<dyn Proxy>,
    questions: Semaphore,
    /// One dump at a time: they are large.
    dumps: Semaphore,
    logging: Mutex<Logging>,
    log_reset: Duration,
}

#[derive(Default)]
struct Logging {
    /// What to go back to.
    normal: Option<String>,
    changed: Option<Instant>,
    changes: u64,
}

impl AdminState {
    pub fn new(hub: Arc<Hub>, proxy: Arc<dyn Proxy>) -> Arc<Self> {
        Self::resetting_logs_after(hub, proxy, LOG_RESET)
    }

    pub fn resetting_logs_after(hub: Arc<Hub>, proxy: Arc<dyn Proxy>, log_reset: Duration) -> Arc<Self> {
        Arc::new(Self {
            hub,
            proxy,
            questions: Semaphore::new(QUESTIONS),
            dumps: Semaphore::new(1),
            logging: Mutex::default(),
            log_reset,
        })
    }

    /// Sets the log filter, for a while. `None`: too soon after the last change.
    fn set_log_filter(self: &Arc<Self>, filter: &str) -> Option<Result<(), String>> {
        let mut logging = self.logging.lock().unwrap_or_else(PoisonError::into_inner);
        if logging.changed.is_some_and(|at| at.elapsed() < LOG_PACE) {
            return None;
        }
        let before = self.proxy.log_filter();
        if let Err(error) = self.proxy.set_log_filter(filter) {
            return Some(Err(error));
        }
        logging.normal.get_or_insert(before);
        logging.changed = Some(Instant::now());
        logging.changes += 1;
        let (this, change) = (self.clone(), logging.changes);
        tokio::spawn(async move {
            tokio::time::sleep(this.log_reset).await;
            this.reset_log_filter(change);
        });
        Some(Ok(()))
    }

    /// Only the last change's timer resets.
    fn reset_log_filter(&self, change: u64) {
        let mut logging = self.logging.lock().unwrap_or_else(PoisonError::into_inner);
        if logging.changes != change {
            return;
        }
        if let Some(normal) = logging.normal.take()
            && let Err(error) = self.proxy.set_log_filter(&normal)
        {
            tracing::warn!(%error, "the log filter was not reset");
        }
    }
}
