//! Trust bundles: which roots prove which trust domain.
//!
//! A root proves identities of its own domain only: the CA of a federated mesh must not be able to issue a name of ours.
//! A plain CA file (domain `None`) names no domain and proves any. Several roots per domain at once are normal: during
//! a rotation the old and the new one both count.

use std::fmt;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, Der, TrustAnchor};
use weft_policy::id::TrustDomain;

use crate::identity::TlsError;

#[derive(Clone, Default)]
pub struct TrustBundle {
    roots: Vec<Root>,
}

#[derive(Clone)]
struct Root {
    domain: Option<TrustDomain>,
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
}

impl Root {
    /// Borrowed: a handshake needs a slice of them, and must not copy the keys for it.
    fn anchor(&self) -> TrustAnchor<'_> {
        TrustAnchor {
            subject: Der::from_slice(&self.anchor.subject),
            subject_public_key_info: Der::from_slice(&self.anchor.subject_public_key_info),
            name_constraints: self.anchor.name_constraints.as_ref().map(|n| Der::from_slice(n)),
        }
    }
}

impl TrustBundle {
    /// All certificates of a PEM text as roots of one domain, or of any when `domain` is `None`.
    pub fn from_pem(domain: Option<TrustDomain>, pem: &[u8]) -> Result<Self, TlsError> {
        let mut bundle = Self::default();
        bundle.add_pem(domain, pem)?;
        Ok(bundle)
    }

    pub fn add_pem(&mut self, domain: Option<TrustDomain>, pem: &[u8]) -> Result<(), TlsError> {
        let mut added = 0;
        for item in CertificateDer::pem_slice_iter(pem) {
            self.add_der(
                domain.clone(),
                item.map_err(|e| TlsError::Pem { what: "trust bundle", why: e.to_string() })?,
            )?;
            added += 1;
        }
        if added == 0 { Err(TlsError::NoCertificate { what: "trust bundle" }) } else { Ok(()) }
    }

    pub fn add_der(&mut self, domain: Option<TrustDomain>, der: CertificateDer<'static>) -> Result<(), TlsError> {
        if self.roots.iter().any(|r| r.domain == domain && r.der == der) {
            return Ok(());
        }
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|e| TlsError::BadCertificate { what: "trust bundle", why: e.to_string() })?
            .to_owned();
        self.roots.push(Root { domain, der, anchor });
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// The domains named, `None` for a plain CA file; each once per root.
    pub fn domains(&self) -> impl Iterator<Item = Option<&TrustDomain>> {
        self.roots.iter().map(|r| r.domain.as_ref())
    }

    pub fn certificates(&self) -> impl Iterator<Item = (Option<&TrustDomain>, &CertificateDer<'static>)> {
        self.roots.iter().map(|r| (r.domain.as_ref(), &r.der))
    }

    /// Whether every root of another bundle is one of these.
    pub fn has_all_of(&self, other: &Self) -> bool {
        other.roots.iter().all(|o| self.roots.iter().any(|r| r.domain == o.domain && r.der == o.der))
    }

    /// The roots that may prove a name of this domain; for a certificate without an identity those of plain CA files.
    pub(crate) fn anchors_for(&self, domain: Option<&TrustDomain>) -> Vec<TrustAnchor<'_>> {
        let fits = |r: &&Root| r.domain.is_none() || (domain.is_some() && r.domain.as_ref() == domain);
        self.roots.iter().filter(fits).map(Root::anchor).collect()
    }

    pub(crate) fn all_anchors(&self) -> Vec<TrustAnchor<'_>> {
        self.roots.iter().map(Root::anchor).collect()
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.roots.len() == other.roots.len()
            && self.roots.iter().zip(&other.roots).all(|(a, b)| a.domain == b.domain && a.der == b.der)
    }
}

impl Eq for TrustBundle {}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.domains()).finish()
    }
}
