//! What waits for answers. There is one of it: a connection to an API server lives where it was made.

use crate::error::{During, Result};
use std::sync::OnceLock;
use tokio::runtime::{Builder, Runtime};

static ONE: OnceLock<Runtime> = OnceLock::new();

/// Not within itself: who needs a mesh for an answer opens it before. It has no threads of its own, for a lab's user namespace takes no program that has several.
pub fn wait<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = match ONE.get() {
        Some(runtime) => runtime,
        None => {
            let made = Builder::new_current_thread().enable_all().build().during("the runtime")?;
            ONE.get_or_init(|| made)
        }
    };
    runtime.block_on(future)
}
