//! Moments as numbers, so that atomics can hold them: nanoseconds since the process began to count.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// An hour ago where the clock allows it: a test's moments may lie before the first call.
static ORIGIN: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
});

/// Never 0, which callers use for "not yet".
pub(crate) fn nanos(at: Instant) -> u64 {
    span(at.saturating_duration_since(*ORIGIN)).max(1)
}

pub(crate) fn moment(nanos: u64) -> Instant {
    *ORIGIN + Duration::from_nanos(nanos)
}

pub(crate) fn span(d: Duration) -> u64 {
    d.as_nanos().min(u64::MAX as u128) as u64
}
