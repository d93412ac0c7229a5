//! A lab without namespaces: each pod has an address of loopback, and its programs have ports that no other has.
//!
//! At the pod's address and the ports of its manifest listens its sidecar; for a pod without one, this program, which carries
//! the bytes to where the app really listens. Names are resolved by an HTTP proxy per pod that its programs are told of in
//! `http_proxy`: its sidecar, or this program.

use super::forward::target;
use super::image::Program;
use super::net::{Network, OUTBOUND};
use super::service::{Kind, Service, View};
use crate::error::{Error, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Said at the start.
pub const DIFFERENCES: &str = "\
Without namespaces a lab differs from a cluster:
  names    no DNS and no addresses of Services: http://auth-service:8080 is resolved by the HTTP proxy that $http_proxy names,
           a pod's own sidecar if it has one. curl and the sample app heed it; a program that does not can only call pods'
           addresses (meshctl lab ps), past its own sidecar. So is every call that is not HTTP.
  ports    a program must listen on 127.0.0.1 or everywhere, where $PORT says. Ports in a manifest's arguments and in its
           variables PORT and *_PORT are replaced.
  safety   nothing is redirected. A sidecar refuses what STRICT refuses at its pod's address, but the app's own port is open to
           all programs of this machine, and so is everything else of the lab.
  callers  all connections come from 127.0.0.1.";

/// Held by a running lab at its first address, so that no other lab takes its network.
const HELD: u16 = 15011;

/// Where apps listen in place of their manifests' ports: below what the system gives to connections.
const PORTS: std::ops::Range<u16> = 18_000..30_000;

/// A network that no other lab of this machine has, as long as the listener lives.
pub fn network() -> Result<(Network, std::net::TcpListener)> {
    for second in 64..=254 {
        let network = Network([127, second]);
        if let Ok(held) = std::net::TcpListener::bind((network.hub(), HELD)) {
            return Ok((network, held));
        }
    }
    Err(Error::new(format!("port {HELD} is taken at every address of loopback"), "end what listens on it"))
}

/// Ports that apps may have; none is given twice.
#[derive(Debug)]
pub struct Ports(u16);

/// Of each network, before it goes on among the others'.
const OWN: u16 = 60;

impl Ports {
    /// Each network begins at a place of its own: labs that start together do not find what another is about to take.
    pub fn of(network: Network) -> Self {
        Self(u16::from(network.0[1].saturating_sub(64)) * OWN)
    }

    fn next(&mut self) -> Option<u16> {
        let length = PORTS.end - PORTS.start;
        for _ in 0..length {
            let port = PORTS.start + self.0;
            self.0 = (self.0 + 1) % length;
            if std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
                return Some(port);
            }
        }
        None
    }

    /// For each port of a manifest one of this machine.
    pub fn map(&mut self, wanted: impl IntoIterator<Item = u16>) -> Vec<(u16, u16)> {
        wanted.into_iter().filter_map(|port| Some((port, self.next()?))).collect()
    }
}

/// Where something of a pod listens in the place of `port`.
pub fn real(ports: &[(u16, u16)], port: u16) -> u16 {
    ports.iter().find(|(of_manifest, _)| *of_manifest == port).map_or(port, |(_, real)| *real)
}

/// Has a program listen on its real ports. `own` is its container's first.
pub fn rewrite(program: &mut Program, env: &mut Vec<(String, String)>, ports: &[(u16, u16)], own: Option<u16>) {
    // Being told of another port is not enough: its usual one may be taken here.
    let mut told = false;
    let is_own = |word: &str| own.is_some_and(|own| word.rsplit(':').next() == Some(own.to_string().as_str()));
    for word in program.argv.iter_mut().skip(1) {
        // `--port=8080`, `-listen=:8080`, `8080`.
        let at = word.rfind('=').map_or(0, |i| i + 1);
        if let Some(new) = listens(&word[at..], ports) {
            told |= is_own(&word[at..]);
            *word = format!("{}{new}", &word[..at]);
        }
    }
    for (name, value) in program.env.iter_mut().chain(env.iter_mut()) {
        let is_port = name == "PORT" || name.ends_with("_PORT") || value.contains(':');
        if let Some(new) = listens(value, ports).filter(|_| is_port) {
            told |= is_own(value);
            *value = new;
        }
    }
    if let Some(own) = own.filter(|_| !told && !env.iter().any(|(name, _)| name == "PORT")) {
        env.push(("PORT".into(), real(ports, own).to_string()));
    }
}

