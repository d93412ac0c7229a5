//! What handshakes use, shared by all workers: our identity and the roots we trust.
//!
//! A rotation stores a new `Material`; connections that exist keep what they were made with, new handshakes load the new
//! one. The generation tells caches of built configs when to rebuild; `renewed` tells whoever has connections to look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::bundle::TrustBundle;
use crate::identity::Identity;

#[derive(Debug)]
pub struct Material {
    pub identity: Identity,
    pub bundle: Arc<TrustBundle>,
    pub generation: u64,
}

/// The holder. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Live(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    material: ArcSwap<Material>,
    next: AtomicU64,
    /// Tells whoever waits that there is a new one.
    renewed: watch::Sender<()>,
}

impl Live {
    pub fn new(identity: Identity, bundle: TrustBundle) -> Self {
        let material = Material { identity, bundle: Arc::new(bundle), generation: 1 };
        Self(Arc::new(Shared {
            material: ArcSwap::from_pointee(material),
            next: AtomicU64::new(2),
            renewed: watch::Sender::default(),
        }))
    }

    /// Replaces both; returns the generation they got.
    pub fn store(&self, identity: Identity, bundle: impl Into<Arc<TrustBundle>>) -> u64 {
        let generation = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.material.store(Arc::new(Material { identity, bundle: bundle.into(), generation }));
        self.0.renewed.send_replace(());
        generation
    }

    pub fn store_identity(&self, identity: Identity) -> u64 {
        self.store(identity, self.load().bundle.clone())
    }

    pub fn store_bundle(&self, bundle: TrustBundle) -> u64 {
        self.store(self.load().identity.clone(), bundle)
    }

    /// Hears of every new one.
    pub fn renewed(&self) -> watch::Receiver<()> {
        self.0.renewed.subscribe()
    }

    pub fn load(&self) -> Arc<Material> {
        self.0.material.load_full()
    }

    pub fn generation(&self) -> u64 {
        self.0.material.load().generation
    }
}
