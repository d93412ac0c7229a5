//! Backends nobody configured: the own app behind an inbound listener, and addresses an app dials that no service has.
//!
//! They get defaults and live per worker; what is not used is forgotten, and there is a bound.

use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_policy::backend::{self, Backend};
use weft_policy::endpoint::{self, Address};
use weft_policy::id::{BackendId, EndpointId, ServiceId};
use weft_policy::listener::Protocol;
use weft_policy::mtls::UpstreamTls;
use weft_policy::plan;
use weft_policy::registry::Bound;
use weft_policy::{route, service};

const MAX: usize = 1024;
const FORGET: Duration = Duration::from_secs(600);

#[derive(Default)]
pub struct Implied(RefCell<FxHashMap<(Kind, SocketAddr), (Arc<Bound>, Instant)>>);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    App,
    /// The app at its pod's address, where what is not told apart comes back to us.
    AppHere,
    Passthrough,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::App | Kind::AppHere => "app",
            Kind::Passthrough => "PassthroughCluster",
        }
    }
}

impl Implied {
    /// `None` only when too many are in use at once.
    pub fn get(&self, kind: Kind, addr: SocketAddr, now: Instant) -> Option<Arc<Bound>> {
        let mut all = self.0.borrow_mut();
        if let Some((bound, used)) = all.get_mut(&(kind, addr)) {
            *used = now;
            return Some(bound.clone());
        }
        if all.len() >= MAX {
            all.retain(|_, (bound, used)| Arc::strong_count(bound) > 1 || now - *used < FORGET / 10);
        }
        if all.len() >= MAX {
            return None;
        }
        let bound = make(kind, addr)?;
        all.insert((kind, addr), (bound.clone(), now));
        Some(bound)
    }

    pub fn tick(&self, now: Instant) {
        self.0.borrow_mut().retain(|_, (_, used)| now - *used < FORGET);
    }
}

fn make(kind: Kind, addr: SocketAddr) -> Option<Arc<Bound>> {
    let id = ServiceId::new("", kind.name());
    let plan = plan::compile(&service::Config {
        id: id.clone(),
        port: addr.port(),
        keys: Vec::new(),
        protocol: Protocol::Detect,
        order: route::Order::FirstMatch,
        routes: Vec::new(),
    })
    .ok()?;
    let mut config = backend::Config { tls: UpstreamTls::Disable, ..backend::Config::default() };
    config.connect.own_app = kind == Kind::AppHere && !addr.ip().is_loopback();
    let backend = Backend::new(BackendId { service: id, port: addr.port(), subset: None }, config);
    backend.set_endpoints(&[endpoint::Config {
        id: EndpointId(addr.to_string().into()),
        address: Address::Direct(addr),
        identity: None,
        labels: Default::default(),
        weight: 1,
        draining: false,
        workload: Default::default(),
    }]);
    Some(Arc::new(Bound { plan, backends: Box::new([Some(Arc::new(backend))]) }))
}
