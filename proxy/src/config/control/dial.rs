//! A connection to the control plane: TLS always, and it must prove that it is one.
//!
//! Trusted are the roots of `--trust-root`, read anew each time, and those the mesh has told us since: either may be the first
//! to know a new CA. That any root of the mesh proves workloads too is why the name is looked at.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use weft_tls::{Expect, Material, Origination, PeerIdentity, Roots, TrustBundle, origination_client};

/// Namespace and account of the control plane.
const NAME: (&str, &str) = ("weft-system", "weft-control");
const CONNECT: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A peer that has vanished without a word is noticed within two of them.
const KEEPALIVE: Duration = Duration::from_secs(10);
const MAX_PEM: u64 = 4 << 20;

/// What went wrong on the way to an answer.
#[derive(Clone, Debug)]
pub struct Wrong {
    pub why: String,
    /// Our certificate or token is not taken, as far as one can tell.
    pub refused: bool,
}

impl Wrong {
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), refused: false }
    }

    /// With the causes of what is said.
    fn because(said: String, mut cause: Option<&(dyn std::error::Error + 'static)>) -> Self {
        let mut why = said;
        while let Some(next) = cause {
            let text = next.to_string();
            if !why.contains(&text) {
                why = format!("{why}: {text}");
            }
            cause = next.source();
        }
        // What it says is for a log.
        why.truncate(why.char_indices().nth(500).map_or(why.len(), |(i, _)| i));
        Self::new(why)
    }

    /// Of a connection's first call. A server that does not take our certificate says so when the handshake is over for us, and
    /// what arrives of that is an alert or just the end: no answer at all counts as a refusal.
    pub fn at_first(status: tonic::Status) -> Self {
        use std::error::Error;
        let unanswered = status.source().is_some();
        let wrong = Self::from(status);
        Self { refused: wrong.refused || unanswered, ..wrong }
    }

    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::because(error.to_string(), error.source())
    }
}

impl From<tonic::Status> for Wrong {
    fn from(status: tonic::Status) -> Self {
        use std::error::Error;
        use tonic::Code;
        let said = match (status.code(), status.message()) {
            (Code::Unknown, said) => said.to_string(),
            (code, "") => format!("{code:?}"),
            (code, said) => format!("{code:?}: {said}"),
        };
        Self { refused: status.code() == Code::Unauthenticated, ..Self::because(said, status.source()) }
    }
}

/// `own`: what we are known by; without it only a token can speak for us. `known`: roots that the control plane has told us, which
/// the file may hear of a minute later.
pub async fn dial(
    target: &str,
    trust_root: &Path,
    own: Option<&Material>,
    known: Option<&TrustBundle>,
) -> Result<Channel, Wrong> {
    let mut bundle = trusted(trust_root).map_err(Wrong::new)?;
    for (domain, root) in known.iter().flat_map(|known| known.certificates()) {
        // They were roots before.
        let _ = bundle.add_der(domain.cloned(), root.clone());
    }
    let config = origination_client(&Origination {
        roots: Roots::Bundle(Arc::new(bundle)),
        expect: vec![Expect::Any],
        identity: own.map(|own| own.identity.clone()),
        alpn: vec![b"h2".to_vec()],
        send_sni: false,
    })
    .map_err(|e| Wrong::new(e.to_string()))?;
    let tcp = connect(target).await?;
    let name = ServerName::try_from("weft-control").map_err(|e| Wrong::new(e.to_string()))?;
    let shaken = tokio::time::timeout(HANDSHAKE, TlsConnector::from(config).connect(name, tcp)).await;
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return Err(Wrong { why: format!("TLS with {target}: {e}"), ..Wrong::of(&e) }),
        Err(_) => return Err(Wrong::new(format!("TLS with {target}: no handshake within {HANDSHAKE:?}"))),
    };
    prove(target, &stream, own)?;
    let endpoint = Endpoint::from_static("http://weft-control")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect_with_connector(Once(Some(TokioIo::new(stream)))).await;
    channel.map_err(|e| Wrong::of(&e))
}

/// The roots of a file.
pub fn trusted(file: &Path) -> Result<TrustBundle, String> {
    use std::io::Read;
    let mut pem = Vec::new();
    let read = std::fs::File::open(file).and_then(|f| f.take(MAX_PEM).read_to_end(&mut pem));
    read.map_err(|e| format!("--trust-root {} cannot be read: {e}", file.display()))?;
    TrustBundle::from_pem(None, &pem).map_err(|e| format!("--trust-root {}: {e}", file.display()))
}

async fn connect(target: &str) -> Result<TcpStream, Wrong> {
    let addresses = tokio::time::timeout(CONNECT, tokio::net::lookup_host(target)).await;
    let addresses = match addresses {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(e)) => return Err(Wrong::new(format!("{target} cannot be resolved: {e}"))),
        Err(_) => return Err(Wrong::new(format!("{target} cannot be resolved within {CONNECT:?}"))),
    };
    let mut wrong = Wrong::new(format!("{target} has no address"));
    for address in addresses {
        match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                let _ = tcp.set_nodelay(true);
                return Ok(tcp);
            }
            Ok(Err(e)) => wrong = Wrong::new(format!("{address} cannot be connected to: {e}")),
            Err(_) => wrong = Wrong::new(format!("{address} cannot be connected to within {CONNECT:?}")),
        }
    }
    Err(wrong)
}

/// The chain was verified in the handshake; whose it is was not.
fn prove(target: &str, stream: &TlsStream<TcpStream>, own: Option<&Material>) -> Result<(), Wrong> {
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let id = leaf.and_then(|leaf| PeerIdentity::of(leaf).spiffe);
    let ours = own.and_then(|own| own.identity.spiffe());
    match &id {
        Some(id) if id.workload() != Some(NAME) => {
            let (namespace, account) = NAME;
            Err(Wrong::new(format!("{target} is {id}, not a control plane (ns/{namespace}/sa/{account})")))
        }
        Some(id) if ours.is_some_and(|ours| ours.trust_domain() != id.trust_domain()) => {
            Err(Wrong::new(format!("{target} is {id}, of another trust domain")))
        }
        Some(_) => Ok(()),
        None => Err(Wrong::new(format!("{target} has no identity"))),
    }
}

/// A connection that is there already. When it ends there is no other: whoever used it dials again, with what is known then.
struct Once(Option<TokioIo<TlsStream<TcpStream>>>);

impl Service<Uri> for Once {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().ok_or_else(|| io::Error::other("it was closed"));
        Box::pin(std::future::ready(stream))
    }
}
