//! `weft_backend_*`: what breakers and outlier detectors hold, read when somebody scrapes.

use super::text::{Collect, Kind, Labels, Text};
use std::sync::Arc;
use weft_policy::backend::Backend;
use weft_policy::breaker::Resource;

/// Gives the backends that are defined now; the applier owns their registry.
pub struct Backends<F>(pub F);

impl<F: Fn() -> Vec<Arc<Backend>> + Send + Sync> Collect for Backends<F> {
    fn collect(&self, out: &mut Text) {
        let mut all = (self.0)();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        let named: Vec<_> = all.iter().map(|b| (Labels::default().with("backend", &b.id.to_string()), b)).collect();
        let each = |out: &mut Text, name: &str, help: &str, of: &dyn Fn(&Backend) -> u64| {
            out.family(name, Kind::Gauge, help);
            for (labels, backend) in &named {
                out.sample(name, labels.as_str(), of(backend));
            }
        };
        for (name, help, of) in [
            ("weft_backend_active_requests", "Requests in flight.", Resource::Request),
            ("weft_backend_active_connections", "Connections open.", Resource::Connection),
            ("weft_backend_pending_requests", "Requests that wait for a connection.", Resource::Pending),
            ("weft_backend_active_retries", "Retries in flight.", Resource::Retry),
        ] {
            each(out, name, help, &|b| b.breaker.count(of).into());
        }
        each(out, "weft_backend_endpoints", "Endpoints known.", &|b| b.endpoints.load().endpoints.len() as u64);
        each(out, "weft_backend_ejected_endpoints", "Endpoints that outlier detection keeps out.", &|b| {
            b.endpoints.load().endpoints.iter().filter(|e| e.health.is_out()).count() as u64
        });
        let name = "weft_backend_breaker_open";
        out.family(name, Kind::Gauge, "1 while a circuit breaker's cap is reached.");
        for (labels, backend) in &named {
            for of in Resource::ALL {
                let open = backend.breaker.cap(of).is_some_and(|cap| backend.breaker.count(of) >= cap);
                out.sample(name, labels.clone().with("resource", of.word()).as_str(), u8::from(open));
            }
        }
        let name = "weft_backend_breaker_overflows_total";
        out.family(name, Kind::Counter, "What a circuit breaker's cap refused.");
        for (labels, backend) in &named {
            for of in Resource::ALL {
                out.sample(name, labels.clone().with("resource", of.word()).as_str(), backend.breaker.overflows(of));
            }
        }
        let name = "weft_backend_ejections_total";
        out.family(name, Kind::Counter, "Ejections by outlier detection.");
        for (labels, backend) in &named {
            out.sample(name, labels.as_str(), backend.outlier.ejections());
        }
    }
}
