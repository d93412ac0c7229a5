//! The configuration file: what it says, read with every error at once. `docs/config-file.md` is its reference.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_policy::diag::{Diags, Pos};
use weft_policy::doc::Cursor;
use weft_policy::id::TrustDomain;
use weft_policy::meta::Workload;
use weft_policy::mtls::{Originate, UpstreamTls};
use weft_policy::{backend, listener, service, telemetry, yaml};

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ProxyConfig {
    pub workload: Workload,
    pub identity: Option<IdentityFiles>,
    pub admin: Option<SocketAddr>,
    pub readiness: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    pub telemetry: telemetry::Config,
    pub workers: Option<usize>,
    /// Asked for endpoints' names; empty: as the system does.
    pub dns_servers: Vec<SocketAddr>,
    pub listeners: Vec<listener::Config>,
    pub services: Vec<service::Entry>,
    /// The file as it was read, for people who ask what is in force.
    pub document: Arc<serde_json::Value>,
}

/// Where the proxy's own certificate and what it trusts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub trust: Vec<TrustFiles>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustFiles {
    /// `None`: a CA without SPIFFE ids.
    pub domain: Option<TrustDomain>,
    pub roots: Vec<PathBuf>,
}

impl IdentityFiles {
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let own = [self.certificate.as_path(), self.key.as_path()].into_iter();
        own.chain(self.trust.iter().flat_map(|t| t.roots.iter().map(PathBuf::as_path)))
    }
}

impl ProxyConfig {
    pub fn routes(&self) -> usize {
        self.services.iter().map(|s| s.config.routes.len()).sum()
    }

    /// Reads and checks a file. `None` goes with at least one error in the findings.
    pub fn load(path: &Path) -> (Option<Self>, Diags) {
        Self::of(&text(path), path)
    }

    /// The same of a text that was read before, or could not be.
    pub fn of(text: &Result<String, String>, path: &Path) -> (Option<Self>, Diags) {
        match text {
            Ok(text) => Self::parse(text, path.parent().unwrap_or(Path::new("."))),
            Err(why) => {
                let mut diags = Diags::default();
                diags.error(Pos::default(), "", why, Some("a readable YAML file".into()));
                (None, diags)
            }
        }
    }

    /// `base` is where relative paths start.
    pub fn parse(text: &str, base: &Path) -> (Option<Self>, Diags) {
        let mut diags = Diags::default();
        let Some(root) = yaml::parse(text, &mut diags) else { return (None, diags) };
        let read = Self::read(&mut Cursor::new(&root, &mut diags), base);
        // What was read is checked even if something else is wrong, so that one run says everything.
        let config = read.map(|(mut config, listeners)| {
            config.document = Arc::new(yaml::json(&root));
            super::check::fill_ports(&mut config);
            super::check::all(&config, &listeners, &root, &mut diags);
            config
        });
        (config.filter(|_| !diags.has_errors()), diags)
    }

    /// With where each listener was. What is wrong is left out, and reported.
    pub(super) fn read(c: &mut Cursor<'_, '_>, base: &Path) -> Option<(Self, Vec<String>)> {
        const ADDRESS: &str = "an IP address and a port, such as 127.0.0.1:15000";
        let mut out = None;
        let mut paths = Vec::new();
        c.fields(|f| {
            let workload = f
                .opt("workload", Workload::read)
                .unwrap_or_else(|| Workload { namespace: "default".into(), ..Workload::default() });
            let identity = f.opt("identity", |c| read_identity(c, base));
            let admin = f.opt("admin", |c| c.parse(ADDRESS));
            let readiness = f.opt("readiness", |c| c.parse(ADDRESS));
            let metrics = f.opt("metrics", |c| c.parse(ADDRESS));
            let telemetry = f.opt("telemetry", telemetry::Config::read).unwrap_or_default();
            let workers = f.opt("workers", |c| c.int(1, 1024).map(|n| n as usize));
            let dns_servers = f
                .opt("dns", |c| {
                    c.fields(|f| {
                        Some(f.list("servers", |c| c.parse("an IP address and a port, such as 10.96.0.10:53")))
                    })
                })
                .unwrap_or_default();
            // Of lists, what is right is kept: references to it are not errors.
            let mut listeners = Vec::new();
            f.req("listeners", |c| {
                c.list(|c| {
                    listeners.push(listener::Config::read(c)?);
                    paths.push(c.path.clone());
                    Some(())
                })
            });
            let mut services: Vec<service::Entry> = Vec::new();
            f.opt("services", |c| {
                c.list(|c| {
                    services.extend(service::Entry::read(c, &workload.namespace)?);
                    Some(())
                })
            });
            for entry in &mut services {
                rebase(entry, base);
            }
            out = Some(Self {
                document: Arc::default(),
                workload,
                identity,
                admin,
                readiness,
                metrics,
                telemetry,
                workers,
                dns_servers,
                listeners,
                services,
            });
            Some(())
        });
        out.map(|config| (config, paths))
    }
}

/// The file's text. A file that a writer is still at, or a device by mistake, must not fill the memory.
pub fn text(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let open = std::fs::File::open(path);
    let read = open.and_then(|f| f.take(yaml::MAX_BYTES as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|e| format!("cannot be read: {e}"))?;
    String::from_utf8(bytes).map_err(|e| format!("not UTF-8 text at byte {}", e.utf8_error().valid_up_to()))
}

fn read_identity(c: &mut Cursor<'_, '_>, base: &Path) -> Option<IdentityFiles> {
    let file = |c: &mut Cursor<'_, '_>| c.text().map(|t| base.join(t));
    c.fields(|f| {
        let certificate = f.req("certificate", file);
        let key = f.req("key", file);
        let trust = f.req("trust", |c| {
            c.list(|c| {
                c.fields(|f| {
                    let domain = f.opt("domain", |c| {
                        let text = c.text()?;
                        match TrustDomain::parse(&text) {
                            Ok(domain) => Some(domain),
                            Err(e) => c.fail(e.to_string(), "such as cluster.local"),
                        }
                    });
                    let roots = f.req("roots", |c| c.list(file))?;
                    if roots.is_empty() {
                        return f.fail("roots", "no file of roots", "at least one PEM file");
                    }
                    Some(TrustFiles { domain, roots })
                })
            })
        });
        Some(IdentityFiles { certificate: certificate?, key: key?, trust: trust? })
    })
}

/// Relative paths of certificates start where the file is.
pub(super) fn rebase(entry: &mut service::Entry, base: &Path) {
    let backends = &mut entry.backends;
    let subsets = backends.subsets.iter_mut().map(|s| &mut s.policy);
    for policy in std::iter::once(&mut backends.policy).chain(subsets) {
        rebase_policy(policy, base);
    }
}

fn rebase_policy(policy: &mut backend::Config, base: &Path) {
    if let UpstreamTls::Originate(tls) = &policy.tls {
        policy.tls = UpstreamTls::Originate(Arc::new(Originate {
            roots: tls.roots.as_ref().map(|p| base.join(p)),
            client: tls.client.as_ref().map(|(c, k)| (base.join(c), base.join(k))),
            ..(**tls).clone()
        }));
    }
}
