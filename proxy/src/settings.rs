//! The command line, and what `--validate` prints.

use crate::config::control;
use crate::config::file::ProxyConfig;
use clap::{Parser, ValueEnum};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use weft_policy::diag::{Diag, Diags, Severity};
use weft_policy::id::TrustDomain;

/// Weft's sidecar: carries a workload's traffic, with routes, mutual TLS, resilience and telemetry, as a file says.
#[derive(Clone, Debug, Parser)]
#[command(name = "weft-proxy", version, after_help = EXAMPLES)]
pub struct Settings {
    /// The configuration file (YAML); it is read again on SIGHUP and when it changes
    #[arg(long, short, value_name = "FILE", required_unless_present = "control", conflicts_with = "control")]
    pub config: Option<PathBuf>,

    /// A control plane to take identity and configuration from, in place of a file
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port,
          requires_all = ["trust_root", "token_file", "pod", "state"])]
    pub control: Option<String>,

    /// The mesh's root certificates (PEM), by which the control plane is known
    #[arg(long, value_name = "FILE", requires = "control")]
    pub trust_root: Option<PathBuf>,

    /// The join token that the control plane made for this workload; read for the first certificate
    #[arg(long, value_name = "FILE", requires = "control")]
    pub token_file: Option<PathBuf>,

    /// The pod this sidecar is of
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod, requires = "control")]
    pub pod: Option<(String, String)>,

    /// A folder for identity and last plan: with them a restart needs no control plane
    #[arg(long, value_name = "DIR", requires = "control")]
    pub state: Option<PathBuf>,

    /// Take the configuration of everything the workload may see, rather than of what it calls when it first does
    #[arg(long, requires = "control")]
    pub everything: bool,

    /// Check the file, print everything that is wrong with it, and exit: 0 if it is good, 1 if not
    #[arg(long, requires = "config")]
    pub validate: bool,

    /// How --validate prints
    #[arg(long, short, value_name = "FORMAT", default_value = "text", requires = "validate")]
    pub output: Output,

    /// Threads that carry traffic, each on its own; the file's `workers`, else 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,

    /// Where the admin interface listens; the file's `admin`, else 127.0.0.1:15000
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,

    /// A further address for readiness probes; else the file's `readiness`
    #[arg(long, value_name = "ADDR")]
    pub readiness: Option<SocketAddr>,

    /// A further address for scrapes of the proxy's metrics; else the file's `metrics`
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,

    /// An address for the app's probes (WEFT_APP_PROBES), its metrics (WEFT_APP_METRICS) joined to the proxy's, and the end
    #[arg(long, value_name = "ADDR")]
    pub status: Option<SocketAddr>,

    /// An address for what Linkerd's users and tools ask a sidecar; 0.0.0.0:4191 in pods that were injected their way (WEFT_DIALECT)
    #[arg(long, value_name = "ADDR")]
    pub linkerd_admin: Option<SocketAddr>,

    /// Whose users look at this sidecar
    #[arg(long, env = "WEFT_DIALECT", value_name = "WORLD", hide = true, default_value = "weft")]
    pub dialect: Dialect,

    /// How long what is in flight has at the end; else as the configuration says, per listener
    #[arg(long, env = "WEFT_DRAIN_SECONDS", value_name = "N", value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub drain_seconds: Option<u64>,

    /// What the identity that the control plane gives has to begin with; else it may be of any trust domain
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "NAME", value_parser = trust_domain)]
    pub trust_domain: Option<TrustDomain>,

    /// Mark for connections to endpoints (SO_MARK; takes CAP_NET_ADMIN), for redirection rules that cannot go by a group
    #[arg(long, value_name = "N")]
    pub mark: Option<u32>,

    /// What is logged: error, warn, info, debug, trace, or by module as in `info,weft_proxy::config=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: String,

    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dialect {
    Weft,
    Istio,
    Linkerd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

const EXAMPLES: &str = "\
Examples:
  weft-proxy --config sidecar.yaml                  run
  weft-proxy --config sidecar.yaml --validate       check the file, all errors at once
  weft-proxy --config sidecar.yaml --validate -o json
  weft-proxy --config sidecar.yaml --workers 2 --admin 127.0.0.1:15000 --log debug
  kill -HUP PID                                     read the file again now
  weft-proxy redirect                               lead a pod's connections through its sidecar (--help has more)
  weft-proxy --control 10.0.0.2:15012 --trust-root root.pem --token-file token --pod demo/web-1 --state /run/weft

A file that makes http://127.0.0.1:8080 a proxy for two backends:
  listeners:
  - {name: front, role: hop, address: 127.0.0.1:8080, to: web}
  services:
  - name: web
    port: 80
    endpoints: [127.0.0.1:9001, 127.0.0.1:9002]

Exit codes: 0 done, 1 --validate found errors, 2 wrong use or a file that cannot be used, 3 connections were cut at the
end of a drain. docs/config-file.md is the reference of the file.";

impl Settings {
    pub fn workers(&self, config: &ProxyConfig) -> usize {
        self.workers.map(usize::from).or(config.workers).unwrap_or(1)
    }

    pub fn admin(&self, config: &ProxyConfig) -> SocketAddr {
        self.admin.or(config.admin).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 15000)))
    }

    /// Where identity and configuration come from, if not from a file.
    pub fn control(&self) -> Option<control::Options> {
        let (namespace, pod) = self.pod.clone()?;
        Some(control::Options {
            target: self.control.as_deref()?.into(),
            trust_root: self.trust_root.clone()?,
            token_file: self.token_file.clone()?,
            namespace,
            pod,
            state: self.state.clone()?,
            everything: self.everything,
            trust_domain: self.trust_domain.clone(),
        })
    }

    /// Where Linkerd's admin paths are served.
    pub fn linkerd_admin(&self) -> Option<SocketAddr> {
        let usual = (self.dialect == Dialect::Linkerd).then_some(SocketAddr::from(([0, 0, 0, 0], 4191)));
        self.linkerd_admin.or(usual)
    }

    pub fn drain(&self) -> Option<Duration> {
        self.drain_seconds.map(Duration::from_secs)
    }

    /// Does what `--validate` says; findings go to standard output, which is what was asked for.
    pub fn validate(&self) -> ExitCode {
        let mut out = std::io::stdout().lock();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let (good, text) = self.findings(!no_color && out.is_terminal());
        // A reader that went away has seen enough.
        let _ = out.write_all(text.as_bytes());
        if good { ExitCode::SUCCESS } else { ExitCode::from(1) }
    }

    /// Whether the file is good, and what is to be said of it.
    pub fn findings(&self, colour: bool) -> (bool, String) {
        let file = self.config.as_deref().unwrap_or(Path::new(""));
        let (config, diags) = ProxyConfig::load(file);
        let text = match self.output {
            Output::Json => json(file, config.as_ref(), &diags),
            Output::Text => {
                let mut text = render(file, &diags, colour);
                if let Some(config) = &config {
                    let _ = writeln!(text, "{}", summary(config));
                }
                text
            }
        };
        (config.is_some(), text)
    }
}

