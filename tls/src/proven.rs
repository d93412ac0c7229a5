//! Certificates whose proof is known already.
//!
//! Peers come again: after a drain, a restart, a network's hiccup, many of them at once. A certificate that was verified
//! against these roots and this expectation is as true the next time, byte by byte the same and within its time, and checking
//! the CA's signature again is a fifth of a handshake. What a peer must prove anew each time, that it holds the key, is not
//! remembered; nor is anything beyond the verifier, which is made anew with every change of roots or expectation.

use rustc_hash::FxHashMap;
use rustls::pki_types::UnixTime;
use std::sync::{Mutex, PoisonError};

/// A worker's peers seldom are more; beyond that remembering begins anew.
const MOST: usize = 256;

/// The seconds in which a certificate is valid, both included.
pub(crate) type Validity = (i64, i64);

#[derive(Debug, Default)]
pub(crate) struct Proven(Mutex<FxHashMap<Box<[u8]>, Validity>>);

impl Proven {
    pub(crate) fn holds(&self, leaf: &[u8], now: UnixTime) -> bool {
        let Ok(now) = i64::try_from(now.as_secs()) else { return false };
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(leaf).is_some_and(|(from, until)| (*from..=*until).contains(&now))
    }

    pub(crate) fn keep(&self, leaf: &[u8], valid: Validity) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(leaf.into(), valid);
    }
}
