//! `/clusters`, in Envoy's line format, which scripts and people read.

use crate::telemetry::access_log::cluster_name;
use std::fmt::Write as _;
use std::sync::Arc;
use weft_policy::backend::Backend;
use weft_policy::breaker::Resource;
use weft_policy::listener::Role;

pub fn text(mut backends: Vec<Arc<Backend>>) -> String {
    backends.sort_by(|a, b| a.id.cmp(&b.id));
    let mut out = String::new();
    for backend in backends {
        let name = cluster_name(Role::Outbound, &backend.id);
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(out, "{name}::{key}::{value}");
        };
        line("observability_name", &name);
        for (key, of) in [
            ("max_connections", Resource::Connection),
            ("max_pending_requests", Resource::Pending),
            ("max_requests", Resource::Request),
            ("max_retries", Resource::Retry),
        ] {
            line(&format!("default_priority::{key}"), &backend.breaker.cap(of).unwrap_or(u32::MAX));
        }
        line("added_via_api", &false);
        line("cx_active", &backend.breaker.count(Resource::Connection));
        line("rq_active", &backend.breaker.count(Resource::Request));
        line("rq_pending_active", &backend.breaker.count(Resource::Pending));
        line("outlier_ejections", &backend.outlier.ejections());
        for endpoint in &backend.endpoints.load().endpoints {
            let mut line = |key: &str, value: &dyn std::fmt::Display| {
                let _ = writeln!(out, "{name}::{}::{key}::{value}", endpoint.address.socket());
            };
            line("rq_active", &endpoint.load.in_flight());
            line("hostname", &endpoint.workload.pod);
            let out = endpoint.health.is_out();
            line("health_flags", &if out { "/failed_outlier_check" } else { "healthy" });
            line("circuit", &endpoint.health.word());
            line("weight", &endpoint.weight());
            line("ejections", &endpoint.health.ejections());
            if let Some(identity) = &endpoint.identity {
                line("identity", identity);
            }
        }
    }
    out
}
