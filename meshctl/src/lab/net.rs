//! The lab's network: a namespace per pod, each with a cable to one that all their traffic passes through.
//!
//! Nothing of it is in the machine's own namespace, so labs cannot meet each other or anything else, and their addresses may be
//! the same. A pod reaches every other one by way of the hub, as through the node in a cluster: that is where services'
//! addresses are translated (`service.rs`), and where the control plane and DNS listen.

use super::isolation::Isolation;
use super::record::Lab;
use crate::error::{During, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fmt::Write as _;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Where `ip netns` keeps them.
const NAMED: &str = "/run/netns";

/// The hub's own address; the pods' are in the same /16.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

/// Whatever runs with this group is a sidecar, and its traffic is not redirected. The group and not the user, so that the
/// program can be read wherever it lies. Where there is only one group, sidecars mark their connections with it.
pub const SIDECAR: u32 = 1337;
/// What a sidecar dials its own app from.
const TO_ITS_APP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
pub const OUTBOUND: u16 = 15001;
pub const INBOUND: u16 = 15006;
/// The sidecar's own ports on the pod's address.
pub const SIDECAR_PORTS: [u16; 4] = [INBOUND, 15020, 15021, 15090];

/// The first half of a lab's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub [u8; 2]);

impl Network {
    /// In namespaces all labs have the same.
    pub const PODS: Self = Self([10, 244]);

    pub fn hub(self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[0], self.0[1], 0, 1)
    }

    /// Its pods', and those of services that name no address.
    pub fn ranges(self) -> [String; 2] {
        [format!("{}.{}.0.0/16", self.0[0], self.0[1]), "10.96.0.0/12".into()]
    }

    /// The address of the nth pod.
    pub fn address(self, n: u16) -> Ipv4Addr {
        let [high, low] = n.to_be_bytes();
        // The third zero stays the hub's, and no address ends in 0 or 255.
        Ipv4Addr::new(self.0[0], self.0[1], 1 + high * 2 + low / 128, 1 + low % 128)
    }
}

/// A network namespace of the lab: by its name where `ip netns` has them, else by the file that stands for it. An empty one is
/// the machine's own network, where pods are kept apart by addresses alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns(String);

impl Netns {
    pub fn hub(lab: &Lab) -> Self {
        Self::of(lab, None)
    }

    pub fn pod(lab: &Lab, n: u16) -> Self {
        Self::of(lab, Some(n))
    }

    fn of(lab: &Lab, pod: Option<u16>) -> Self {
        let number = pod.map(|n| format!("-{n}")).unwrap_or_default();
        Self(match lab.isolation {
            Isolation::Netns => format!("weft-{}{number}", lab.id),
            // Without root nothing can be made in /run/netns.
            Isolation::Userns => {
                let file = pod.map_or("hub".into(), |n| format!("pod-{n}"));
                lab.namespaces().join(file).to_string_lossy().into_owned()
            }
            Isolation::Loopback => String::new(),
        })
    }

