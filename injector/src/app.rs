//! The injector's command line, and its parts put together.

use crate::serve::{Injector, Namespaces};
use crate::settings::{Settings, file};
use clap::Parser;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;
use weft_kubernetes::client::{Access, AccessError, connect};
use weft_kubernetes::webhook::{self, Certificate, Configuration, Figures, Served, bundle, status};
use weft_policy::doc::parse_duration;

/// Gives pods their sidecars: the mesh's mutating webhook, called by the cluster's API server at /inject.
#[derive(Clone, Debug, Parser)]
#[command(name = "weft-injector", version, after_help = EXAMPLES)]
pub struct Options {
    /// What the install says: image, control plane, resources ... (YAML); read again when it changes
    #[arg(long, value_name = "FILE")]
    pub settings: PathBuf,

    /// Where the API server calls, over TLS
    #[arg(long, value_name = "ADDR")]
    pub listen: SocketAddr,

    /// Where /ready, /live and /metrics are answered
    #[arg(long, value_name = "ADDR")]
    pub status: SocketAddr,

    /// A kubeconfig; without it as kubectl finds one, or the cluster whose pod this runs in
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Which context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// Where the certificate's Secret is kept
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "weft-system")]
    pub namespace: String,

    /// The Service by which the API server calls; the Secret is NAME-webhook
    #[arg(long, value_name = "NAME", default_value = "weft-injector")]
    pub service: String,

    /// The webhook configurations, mutating and validating, whose caBundle is kept
    #[arg(long, value_name = "NAME", default_value = "weft-injector")]
    pub configuration: String,

    /// One more name or address that the certificate is for; may be given several times
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,

    /// How long a certificate counts; it is renewed when two thirds are over
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = lifetime)]
    pub certificate_lifetime: Duration,

    /// What is logged: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: String,
}

const EXAMPLES: &str = "\
Examples:
  weft-injector --settings /etc/weft/settings.yaml --listen 0.0.0.0:15017 --status 0.0.0.0:15021
  weft-injector --settings settings.yaml --listen 127.0.0.1:15017 --status 127.0.0.1:15021 \\
      --kubeconfig ~/.kube/config --name 127.0.0.1      outside of the cluster, called by address

Stops on SIGTERM, after calls that are under way.
Exit codes: 0 done, 2 wrong use or something that cannot be used.
docs/injection.md says what it does with pods.";

fn lifetime(text: &str) -> Result<Duration, String> {
    let least = Duration::from_secs(20);
    let most = Duration::from_secs(10 * 365 * 24 * 3600);
    match parse_duration(text) {
        Some(d) if d >= least && d <= most => Ok(d),
        _ => Err("a duration of at least 20s, such as 2160h".into()),
    }
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("--settings {0}")]
    Settings(String),
    #[error("{0}")]
    Access(#[from] AccessError),
    #[error("{0}: {1}")]
    Io(String, io::Error),
    #[error("--log: {0}")]
    Log(String),
}

/// New calls come here until the endpoint is taken out; those under way are answered.
const LINGER: Duration = Duration::from_secs(5);

pub fn main(options: Options) -> ExitCode {
    // A large pod on one thread does not delay the others.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(run(options));
            runtime.shutdown_timeout(Duration::from_secs(1));
            done
        }
        Err(error) => Err(StartError::Io("runtime".into(), error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-injector: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(options: Options) -> Result<(), StartError> {
    let filter = EnvFilter::try_new(&options.log).map_err(|e| StartError::Log(e.to_string()))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let failed = |what: String| move |why| StartError::Io(what, why);
    let settings = file::read(&options.settings).map_err(StartError::Settings)?;
    let listener = TcpListener::bind(options.listen).await.map_err(failed(format!("--listen {}", options.listen)))?;
    let told = TcpListener::bind(options.status).await.map_err(failed(format!("--status {}", options.status)))?;
    let signals = |kind| signal(kind).map_err(failed("signals".into()));
    let (mut term, mut int) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let addresses = (listener.local_addr(), told.local_addr());
    let client = connect(&Access { kubeconfig: options.kubeconfig.clone(), context: options.context.clone() }).await?;

    let (settings_in, settings) = watch::channel::<Arc<Settings>>(Arc::new(settings));
    let (served, figures) = (Served::default(), Arc::new(Figures::default()));
    let namespaces = Arc::new(Namespaces::new(client.clone()));
    let mut certificate =
        Certificate::of_service(&options.service, &options.namespace, &format!("{}-webhook", options.service));
    certificate.names.extend(options.names.clone());
    certificate.lifetime = options.certificate_lifetime;
    let (trusted_in, trusted) = watch::channel(String::new());
    let (in_force_in, in_force) = watch::channel(String::new());
    let configurations = vec![
        Configuration::Mutating(options.configuration.clone()),
        Configuration::Validating(options.configuration.clone()),
    ];
    let injector = Injector::new(settings, namespaces.clone(), served.clone(), figures.clone());

    let mut tasks = JoinSet::new();
    tasks.spawn(certificate.keep(client.clone(), served.clone(), trusted_in, in_force));
    tasks.spawn(bundle::keep(client, configurations, trusted, in_force_in));
    let keeper = namespaces.clone();
    tasks.spawn(async move { keeper.keep().await });
    tasks.spawn(file::follow(options.settings.clone(), settings_in));
    tasks.spawn(status::serve(told, Arc::new(injector.clone())));
    tasks.spawn(webhook::serve(listener, served, "/inject", injector, figures));
    tracing::info!(listen = ?addresses.0, status = ?addresses.1, "serving");
    tokio::select! {
        _ = term.recv() => tokio::time::sleep(LINGER).await,
        _ = int.recv() => {}
        _ = tasks.join_next() => tracing::error!("a part of the injector ended"),
    }
    tracing::info!("stopping");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line() {
        Options::command().debug_assert();
        let args = "weft-injector --settings s.yaml --listen 127.0.0.1:0 --status 127.0.0.1:0";
        let options = Options::try_parse_from(args.split(' ')).unwrap();
        assert_eq!((options.service.as_str(), options.configuration.as_str()), ("weft-injector", "weft-injector"));
        for bad in ["", " --certificate-lifetime 1s", " --listen nowhere"] {
            let args = if bad.is_empty() { "weft-injector".to_string() } else { format!("{args}{bad}") };
            assert!(Options::try_parse_from(args.split(' ')).is_err(), "{args}");
        }
        assert!(Options::command().render_long_help().to_string().contains("Examples:"));
    }
}