fn host_port(text: &str) -> Result<String, String> {
    let parts =
        text.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
    parts.map(|_| text.to_string()).ok_or_else(|| "a name or an address, and a port, such as 10.0.0.2:15012".into())
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|e| e.to_string())
}

fn pod(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('/').filter(|(ns, name)| !ns.is_empty() && !name.is_empty() && !name.contains('/'));
    parts.map(|(ns, name)| (ns.into(), name.into())).ok_or_else(|| "NAMESPACE/NAME, such as demo/web-1".into())
}

fn summary(config: &ProxyConfig) -> String {
    let services: std::collections::BTreeSet<_> = config.services.iter().map(|s| &s.config.id).collect();
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    format!(
        "ok: {}, {}, {}",
        count(config.listeners.len(), "listener"),
        count(services.len(), "service"),
        count(config.routes(), "route")
    )
}

/// `file:line: field: message (hint)`.
pub fn line(file: &Path, d: &Diag) -> String {
    paint(file, d, false)
}

/// All findings, by line.
pub fn render(file: &Path, diags: &Diags, colour: bool) -> String {
    sorted(diags).into_iter().fold(String::new(), |text, d| text + &paint(file, d, colour) + "\n")
}

fn sorted(diags: &Diags) -> Vec<&Diag> {
    let mut all: Vec<&Diag> = diags.0.iter().collect();
    all.sort_by_key(|d| (d.at.line, d.at.column));
    all
}

