//! Tells the control plane who called whom, about once a second and only what changed.
//!
//! A report is one call; what has not been answered is told again with what was counted since, so that nothing is lost while
//! the control plane is away (twice counted is what it had taken when its answer was lost). The hub bounds what waits.

use super::backoff::Backoff;
use crate::telemetry::Hub;
use crate::telemetry::edges::{Counts, Edge};
use crate::telemetry::metrics::histogram::WEFT;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::codegen::tokio_stream;
use tonic::transport::Channel;
use weft_proto::v1::mesh_client::MeshClient;
use weft_proto::v1::{self as wire, ReportRequest};

const EVERY: Duration = Duration::from_secs(1);
/// A control plane that answers nothing is asked again later.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// So that a message stays far below what either side takes.
const EDGES: usize = 500;

/// Who is there to be told; `None` while nobody is.
pub type Client = Option<MeshClient<Channel>>;

pub struct Reporter(watch::Receiver<Client>);

impl Reporter {
    pub fn new() -> (watch::Sender<Client>, Self) {
        let (clients, current) = watch::channel(None);
        (clients, Self(current))
    }

    /// Reports for as long as it is polled.
    pub async fn run(&self, hub: &Hub) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.tell(hub).await {
                backoff.reset();
            } else {
                sleep(backoff.next()).await;
            }
        }
    }

    /// One report, unless there is nobody to tell or nothing; false if it was not taken.
    pub async fn tell(&self, hub: &Hub) -> bool {
        let Some(mut client) = self.0.borrow().clone() else { return true };
        hub.fresh().await;
        let edges = hub.take_edges();
        if edges.is_empty() {
            return true;
        }
        let messages: Vec<ReportRequest> =
            edges.chunks(EDGES).map(|some| ReportRequest { edges: some.iter().map(told).collect() }).collect();
        let answer = timeout(PATIENCE, client.report(tokio_stream::iter(messages))).await;
        let why = match answer {
            Ok(Ok(_)) => return true,
            Ok(Err(status)) => status.to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        tracing::debug!(why, "report not taken");
        metrics::counter!("weft_control_report_failures_total").increment(1);
        hub.put_back_edges(edges);
        false
    }
}

fn told((edge, counts): &(Edge, Counts)) -> wire::Edge {
    let text = |t: &Arc<str>| t.to_string();
    let identity = |id: &Option<Arc<str>>| id.as_ref().map(text).unwrap_or_default();
    let mut durations = counts.durations.between(&WEFT);
    durations.truncate(durations.iter().rposition(|n| *n > 0).map_or(0, |last| last + 1));
    wire::Edge {
        source: text(&edge.source.workload),
        source_namespace: text(&edge.source.namespace),
        source_identity: identity(&edge.source.identity),
        destination: text(&edge.destination.workload),
        destination_namespace: text(&edge.destination.namespace),
        destination_identity: identity(&edge.destination.identity),
        destination_service: text(&edge.service),
        route: text(&edge.route),
        inbound: edge.inbound,
        mtls: edge.mtls,
        requests: counts.requests,
        failures: counts.failures,
        durations,
        retries: counts.retries,
        connections: counts.connections,
        bytes_sent: counts.sent,
        bytes_received: counts.received,
    }
}
