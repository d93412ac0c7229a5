//! The command line.

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use weft_policy::doc::parse_duration;
use weft_policy::id::TrustDomain;

/// Weft's control plane: reads the manifests of folders or of a cluster, gives workloads their identities, and tells each proxy what it needs.
#[derive(Clone, Debug, Parser)]
#[command(name = "weft-control", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Settings {
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    pub serve: Option<Serve>,
}

#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// A folder of manifests (YAML), watched with all below it; several are read as one
    #[arg(long, value_name = "DIR", required_unless_present = "kube", conflicts_with = "kube")]
    pub dir: Vec<PathBuf>,

    /// A Kubernetes cluster in place of folders: the one whose pod this runs in, or that of the kubeconfig. Pods prove themselves
    /// with ServiceAccount tokens, and the roots are in Secret weft-ca
    #[arg(long)]
    pub kube: bool,

    /// Which cluster, when not the own one
    #[arg(long, value_name = "FILE", requires = "kube", conflicts_with = "dir")]
    pub kubeconfig: Option<PathBuf>,

    /// A context of the kubeconfig; without it the current one
    #[arg(long, value_name = "NAME", requires = "kube", conflicts_with = "dir")]
    pub context: Option<String>,

    /// Where proxies come: to join, to renew, to be told
    #[arg(long, value_name = "ADDR")]
    pub listen: SocketAddr,

    /// Keys, roots and join tokens; must be kept, and kept private
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,

    /// Where the admin interface listens, on loopback; without it there is none
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,

    /// Where the API server asks whether what is applied can come into force, over TLS; without it, it asks nobody
    #[arg(long, value_name = "ADDR")]
    pub webhook: Option<SocketAddr>,

    /// One more name or address that the webhook's certificate is for; may be given several times
    #[arg(long, value_name = "NAME", requires = "webhook")]
    pub webhook_name: Vec<String>,

    /// Where /ready, /live and /metrics are to be had from anywhere, and nothing else
    #[arg(long, value_name = "ADDR")]
    pub status: Option<SocketAddr>,

    /// What identities begin with; fixed once the first root is made
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: TrustDomain,

    /// The namespace of objects that name none
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub namespace: String,

    /// How long a workload's certificate counts
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = lifetime)]
    pub leaf_lifetime: Duration,

    /// Addresses of the mesh's pods and services, such as 10.244.0.0/16; may be given several times; without it, those that Nodes and
    /// ServiceCIDRs name. What a proxy is told nothing of within a second is called in plaintext elsewhere, and not at all there
    #[arg(long, value_name = "CIDR")]
    pub mesh_range: Vec<IpNet>,

    /// Where sidecars send their spans: an OTLP/gRPC receiver; without it they send none
    #[arg(long, value_name = "URL", value_parser = collector)]
    pub otlp: Option<String>,

    /// Share of requests that spans are made of, in percent; a caller's decision wins
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, value_parser = percent)]
    pub sampling: f64,

    /// How sidecars write down the requests they carry, on their standard output
    #[arg(long, value_name = "FORMAT", default_value = "json", value_parser = ["off", "json", "text"])]
    pub access_log: String,

    /// What is logged: error, warn, info, debug, trace, or by module as in `info,weft_control::push=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: String,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Makes a join token for one workload, good for one use, and prints it
    Token {
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        #[arg(long, value_name = "NAME")]
        namespace: String,
        #[arg(long, value_name = "NAME")]
        service_account: String,
        #[arg(long, value_name = "NAME")]
        pod: String,
        /// How long the token waits to be used
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
        ttl: Duration,
    },
    /// Prints the roots that are trusted now, as PEM
    Root {
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
    },
    /// Takes the rotation of the root one step on: a second root is trusted; it signs; the old one goes
    RotateRoot {
        #[arg(long, value_name = "DIR", required_unless_present = "kube", conflicts_with = "kube")]
        state: Option<PathBuf>,
        /// The root in a cluster's Secret weft-ca; from anywhere, by a kubeconfig that may change it
        #[arg(long)]
        kube: bool,
        #[arg(long, value_name = "FILE", requires = "kube")]
        kubeconfig: Option<PathBuf>,
        #[arg(long, value_name = "NAME", requires = "kube")]
        context: Option<String>,
        /// Where the control plane is
        #[arg(long, value_name = "NAME", default_value = crate::identity::own::NAMESPACE)]
        namespace: String,
        /// Does not wait until everybody has what the step needs
        #[arg(long)]
        force: bool,
    },
}

