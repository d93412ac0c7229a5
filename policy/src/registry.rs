//! Where live state hangs: backends by id, carried from plan to plan.
//!
//! Written by the one task that applies configuration; requests never come here, they hold what `bind` gave them.

use crate::backend::{self, Backend};
use crate::endpoint;
use crate::id::BackendId;
use crate::plan::ServicePlan;
use crate::service::Backends;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// A plan with its state: what one request works with.
#[derive(Debug)]
pub struct Bound {
    pub plan: Arc<ServicePlan>,
    /// By the plan's index; `None` where no such backend is defined.
    pub backends: Box<[Option<Arc<Backend>>]>,
}

#[derive(Debug, Default)]
pub struct Registry {
    backends: FxHashMap<BackendId, Arc<Backend>>,
}

impl Registry {
    pub fn bind(&self, plan: &Arc<ServicePlan>) -> Bound {
        let backends = plan.backends.iter().map(|id| self.backends.get(id).cloned()).collect();
        Bound { plan: plan.clone(), backends }
    }

    pub fn get(&self, id: &BackendId) -> Option<&Arc<Backend>> {
        self.backends.get(id)
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.backends.values()
    }

    /// Creates a backend or lets it adopt its new config.
    pub fn put(&mut self, id: BackendId, config: backend::Config) -> &Arc<Backend> {
        use std::collections::hash_map::Entry;
        match self.backends.entry(id) {
            Entry::Occupied(held) => {
                held.get().adopt(config);
                held.into_mut()
            }
            Entry::Vacant(free) => {
                let backend = Arc::new(Backend::new(free.key().clone(), config));
                free.insert(backend)
            }
        }
    }

    pub fn put_all(&mut self, backends: &Backends) {
        for (id, config, _) in backends.each() {
            self.put(id, config.clone());
        }
    }

    /// Hands a service port's endpoints to the backends made of them.
    pub fn set_endpoints(&self, backends: &Backends, endpoints: &[endpoint::Config]) {
        for (id, _, subset) in backends.each() {
            let Some(backend) = self.backends.get(&id) else { continue };
            match subset {
                None => backend.set_endpoints(endpoints),
                Some(subset) => {
                    let of: Vec<_> = endpoints.iter().filter(|e| subset.takes(e)).cloned().collect();
                    backend.set_endpoints(&of);
                }
            }
        }
    }

    /// Forgets backends nobody defines any more; requests in flight keep theirs to their end.
    pub fn retain(&mut self, keep: impl Fn(&BackendId) -> bool) {
        self.backends.retain(|id, backend| {
            let kept = keep(id);
            if !kept {
                backend.set_endpoints(&[]);
            }
            kept
        });
    }
}