/// What stands in the place of `8080`, `:8080` or `0.0.0.0:8080`; an address of somebody else is none of these.
fn listens(word: &str, ports: &[(u16, u16)]) -> Option<String> {
    let (host, port) = match word.rsplit_once(':') {
        Some((host, port)) => (Some(host), port),
        None => (None, word),
    };
    if !matches!(host, None | Some("" | "0.0.0.0" | "127.0.0.1" | "localhost" | "[::]" | "*")) {
        return None;
    }
    let port: u16 = port.parse().ok()?;
    let real = ports.iter().find(|(of_manifest, _)| *of_manifest == port)?.1;
    Some(host.map(|h| format!("{h}:")).unwrap_or_default() + &real.to_string())
}

/// What stands at a pod's address as long as it lives.
pub struct Front(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Front {
    fn drop(&mut self) {
        self.0.iter().for_each(|task| task.abort());
    }
}

/// A pod's ports, which a sidecar will take, are free.
pub fn are_free(address: Ipv4Addr, ports: &[(u16, u16)]) -> std::result::Result<(), String> {
    ports.iter().try_for_each(|(port, _)| {
        std::net::TcpListener::bind((address, *port)).map(drop).map_err(|e| taken(address, *port, &e))
    })
}

fn taken(address: Ipv4Addr, port: u16, error: &std::io::Error) -> String {
    format!(
        "{address}:{port}: {error}; does a program of this machine listen on port {port} everywhere? End it, and meshctl lab restart"
    )
}

impl Front {
    /// Of a pod without a sidecar.
    pub async fn open(
        address: Ipv4Addr,
        ports: &[(u16, u16)],
        namespace: &str,
        view: &watch::Receiver<Arc<View>>,
    ) -> std::result::Result<Self, String> {
        let mut front = Self(Vec::new());
        let bind = async |port| TcpListener::bind((address, port)).await.map_err(|e| taken(address, port, &e));
        for (port, real) in ports {
            let (listener, app) = (bind(*port).await?, SocketAddr::from((Ipv4Addr::LOCALHOST, *real)));
            front.0.push(tokio::spawn(accept(listener, move |near| async move {
                if let Ok(far) = TcpStream::connect(app).await {
                    carry(near, far).await;
                }
            })));
        }
        let (listener, view, namespace) = (bind(OUTBOUND).await?, view.clone(), Arc::<str>::from(namespace));
        front.0.push(tokio::spawn(accept(listener, move |near| {
            let (view, namespace) = (view.borrow().clone(), namespace.clone());
            async move { call(near, &view, &namespace).await }
        })));
        Ok(front)
    }
}

async fn accept<F: Future<Output = ()> + Send + 'static>(listener: TcpListener, serve: impl Fn(TcpStream) -> F) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
            // Out of descriptors; some will be free soon.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn carry(mut near: TcpStream, mut far: TcpStream) {
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}

/// No head of a request is larger.
const MAX_HEAD: usize = 64 << 10;

/// Carries one request of a program that was told to ask this proxy, and its answer.
async fn call(mut near: TcpStream, view: &View, namespace: &str) {
    let (mut read, mut chunk) = (Vec::new(), vec![0; 8 << 10]);
    let end = loop {
        if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        match near.read(&mut chunk).await {
            Ok(n) if n > 0 && read.len() < MAX_HEAD => read.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let refuse = |why: String| {
        format!("HTTP/1.1 502 Bad Gateway\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{why}", why.len())
    };
    let answer = match Asked::read(&head) {
        None => refuse("this is a proxy: it is asked with http://NAME/PATH\n".into()),
        Some(asked) => match resolve(view, namespace, &asked.host, asked.port) {
            None => refuse(format!("nobody is {}:{} here\n", asked.host, asked.port)),
            Some(target) => match TcpStream::connect(target).await {
                Err(error) => refuse(format!("{target}: {error}\n")),
                Ok(mut far) => {
                    let first = [asked.head.as_bytes(), &read[end + 4..]].concat();
                    if far.write_all(&first).await.is_ok() {
                        carry(near, far).await;
                    }
                    return;
                }
            },
        },
    };
    let _ = near.write_all(answer.as_bytes()).await;
}

#[derive(Debug, PartialEq, Eq)]
struct Asked {
    host: String,
    port: u16,
    /// As for the server; one request a connection, since the next may be for another.
    head: String,
}

impl Asked {
    fn read(head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, rest, version) = (words.next()?, words.next()?.strip_prefix("http://")?, words.next()?);
        let cut = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(cut);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (authority, 80),
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let mut out = format!("{method} {slash}{path} {version}\r\nconnection: close\r\n");
        let of_the_proxy = |line: &&str| {
            let name = line.split(':').next().unwrap_or_default();
            ["connection", "proxy-connection", "keep-alive"].iter().any(|n| name.eq_ignore_ascii_case(n))
        };
        lines.filter(|line| !of_the_proxy(line)).for_each(|line| out += &format!("{line}\r\n"));
        Some(Self { host: host.into(), port, head: out + "\r\n" })
    }
}

/// Where a name leads for a pod of a namespace: `NAME`, `NAME.NS` and so on, as cluster DNS has them.
fn resolve(view: &View, namespace: &str, host: &str, port: u16) -> Option<SocketAddr> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Some((ip, port).into());
    }
    let host = host.to_ascii_lowercase();
    let name = host.strip_suffix(".svc.cluster.local").or(host.strip_suffix(".svc")).unwrap_or(&host);
    let labels: Vec<&str> = name.split('.').collect();
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    match labels[..] {
        [name] => of(view, view.service(namespace, name)?, port, turn),
        [name, namespace] => of(view, view.service(namespace, name)?, port, turn),
        [pod, name, namespace] => {
            let pods = view.pods.iter().filter(|p| p.namespace == namespace && p.subdomain.as_deref() == Some(name));
            pods.into_iter().find(|p| p.name == pod).map(|p| (p.address, port).into())
        }
        _ => None,
    }
}

