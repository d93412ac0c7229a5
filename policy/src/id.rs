//! Names. Pools, breakers, metrics and identities all hang on these, so they are few, cheap to clone and strict.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// A trust domain: lower-case letters, digits, `.`, `-`, `_`; at most 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("a trust domain is 1 to 255 characters of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain,
    #[error("a SPIFFE id looks like spiffe://trust-domain/ns/NAMESPACE/sa/ACCOUNT")]
    NotSpiffe,
    #[error("a SPIFFE id's path has segments of letters, digits, '.', '-' and '_', none of them empty, '.' or '..'")]
    Path,
    #[error("a SPIFFE id has at most 2048 bytes")]
    TooLong,
}

impl TrustDomain {
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(valid) {
            return Err(IdError::TrustDomain);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's identity, as its certificate says it: `spiffe://DOMAIN/PATH`. Parsing is strict, so the text can be
/// copied into headers and logs as it is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    domain: TrustDomain,
}

impl SpiffeId {
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.len() > 2048 {
            return Err(IdError::TooLong);
        }
        let rest = text.strip_prefix("spiffe://").ok_or(IdError::NotSpiffe)?;
        let (domain, path) = rest.split_once('/').ok_or(IdError::NotSpiffe)?;
        let domain = TrustDomain::parse(domain)?;
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if path.split('/').any(|s| s.is_empty() || s == "." || s == ".." || !s.bytes().all(valid)) {
            return Err(IdError::Path);
        }
        Ok(Self { text: text.into(), domain })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn shared(&self) -> Arc<str> {
        self.text.clone()
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Namespace and service account, for ids of the form `/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn workload(&self) -> Option<(&str, &str)> {
        let path = self.text.get("spiffe://".len() + self.domain.0.len()..)?;
        let (ns, sa) = path.strip_prefix("/ns/")?.split_once("/sa/")?;
        (!ns.contains('/') && !sa.contains('/')).then_some((ns, sa))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A service of the mesh. `cluster` is empty for the proxy's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId {
    pub cluster: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ServiceId {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { cluster: "".into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// What owns a breaker, an outlier detector, a budget, a balancer and pools: a port of a service, or one subset of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId {
    pub service: ServiceId,
    pub port: u16,
    pub subset: Option<Arc<str>>,
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)?;
        match &self.subset {
            Some(subset) => write!(f, "/{subset}"),
            None => Ok(()),
        }
    }
}

/// One instance. Addresses are reused by orchestrators; uids are not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub Arc<str>);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a proxy looks a destination up by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DestKey {
    /// The address the app dialled.
    Addr(SocketAddr),
    /// The Host the app named, lower case, without port; `*.example.com` and `*` are wildcards. Port 0 is any port.
    Host { host: Arc<str>, port: u16 },
    /// The server name of a TLS hello that is passed through.
    Sni { name: Arc<str>, port: u16 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_ids() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/demo/sa/web").unwrap();
        assert_eq!(id.trust_domain().as_str(), "cluster.local");
        assert_eq!(id.workload(), Some(("demo", "web")));
        assert_eq!(SpiffeId::parse("spiffe://a/b").unwrap().workload(), None);
        for bad in [
            "",
            "http://a/b",
            "spiffe://",
            "spiffe:///x",
            "spiffe://a",
            "spiffe://a/",
            "spiffe://A/b",
            "spiffe://a/b//c",
            "spiffe://a/../b",
            "spiffe://a/b?c",
            "spiffe://a/b#c",
            "spiffe://a/b\r\n",
            "spiffe://a/b,c",
            "spiffe://a/b;c",
            "spiffe://a/b\"",
            "spiffe://a/b\0",
            "spiffe://u@a/b",
            "spiffe://a:1/b",
            "SPIFFE://a/b",
            "spiffe://a/%61",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(SpiffeId::parse(&format!("spiffe://a/{}", "x".repeat(2048))), Err(IdError::TooLong));
    }
}
