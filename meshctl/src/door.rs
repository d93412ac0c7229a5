//! Questions to the admin interfaces of a mesh's programs: the control plane's and each sidecar's. They listen on loopback
//! inside of their pods, so that is where the question is asked: in the network namespace of a lab's pod, or by the API server's
//! port-forward.

use crate::cluster::forward::Forward;
use crate::error::{Error, Result};
use crate::lab::control::ADMIN;
use crate::lab::net::Netns;
use crate::lab::record::Lab;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(5);
/// A dump of a large configuration, and not a disk full of it.
pub const MAX_ANSWER: u64 = 64 << 20;
pub const SIDECAR: u16 = 15000;

/// Where one of them is.
#[derive(Clone)]
pub struct Door {
    /// For people.
    pub name: String,
    port: u16,
    way: Way,
    /// Where to look when nobody answers.
    hint: String,
}

#[derive(Clone)]
enum Way {
    Lab { netns: Netns, at: Ipv4Addr },
    Cluster(Box<Forward>),
}

impl Door {
    pub fn control(lab: &Lab) -> Self {
        let way = Way::Lab { netns: Netns::hub(lab), at: lab.admin_at(lab.network.hub()) };
        Self::of_lab("the control plane".into(), ADMIN, way)
    }

    /// Of a pod as `ps.json` has it.
    pub fn sidecar(pod: &Value) -> Result<Self> {
        let name = pod["name"].as_str().unwrap_or_default();
        if pod["sidecar"] != true {
            let hint = "label it, or start the lab with --mesh-all";
            return Err(Error::new(format!("{name} has no sidecar"), hint));
        }
        let netns = Netns::named(pod["netns"].as_str().unwrap_or_default());
        // In a network of its own it is on that one's loopback.
        let own = pod["address"].as_str().and_then(|a| a.parse().ok()).filter(|_| netns.is_the_machines());
        let way = Way::Lab { netns, at: own.unwrap_or(Ipv4Addr::LOCALHOST) };
        Ok(Self::of_lab(format!("the sidecar of {name}"), SIDECAR, way))
    }

    fn of_lab(name: String, port: u16, way: Way) -> Self {
        Self { name, port, way, hint: "meshctl lab ps tells what runs; meshctl lab logs why not".into() }
    }

    pub fn in_cluster(name: String, port: u16, way: Forward, hint: String) -> Self {
        Self { name, port, way: Way::Cluster(Box::new(way)), hint }
    }

    /// The body of an answer of 2xx.
    pub async fn get(&self, path: &str) -> Result<String> {
        self.ask("GET", path).await
    }

    pub async fn post(&self, path: &str) -> Result<String> {
        self.ask("POST", path).await
    }

    pub async fn json(&self, path: &str) -> Result<Value> {
        let text = self.get(path).await?;
        serde_json::from_str(&text).map_err(|e| format!("{} answered {path} with no JSON: {e}", self.name).into())
    }

    async fn ask(&self, method: &str, path: &str) -> Result<String> {
        // They answer to loopback names only.
        let request = format!("{method} {path} HTTP/1.0\r\nhost: localhost:{}\r\ncontent-length: 0\r\n\r\n", self.port);
        let asked = match &self.way {
            Way::Lab { netns, at } => inside(netns, (*at, self.port).into(), request).await.map_err(|e| e.to_string()),
            Way::Cluster(forward) => forward.ask(self.port, &request).await,
        };
        let answer = asked.map_err(|e| Error::new(format!("{} does not answer: {e}", self.name), self.hint.clone()))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some(status) if status.starts_with('2') => Ok(body.to_string()),
            status => {
                let status = status.unwrap_or("nothing");
                Err(format!("{} answered {method} {path} with {status}: {}", self.name, body.trim()).into())
            }
        }
    }
}

async fn inside(netns: &Netns, at: SocketAddr, request: String) -> std::io::Result<String> {
    let asked = netns.inside(move || {
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
        Ok(answer)
    });
    asked.await
}
