//! `meshctl lab traces`: a request as a tree, from who called first to who was called last.
//!
//! A sidecar makes a span of a request and one of each attempt to answer it. Where there was one attempt the two are one line, so
//! a call is two lines: the caller's, and below it that of who answered.

use super::otlp;
use super::record::Lab;
use super::spans::Query;
use super::{Output, Which};
use crate::error::{Error, Result};
use crate::terminal::{Tone, coloured, paint, table};
use clap::Args;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Traces {
    #[command(flatten)]
    which: Which,
    /// How a trace's id begins; access logs and `traceparent` have it. The last one if none is given
    #[arg(value_name = "TRACE-ID", value_parser = trace_id)]
    trace: Option<String>,
    /// How many, the last one at the end
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    last: u16,
    /// Only those that this service has a part in: NAME or NAME.NAMESPACE
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

const EXAMPLES: &str = "\
Examples:
  meshctl lab traces                        the last request
  meshctl lab traces --service users --last 3
  meshctl lab traces 4bf92f35
  meshctl lab traces -o json

Sidecars send their spans once a second, and this waits for those that are under way.";

/// Sidecars send once a second, and the machine may be busy.
const UNDER_WAY: Duration = Duration::from_millis(1500);

fn trace_id(text: &str) -> std::result::Result<String, String> {
    let text = text.to_ascii_lowercase();
    let is_hex = text.chars().all(|c| c.is_ascii_hexdigit());
    if is_hex && (1..=32).contains(&text.len()) { Ok(text) } else { Err("hex digits, 32 at most".into()) }
}

impl Traces {
    pub async fn run(self) -> Result<()> {
        let lab = Lab::find(self.which.id.as_deref())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = u64::try_from(now.as_nanos()).ok();
        let query = Query { id: self.trace, service: self.service, until, last: self.last.into() };
        tokio::time::sleep(UNDER_WAY).await;
        let answer = otlp::ask(&lab, &query).await?;
        let traces = answer["traces"].as_array().map_or(&[][..], Vec::as_slice);
        if traces.is_empty() {
            let what = match answer["kept"].as_u64() {
                Some(0) => "no trace yet; calls between meshed pods make one".to_string(),
                kept => format!("none of the {} last traces is as wanted", kept.unwrap_or_default()),
            };
            return Err(Error::new(what, "meshctl lab exec WORKLOAD -- curl -s http://SERVICE/, and once more"));
        }
        if self.output == Output::Json {
            println!("{:#}", json!({"traces": traces}));
            return Ok(());
        }
        let texts: Vec<String> = traces.iter().map(|t| show(t, coloured())).collect();
        print!("{}", texts.join("\n"));
        Ok(())
    }
}

/// A span, and what came of it.
struct Node<'v> {
    span: &'v Value,
    children: Vec<usize>,
}

impl Node<'_> {
    /// Of the span, as text that a terminal can be trusted with: some of it was chosen by whoever made the request.
    fn text(&self, field: &str) -> String {
        plain(&self.span[field])
    }

    fn attribute(&self, name: &str) -> String {
        plain(&self.span["attributes"][name])
    }

    fn start(&self) -> u64 {
        self.span["startUnixNano"].as_u64().unwrap_or_default()
    }

    fn took(&self) -> u64 {
        self.span["durationNano"].as_u64().unwrap_or_default()
    }

    fn is(&self, kind: &str) -> bool {
        self.span["kind"] == kind
    }

    /// The service and its version.
    fn who(&self) -> String {
        let (name, version) = (self.text("service"), self.text("version"));
        if version.is_empty() { name } else { format!("{name} {version}") }
    }

    fn what(&self) -> String {
        let (method, path) = (self.attribute("http.request.method"), self.attribute("url.path"));
        match self.attribute("weft.role").as_str() {
            "outbound" => format!("{} -> {method} {}{path}", self.who(), self.attribute("server.address")),
            "inbound" => format!("{}: {method} {path}", self.who()),
            _ => format!("{}: {}", self.who(), self.text("name")),
        }
    }

    fn status(&self) -> (String, Tone) {
        let (http, grpc) = (self.attribute("http.response.status_code"), self.attribute("rpc.grpc.status_code"));
        let failed = self.span["error"] == true || !["", "0"].contains(&grpc.as_str());
        let text = match (http.as_str(), grpc.as_str()) {
            ("", "") => if failed { "error" } else { "" }.into(),
            (_, "") => http,
            _ => format!("grpc {grpc}"),
        };
        (text, if failed { Tone::Bad } else { Tone::Good })
    }
}

