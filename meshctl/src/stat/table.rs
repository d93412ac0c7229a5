//! Rows as text: what fits beside each other on a terminal, and all there is to say.

use super::edges::{End, Row};
use crate::terminal::{Tone, table};

type Cell = (String, Tone);

/// Who calls whom, how well, and whether who they are is proven.
pub fn plain(rows: &[Row], coloured: bool) -> String {
    let many = rows.iter().flat_map(|r| [&r.from.namespace, &r.to.namespace]).filter(|n| !n.is_empty());
    let many = many.collect::<std::collections::BTreeSet<_>>().len() > 1;
    let cells: Vec<Vec<Cell>> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![from(row, many), to(row, many)];
            cells.extend(figures(row));
            cells.push((if row.mtls { short(&row.from.identity) } else { "-".into() }, Tone::Faint));
            cells
        })
        .collect();
    table(&["FROM", "TO", "RPS", "SUCCESS", "P50", "P95", "P99", "MTLS", "IDENTITY"], &cells, coloured)
}

/// Sums are since the edge was first heard of.
pub fn wide(rows: &[Row], coloured: bool) -> String {
    let cells: Vec<Vec<Cell>> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![from(row, true), to(row, true), text(&row.service), text(&row.route)];
            cells.extend(figures(row));
            let total = &row.total;
            let sums = [total.requests, total.failures, total.retries, total.connections, total.sent, total.received];
            cells.extend(sums.map(|n| (n.to_string(), Tone::Plain)));
            cells.push(text(if row.inbound { "server" } else { "client" }));
            cells.push(text(if row.mtls { &row.from.identity } else { "" }));
            cells
        })
        .collect();
    let heading = [
        "FROM",
        "TO",
        "SERVICE",
        "ROUTE",
        "RPS",
        "SUCCESS",
        "P50",
        "P95",
        "P99",
        "MTLS",
        "REQUESTS",
        "FAILURES",
        "RETRIES",
        "CONNECTIONS",
        "SENT",
        "RECEIVED",
        "COUNTED-BY",
        "IDENTITY",
    ];
    table(&heading, &cells, coloured)
}

/// One edge in words.
pub fn call(row: &Row) -> String {
    format!("{} -> {}", from(row, true).0, to(row, true).0)
}

fn text(text: &str) -> Cell {
    (if text.is_empty() { "-" } else { text }.into(), Tone::Plain)
}

fn named(end: &End, or: &str, with_namespace: bool) -> Cell {
    match (end.workload.as_str(), end.namespace.as_str()) {
        ("", "") => (or.into(), Tone::Faint),
        ("", namespace) => (if with_namespace { format!("{or}.{namespace}") } else { or.into() }, Tone::Faint),
        (name, namespace) if with_namespace && !namespace.is_empty() => (format!("{name}.{namespace}"), Tone::Plain),
        (name, _) => (name.into(), Tone::Plain),
    }
}

fn from(row: &Row, with_namespace: bool) -> Cell {
    named(&row.from, "(unmeshed)", with_namespace)
}

/// A workload; the Service that was asked for, where nobody was reached.
fn to(row: &Row, with_namespace: bool) -> Cell {
    named(&row.to, if row.service.is_empty() { "(unknown)" } else { &row.service }, with_namespace)
}

fn figures(row: &Row) -> Vec<Cell> {
    let now = &row.now;
    let quiet = now.requests + now.connections == 0;
    let rate = match now.requests {
        0 if now.connections > 0 => format!("{} conn", rate(row.rate(now.connections))),
        n => rate(row.rate(n)),
    };
    let mut cells = vec![(rate, if quiet { Tone::Faint } else { Tone::Plain })];
    cells.push(now.success().map_or(("-".into(), Tone::Faint), |share| {
        let tone = if share >= 1.0 {
            Tone::Good
        } else if share >= 0.99 {
            Tone::Plain
        } else {
            Tone::Bad
        };
        (percent(share), tone)
    }));
    for q in [0.5, 0.95, 0.99] {
        cells.push(now.quantile(q).map_or(("-".into(), Tone::Faint), |s| (latency(s), Tone::Plain)));
    }
    cells.push(match (row.mtls, row.to.workload.is_empty() && !row.inbound) {
        (true, _) => ("yes".into(), Tone::Good),
        // Nobody was reached.
        (false, true) => ("-".into(), Tone::Faint),
        (false, false) => ("no".into(), Tone::Bad),
    });
    cells
}