fn of(view: &View, service: &Service, port: u16, turn: usize) -> Option<SocketAddr> {
    match &service.kind {
        Kind::External(other) => {
            let labels: Vec<&str> = other.trim_end_matches('.').splitn(3, '.').collect();
            let service = view.service(labels.get(1)?, labels.first()?)?;
            // One that names another one that is none leads nowhere.
            (!matches!(service.kind, Kind::External(_))).then(|| of(view, service, port, turn))?
        }
        Kind::Headless | Kind::Virtual { .. } => target(view, &service.namespace, &service.name, port, turn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_where_a_program_is_told_of_them() {
        let ports = [(8080, 18_001), (9090, 18_002)];
        let words = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        let mut program = Program {
            argv: words(&["8080", "--port", "8080", "-listen=:9090", "--to=users:8080", "http://users:8080/", "80801"]),
            env: vec![("A_PORT".into(), "9090".into())],
        };
        let pair = |k: &str, v: &str| (k.to_string(), v.to_string());
        let mut env = vec![pair("URL", "http://users:8080"), pair("ADDR", "0.0.0.0:8080"), pair("LIMIT", "8080")];
        rewrite(&mut program, &mut env, &ports, Some(8080));
        let wanted = ["8080", "--port", "18001", "-listen=:18002", "--to=users:8080", "http://users:8080/", "80801"];
        assert_eq!(program.argv, wanted);
        assert_eq!(program.env, [pair("A_PORT", "18002")]);
        assert_eq!(env, [pair("URL", "http://users:8080"), pair("ADDR", "0.0.0.0:18001"), pair("LIMIT", "8080")]);
        // Who is told nothing of its first port is told by PORT.
        let (mut program, mut env) = (Program::default(), vec![pair("TCP_PORT", "9090")]);
        rewrite(&mut program, &mut env, &ports, Some(8080));
        assert_eq!(env, [pair("TCP_PORT", "18002"), pair("PORT", "18001")]);
        let (mut program, mut env) = (Program { argv: words(&["app"]), ..Program::default() }, Vec::new());
        rewrite(&mut program, &mut env, &ports, Some(8080));
        assert_eq!(env, [pair("PORT", "18001")]);
    }

    #[test]
    fn requests_to_a_proxy() {
        let head = "GET http://users.shop:8080/a?b HTTP/1.1\r\nHost: users.shop:8080\r\nProxy-Connection: Keep-Alive";
        let asked = Asked::read(head).unwrap();
        assert_eq!((asked.host.as_str(), asked.port), ("users.shop", 8080));
        assert_eq!(asked.head, "GET /a?b HTTP/1.1\r\nconnection: close\r\nHost: users.shop:8080\r\n\r\n");
        assert_eq!(
            Asked::read("GET http://users HTTP/1.1").unwrap().head,
            "GET / HTTP/1.1\r\nconnection: close\r\n\r\n"
        );
        for wrong in ["", "GET /a HTTP/1.1", "GET http://users:x/ HTTP/1.1", "CONNECT users:80 HTTP/1.1"] {
            assert_eq!(Asked::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names() {
        let view = crate::lab::service::tests::view();
        let at = |last: u8, port: u16| Some(SocketAddr::from((Ipv4Addr::new(10, 244, 1, last), port)));
        for name in ["web", "web.default", "web.default.svc", "WEB.default.svc.cluster.local"] {
            let found = resolve(&view, "default", name, 80);
            assert!(found == at(1, 8080) || found == at(2, 8080), "{name}: {found:?}");
        }
        assert_eq!(resolve(&view, "shop", "web", 80), None);
        assert_eq!(resolve(&view, "default", "db.shop", 5432), at(4, 5432));
        assert_eq!(resolve(&view, "default", "out", 5432), at(4, 5432));
        assert_eq!(resolve(&view, "default", "db-0.db.shop", 1), at(4, 1));
        assert_eq!(resolve(&view, "default", "127.0.0.1", 1), Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))));
    }
}