const EXAMPLES: &str = "\
Examples:
  weft-control --dir manifests --listen 127.0.0.1:15012 --state state --admin 127.0.0.1:15014
  weft-control --dir base --dir overlay --listen 127.0.0.1:15012 --state state --trust-domain example.org
  weft-control --kube --kubeconfig ~/.kube/config --listen 0.0.0.0:15012 --state state --admin 127.0.0.1:15014
  weft-control token --state state --namespace demo --service-account web --pod web-1
  weft-control root --state state > root.pem
  weft-control rotate-root --state state       three times, as each step allows
  weft-control rotate-root --kube              the same for the root in a cluster

The admin interface answers /ready, /status, /objects, /errors, /edges and /metrics.
Exit codes: 0 done, 1 the step was refused, 2 wrong use or something that cannot be used.";

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|e| e.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "a duration such as 90s, 15m or 24h".into())
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_secs(2), Duration::from_secs(24 * 3600));
    match duration(text)? {
        d if d < least => Err("at least 2s".into()),
        d if d > most => Err("at most 24h: what is stolen should not be good for long".into()),
        d => Ok(d),
    }
}

fn collector(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|e| format!("{e}"))?;
    let whole = uri.scheme_str() == Some("http") && uri.port_u16().is_some();
    if whole { Ok(text.into()) } else { Err("http://HOST:PORT, as in http://collector:4317".into()) }
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|p| (0.0..=100.0).contains(p)).ok_or("between 0 and 100".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line() {
        Settings::command().debug_assert();
        let args = ["weft-control", "--dir", "a", "--dir", "b", "--listen", "127.0.0.1:0", "--state", "s"];
        let serve = Settings::parse_from(args).serve.unwrap();
        assert_eq!(
            (serve.dir.len(), serve.namespace.as_str(), serve.trust_domain.as_str()),
            (2, "default", "cluster.local")
        );
        assert_eq!(serve.leaf_lifetime, Duration::from_secs(24 * 3600));
        assert_eq!((serve.otlp, serve.sampling), (None, 1.0));
        let cluster = "weft-control --kube --context c --listen 127.0.0.1:0 --state s";
        let cluster = Settings::parse_from(cluster.split(' ')).serve.unwrap();
        assert!(cluster.kube && cluster.dir.is_empty());
        let token = "weft-control token --state s --namespace n --service-account a --pod p";
        assert!(Settings::try_parse_from(token.split(' ')).unwrap().serve.is_none());
        for bad in [
            "weft-control --dir a",
            "weft-control --listen 127.0.0.1:0 --state s",
            "weft-control --dir a --kube --listen 127.0.0.1:0 --state s",
            "weft-control --dir a --kubeconfig c --listen 127.0.0.1:0 --state s",
            "weft-control --dir a --listen nowhere --state s",
            "weft-control --dir a --listen 127.0.0.1:0 --state s --leaf-lifetime 48h",
            "weft-control --dir a --listen 127.0.0.1:0 --state s --trust-domain A",
            "weft-control --dir a --listen 127.0.0.1:0 --state s --otlp collector:4317",
            "weft-control --dir a --listen 127.0.0.1:0 --state s --sampling 101",
            "weft-control token --state s",
        ] {
            assert!(Settings::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
        let help = Settings::command().render_long_help().to_string();
        assert!(help.contains("Examples:") && help.contains("rotate-root"), "{help}");
    }
}
