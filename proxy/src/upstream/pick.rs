//! Which endpoint: the backend's picker among those its outlier detector lets through.

use crate::worker::Worker;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_policy::backend::{Backend, EndpointSet};
use weft_policy::balance::Sample;
use weft_policy::endpoint::Endpoint;
use weft_policy::outlier::{Pass, Signal, Usable};
use weft_policy::reason::Reason;

/// An endpoint that was picked. Whatever becomes of the attempt, what it says about the endpoint is told exactly once.
pub struct Picked {
    pub endpoint: Arc<Endpoint>,
    pub index: usize,
    backend: Arc<Backend>,
    set: Arc<EndpointSet>,
    pass: Pass,
    began: Instant,
    told: bool,
    worker: std::rc::Rc<Worker>,
}

/// How long a request waits for an endpoint whose penalty is about to end.
const PATIENCE: Duration = Duration::from_secs(3);

pub async fn pick(
    worker: &std::rc::Rc<Worker>,
    backend: &Arc<Backend>,
    hash: Option<u64>,
    tried: &[usize],
    now: Instant,
) -> Result<Picked, Reason> {
    let set = backend.endpoints.load_full();
    match pick_now(worker, backend, &set, hash, tried, now) {
        Some(picked) => Ok(picked),
        // Waiting is rare, and its room in the request's future is not.
        None => Box::pin(wait(worker, backend, hash, tried, now)).await,
    }
}

async fn wait(
    worker: &std::rc::Rc<Worker>,
    backend: &Arc<Backend>,
    hash: Option<u64>,
    tried: &[usize],
    since: Instant,
) -> Result<Picked, Reason> {
    loop {
        let now = Instant::now();
        let set = backend.endpoints.load_full();
        if let Some(picked) = pick_now(worker, backend, &set, hash, tried, now) {
            return Ok(picked);
        }
        let next = backend.outlier.next_probe(&set.endpoints, now).filter(|at| *at < since + PATIENCE);
        let Some(next) = next else { return Err(Reason::NoHealthyUpstream) };
        // Never a busy loop: a probe that is under way is looked at again a little later.
        tokio::time::sleep_until(next.max(now + Duration::from_millis(2)).into()).await;
    }
}

fn pick_now(
    worker: &std::rc::Rc<Worker>,
    backend: &Arc<Backend>,
    set: &Arc<EndpointSet>,
    hash: Option<u64>,
    tried: &[usize],
    now: Instant,
) -> Option<Picked> {
    // A probe is given away once; losing the race for it means looking again without it.
    for probes in [true, false] {
        let look = backend.outlier.look(&set.endpoints, now);
        let usable = |e: &Endpoint| match look.usable(e) {
            Usable::Yes => true,
            Usable::Probe => probes,
            Usable::No => false,
        };
        let index = set.picker.pick(&set.endpoints, &mut || worker.random(), hash, now, &usable, tried)?;
        let endpoint = set.endpoints.get(index)?.clone();
        if let Some(pass) = backend.outlier.admit(&look, &endpoint).or(look.panic.then_some(Pass::Normal)) {
            endpoint.load.begin(now, set.picker.ewma());
            return Some(Picked {
                endpoint,
                index,
                backend: backend.clone(),
                set: set.clone(),
                pass,
                began: now,
                told: false,
                worker: worker.clone(),
            });
        }
    }
    None
}

impl Picked {
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// The attempt's response head came, or it failed.
    pub fn tell(&mut self, signal: Signal, now: Instant) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let took = now - self.began;
        let sample = match signal {
            Signal::Nothing => Sample::Nothing,
            s if s.is_failure() => Sample::Failed(took),
            _ => Sample::Took(took),
        };
        self.endpoint.load.learn(now, sample, self.set.picker.ewma());
        let worker = &self.worker;
        let random = &mut || worker.random();
        self.backend.outlier.record(&self.set.endpoints, &self.endpoint, self.pass, signal, now, random);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        if !self.told {
            self.tell(Signal::Nothing, Instant::now());
        }
        self.endpoint.load.end();
    }
}
