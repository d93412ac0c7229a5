//! A new connection to an endpoint, secured as its backend says.

use crate::introduction;
use crate::sys::sockopt;
use crate::worker::Worker;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use weft_policy::backend;
use weft_policy::endpoint::{Address, Endpoint};
pub use weft_policy::mtls::Security;
use weft_policy::mtls::{Expected, Originate, UpstreamTls};
use weft_policy::reason::Reason;
use weft_policy::timeout::ConnectConfig;
use weft_tls::{Expect, Identity, MeshStream, Origination, Roots, TrustBundle};

/// What is to travel on the connection, told to a mesh peer by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inside {
    Http1,
    Http2,
    Bytes,
}

impl Inside {
    /// Our own token first; the plain one for peers that do not know it.
    fn mesh_alpn(self) -> &'static [&'static [u8]] {
        match self {
            Inside::Http2 => &[b"weft/h2", b"h2"],
            Inside::Http1 => &[b"weft/http1", b"http/1.1"],
            Inside::Bytes => &[b"weft/tcp"],
        }
    }

    fn plain_alpn(self) -> &'static [&'static [u8]] {
        match self {
            Inside::Http2 => &[b"h2"],
            Inside::Http1 => &[b"http/1.1"],
            Inside::Bytes => &[],
        }
    }
}

/// What an endpoint of this backend is reached with. `Err` where the mesh is demanded and cannot be had.
pub fn security(worker: &Worker, config: &backend::Config, endpoint: &Endpoint) -> Result<Security, Reason> {
    match config.tls.security(endpoint.identity.as_ref()) {
        // An endpoint of the mesh is never spoken to in the clear because our own identity is missing.
        Security::Mesh if worker.shared.identity.is_none() => Err(Reason::TlsFailed),
        security => Ok(security),
    }
}

/// rustls configs are costly to build; these are kept until the certificates behind them change.
#[derive(Default)]
pub struct Configs(RefCell<FxHashMap<ConfigKey, Arc<rustls::ClientConfig>>>);

#[derive(PartialEq, Eq, Hash)]
struct ConfigKey {
    generation: u64,
    tls: UpstreamTls,
    identity: Option<weft_policy::id::SpiffeId>,
    inside: Inside,
}

const MAX_CONFIGS: usize = 512;

pub async fn dial(
    worker: &Worker,
    config: &backend::Config,
    endpoint: &Endpoint,
    inside: Inside,
) -> Result<MeshStream, Reason> {
    let addr = endpoint.address.socket();
    let limit = config.connect.connect_timeout;
    let dialling = async {
        let tcp = connect(addr, &config.connect, worker.shared.mark).await?;
        secure(worker, config, endpoint, inside, tcp).await
    };
    if limit.is_zero() {
        return dialling.await;
    }
    tokio::time::timeout(limit, dialling).await.unwrap_or(Err(Reason::ConnectTimeout))
}

async fn connect(addr: SocketAddr, config: &ConnectConfig, mark: Option<u32>) -> Result<TcpStream, Reason> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        // Our own lack, nothing that speaks against the endpoint.
        _ if crate::accept::listener::is_exhausted(&e) => Reason::Overload,
        _ => Reason::ConnectFailed,
    };
    let socket = sockopt::dialler(addr, config.own_app, mark).map_err(failed)?;
    let tcp = socket.connect(addr).await.map_err(failed)?;
    let _ = tcp.set_nodelay(true);
    if let Some(time) = config.keepalive {
        let settings = socket2::TcpKeepalive::new().with_time(time).with_interval(time).with_retries(2);
        let _ = socket2::SockRef::from(&tcp).set_tcp_keepalive(&settings);
    }
    Ok(tcp)
}