fn rate(rps: f64) -> String {
    if rps < 99.95 { format!("{rps:.1}") } else { format!("{rps:.0}") }
}

/// Never rounded up: one failure of a million shows.
fn percent(share: f64) -> String {
    if share >= 1.0 { "100%".into() } else { format!("{:.2}%", (share * 10_000.0).floor() / 100.0) }
}

fn latency(seconds: f64) -> String {
    match seconds * 1000.0 {
        ms if ms < 9.95 => format!("{ms:.1}ms"),
        ms if ms < 999.5 => format!("{ms:.0}ms"),
        ms => format!("{:.1}s", ms / 1000.0),
    }
}

/// NAMESPACE/ACCOUNT where it says so, without what all identities of a mesh have.
fn short(identity: &str) -> String {
    let account = identity.split_once("/ns/").and_then(|(_, rest)| rest.split_once("/sa/"));
    account.map_or_else(|| identity.into(), |(namespace, account)| format!("{namespace}/{account}"))
}

#[cfg(test)]
mod tests {
    use super::super::edges::{History, Snapshot, Wanted};
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn rows() -> Vec<Row> {
        let edge = |from: &str, to: &str, service: &str, mtls: bool, requests: u64, failures: u64| {
            json!({
                "source": from, "sourceNamespace": if from.is_empty() { "" } else { "shop" },
                "sourceIdentity": format!("spiffe://cluster.local/ns/shop/sa/{from}"),
                "destination": to, "destinationNamespace": "shop", "destinationService": service, "route": "main",
                "mtls": mtls, "inbound": from.is_empty(), "requests": requests, "failures": failures,
                "durations": [0, 0, requests],
            })
        };
        let mut history = History::new(Duration::from_secs(5));
        history.push(Snapshot::of(&json!({})));
        let edges = json!({"edges": [
            edge("web", "users", "users", true, 1000, 0),
            edge("web", "users-v2", "users", true, 100, 37),
            edge("", "users", "", false, 10, 0),
            edge("web", "", "ghost", false, 3, 3),
        ]});
        history.push(Snapshot::of(&edges));
        history.rows(true, &Wanted::default())
    }

    #[test]
    fn who_calls_whom_at_a_glance() {
        let text = plain(&rows(), false);
        let words: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["FROM", "TO", "RPS", "SUCCESS", "P50", "P95", "P99", "MTLS", "IDENTITY"]);
        // All but the rate, which is a matter of microseconds here.
        let rest = |n: usize| [&words[n][..2], &words[n][3..]].concat();
        assert_eq!(rest(1), ["web", "users", "100%", "0.8ms", "1.0ms", "1.0ms", "yes", "shop/web"]);
        assert_eq!(rest(2), ["web", "users-v2", "63.00%", "0.8ms", "1.0ms", "1.0ms", "yes", "shop/web"]);
        assert_eq!(rest(3), ["(unmeshed)", "users", "100%", "0.8ms", "1.0ms", "1.0ms", "no", "-"]);
        assert_eq!(rest(4), ["web", "ghost", "0.00%", "0.8ms", "1.0ms", "1.0ms", "-", "-"]);
        let wide = wide(&rows(), false);
        assert!(wide.contains("users-v2.shop") && wide.contains("spiffe://cluster.local/ns/shop/sa/web"), "{wide}");
    }

    #[test]
    fn figures_are_short_and_honest() {
        assert_eq!([0.0, 0.25, 99.94, 1234.4].map(rate), ["0.0", "0.2", "99.9", "1234"]);
        assert_eq!([1.0, 0.999_999, 0.5, 0.0].map(percent), ["100%", "99.99%", "50.00%", "0.00%"]);
        assert_eq!([0.000_1, 0.012, 0.9996, 12.0].map(latency), ["0.1ms", "12ms", "1.0s", "12.0s"]);
        assert_eq!(short("spiffe://cluster.local/ns/shop/sa/web"), "shop/web");
        assert_eq!(short("web.example.com"), "web.example.com");
    }
}