fn paint(file: &Path, d: &Diag, colour: bool) -> String {
    let (bold, red, yellow, plain) =
        if colour { ("\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[0m") } else { ("", "", "", "") };
    let mut out = format!("{bold}{}:", file.display());
    // What concerns the file as a whole has no line.
    if d.at.line > 0 {
        let _ = write!(out, "{}:", d.at.line);
    }
    let _ = write!(out, "{plain} ");
    if d.severity == Severity::Warning {
        let _ = write!(out, "{yellow}warning:{plain} ");
    }
    if !d.field.is_empty() {
        let _ = write!(out, "{}: ", d.field);
    }
    let tone = if d.severity == Severity::Error { red } else { "" };
    let _ = write!(out, "{tone}{}{plain}", d.message);
    if let Some(hint) = &d.hint {
        let _ = write!(out, " ({hint})");
    }
    out
}

fn json(file: &Path, config: Option<&ProxyConfig>, diags: &Diags) -> String {
    let findings: Vec<_> = sorted(diags)
        .into_iter()
        .map(|d| {
            serde_json::json!({
                "severity": if d.severity == Severity::Error { "error" } else { "warning" },
                "line": d.at.line,
                "column": d.at.column,
                "field": d.field,
                "message": d.message,
                "hint": d.hint,
            })
        })
        .collect();
    let counts = config.map(
        |c| serde_json::json!({ "listeners": c.listeners.len(), "services": c.services.len(), "routes": c.routes() }),
    );
    let all = serde_json::json!({
        "file": file.display().to_string(),
        "ok": config.is_some(),
        "counts": counts,
        "findings": findings,
    });
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use weft_policy::diag::Pos;

    #[test]
    fn the_command_line() {
        Settings::command().debug_assert();
        let s = Settings::parse_from(["weft-proxy", "--config", "a.yaml", "--workers", "2", "--log-format", "json"]);
        let config = ProxyConfig { workers: Some(4), ..Default::default() };
        assert_eq!(s.workers(&config), 2);
        assert_eq!(s.admin(&config).to_string(), "127.0.0.1:15000");
        for bad in [
            &["weft-proxy"][..],
            &["weft-proxy", "--config", "a", "--workers", "0"],
            &["weft-proxy", "-c", "a", "-o", "json"],
            &["weft-proxy", "--control", "a:1"],
            &["weft-proxy", "--control", "a", "--trust-root", "r", "--token-file", "t", "--pod", "n/p", "--state", "s"],
            &["weft-proxy", "--control", "a:1", "--trust-root", "r", "--token-file", "t", "--pod", "p", "--state", "s"],
            &["weft-proxy", "-c", "a", "--state", "s"],
            &["weft-proxy", "-c", "a", "--drain-seconds", "soon"],
            &["weft-proxy", "-c", "a", "--trust-domain", "A b"],
        ] {
            assert!(Settings::try_parse_from(bad).is_err(), "{bad:?}");
        }
        assert_eq!(s.control(), None);
        assert_eq!((s.linkerd_admin(), s.drain(), s.trust_domain.clone()), (None, None, None));
        let told = ["weft-proxy", "-c", "a", "--dialect", "linkerd", "--drain-seconds", "7"];
        let told = Settings::parse_from(told);
        assert_eq!(told.linkerd_admin(), Some(SocketAddr::from(([0, 0, 0, 0], 4191))));
        assert_eq!(told.drain(), Some(Duration::from_secs(7)));
        let s = Settings::parse_from([
            "weft-proxy",
            "--control",
            "a:1",
            "--trust-root",
            "r",
            "--token-file",
            "t",
            "--pod",
            "n/p",
            "--state",
            "s",
        ]);
        let control = s.control().unwrap();
        assert_eq!((&*control.target, &*control.namespace, &*control.pod), ("a:1", "n", "p"));
        let help = Settings::command().render_long_help().to_string();
        assert!(help.contains("Examples:") && help.contains("--validate"), "{help}");
    }

    #[test]
    fn findings_as_text_and_json() {
        let mut diags = Diags::default();
        diags.error(Pos { line: 9, column: 3 }, "a.b", "is wrong", Some("do right".into()));
        diags.warn(Pos { line: 2, column: 1 }, "c", "is odd", None);
        let file = Path::new("x.yaml");
        assert_eq!(render(file, &diags, false), "x.yaml:2: warning: c: is odd\nx.yaml:9: a.b: is wrong (do right)\n");
        assert!(render(file, &diags, true).contains("\x1b[31mis wrong\x1b[0m"));
        let json: serde_json::Value = serde_json::from_str(&json(file, None, &diags)).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(json["findings"][1]["line"], 9);
        assert_eq!(json["findings"][1]["hint"], "do right");
    }
}