async fn secure(
    worker: &Worker,
    config: &backend::Config,
    endpoint: &Endpoint,
    inside: Inside,
    tcp: TcpStream,
) -> Result<MeshStream, Reason> {
    let security = security(worker, config, endpoint)?;
    if security == Security::Plain {
        return Ok(MeshStream::plain(tcp, Vec::new(), &worker.flusher));
    }
    let (name, client) = match client_config(worker, config, endpoint, inside) {
        Ok(both) => both,
        Err(error) => {
            tracing::warn!(endpoint = %endpoint.id, %error, "TLS towards an endpoint is not possible");
            return Err(Reason::TlsFailed);
        }
    };
    let connected = MeshStream::connect(tcp, name, client, &worker.flusher).await;
    let mut stream = connected.map_err(|error| {
        handshake_failed(error.reason());
        tracing::debug!(endpoint = %endpoint.id, %error, "handshake failed");
        Reason::TlsFailed
    })?;
    if security == Security::Mesh && introduction::is_due(&stream) {
        introduction::give(&mut stream, &worker.shared.introduction).await.map_err(|_| Reason::UpstreamClosed)?;
    }
    Ok(stream)
}

pub fn handshake_failed(reason: weft_tls::Reason) {
    metrics::counter!("weft_tls_handshake_failed_total", "side" => "client", "reason" => reason.as_str()).increment(1);
}

type Client = (rustls::pki_types::ServerName<'static>, Arc<rustls::ClientConfig>);

fn client_config(
    worker: &Worker,
    config: &backend::Config,
    endpoint: &Endpoint,
    inside: Inside,
) -> Result<Client, weft_tls::TlsError> {
    let (sni, generation) = match &config.tls {
        UpstreamTls::Originate(originate) => (originate.sni.clone(), 0),
        tls => {
            let asked = match tls {
                UpstreamTls::Mesh(mesh) => mesh.sni.clone().or_else(|| mesh.dns_name.clone()),
                _ => None,
            };
            let gateway = match &endpoint.address {
                Address::ViaGateway { sni, .. } => Some(sni.to_string()),
                Address::Direct(_) => None,
            };
            let live = worker.shared.identity.as_ref().map_or(0, |live| live.generation());
            (asked.or(gateway).or_else(|| Some("weft.mesh".to_string())), live)
        }
    };
    let name = match sni {
        Some(name) => {
            rustls::pki_types::ServerName::try_from(name.clone()).map_err(|_| weft_tls::TlsError::ServerName(name))?
        }
        None => rustls::pki_types::ServerName::IpAddress(endpoint.address.socket().ip().into()),
    };
    let key = ConfigKey { generation, tls: config.tls.clone(), identity: endpoint.identity.clone(), inside };
    let mut kept = worker.pools.configs.0.borrow_mut();
    if let Some(found) = kept.get(&key) {
        return Ok((name, found.clone()));
    }
    let built = match &config.tls {
        UpstreamTls::Originate(originate) => origination(originate, inside)?,
        tls => {
            let expect = match tls.expected(endpoint.identity.as_ref()) {
                Expected::DnsName(name) => Expect::dns(name)?,
                Expected::Ids(ids) => Expect::Ids(ids.into()),
                Expected::Id(id) => Expect::id(id.clone()),
                Expected::Any => Expect::Any,
            };
            let Some(live) = &worker.shared.identity else {
                return Err(weft_tls::TlsError::Config("this proxy has no identity".into()));
            };
            weft_tls::mesh_client(&live.load(), expect, inside.mesh_alpn())?
        }
    };
    if kept.len() >= MAX_CONFIGS {
        kept.clear();
    }
    kept.insert(key, built.clone());
    Ok((name, built))
}

fn origination(originate: &Originate, inside: Inside) -> Result<Arc<rustls::ClientConfig>, weft_tls::TlsError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|e| weft_tls::TlsError::Config(format!("{}: {e}", path.display())))
    };
    let roots = match (&originate.roots, originate.insecure_skip_verify) {
        (_, true) => Roots::InsecureSkipVerify,
        (Some(path), _) => Roots::Bundle(Arc::new(TrustBundle::from_pem(None, &read(path)?)?)),
        (None, _) => Roots::System,
    };
    let expect = originate.names.iter().map(|n| Expect::dns(n)).collect::<Result<_, _>>()?;
    let identity = match &originate.client {
        Some((cert, key)) => Some(Identity::from_pem(&read(cert)?, &read(key)?)?),
        None => None,
    };
    let alpn = inside.plain_alpn().iter().map(|p| p.to_vec()).collect();
    let send_sni = originate.sni.is_some();
    weft_tls::origination_client(&Origination { roots, expect, identity, alpn, send_sni })
}
