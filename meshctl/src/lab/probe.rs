//! Whether what runs in a pod is ready, and whether it still lives.
//!
//! Checks are made from inside the pod over loopback, past its sidecar, as rewritten probes are in a cluster. Without a probe a
//! container is ready when it listens on the ports it declares; nothing is dialled for that.

use super::net::Netns;
use super::process::Inside;
use super::workload::{Check, Container, Probe};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

#[derive(Clone, Debug)]
pub enum Ready {
    /// As soon as it runs.
    Runs,
    Listens(Vec<u16>),
    Probe(Resolved),
}

/// A probe whose ports are numbers.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub probe: Probe,
    pub port: u16,
}

impl Ready {
    /// `real` says where something listens in the place of a port.
    pub fn of(container: &Container, real: impl Fn(u16) -> u16) -> Self {
        if let Some(probe) = container.readiness.as_ref().and_then(|p| Resolved::of(p, container, &real)) {
            return Self::Probe(probe);
        }
        let ports: Vec<u16> = container.ports.iter().filter(|p| !p.udp).map(|p| real(p.number)).collect();
        if ports.is_empty() { Self::Runs } else { Self::Listens(ports) }
    }

    /// Or what is missing.
    pub async fn check(&self, pod: &Inside, address: Ipv4Addr) -> Result<(), String> {
        match self {
            Self::Runs => Ok(()),
            Self::Listens(wanted) => {
                let mut found = pod.netns.listeners().await.map_err(|e| e.to_string())?;
                // What else of the machine listens is not the pod's.
                let is_its = |ip: IpAddr| ip == address || ip.to_canonical().is_unspecified();
                found.retain(|l| !pod.netns.is_the_machines() || (wanted.contains(&l.port()) && is_its(l.ip())));
                let missing: Vec<u16> =
                    wanted.iter().copied().filter(|p| !found.iter().any(|l| l.port() == *p)).collect();
                if missing.is_empty() { Ok(()) } else { Err(not_listening(&missing, &found)) }
            }
            Self::Probe(probe) => probe.check(pod, address).await,
        }
    }
}

fn not_listening(missing: &[u16], found: &[SocketAddr]) -> String {
    let join = |ports: Vec<u16>| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    // The sidecar's own are of no interest here.
    let mut others: Vec<u16> = found.iter().map(SocketAddr::port).filter(|p| !(15000..15100).contains(p)).collect();
    others.sort_unstable();
    others.dedup();
    let missing = join(missing.to_vec());
    match others.is_empty() {
        true => format!("nothing listens on port {missing}"),
        false => format!("nothing listens on port {missing}, only on {}", join(others)),
    }
}

impl Resolved {
    pub fn of(probe: &Probe, container: &Container, real: impl Fn(u16) -> u16) -> Option<Self> {
        let port = match &probe.check {
            Check::Http { port, .. } | Check::Tcp { port } => real(port.find([container])?),
            Check::Exec { .. } => 0,
        };
        Some(Self { probe: probe.clone(), port })
    }

    pub async fn check(&self, pod: &Inside, address: Ipv4Addr) -> Result<(), String> {
        let (timeout, port) = (self.probe.timeout, self.port);
        match &self.probe.check {
            Check::Tcp { .. } => connect(&pod.netns, address, port, timeout).await.map(drop),
            Check::Http { path, headers, .. } => {
                let mut request = format!("GET {path} HTTP/1.1\r\nuser-agent: kube-probe/lab\r\nconnection: close\r\n");
                if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
                    request += &format!("host: {address}:{port}\r\n");
                }
                headers.iter().for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
                let stream = connect(&pod.netns, address, port, timeout).await?;
                let asked = tokio::task::spawn_blocking(move || status(stream, &(request + "\r\n"), timeout)).await;
                match asked.map_err(|e| e.to_string())? {
                    Ok(status) if (200..400).contains(&status) => Ok(()),
                    Ok(status) => Err(format!("the probe was answered with {status}")),
                    Err(error) => Err(format!("the probe on port {port}: {error}")),
                }
            }
            Check::Exec { command } => {
                let words = pod.wrap(None, command);
                let mut command = tokio::process::Command::new(&words[0]);
                command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                command.kill_on_drop(true).process_group(0);
                match tokio::time::timeout(timeout, command.status()).await {
                    Ok(Ok(status)) if status.success() => Ok(()),
                    Ok(Ok(status)) => Err(format!("the probe's command ended with {status}")),
                    Ok(Err(error)) => Err(format!("the probe's command: {error}")),
                    Err(_) => Err(format!("the probe's command took longer than {timeout:?}")),
                }
            }
        }
    }
}

/// To whatever listens on a port of the pod: on loopback, if that is its own, else on the pod's address.
pub async fn connect(pod: &Netns, address: Ipv4Addr, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let first = if pod.is_the_machines() { address } else { Ipv4Addr::LOCALHOST };
    let tried = pod.inside(move || {
        TcpStream::connect_timeout(&SocketAddr::from((first, port)), timeout)
            .or_else(|_| TcpStream::connect_timeout(&SocketAddr::from((address, port)), timeout))
    });
    tried.await.map_err(|e| format!("port {port}: {e}"))
}

fn status(mut stream: TcpStream, request: &str, timeout: Duration) -> std::io::Result<u16> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut chunk = [0; 256];
    // "HTTP/1.1 200" is all that matters.
    while head.len() < 12 {
        match stream.read(&mut chunk)? {
            0 => break,
            n => head.extend_from_slice(&chunk[..n]),
        }
    }
    let word = std::str::from_utf8(head.get(9..12).unwrap_or_default()).unwrap_or_default();
    word.parse().map_err(|_| std::io::Error::other("the answer is no HTTP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_something_listens_instead() {
        let found = ["0.0.0.0:5678", "127.0.0.1:15000"].map(|a| a.parse().unwrap());
        assert_eq!(not_listening(&[8080], &found), "nothing listens on port 8080, only on 5678");
        assert_eq!(not_listening(&[8080, 81], &found[1..]), "nothing listens on port 8080, 81");
    }
}
