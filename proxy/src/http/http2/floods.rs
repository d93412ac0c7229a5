//! Counts frames that cost their sender nothing, and ends connections that send what only an attacker sends.
//!
//! Lists, windows and streams bound themselves; what is answered for free (PING, SETTINGS, empty DATA, WINDOW_UPDATE,
//! PRIORITY, resets in either direction, CONTINUATION without end) is bounded here, per second.

use super::frame::{Head, flag, kind};
use std::time::{Duration, Instant};

/// Frames of a kind that one connection may send in a second.
const PINGS: u32 = 100;
const SETTINGS: u32 = 50;
const EMPTY_DATA: u32 = 100;
const RESETS: u32 = 200;
const PRIORITIES: u32 = 1000;
/// One-byte DATA comes with honest traffic too.
const SMALL: u32 = 20_000;
/// Window updates come in proportion to what they were given for: one for so many bytes, and some more.
const UPDATES: u32 = 1000;
const BYTES_PER_UPDATE: u64 = 256;
/// In one header block, whatever the time.
pub const CONTINUATIONS: u32 = 20;
/// Resets that the peer made us send, in a time of their own: each costs it a whole request.
const FAULTS: u32 = 400;
const FAULTS_TIME: Duration = Duration::from_secs(30);
/// Honest clients change their mind now and then; from here on it is looked at twice.
const FICKLE: u32 = 20;

#[derive(Debug, Default)]
struct Counts {
    pings: u32,
    settings: u32,
    empty: u32,
    resets: u32,
    priorities: u32,
    small: u32,
    updates: u32,
    /// Bytes sent to the peer.
    written: u64,
}

#[derive(Debug)]
pub struct Floods {
    /// Limits times this.
    patience: u32,
    counts: Counts,
    since: Option<Instant>,
    faults: u32,
    faults_since: Option<Instant>,
    resets: u32,
}

impl Floods {
    pub fn new(patience: u32) -> Self {
        Self { patience, counts: Counts::default(), since: None, faults: 0, faults_since: None, resets: 0 }
    }

    pub fn wrote(&mut self, n: usize) {
        self.counts.written += n as u64;
    }

    /// A frame has come; its word, if it is one too many.
    pub fn frame(&mut self, head: Head) -> Option<&'static str> {
        let c = &mut self.counts;
        let (count, limit, word) = match head.kind {
            kind::DATA if head.length == 0 && !head.has(flag::END_STREAM) => (&mut c.empty, EMPTY_DATA, "empty_data"),
            kind::DATA if head.length <= 1 => (&mut c.small, SMALL, "small_data"),
            kind::PRIORITY => (&mut c.priorities, PRIORITIES, "priority"),
            kind::RST_STREAM => {
                self.resets = self.resets.saturating_add(1);
                (&mut c.resets, RESETS, "rapid_reset")
            }
            kind::SETTINGS => (&mut c.settings, SETTINGS, "settings"),
            kind::PING if !head.has(flag::ACK) => (&mut c.pings, PINGS, "ping"),
            kind::WINDOW_UPDATE => {
                let earned = (c.written / BYTES_PER_UPDATE).min(u64::from(u32::MAX / 2)) as u32;
                (&mut c.updates, UPDATES + earned / self.patience, "window_update")
            }
            kind::PING | kind::DATA | kind::HEADERS | kind::CONTINUATION | kind::GOAWAY => return None,
            _ => (&mut c.priorities, PRIORITIES, "unknown"),
        };
        *count += 1;
        if *count <= limit.saturating_mul(self.patience) {
            return None;
        }
        // The clock is only asked when something is suspicious: a full count that took longer than a second is fine.
        let now = Instant::now();
        match self.since.replace(now) {
            Some(since) if now - since < Duration::from_secs(1) => Some(word),
            _ => {
                self.counts = Counts::default();
                None
            }
        }
    }

    /// The peer made us reset or refuse a stream.
    pub fn fault(&mut self) -> Option<&'static str> {
        if self.faults == 0 {
            self.faults_since = Some(Instant::now());
        }
        self.faults += 1;
        if self.faults <= FAULTS.saturating_mul(self.patience) {
            return None;
        }
        self.faults = 0;
        self.faults_since.is_some_and(|since| since.elapsed() < FAULTS_TIME).then_some("faults")
    }

    /// The client takes back so much that a request had better wait a turn before it is passed on: a reset that came right
    /// behind it is seen then, and the endpoint never learns of either.
    pub fn is_fickle(&self) -> bool {
        self.resets > FICKLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_are_seen() {
        for (kind, flags, length, word) in [
            (kind::PING, 0, 8, "ping"),
            (kind::SETTINGS, 0, 0, "settings"),
            (kind::DATA, 0, 0, "empty_data"),
            (kind::RST_STREAM, 0, 4, "rapid_reset"),
            (kind::WINDOW_UPDATE, 0, 4, "window_update"),
            (kind::PRIORITY, 0, 5, "priority"),
            (77, 0, 0, "unknown"),
        ] {
            let mut floods = Floods::new(1);
            let seen = (0..3000).find_map(|_| floods.frame(Head::new(kind, flags, 1, length)));
            assert_eq!(seen, Some(word));
        }
        let mut floods = Floods::new(1);
        assert_eq!((0..500).find_map(|_| floods.fault()), Some("faults"));
    }

    #[test]
    fn honest_traffic_passes() {
        let mut floods = Floods::new(1);
        for _ in 0..5000 {
            // The answer's bytes pay for the updates of their window.
            floods.wrote(1000);
            for (kind, flags, length) in [(1, 4, 120), (0, 0, 1000), (0, 1, 0), (8, 0, 4)] {
                assert_eq!(floods.frame(Head::new(kind, flags, 1, length)), None);
            }
        }
    }
}