fn plain(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(120).collect()
}

/// `NAMESPACE/ACCOUNT` of a SPIFFE id.
fn identity(id: &str) -> String {
    let parts: Vec<&str> = id.split('/').collect();
    match parts[..] {
        ["spiffe:", "", _, "ns", namespace, "sa", account] => format!("{namespace}/{account}"),
        _ => id.into(),
    }
}

fn time(nanos: u64) -> String {
    let ms = nanos as f64 / 1e6;
    if ms < 10_000.0 { format!("{ms:.1} ms") } else { format!("{:.1} s", ms / 1000.0) }
}

type Row = Vec<(String, Tone)>;

struct Tree<'v> {
    nodes: Vec<Node<'v>>,
    begun: u64,
    shown: BTreeSet<usize>,
    rows: Vec<Row>,
}

fn show(trace: &Value, coloured: bool) -> String {
    let mut nodes: Vec<Node<'_>> =
        trace["spans"].as_array().into_iter().flatten().map(|span| Node { span, children: Vec::new() }).collect();
    nodes.sort_by_key(Node::start);
    let by_id: HashMap<String, usize> = nodes.iter().enumerate().map(|(i, n)| (n.text("spanId"), i)).collect();
    let mut roots = Vec::new();
    for i in 0..nodes.len() {
        match by_id.get(&nodes[i].text("parentId")) {
            Some(parent) => nodes[*parent].children.push(i),
            None => roots.push(i),
        }
    }
    let begun = nodes.first().map_or(0, Node::start);
    let end = nodes.iter().map(|n| n.start() + n.took()).max().unwrap_or(begun);
    let services: BTreeSet<String> = nodes.iter().map(|n| n.text("service")).collect();
    let count = nodes.len();
    let mut tree = Tree { nodes, begun, shown: BTreeSet::new(), rows: Vec::new() };
    // Those that are their own ancestors, which only a liar's are, come last.
    for root in roots.into_iter().chain(0..count) {
        tree.walk(root, "", "");
    }
    let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    format!(
        "{} {}: {}, {}, {}\n{}",
        paint("trace", Tone::Bold, coloured),
        plain(&trace["traceId"]),
        time(end - begun),
        plural(services.len(), "service"),
        plural(count, "span"),
        table(&["SPAN", "AT", "TOOK", "STATUS", ""], &tree.rows, coloured)
    )
}

