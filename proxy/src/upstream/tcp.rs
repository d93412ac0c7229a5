//! A connection for bytes: opaque TCP and passed-on TLS. Balanced per connection, under the same breaker and detector.

use super::dial::{Inside, Security, dial, security};
use super::pick::{Picked, pick};
use crate::worker::Worker;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use weft_policy::backend::Backend;
use weft_policy::breaker::ConnectionPermit;
use weft_policy::outlier::Signal;
use weft_policy::reason::Reason;
use weft_tls::MeshStream;

/// An open connection and what it holds while it lasts.
pub struct Connected {
    pub io: MeshStream,
    pub picked: Picked,
    pub secured: bool,
    /// To a peer of the mesh.
    pub mesh: bool,
    _permit: ConnectionPermit,
}

/// Connects to one of the backend's endpoints; one that does not answer is not tried twice.
pub async fn connect(worker: &Rc<Worker>, backend: &Arc<Backend>, source: Option<u64>) -> Result<Connected, Reason> {
    const TRIES: usize = 3;
    let permit = ConnectionPermit::take(backend).ok_or(Reason::Overflow)?;
    let mut tried = smallvec::SmallVec::<[usize; 4]>::new();
    let mut last = Reason::NoHealthyUpstream;
    for _ in 0..TRIES {
        let mut picked = pick(worker, backend, source, &tried, Instant::now()).await?;
        if tried.contains(&picked.index) {
            break;
        }
        tried.push(picked.index);
        let config = backend.config.load_full();
        let security = security(worker, &config, &picked.endpoint)?;
        match dial(worker, &config, &picked.endpoint, Inside::Bytes).await {
            Ok(io) => {
                picked.tell(Signal::Success, Instant::now());
                let (secured, mesh) = (security != Security::Plain, security == Security::Mesh);
                return Ok(Connected { io, picked, secured, mesh, _permit: permit });
            }
            Err(Reason::Overload) => return Err(Reason::Overload),
            Err(reason) => {
                picked.tell(Signal::ConnectFailed, Instant::now());
                last = reason;
            }
        }
    }
    Err(last)
}
