//! `meshctl proxy`: what the sidecars of a running lab or a cluster say of themselves on their admin pages.

pub mod clusters;
mod config;

use crate::door::Door;
use crate::error::Result;
use crate::place::Place;
use crate::running::Running;
use crate::runtime::wait;
use crate::terminal::{Tone, coloured, paint, table};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value as Json, json};
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    meshctl proxy config web                    what its sidecars hold\n  \
    meshctl proxy clusters web                  breakers, endpoints, ejections, as they are now\n  \
    meshctl proxy certs web-7d4b9c6f5-x2x4k.shop           NAME.NAMESPACE, in a cluster\n  \
    meshctl proxy log-level web debug           for 15 minutes\n  \
    meshctl proxy config web -o json | jq '.[].config.services'")]
pub struct Proxy {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// The configuration in force: listeners, services, routes, and what was refused
    Config(Which),
    /// Every backend: what its breakers count, and its endpoints
    Clusters(Which),
    /// The certificate, and the roots that are trusted
    Certs(Which),
    /// Show what is logged, or set it for 15 minutes
    LogLevel {
        #[command(flatten)]
        which: Which,
        /// error, warn, info, debug, trace, or a filter such as weft_proxy::http=debug
        level: Option<String>,
    },
}

#[derive(Args)]
struct Which {
    /// A workload, whose sidecars are meant, or a pod; NAMESPACE/NAME where names repeat, in a cluster also NAME.NAMESPACE
    workload: String,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    place: Place,
    /// How to print it; json as the sidecar has it, by pod
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

impl Verb {
    fn which(&self) -> &Which {
        match self {
            Self::Config(which) | Self::Clusters(which) | Self::Certs(which) | Self::LogLevel { which, .. } => which,
        }
    }
}

impl Proxy {
    pub fn run(self) -> Result<ExitCode> {
        let running = self.verb.which().place.running()?;
        wait(async {
            match self.verb {
                Verb::Config(which) => {
                    which
                        .print(&running, "/config_dump", |text| {
                            parsed(text).map(|dump| config::page(&dump, coloured()))
                        })
                        .await
                }
                Verb::Clusters(which) => {
                    which.print(&running, "/clusters", |text| Ok(backends(text, coloured()))).await
                }
                Verb::Certs(which) => {
                    which
                        .print(&running, "/certs", |text| parsed(text).map(|certs| certificates(&certs, coloured())))
                        .await
                }
                Verb::LogLevel { which, level } => which.log_level(&running, level.as_deref()).await,
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn parsed(text: &str) -> Result<Json> {
    serde_json::from_str(text).map_err(|e| format!("the sidecar's answer is no JSON: {e}").into())
}

impl Which {
    /// Pods and the ways to their sidecars.
    async fn doors(&self, running: &Running) -> Result<Vec<(String, Door)>> {
        let pods = running.pods_named(&self.workload, self.namespace.as_deref()).await?;
        let name = |pod: &Json| pod["name"].as_str().unwrap_or_default().to_string();
        pods.iter().map(|pod| running.sidecar(pod).map(|door| (name(pod), door))).collect()
    }

    async fn print(&self, running: &Running, path: &str, page: impl Fn(&str) -> Result<String>) -> Result<()> {
        let doors = self.doors(running).await?;
        let many = doors.len() > 1;
        let mut all = serde_json::Map::new();
        for (name, door) in doors {
            let text = door.get(path).await?;
            match self.output {
                Output::Json => {
                    all.insert(name, serde_json::from_str(&text).unwrap_or_else(|_| json!(text)));
                }
                Output::Table => {
                    if many {
                        println!("{}", paint(&format!("--- {name}"), Tone::Bold, coloured()));
                    }
                    print!("{}", page(&text)?);
                }
            }
        }
        if !all.is_empty() {
            println!("{:#}", Json::Object(all));
        }
        Ok(())
    }

    async fn log_level(&self, running: &Running, level: Option<&str>) -> Result<()> {
        let mut all = serde_json::Map::new();
        for (name, door) in self.doors(running).await? {
            let said = match level {
                None => door.get("/logging").await?,
                Some(level) => door.post(&format!("/logging?level={}", escaped(level))).await?,
            };
            all.insert(name, json!(said.trim()));
        }
        match self.output {
            Output::Json => println!("{:#}", Json::Object(all)),
            Output::Table => {
                all.iter().for_each(|(name, said)| println!("{name}: {}", said.as_str().unwrap_or_default()))
            }
        }
        Ok(())
    }
}

/// For a query: everything but what is plain.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~,=:/[]".contains(&b);
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

fn backends(text: &str, coloured: bool) -> String {
    let mut rows = Vec::new();
    let plain = |text: &str| (text.to_string(), Tone::Plain);
    for cluster in clusters::read(text) {
        rows.push(vec![
            (cluster.short(), Tone::Bold),
            plain(""),
            plain(&cluster.used("cx_active", "max_connections")),
            plain(&cluster.used("rq_active", "max_requests")),
            plain(&cluster.used("rq_pending_active", "max_pending_requests")),
            plain(cluster.figure("outlier_ejections")),
        ]);
        for endpoint in &cluster.endpoints {
            let state = match endpoint.state() {
                "healthy" => ("healthy".to_string(), Tone::Good),
                other => (other.to_string(), Tone::Bad),
            };
            rows.push(vec![
                plain(&format!("  {}", endpoint.address)),
                state,
                plain(""),
                plain(endpoint.figure("rq_active")),
                plain(""),
                plain(endpoint.figure("ejections")),
                plain(endpoint.figure("hostname")),
            ]);
        }
    }
    table(&["BACKEND", "STATE", "CONNECTIONS", "REQUESTS", "WAITING", "EJECTIONS", "POD"], &rows, coloured)
}

fn certificates(certs: &Json, coloured: bool) -> String {
    let mut rows = Vec::new();
    let list = |value: &Json| value.as_array().cloned().unwrap_or_default();
    for bundle in list(&certs["certificates"]) {
        for (kind, field) in [("own", "cert_chain"), ("root", "ca_cert")] {
            for cert in list(&bundle[field]) {
                let text = |name: &str| cert[name].as_str().unwrap_or_default().to_string();
                let names = list(&cert["subject_alt_names"]);
                let names = names.iter().filter_map(|n| n["uri"].as_str().or(n["dns"].as_str()));
                let day =
                    |name: &str| (text(name).split('.').next().unwrap_or_default().replace('T', " "), Tone::Plain);
                rows.push(vec![
                    (kind.to_string(), Tone::Plain),
                    (text("serial_number"), Tone::Plain),
                    day("valid_from"),
                    day("expiration_time"),
                    (names.collect::<Vec<_>>().join(" "), Tone::Plain),
                ]);
            }
        }
    }
    table(&["", "SERIAL", "FROM", "UNTIL", "NAMES"], &rows, coloured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_in_a_query() {
        assert_eq!(escaped("info,weft_proxy::http=debug"), "info,weft_proxy::http=debug");
        assert_eq!(escaped("a b&c"), "a%20b%26c");
    }

    #[test]
    fn certificates_in_a_table() {
        let certs = json!({"certificates": [{
            "cert_chain": [{"serial_number": "0a", "subject_alt_names": [{"uri": "spiffe://a/b"}],
                "valid_from": "2026-11-21T10:00:00.000Z", "expiration_time": "2026-11-22T10:00:00.000Z"}],
            "ca_cert": [{"serial_number": "0b", "subject_alt_names": [],
                "valid_from": "2026-11-21T10:00:00.000Z", "expiration_time": "2036-11-22T10:00:00.000Z"}],
        }]});
        let page = certificates(&certs, false);
        assert!(page.contains("own    0a       2026-11-21 10:00:00   2026-11-22 10:00:00   spiffe://a/b\n"), "{page}");
        assert!(page.contains("root   0b"), "{page}");
    }
}
