//! `/stats`: `name: value` lines as Envoy's users grep them.

use crate::telemetry::Hub;
use crate::telemetry::access_log::cluster_name;
use crate::telemetry::metrics::histogram;
use std::fmt::Write as _;
use std::sync::Arc;
use weft_policy::backend::Backend;
use weft_policy::breaker::Resource;
use weft_policy::listener::Role;

pub fn text(hub: &Hub, backends: &[Arc<Backend>], state: super::State) -> String {
    let totals = hub.totals();
    let mut out = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(out, "{name}: {value}");
    };
    for backend in backends {
        let name = cluster_name(Role::Outbound, &backend.id);
        for (key, of) in [("cx", Resource::Connection), ("rq", Resource::Request), ("rq_pending", Resource::Pending)] {
            let (count, cap) = (backend.breaker.count(of), backend.breaker.cap(of));
            line(&format!("cluster.{name}.upstream_{key}_active"), &count);
            line(&format!("cluster.{name}.upstream_{key}_overflow"), &backend.breaker.overflows(of));
            let open = u8::from(cap.is_some_and(|cap| count >= cap));
            line(&format!("cluster.{name}.circuit_breakers.default.{key}_open"), &open);
            // The singular is what people grep for too.
            line(&format!("cluster.{name}.circuit_breaker.{key}_open"), &open);
        }
        let retries = backend.breaker.overflows(Resource::Retry);
        line(&format!("cluster.{name}.upstream_rq_retry_overflow"), &retries);
        let set = backend.endpoints.load();
        let ejected = set.endpoints.iter().filter(|e| e.health.is_out()).count();
        line(&format!("cluster.{name}.membership_total"), &set.endpoints.len());
        line(&format!("cluster.{name}.membership_healthy"), &(set.endpoints.len() - ejected));
        line(&format!("cluster.{name}.outlier_detection.ejections_active"), &ejected);
        line(&format!("cluster.{name}.outlier_detection.ejections_enforced_total"), &backend.outlier.ejections());
    }
    let (mut active, mut all, mut requests, mut requests_active) = (0, 0, 0, 0);
    for ((role, now, ever), (_, rq_now, rq_ever)) in totals.connections.iter().zip(&totals.requests) {
        let role = role.word();
        line(&format!("http.{role}.downstream_cx_active"), now);
        line(&format!("http.{role}.downstream_cx_total"), ever);
        line(&format!("http.{role}.downstream_rq_active"), rq_now);
        line(&format!("http.{role}.downstream_rq_total"), rq_ever);
        (active, all, requests_active, requests) =
            (active + now, all + ever, requests_active + rq_now, requests + rq_ever);
    }
    line("server.downstream_cx_active", &active);
    line("server.downstream_cx_total", &all);
    line("server.downstream_rq_active", &requests_active);
    line("server.downstream_rq_total", &requests);
    line("server.downstream_rq_completed", &totals.finished);
    line("server.request_error_total", &totals.errors);
    let d = &totals.durations;
    let count = d.count();
    line("server.request_duration_milliseconds_count", &count);
    line("server.request_duration_milliseconds_sum", &d.sum(1000));
    for (name, part) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        let rank = (count as f64 * part).ceil() as u64;
        let bound = d.at(&histogram::ISTIO, 1000).find(|(_, n)| *n >= rank).map_or(f64::INFINITY, |(le, _)| le);
        if count > 0 {
            line(&format!("server.request_duration_milliseconds_{name}_at_most"), &bound);
        }
    }
    line("server.live", &u8::from(state == super::State::Live));
    line("server.state", &state.word());
    line("server.uptime", &hub.started.0.elapsed().as_secs());
    line("access_log.dropped", &hub.log.dropped());
    line("tracing.spans_dropped", &hub.spans.dropped());
    line("tracing.spans_sent", &hub.spans.exported());
    let mut process = crate::telemetry::metrics::Text::default();
    crate::telemetry::metrics::process::collect(&mut process, hub.started.1);
    for sample in process.out.lines().filter(|l| !l.starts_with('#')) {
        if let Some((name, value)) = sample.split_once(' ') {
            line(name, &value);
        }
    }
    out
}
