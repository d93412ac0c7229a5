//! `meshctl stat`: who calls whom in a running lab or a cluster, how often and how well, over the last few seconds.
//!
//! The control plane adds up what sidecars report; two looks at its sums make a rate.

pub mod edges;
pub mod quantile;
pub mod table;

use crate::door::Door;
use crate::error::{Error, Result};
use crate::place::Place;
use crate::running::Running;
use crate::runtime::wait;
use crate::terminal::coloured;
use clap::{Args, ValueEnum};
use edges::{History, Row, Snapshot, Wanted};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use weft_policy::doc::parse_duration;

/// Says who calls whom in a running lab or a cluster: rates, success, latency, and who has proven to be whom.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Stat {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    wanted: Wanted,
    /// Over how long; that long it takes
    #[arg(long, short, value_name = "DURATION", default_value = "5s", value_parser = window)]
    window: Duration,
    /// Go on, once a second
    #[arg(long)]
    watch: bool,
    /// How to print; wide adds namespaces, Services, routes, and sums since an edge was first seen
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Table,
    Wide,
    Json,
}

const EXAMPLES: &str = "\
Examples:
  meshctl stat                          everybody, over the next 5 seconds
  meshctl stat --from web -w 30s
  meshctl stat --to svc/users -o wide   a Service; also ns/shop, deploy/users, shop/users
  meshctl stat --watch
  meshctl stat --context staging        of a cluster
  meshctl stat -o json | jq '.edges[] | select(.success < 1)'

The client's sidecar counts a call, with its retries as one; where the client has none, the server's does, and the
client is (unmeshed). Who calls is a workload, who is called too, or a Service where nobody was reached.
Exit codes: 0 done, 1 it failed, 2 wrong use.";

const EVERY: Duration = Duration::from_secs(1);

fn window(text: &str) -> std::result::Result<Duration, String> {
    let allowed = Duration::from_secs(1)..=Duration::from_secs(300);
    parse_duration(text).filter(|d| allowed.contains(d)).ok_or_else(|| "from 1s to 5m".into())
}

impl Stat {
    pub fn run(&self) -> Result<ExitCode> {
        let running = self.place.running()?;
        if let Running::Lab(lab) = &running
            && lab.status().is_ok_and(|status| status["mesh"] == false)
        {
            return Err(Error::new("this lab has no mesh, so nobody counts", "start it without --no-mesh"));
        }
        wait(async { self.look(running.controls().await?).await })?;
        Ok(ExitCode::SUCCESS)
    }

    async fn look(&self, doors: Vec<Door>) -> Result<()> {
        let mut history = History::new(self.window);
        history.push(edges(&doors).await?);
        if !self.watch && std::io::stderr().is_terminal() {
            eprintln!("counting for {:?}", self.window);
        }
        let mut tick = tokio::time::interval(if self.watch { EVERY } else { self.window });
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tick.tick().await;
            history.push(edges(&doors).await?);
            let written = std::io::stdout().write_all(self.print(&history).as_bytes());
            // A reader that went away has seen enough.
            if !self.watch || written.is_err() {
                return Ok(());
            }
        }
    }

    fn print(&self, history: &History) -> String {
        let coarse = self.output == Output::Table;
        let rows = history.rows(coarse, &self.wanted);
        let text = match self.output {
            Output::Json => {
                let document = as_json(&rows, history.seconds());
                return if self.watch { format!("{document}\n") } else { format!("{document:#}\n") };
            }
            _ if rows.is_empty() => nobody(history),
            Output::Table => table::plain(&rows, coloured()),
            Output::Wide => table::wide(&rows, coloured()),
        };
        match self.watch && std::io::stdout().is_terminal() {
            true => format!("\x1b[H\x1b[J{text}"),
            false if self.watch => format!("{text}\n"),
            false => text,
        }
    }
}

/// Each sidecar reports to one replica of the control plane.
async fn edges(doors: &[Door]) -> Result<Snapshot> {
    let mut told = Vec::new();
    for door in doors {
        told.push((door.name.clone(), door.json("/edges").await?));
    }
    Ok(Snapshot::of_all(&told))
}

/// Why there is nothing to show: perhaps only of those who were asked for.
fn nobody(history: &History) -> String {
    let calls: BTreeSet<String> =
        history.rows(true, &Wanted::default()).iter().map(|row| format!("  {}\n", table::call(row))).collect();
    match calls.is_empty() {
        true => "nobody has called anybody in the last minutes\n".into(),
        false => {
            format!("no such calls in the last minutes; these there were:\n{}", calls.into_iter().collect::<String>())
        }
    }
}

fn as_json(rows: &[Row], seconds: f64) -> Value {
    let text = |t: &str| if t.is_empty() { Value::Null } else { t.into() };
    let end = |e: &edges::End| json!({"workload": text(&e.workload), "namespace": text(&e.namespace), "identity": text(&e.identity)});
    let edges = rows.iter().map(|row| {
        let (now, total) = (&row.now, &row.total);
        json!({
            "from": end(&row.from),
            "to": end(&row.to),
            "service": text(&row.service),
            "route": text(&row.route),
            "mtls": row.mtls,
            "countedBy": if row.inbound { "server" } else { "client" },
            "rps": row.rate(now.requests),
            "success": now.success(),
            "p50": now.quantile(0.5),
            "p95": now.quantile(0.95),
            "p99": now.quantile(0.99),
            "requests": now.requests,
            "failures": now.failures,
            "retries": now.retries,
            "connections": now.connections,
            "bytesSent": now.sent,
            "bytesReceived": now.received,
            "total": {
                "requests": total.requests, "failures": total.failures, "retries": total.retries,
                "connections": total.connections, "bytesSent": total.sent, "bytesReceived": total.received,
            },
        })
    });
    json!({"seconds": seconds, "edges": edges.collect::<Vec<Value>>()})
}