    /// One that a lab has written down.
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// All that a lab has, whatever was recorded.
    pub fn of_lab(lab: &Lab) -> Vec<Self> {
        let inside = |folder: &Path| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.path().to_str().map(String::from)).collect::<Vec<_>>()
        };
        match lab.isolation {
            Isolation::Netns => {
                let hub = format!("weft-{}", lab.id);
                let names =
                    inside(Path::new(NAMED)).into_iter().filter_map(|p| Some(p.rsplit_once('/')?.1.to_string()));
                let own = |n: &String| n.strip_prefix(&hub).is_some_and(|r| r.is_empty() || r.starts_with('-'));
                names.filter(own).map(Self).collect()
            }
            Isolation::Userns => inside(&lab.namespaces()).into_iter().map(Self).collect(),
            Isolation::Loopback => Vec::new(),
        }
    }

    /// As `ip` does: what has a slash is a path.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMED).join(&self.0)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn is_the_machines(&self) -> bool {
        self.0.is_empty()
    }

    async fn create(&self) -> Result<()> {
        if !self.0.contains('/') {
            return run(None, &["ip", "netns", "add", &self.0], "").await;
        }
        std::fs::write(&self.0, "").during(&self.0)?;
        // The file stands for the namespace, also when nothing runs in it.
        run(None, &["unshare", &format!("--net={}", self.0), "true"], "").await
    }

    /// Takes it away, with whatever is in it.
    pub async fn remove(&self) {
        if !self.0.contains('/') {
            let _ = run(None, &["ip", "netns", "delete", &self.0], "").await;
            return;
        }
        let _ = run(None, &["umount", &self.0], "").await;
        let _ = std::fs::remove_file(&self.0);
    }

    /// Everything that runs inside.
    pub fn processes(&self) -> Vec<i32> {
        use std::os::unix::fs::MetadataExt;
        if self.is_the_machines() {
            return Vec::new();
        }
        let Ok(own) = std::fs::metadata(self.path()) else { return Vec::new() };
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            std::fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| (m.dev(), m.ino()) == (own.dev(), own.ino()))
        })
        .collect()
    }

    /// Runs `f` on a thread inside; sockets it makes stay inside wherever they go.
    pub async fn inside<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let file = if self.is_the_machines() { None } else { Some(File::open(self.path())?) };
        let (done, outcome) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("inside".into()).spawn(move || {
            let enter = |file: &File| move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
            let entered = file.as_ref().map_or(Ok(()), enter);
            let _ = done.send(entered.map_err(Into::into).and_then(|()| f()));
        })?;
        outcome.await.unwrap_or_else(|_| Err(std::io::Error::other("the thread ended early")))
    }

    /// Where something listens inside, TCP.
    pub async fn listeners(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.inside(|| {
            let mut found = Vec::new();
            for table in ["tcp", "tcp6"] {
                // Without IPv6 there is no second table.
                let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
                found.extend(text.lines().skip(1).filter_map(listener));
            }
            Ok(found)
        })
        .await
    }

    pub async fn nft(&self, script: &str) -> Result<()> {
        run(Some(self), &["nft", "-f", "-"], script).await
    }

    async fn ip(&self, script: &str) -> Result<()> {
        run(Some(self), &["ip", "-batch", "-"], script).await
    }
}

/// A line of /proc/net/tcp, if it is a listener's: the address is in the machine's byte order, word by word.
fn listener(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace();
    let (address, state) = (fields.nth(1)?, fields.nth(1)?);
    if state != "0A" {
        return None;
    }
    let (ip, port) = address.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |i: usize| Some(u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = if ip.len() == 8 {
        word(0)?.into()
    } else {
        let mut bytes = [0; 16];
        for i in 0..4 {
            bytes[i * 4..i * 4 + 4].copy_from_slice(&word(i)?);
        }
        bytes.into()
    };
    Some((ip, port).into())
}

/// The hub, before any pod.
pub async fn create_hub(hub: &Netns) -> Result<()> {
    hub.create().await?;
    hub.ip(&format!("link set lo up\naddress add {HUB}/32 dev lo\n")).await?;
    hub.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).await.during("switching on forwarding")
}

/// A pod's namespace, its cable and its way to everything else.
pub async fn create_pod(hub: &Netns, pod: &Netns, n: u16, address: Ipv4Addr) -> Result<()> {
    pod.create().await?;
    let cable = format!(
        "link add p{n} type veth peer name eth0 netns {}\nlink set p{n} up\nroute add {address}/32 dev p{n}\n",
        pod.name()
    );
    let inside = format!(
        "link set lo up\naddress add {address}/32 dev eth0\nlink set eth0 up\nroute add {HUB} dev eth0 scope link\n\
         route add default via {HUB}\n"
    );
    hub.ip(&cable).await?;
    pod.ip(&inside).await?;
    // What is redirected to loopback, and answers from it, must not be dropped as martian.
    pod.inside(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1")).await.during("route_localnet")
}

/// Ports that are left alone, as annotations say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Excluded {
    pub inbound: Vec<u16>,
    pub outbound: Vec<u16>,
}

