//! A port of a service, or one subset of it, as a destination: everything that acts between the choice of a route and the
//! wire, bundled with its state.
//!
//! `Backend` is kept for as long as its id exists. A config change swaps `Config` (atomically) and lets each state adopt it;
//! endpoint churn swaps the set. Neither touches connections.

use crate::balance::{self, Picker};
use crate::doc::Cursor;
use crate::endpoint::{self, Endpoint};
use crate::id::{BackendId, EndpointId};
use crate::{breaker, budget, mtls, outlier, timeout};
use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Which HTTP the endpoint's side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum Http {
    /// HTTP/2 inside mesh mTLS; towards a plaintext endpoint what the client spoke.
    #[default]
    Auto,
    Http1,
    Http2,
}

impl Http {
    /// Whether HTTP/2 travels: `mesh` in mesh mTLS, `spoken` that the client speaks it.
    pub fn is_http2(self, mesh: bool, spoken: bool) -> bool {
        match self {
            Self::Http1 => false,
            Self::Http2 => true,
            Self::Auto => mesh || spoken,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    pub balance: balance::Config,
    pub breaker: breaker::Config,
    pub outlier: Option<outlier::Config>,
    /// `None`: retries are not limited by a budget.
    pub budget: Option<budget::Config>,
    pub tls: mtls::UpstreamTls,
    pub connect: timeout::ConnectConfig,
    pub http: Http,
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            Some(Self {
                balance: f.opt("balance", balance::Config::read).unwrap_or_default(),
                breaker: f.opt("breaker", breaker::Config::read).unwrap_or_default(),
                outlier: f.opt("outlier", outlier::Config::read),
                budget: f.opt("retryBudget", budget::Config::read),
                tls: f.opt("tls", mtls::UpstreamTls::read).unwrap_or_default(),
                connect: f.opt("connections", timeout::ConnectConfig::read).unwrap_or_default(),
                http: f.or("http", Http::Auto, |c| {
                    c.word(&[("auto", Http::Auto), ("http1", Http::Http1), ("http2", Http::Http2)])
                }),
            })
        })
    }
}

/// The endpoints of a backend at one moment, with the picker built for them.
#[derive(Debug)]
pub struct EndpointSet {
    pub endpoints: Vec<Arc<Endpoint>>,
    pub picker: Picker,
}

#[derive(Debug)]
pub struct Backend {
    pub id: BackendId,
    pub config: ArcSwap<Config>,
    pub breaker: breaker::State,
    pub budget: budget::State,
    pub outlier: outlier::State,
    pub endpoints: ArcSwap<EndpointSet>,
}

impl Backend {
    pub fn new(id: BackendId, config: Config) -> Self {
        let picker = Picker::build(&config.balance, &[]);
        Self {
            id,
            breaker: breaker::State::new(&config.breaker),
            budget: budget::State::new(config.budget.as_ref()),
            outlier: outlier::State::new(config.outlier.as_ref()),
            endpoints: ArcSwap::from_pointee(EndpointSet { endpoints: Vec::new(), picker }),
            config: ArcSwap::from_pointee(config),
        }
    }

    /// Takes a new config. Counts, ejections and tokens stand; only the picker is rebuilt.
    pub fn adopt(&self, config: Config) {
        let old = self.config.load();
        if **old == config {
            return;
        }
        self.breaker.adopt(&config.breaker);
        self.budget.adopt(config.budget.as_ref());
        self.outlier.adopt(config.outlier.as_ref());
        if old.balance != config.balance {
            let endpoints = self.endpoints.load().endpoints.clone();
            let picker = Picker::build(&config.balance, &endpoints);
            self.endpoints.store(Arc::new(EndpointSet { endpoints, picker }));
        }
        self.config.store(Arc::new(config));
    }

    /// Takes a new list of endpoints; those that stand for the same instance are carried over.
    pub fn set_endpoints(&self, list: &[endpoint::Config]) {
        let old = self.endpoints.load();
        let mut leaving: FxHashMap<&EndpointId, &Arc<Endpoint>> = old.endpoints.iter().map(|e| (&e.id, e)).collect();
        let endpoints: Vec<Arc<Endpoint>> = list
            .iter()
            .map(|config| match leaving.get(&config.id).filter(|e| e.is(config)) {
                Some(same) => {
                    let same = Arc::clone(same);
                    same.adopt(config);
                    leaving.remove(&config.id);
                    same
                }
                None => Arc::new(Endpoint::new(config)),
            })
            .collect();
        for gone in leaving.into_values() {
            gone.set_gone(true);
        }
        let picked: Vec<_> = endpoints.iter().filter(|e| !e.is_gone()).cloned().collect();
        let picker = Picker::build(&self.config.load().balance, &picked);
        self.endpoints.store(Arc::new(EndpointSet { endpoints: picked, picker }));
    }
}
