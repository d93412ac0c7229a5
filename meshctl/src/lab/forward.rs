//! A way into the lab from the person's own shell: a port of 127.0.0.1 for each port of a Service that is open to the outside.

use super::net::Netns;
use super::service::View;
use crate::error::{During, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Debug)]
pub struct Forward {
    pub namespace: String,
    pub service: String,
    pub port: u16,
    pub local: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forward {
    pub async fn open(
        hub: Netns,
        view: watch::Receiver<Arc<View>>,
        namespace: &str,
        service: &str,
        port: u16,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.during("a port on 127.0.0.1")?;
        let local = listener.local_addr().during("a port on 127.0.0.1")?;
        let (namespace, service) = (namespace.to_string(), service.to_string());
        let names = (namespace.clone(), service.clone());
        let task = tokio::spawn(async move {
            let turn = AtomicUsize::new(0);
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    // Out of descriptors; some will be free soon.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let now = view.borrow().clone();
                let target = target(&now, &names.0, &names.1, port, turn.fetch_add(1, Ordering::Relaxed));
                let hub = hub.clone();
                tokio::spawn(async move {
                    // Nobody there: the connection is closed, as a load balancer would.
                    if let Some(target) = target {
                        let _ = carry(stream, &hub, target).await;
                    }
                });
            }
        });
        Ok(Self { namespace, service, port, local, task })
    }
}

/// One of the pods that answer at a Service's port.
pub fn target(view: &View, namespace: &str, name: &str, port: u16, turn: usize) -> Option<SocketAddr> {
    let service = view.service(namespace, name)?;
    let port = service.ports.iter().find(|p| p.number == port && !p.udp)?;
    let pods: Vec<SocketAddr> =
        view.pods_of(service).filter_map(|p| Some(SocketAddr::from((p.address, p.port(&port.target)?)))).collect();
    pods.get(turn.checked_rem(pods.len())?).copied()
}

async fn carry(mut near: TcpStream, hub: &Netns, target: SocketAddr) -> std::io::Result<()> {
    let far = hub.inside(move || std::net::TcpStream::connect_timeout(&target, Duration::from_secs(5))).await?;
    far.set_nonblocking(true)?;
    let mut far = TcpStream::from_std(far)?;
    far.set_nodelay(true)?;
    near.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop)
}
