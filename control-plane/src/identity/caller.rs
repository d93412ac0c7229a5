//! Who calls: what the certificate of a connection proves. The handshake has verified it; nothing else is believed.

use super::ca::USER_ID;
use super::token::is_name;
use rustls::pki_types::CertificateDer;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use weft_dialects::world::PodId;
use weft_policy::id::SpiffeId;
use weft_tls::PeerIdentity;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub id: SpiffeId,
    /// The namespace of the id, with the pod that the certificate was made for.
    pub pod: PodId,
    /// Of the pod, where the certificate says it; else empty.
    pub uid: String,
    pub not_after: SystemTime,
}

impl Caller {
    /// `None` for a certificate of something that is no pod of the mesh.
    pub fn of(leaf: &CertificateDer<'_>) -> Option<Self> {
        let id = PeerIdentity::of(leaf).spiffe?;
        let (namespace, _) = id.workload()?;
        let (_, cert) = x509_parser::parse_x509_certificate(leaf).ok()?;
        let name = cert.subject().iter_common_name().next()?.as_str().ok().filter(|n| is_name(n))?;
        let user_id = USER_ID.map(|n| n.to_string()).join(".");
        let uid = cert.subject().iter_attributes().find(|a| a.attr_type().to_id_string() == user_id);
        let uid = uid.and_then(|a| a.as_str().ok()).filter(|uid| is_name(uid)).unwrap_or_default().to_string();
        let pod = PodId { namespace: namespace.into(), name: name.into() };
        let not_after = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
        Some(Self { pod, uid, not_after: UNIX_EPOCH.checked_add(Duration::from_secs(not_after))?, id })
    }

    /// A connection outlives its handshake; the certificate it was made with does not count longer for that.
    pub fn counts(&self, now: SystemTime) -> bool {
        now < self.not_after
    }
}
