//! Mutual TLS: what an inbound port accepts, and how an upstream connection is secured.
//!
//! Acts when a connection is accepted or dialled, never per request. Has no state: a changed mode is re-checked against
//! live connections by the proxy.

use crate::doc::Cursor;
use crate::id::SpiffeId;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What an inbound port accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Only mesh mTLS.
    Strict,
    /// Mesh mTLS and plaintext; a foreign TLS hello passes to the app untouched.
    #[default]
    Permissive,
    /// Plaintext; TLS bytes are the app's own.
    Disable,
}

impl Mode {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        c.word(&[("strict", Self::Strict), ("permissive", Self::Permissive), ("disable", Self::Disable)])
    }
}

/// An inbound listener's modes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct InboundConfig {
    pub mode: Mode,
    pub ports: BTreeMap<u16, Mode>,
}

impl InboundConfig {
    pub fn mode_of(&self, port: u16) -> Mode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

/// How connections to a backend are secured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum UpstreamTls {
    /// Mesh mTLS to endpoints that have an identity, plaintext to the others (auto-mTLS).
    #[default]
    Auto,
    /// Never TLS.
    Disable,
    /// Mesh mTLS always; an endpoint without an identity is unusable.
    Mesh(MeshTls),
    /// TLS of the outside world.
    Originate(Arc<Originate>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct MeshTls {
    /// Identities to accept instead of the endpoint's own.
    pub identities: Vec<SpiffeId>,
    /// A DNS name to expect in the peer's certificate, for peers without SPIFFE ids.
    pub dns_name: Option<String>,
    pub sni: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Originate {
    pub sni: Option<String>,
    /// Names to accept in the server's certificate; empty: the SNI.
    pub names: Vec<String>,
    /// A PEM file of roots; `None`: the system's.
    pub roots: Option<PathBuf>,
    /// Client certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
    pub insecure_skip_verify: bool,
}

/// How one endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    Plain,
    Mesh,
    Originate,
}

/// Whom a mesh peer has to prove to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected<'a> {
    /// Whoever the trust bundle proves.
    Any,
    Id(&'a SpiffeId),
    /// One of these.
    Ids(&'a [SpiffeId]),
    DnsName(&'a str),
}

impl UpstreamTls {
    /// What an endpoint of this identity is reached with.
    pub fn security(&self, identity: Option<&SpiffeId>) -> Security {
        match self {
            Self::Disable => Security::Plain,
            Self::Auto if identity.is_none() => Security::Plain,
            Self::Auto | Self::Mesh(_) => Security::Mesh,
            Self::Originate(_) => Security::Originate,
        }
    }

    /// What a mesh peer is to prove, given the endpoint's own identity.
    pub fn expected<'a>(&'a self, identity: Option<&'a SpiffeId>) -> Expected<'a> {
        match self {
            Self::Mesh(MeshTls { dns_name: Some(name), .. }) => Expected::DnsName(name),
            Self::Mesh(mesh) if !mesh.identities.is_empty() => Expected::Ids(&mesh.identities),
            _ => identity.map_or(Expected::Any, Expected::Id),
        }
    }

    /// `auto`, `disable`, or a map with `mode: mesh | originate` and its settings.
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        #[derive(Clone, Copy)]
        enum Kind {
            Auto,
            Disable,
            Mesh,
            Originate,
        }
        const WORDS: &[(&str, Kind)] =
            &[("auto", Kind::Auto), ("disable", Kind::Disable), ("mesh", Kind::Mesh), ("originate", Kind::Originate)];
        if matches!(c.node.value, crate::doc::Value::Text(_)) {
            return Some(match c.word(WORDS)? {
                Kind::Auto => Self::Auto,
                Kind::Disable => Self::Disable,
                Kind::Mesh => Self::Mesh(MeshTls::default()),
                Kind::Originate => Self::Originate(Arc::default()),
            });
        }
        c.fields(|f| {
            let kind = f.req("mode", |c| c.word(WORDS))?;
            match kind {
                Kind::Auto => Some(Self::Auto),
                Kind::Disable => Some(Self::Disable),
                Kind::Mesh => Some(Self::Mesh(MeshTls {
                    identities: f.list("identities", read_id),
                    dns_name: f.opt("dnsName", |c| c.text()),
                    sni: f.opt("sni", |c| c.text()),
                })),
                Kind::Originate => {
                    let cert = f.opt("certificate", |c| c.text());
                    let key = f.opt("key", |c| c.text());
                    if cert.is_some() != key.is_some() {
                        return f.fail("certificate", "certificate and key go together", "give both files, or none");
                    }
                    Some(Self::Originate(Arc::new(Originate {
                        sni: f.opt("sni", |c| c.text()),
                        names: f.list("names", |c| c.text()),
                        roots: f.opt("roots", |c| c.text()).map(PathBuf::from),
                        client: cert.zip(key).map(|(c, k)| (c.into(), k.into())),
                        insecure_skip_verify: f.or("insecureSkipVerify", false, |c| c.bool()),
                    })))
                }
            }
        })
    }
}

pub fn read_id(c: &mut Cursor<'_, '_>) -> Option<SpiffeId> {
    let text = c.text()?;
    match SpiffeId::parse(&text) {
        Ok(id) => Some(id),
        Err(e) => c.fail(e.to_string(), "spiffe://trust-domain/ns/NAMESPACE/sa/ACCOUNT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::read;

    #[test]
    fn who_is_expected_and_how_he_is_reached() {
        let id = SpiffeId::parse("spiffe://a/ns/b/sa/c").unwrap();
        for (json, without, with, expected) in [
            (r#""auto""#, Security::Plain, Security::Mesh, Expected::Id(&id)),
            (r#""disable""#, Security::Plain, Security::Plain, Expected::Id(&id)),
            (r#"{"mode": "mesh", "dnsName": "a.test"}"#, Security::Mesh, Security::Mesh, Expected::DnsName("a.test")),
            (r#"{"mode": "originate", "sni": "a.test"}"#, Security::Originate, Security::Originate, Expected::Id(&id)),
        ] {
            let tls = read(UpstreamTls::read, json).unwrap();
            assert_eq!((tls.security(None), tls.security(Some(&id))), (without, with), "{json}");
            assert_eq!(tls.expected(Some(&id)), expected, "{json}");
        }
        assert_eq!(UpstreamTls::Auto.expected(None), Expected::Any);
        let tls = read(UpstreamTls::read, r#"{"mode": "mesh", "identities": ["spiffe://x/y"]}"#).unwrap();
        assert_eq!(tls.expected(Some(&id)), Expected::Ids(&[SpiffeId::parse("spiffe://x/y").unwrap()]));
    }
}
