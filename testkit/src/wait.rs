//! Waiting for a condition with a deadline, instead of sleeping and hoping; and one-thread runtimes.

use std::future::Future;
use std::time::{Duration, Instant};

/// Polls `ready` until it gives something; None at the deadline.
pub fn poll<T>(deadline: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = ready() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Panics with `what` when `ready` does not hold within the deadline.
#[track_caller]
pub fn until(what: &str, deadline: Duration, mut ready: impl FnMut() -> bool) {
    assert!(poll(deadline, || ready().then_some(())).is_some(), "not within {deadline:?}: {what}");
}

/// A current-thread runtime, the only kind the project uses.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

pub fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}