impl Tree<'_> {
    fn walk(&mut self, i: usize, first: &str, rest: &str) {
        if !self.shown.insert(i) {
            return;
        }
        let node = &self.nodes[i];
        let own =
            |c: &&usize| self.nodes[**c].is("client") && self.nodes[**c].text("instance") == node.text("instance");
        let attempts: Vec<usize> = match node.is("server") {
            true => node.children.iter().filter(own).copied().collect(),
            false => Vec::new(),
        };
        let mut children = node.children.clone();
        if let [only] = attempts[..] {
            self.shown.insert(only);
            children.retain(|c| *c != only);
            children.extend_from_slice(&self.nodes[only].children);
            children.sort_by_key(|c| self.nodes[*c].start());
        }
        self.rows.push(self.row(node, first, node.what(), attempts.first().filter(|_| attempts.len() == 1)));
        for (n, child) in children.iter().enumerate() {
            let is_last = n + 1 == children.len();
            let first = format!("{rest}{}", if is_last { "└─ " } else { "├─ " });
            let rest = format!("{rest}{}", if is_last { "   " } else { "│  " });
            match attempts.iter().position(|a| a == child).filter(|_| attempts.len() > 1) {
                Some(nth) => self.attempt(*child, nth + 1, &first, &rest),
                None => self.walk(*child, &first, &rest),
            }
        }
    }

    /// One of several.
    fn attempt(&mut self, i: usize, nth: usize, first: &str, rest: &str) {
        if !self.shown.insert(i) {
            return;
        }
        let node = &self.nodes[i];
        let (address, port) = (node.attribute("network.peer.address"), node.attribute("network.peer.port"));
        let what = format!("attempt {nth} at {address}:{port}");
        self.rows.push(self.row(node, first, what, Some(&i)));
        let children = node.children.clone();
        for (n, child) in children.iter().enumerate() {
            let is_last = n + 1 == children.len();
            let first = format!("{rest}{}", if is_last { "└─ " } else { "├─ " });
            let rest = format!("{rest}{}", if is_last { "   " } else { "│  " });
            self.walk(*child, &first, &rest);
        }
    }

    /// `call` is the span of what was sent on, whose peer is who answered; without it the peer is who called.
    fn row(&self, node: &Node<'_>, first: &str, what: String, call: Option<&usize>) -> Row {
        let outbound = node.attribute("weft.role") != "inbound";
        let answered = call.filter(|_| outbound).map(|c| self.nodes[*c].attribute("weft.peer.identity"));
        let (peer, way) = match answered.filter(|p| !p.is_empty()) {
            Some(peer) => (peer, "to"),
            None => (if outbound { String::new() } else { node.attribute("weft.peer.identity") }, "from"),
        };
        let mut notes = Vec::new();
        if !peer.is_empty() {
            notes.push(format!("mTLS {way} {}", identity(&peer)));
        }
        notes.extend(Some(node.attribute("weft.reason")).filter(|r| !r.is_empty()));
        vec![
            (format!("{first}{what}"), Tone::Plain),
            (time(node.start() - self.begun), Tone::Faint),
            (time(node.took()), Tone::Plain),
            node.status(),
            (notes.join(", "), Tone::Faint),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: &str, parent: &str, service: &str, kind: &str, at: u64, took: u64, attributes: Value) -> Value {
        json!({
            "spanId": id, "parentId": parent, "service": service, "instance": format!("{service}-1"), "version": "",
            "name": "GET", "kind": kind, "startUnixNano": 1_000_000_000 + at * 100_000, "durationNano": took * 100_000,
            "error": attributes["http.response.status_code"].as_u64().unwrap_or(0) >= 500, "attributes": attributes,
        })
    }

    fn server(role: &str, status: u64, path: &str, peer: &str) -> Value {
        json!({"weft.role": role, "http.request.method": "GET", "url.path": path, "server.address": "users:80",
            "http.response.status_code": status, "weft.peer.identity": peer})
    }

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
    const USERS: &str = "spiffe://cluster.local/ns/shop/sa/users";

    #[test]
    fn a_call_is_two_lines() {
        let trace = json!({"traceId": "ab", "spans": [
            span("04", "03", "users", "client", 20, 50, json!({"http.response.status_code": 200})),
            span("03", "02", "users", "server", 15, 60, server("inbound", 200, "/a\u{1b}[2J", WEB)),
            span("02", "01", "web", "client", 5, 90, json!({"weft.peer.identity": USERS, "http.response.status_code": 200})),
            span("01", "77", "web", "server", 0, 100, server("outbound", 200, "/a", "")),
        ]});
        assert_eq!(
            show(&trace, false),
            "trace ab: 10.0 ms, 2 services, 4 spans\n\
             SPAN                    AT       TOOK      STATUS\n\
             web -> GET users:80/a   0.0 ms   10.0 ms   200      mTLS to shop/users\n\
             └─ users: GET /a?[2J    1.5 ms   6.0 ms    200      mTLS from shop/web\n"
        );
    }

    #[test]
    fn attempts_are_shown_where_there_were_several() {
        let attempt = |status: u64, port: u64| {
            json!({"network.peer.address": "10.0.0.1", "network.peer.port": port, "http.response.status_code": status,
                "weft.peer.identity": USERS})
        };
        let trace = json!({"traceId": "ab", "spans": [
            span("01", "", "web", "server", 0, 100, server("outbound", 200, "/", "")),
            span("02", "01", "web", "client", 1, 20, attempt(503, 1)),
            span("03", "02", "users", "server", 2, 10, server("inbound", 503, "/", WEB)),
            span("04", "01", "web", "client", 30, 20, attempt(200, 2)),
            span("05", "99", "other", "internal", 40, 1, json!({})),
            span("06", "06", "liar", "internal", 41, 1, json!({})),
        ]});
        let text = show(&trace, false);
        let first: Vec<&str> = text.lines().skip(2).map(|l| l.split("  ").next().unwrap_or_default()).collect();
        assert_eq!(
            first,
            [
                "web -> GET users:80/",
                "├─ attempt 1 at 10.0.0.1:1",
                "│",
                "└─ attempt 2 at 10.0.0.1:2",
                "other: GET",
                "liar: GET"
            ],
            "{text}"
        );
        assert!(text.contains("│  └─ users: GET /"), "{text}");
        assert!(text.contains("503      mTLS to shop/users"), "{text}");
    }
}
