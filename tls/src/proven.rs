//! Certificates whose proof is known already.
//!
//! Peers come again: after a drain, a restart, a network's hiccup, many of them at once. Certificates that were verified
//! against these roots and this expectation are as true the next time, byte by byte the same and within their time, and
//! checking the CA's signature again is a quarter of a handshake. What a peer must prove anew each time, that it holds the
//! key, is not remembered; nor is anything beyond the verifier, which is made anew with every change of roots or expectation.

use rustc_hash::FxHashMap;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::sync::{Mutex, PoisonError};

/// A worker's peers seldom are more; beyond that remembering begins anew.
const MOST: usize = 256;
/// Longer ones are verified each time.
const MOST_BYTES: usize = 8 * 1024;

/// The leaf and what came with it, told apart by their lengths.
pub(crate) struct Shown(Vec<u8>);

impl Shown {
    pub(crate) fn of(leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Option<Self> {
        let all = || std::iter::once(leaf).chain(chain);
        let bytes = all().fold(0, |sum: usize, c| sum.saturating_add(c.len() + 8));
        if bytes > MOST_BYTES {
            return None;
        }
        let mut shown = Vec::with_capacity(bytes);
        for cert in all() {
            shown.extend_from_slice(&(cert.len() as u64).to_be_bytes());
            shown.extend_from_slice(cert);
        }
        Some(Self(shown))
    }
}

/// The time in which all of them are valid, in Unix seconds, both included.
fn validity(leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Option<(i64, i64)> {
    let mut common = (i64::MIN, i64::MAX);
    for cert in std::iter::once(leaf).chain(chain) {
        let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
        let valid = cert.validity();
        common = (common.0.max(valid.not_before.timestamp()), common.1.min(valid.not_after.timestamp()));
    }
    Some(common)
}

#[derive(Debug, Default)]
pub(crate) struct Proven(Mutex<FxHashMap<Vec<u8>, (i64, i64)>>);

impl Proven {
    pub(crate) fn holds(&self, shown: &Shown, now: UnixTime) -> bool {
        let Ok(now) = i64::try_from(now.as_secs()) else { return false };
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&shown.0).is_some_and(|(from, until)| (*from..=*until).contains(&now))
    }

    pub(crate) fn keep(&self, shown: Shown, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) {
        let Some(valid) = validity(leaf, chain) else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(shown.0, valid);
    }
}
