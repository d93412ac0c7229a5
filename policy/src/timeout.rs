//! Time limits.
//!
//! `Config` belongs to a route and acts on requests that start after a change: the request limit runs from the request's
//! end of headers over all attempts and the response's end; the per-try limit over one attempt up to its response head (and
//! counts as a failed attempt). An injected delay does not count against the request limit (as Istio). `ConnectConfig`
//! belongs to a backend. Durations of zero mean no limit.

use crate::doc::Cursor;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Config {
    pub request: Option<Duration>,
    /// No byte in either direction for this long ends the request; off by default.
    pub idle: Option<Duration>,
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| Some(Self { request: f.opt("request", limit).flatten(), idle: f.opt("idle", limit).flatten() }))
    }
}

/// A limit; zero is none.
pub fn limit(c: &mut Cursor<'_, '_>) -> Option<Option<Duration>> {
    c.duration().map(|d| (!d.is_zero()).then_some(d))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectConfig {
    pub connect_timeout: Duration,
    /// How long a connection without requests is kept.
    pub idle_timeout: Option<Duration>,
    pub max_age: Option<Duration>,
    pub keepalive: Option<Duration>,
    /// What is dialled is the app that this proxy stands before. Nothing that can be configured.
    pub own_app: bool,
}

impl Default for ConnectConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_age: None,
            keepalive: Some(Duration::from_secs(10)),
            own_app: false,
        }
    }
}

impl ConnectConfig {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        let d = Self::default();
        c.fields(|f| {
            Some(Self {
                connect_timeout: f.or("connectTimeout", d.connect_timeout, |c| c.duration()),
                idle_timeout: f.or("idleTimeout", d.idle_timeout, limit),
                max_age: f.or("maxAge", d.max_age, limit),
                keepalive: f.or("keepalive", d.keepalive, limit),
                own_app: false,
            })
        })
    }
}
