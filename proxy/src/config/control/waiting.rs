//! The admin interface before there is a configuration: not ready, and why.

use super::link::Links;
use crate::admin::{Certs, Proxy, State};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::mpsc;
use weft_policy::backend::Backend;

pub struct Waiting {
    pub links: Links,
    pub filter: String,
    /// Asks the main loop to exit.
    pub leave: mpsc::Sender<()>,
}

impl Proxy for Waiting {
    fn state(&self) -> State {
        State::PreInitializing
    }

    fn config(&self) -> Value {
        serde_json::json!({ "control": self.links.json() })
    }

    fn backends(&self) -> Vec<Arc<Backend>> {
        Vec::new()
    }

    fn listeners(&self) -> Vec<(Arc<str>, SocketAddr)> {
        Vec::new()
    }

    fn certs(&self) -> Certs {
        Certs::default()
    }

    fn control(&self) -> Option<Value> {
        Some(self.links.json())
    }

    fn waiting_for(&self) -> Option<String> {
        self.links.waiting()
    }

    fn log_filter(&self) -> String {
        self.filter.clone()
    }

    fn set_log_filter(&self, _: &str) -> Result<(), String> {
        Err("not before there is a configuration; --log sets it from the start".into())
    }

    fn drain(&self) {
        let _ = self.leave.try_send(());
    }

    fn quit(&self) {
        let _ = self.leave.try_send(());
    }
}