impl Excluded {
    pub fn read(annotations: &std::collections::BTreeMap<String, String>) -> Self {
        let ports = |names: [&str; 2]| {
            let words = names.into_iter().filter_map(|n| annotations.get(n)).flat_map(|v| v.split(','));
            words.filter_map(|w| w.trim().parse().ok()).collect()
        };
        Self {
            inbound: ports(["traffic.sidecar.istio.io/excludeInboundPorts", "config.linkerd.io/skip-inbound-ports"]),
            outbound: ports(["traffic.sidecar.istio.io/excludeOutboundPorts", "config.linkerd.io/skip-outbound-ports"]),
        }
    }
}

/// What makes a namespace a meshed pod's: everything the app sends or is sent goes through the sidecar. Not what goes over
/// loopback or to the pod itself, not to the lab's own hub, not DNS, and not what the sidecar itself sends; but if that calls
/// its own pod through a Service, it arrives at itself, so that the app is reached as by any other caller.
pub fn redirection(excluded: &Excluded) -> String {
    let set = |ports: &mut dyn Iterator<Item = u16>| ports.map(|p| p.to_string()).collect::<Vec<_>>().join(", ");
    let outbound = set(&mut [53].into_iter().chain(excluded.outbound.iter().copied()));
    let inbound = set(&mut SIDECAR_PORTS.into_iter().chain(excluded.inbound.iter().copied()));
    let mut script = String::from("table ip weft {\n");
    let _ = write!(
        script,
        "chain sidecar {{\n\
         oifname != \"lo\" return\nip saddr {TO_ITS_APP} return\nip daddr 127.0.0.0/8 return\n\
         tcp dport {{ {inbound} }} return\nmeta l4proto tcp redirect to :{INBOUND}\n}}\n\
         chain output {{ type nat hook output priority -100; policy accept;\n\
         meta skgid {SIDECAR} goto sidecar\nmeta skuid {SIDECAR} goto sidecar\nmeta mark {SIDECAR} goto sidecar\n\
         oifname \"lo\" return\nip daddr {HUB} return\n\
         tcp dport {{ {outbound} }} return\nmeta l4proto tcp redirect to :{OUTBOUND}\n}}\n\
         chain prerouting {{ type nat hook prerouting priority -100; policy accept;\n\
         tcp dport {{ {inbound} }} return\nmeta l4proto tcp redirect to :{INBOUND}\n}}\n"
    );
    script + "}\n"
}

async fn run(inside: Option<&Netns>, words: &[&str], script: &str) -> Result<()> {
    let program = words.first().copied().unwrap_or_default();
    let enter = inside.map(|ns| ["nsenter".to_string(), format!("--net={}", ns.path().display()), "--".into()]);
    let words: Vec<String> = enter.into_iter().flatten().chain(words.iter().map(|w| w.to_string())).collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    // Ctrl-C is for the lab; it ends its helpers in its own time.
    command.process_group(0);
    let mut child = command.spawn().during(format!("starting {program} (is it installed?)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = child.wait_with_output().await.during(program)?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unlike_each_other() {
        let network = Network::PODS;
        assert_eq!(network.hub(), HUB);
        let all: std::collections::BTreeSet<Ipv4Addr> = (0..2000).map(|n| network.address(n)).collect();
        assert_eq!(all.len(), 2000);
        assert!(all.iter().all(|a| a.octets()[..2] == [10, 244] && ![0, 255].contains(&a.octets()[3]) && *a != HUB));
    }

    #[test]
    fn listeners_are_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1";
        assert_eq!(listener(line), Some("127.0.0.1:8080".parse().unwrap()));
        let line = "   0: 00000000000000000000000000000000:1F91 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(listener(line), Some("[::]:8081".parse().unwrap()));
        assert_eq!(listener("   0: 0100007F:1F90 0100007F:1234 01 0"), None);
    }

    #[test]
    fn ports_left_alone() {
        let annotations = [("traffic.sidecar.istio.io/excludeOutboundPorts".to_string(), "25, 3306".to_string())];
        let rules = redirection(&Excluded::read(&annotations.into()));
        assert!(rules.contains("tcp dport { 53, 25, 3306 } return"), "{rules}");
        assert!(rules.contains("tcp dport { 15006, 15020, 15021, 15090 } return"), "{rules}");
    }
}
