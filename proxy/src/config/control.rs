//! Identity and configuration from a control plane, in the place of a file.
//!
//! ```text
//! member  joins with a token, renews with its certificate     -> weft_tls::Live
//! follow  the stream of resources -> plan -> ProxyConfig      -> the controller, as a changed file would
//! state   both on disk, for a restart without a control plane
//! report  who called whom, from the telemetry's counts
//! ```
//!
//! The control plane may be away, slow or wrong: what is in force stays in force, and the log, `/config_dump` and metrics say
//! what is missing. Nothing here runs on a worker's thread.

mod backoff;
mod demand;
mod dial;
mod follow;
mod link;
mod member;
mod plan;
mod report;
mod state;
mod waiting;

pub use demand::Demand;
pub use link::Links;
pub use report::Reporter;
pub use waiting::Waiting;

use super::file::ProxyConfig;
use follow::Follower;
use member::Member;
use state::Folder;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use weft_policy::id::TrustDomain;
use weft_tls::Live;

/// Of one message; a document has at most `yaml::MAX_BYTES`.
const MAX_MESSAGE: usize = 16 << 20;

/// From the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `HOST:PORT`
    pub target: Arc<str>,
    pub trust_root: PathBuf,
    pub token_file: PathBuf,
    pub namespace: String,
    pub pod: String,
    pub state: PathBuf,
    /// All that the workload may see, rather than what it calls.
    pub everything: bool,
    /// What our identity has to be of.
    pub trust_domain: Option<TrustDomain>,
}

/// A configuration to be put into force.
pub struct Update {
    pub config: ProxyConfig,
    /// Of the whole process, the same each time.
    pub live: Live,
    /// Told when it is in force.
    pub done: oneshot::Sender<()>,
}

impl Options {
    /// What cannot get better by waiting.
    pub fn check(&self) -> Result<(), String> {
        dial::trusted(&self.trust_root).map(drop).map_err(|e| {
            format!("{e}\n  it is the mesh's root certificate (PEM), by which the control plane is known")
        })?;
        let token = std::fs::File::open(&self.token_file);
        if let Err(e) = token
            && !self.state.exists()
        {
            let file = self.token_file.display();
            return Err(format!(
                "--token-file {file} cannot be read: {e}\n  it holds the join token that the control plane made for this workload"
            ));
        }
        Ok(())
    }
}

/// Follows the control plane for as long as it is polled. The first update comes when there are an identity and a plan.
pub fn follow(
    options: Options,
    links: Links,
) -> (mpsc::Receiver<Update>, Option<Demand>, Reporter, impl Future<Output = ()> + use<>) {
    let (clients, reporter) = Reporter::new();
    let (updates, taken) = mpsc::channel(1);
    let demand = (!options.everything).then(Demand::default);
    let asker = demand.clone();
    let following = async move {
        let options = Rc::new(options);
        let folder = Folder::open(&options.state);
        let member = Member::join(&options, &folder, &links).await;
        let follower = Follower::new(&options, &folder, &links, &member, updates, demand, clients);
        tokio::join!(member.renew(), follower.follow());
    };
    (taken, asker, reporter, following)
}
