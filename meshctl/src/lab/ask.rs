//! Questions to the admin interfaces of a running lab's programs: the control plane's and each sidecar's. They listen on loopback
//! inside of their pods, so that is where the question is asked.

use super::control::ADMIN;
use super::net::Netns;
use super::record::Lab;
use crate::error::{Error, Result};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);
/// A dump of a large configuration, and not a disk full of it.
const MAX_ANSWER: u64 = 64 << 20;
const SIDECAR: u16 = 15000;

/// Where one of them is.
#[derive(Clone, Debug)]
pub struct Door {
    /// For people.
    name: String,
    netns: Netns,
    at: SocketAddr,
}

impl Door {
    pub fn control(lab: &Lab) -> Self {
        Self {
            name: "the control plane".into(),
            netns: Netns::hub(lab),
            at: (lab.admin_at(lab.network.hub()), ADMIN).into(),
        }
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
        let at = (own.unwrap_or(Ipv4Addr::LOCALHOST), SIDECAR).into();
        Ok(Self { name: format!("the sidecar of {name}"), netns, at })
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
        let at = self.at;
        // They answer to loopback names only.
        let request = format!("{method} {path} HTTP/1.0\r\nhost: localhost:{}\r\ncontent-length: 0\r\n\r\n", at.port());
        let asked = self.netns.inside(move || {
            let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
            Ok(answer)
        });
        let answer = asked.await.map_err(|e| {
            Error::new(
                format!("{} does not answer: {e}", self.name),
                "meshctl lab ps tells what runs; meshctl lab logs why not",
            )
        })?;
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
