//! The server's end of mesh mTLS: which hellos are meant for us, and the handshake under the listener's expectation.

use super::counters::{self, Rejected};
use crate::introduction;
use crate::worker::Worker;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use weft_policy::listener::Clients;
use weft_policy::meta::Workload;
use weft_tls::{Expect, HandshakeError, Hello, Live, MeshServer, MeshStream, PeerIdentity, Reason, TlsError};

/// What is inside, between sidecars of ours; the first of these that a client offers is taken.
pub mod alpn {
    pub const H2: &[u8] = b"weft/h2";
    pub const HTTP1: &[u8] = b"weft/http1";
    pub const TCP: &[u8] = b"weft/tcp";
    /// Served as well: other meshes, and tools.
    pub const PLAIN_H2: &[u8] = b"h2";
    pub const PLAIN_HTTP1: &[u8] = b"http/1.1";

    pub const ACCEPTED: &[&[u8]] = &[H2, HTTP1, TCP, PLAIN_H2, PLAIN_HTTP1];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    Http1,
    Http2,
    Opaque,
    /// Nobody said.
    Unknown,
}

impl Inside {
    pub fn of(selected: Option<&[u8]>) -> Self {
        match selected {
            Some(alpn::H2 | alpn::PLAIN_H2) => Self::Http2,
            Some(alpn::HTTP1 | alpn::PLAIN_HTTP1) => Self::Http1,
            Some(alpn::TCP) => Self::Opaque,
            _ => Self::Unknown,
        }
    }
}

/// Whether a hello is meant for the mesh's end of the connection rather than for an app with TLS of its own: it offers one of
/// our tokens, or names us.
pub fn is_mesh(hello: &Hello, identity: &Live) -> bool {
    if hello.alpn.iter().any(|p| p.starts_with(b"weft/")) {
        return true;
    }
    let Some(sni) = &hello.sni else { return false };
    let material = identity.load();
    let own = material.identity.chain().first().map(PeerIdentity::of).and_then(|own| own.dns);
    own.is_some_and(|own| own.eq_ignore_ascii_case(sni))
}

/// One listener's server side; rebuilt when its expectation changes, and by itself after a rotation.
#[derive(Default)]
pub struct Terminator(RefCell<Option<(Clients, Rc<MeshServer>)>>);

impl Terminator {
    fn server(&self, identity: &Live, clients: &Clients) -> Result<Rc<MeshServer>, TlsError> {
        if let Some((of, server)) = &*self.0.borrow()
            && of == clients
        {
            return Ok(server.clone());
        }
        let expect = match clients {
            Clients::Any => Expect::Any,
            Clients::Ids(ids) => Expect::Ids(ids.clone()),
            Clients::DnsName(name) => Expect::dns(name)?,
        };
        let server = Rc::new(MeshServer::new(identity.clone(), expect, alpn::ACCEPTED));
        self.0.replace(Some((clients.clone(), server.clone())));
        Ok(server)
    }

    /// Does the handshake and hears the client's introduction; a refusal is counted and logged here, and the peer gets its
    /// alert.
    pub async fn accept(
        &self,
        worker: &Worker,
        (tcp, prefix): (TcpStream, Vec<u8>),
        clients: &Clients,
        limit: Duration,
    ) -> Option<(MeshStream, Option<Workload>)> {
        let Some(identity) = &worker.shared.identity else {
            counters::rejected(Rejected::NoIdentity);
            return None;
        };
        let config = match self.server(identity, clients).and_then(|server| server.config()) {
            Ok(config) => config,
            Err(error) => {
                counters::rejected(Rejected::NoIdentity);
                tracing::error!(%error, "mesh TLS cannot be served");
                return None;
            }
        };
        let peer = tcp.peer_addr().ok();
        let meeting = async {
            let mut stream = MeshStream::accept(tcp, prefix, Arc::clone(&config), &worker.flusher).await?;
            let workload = match introduction::is_due(&stream) {
                true => Some(introduction::take(&mut stream).await),
                false => None,
            };
            Ok::<_, HandshakeError>((stream, workload))
        };
        match tokio::time::timeout(limit, meeting).await {
            Ok(Ok((stream, workload))) => match workload.transpose() {
                Ok(workload) => Some((stream, workload)),
                Err(error) => {
                    // A client that looked at our certificate and left says so here.
                    let reason = HandshakeError::reason_of(&error).unwrap_or(Reason::Closed);
                    counters::handshake_failed(reason);
                    tracing::info!(?peer, %reason, %error, "no introduction after the handshake");
                    None
                }
            },
            Ok(Err(error)) => {
                counters::handshake_failed(error.reason());
                tracing::info!(?peer, reason = %error.reason(), %error, "mesh handshake failed");
                None
            }
            Err(_) => {
                counters::handshake_failed(Reason::Closed);
                tracing::info!(?peer, "mesh handshake took too long");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpn_says_what_is_inside() {
        for (selected, inside) in [
            (Some(alpn::H2), Inside::Http2),
            (Some(b"h2".as_slice()), Inside::Http2),
            (Some(b"http/1.1".as_slice()), Inside::Http1),
            (Some(alpn::HTTP1), Inside::Http1),
            (Some(alpn::TCP), Inside::Opaque),
            (None, Inside::Unknown),
        ] {
            assert_eq!(Inside::of(selected), inside);
        }
    }
}
