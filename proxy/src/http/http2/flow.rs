//! Windows. Whoever receives gives bytes back when they were taken, and seldom: at half a window, so that small messages
//! never cost an update.

use super::settings::MAX_WINDOW;

/// The window of what we may send. It may be below zero: settings can take back what was given.
#[derive(Debug, Clone, Copy)]
pub struct Sending(i64);

impl Sending {
    pub fn new(window: u32) -> Self {
        Self(i64::from(window))
    }

    pub fn room(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// `n` is never more than there is room.
    pub fn spend(&mut self, n: usize) {
        self.0 -= n as i64;
    }

    /// `false`: more than a window may ever be.
    #[must_use]
    pub fn add(&mut self, n: i64) -> bool {
        self.0 += n;
        self.0 <= MAX_WINDOW
    }
}

/// The window of what the peer may send.
#[derive(Debug, Clone, Copy)]
pub struct Receiving {
    size: u32,
    left: u32,
    /// Taken, and not given back yet.
    taken: u32,
}

impl Receiving {
    pub fn new(size: u32) -> Self {
        Self { size, left: size, taken: 0 }
    }

    /// `false`: the peer sent more than it may.
    #[must_use]
    pub fn spend(&mut self, n: usize) -> bool {
        let left = u32::try_from(n).ok().and_then(|n| self.left.checked_sub(n));
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// What was received has been taken; how much to give back now, if it is worth it.
    pub fn take(&mut self, n: usize) -> Option<u32> {
        // Never more than was spent.
        self.taken = self.taken.saturating_add(n as u32).min(self.size.saturating_sub(self.left));
        if self.taken < self.size / 2 {
            return None;
        }
        let back = std::mem::take(&mut self.taken);
        self.left += back;
        Some(back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_are_rare_and_never_too_much() {
        let mut window = Receiving::new(100);
        assert!(window.spend(60) && window.take(10).is_none());
        assert_eq!(window.take(45), Some(55));
        assert!(window.spend(95) && !window.spend(1));
        assert_eq!(window.take(1000), Some(100));
        let mut window = Sending::new(10);
        window.spend(10);
        assert!(window.add(-20));
        assert_eq!(window.room(), 0);
        assert!(window.add(25));
        assert_eq!(window.room(), 5);
        assert!(!window.add(MAX_WINDOW));
    }
}
