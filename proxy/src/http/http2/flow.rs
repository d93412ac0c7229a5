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

/// What a stream's window grows to.
const LARGEST: u32 = 1024 * 1024;

/// The window of what the peer may send.
#[derive(Debug, Clone, Copy)]
pub struct Receiving {
    /// As it was at first.
    first: u32,
    size: u32,
    left: u32,
    /// Taken, and not given back yet. Below zero: a window that was made smaller gives that much less back.
    taken: i64,
}

impl Receiving {
    pub fn new(size: u32) -> Self {
        Self { first: size, size, left: size, taken: 0 }
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
        let spent = i64::from(self.size) - i64::from(self.left);
        self.taken = self.taken.saturating_add(n as i64).min(spent);
        let back = u32::try_from(self.taken).ok().filter(|taken| *taken > 0 && *taken >= self.size / 2)?;
        self.taken = 0;
        self.left += back;
        Some(back)
    }

    /// Another size, from the next time on that something is given back.
    fn resize(&mut self, size: u32) {
        self.taken += i64::from(size) - i64::from(self.size);
        self.size = size;
    }

    /// A new size, when something was given back: twice as large, for a stream that has its connection to itself and
    /// whose reader has kept up, so that neither end waits for the other. Where there are others, a stream may not put more on
    /// the wire before them than it was first given.
    pub fn follow(&mut self, alone: bool, kept_up: bool) {
        match (alone, kept_up) {
            (false, _) => self.resize(self.first),
            (true, true) => self.resize(self.size.saturating_mul(2).min(LARGEST.max(self.first))),
            (true, false) => {}
        }
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
        // Nothing spent, nothing to give back.
        assert!(Receiving::new(0).take(5).is_none());
        let mut window = Sending::new(10);
        window.spend(10);
        assert!(window.add(-20));
        assert_eq!(window.room(), 0);
        assert!(window.add(25));
        assert_eq!(window.room(), 5);
        assert!(!window.add(MAX_WINDOW));
    }

    #[test]
    fn a_window_follows_its_reader() {
        let mut window = Receiving::new(100);
        assert!(window.spend(100));
        window.resize(200);
        // What it grew by is given with what was taken.
        assert_eq!(window.take(60), Some(160));
        assert!(window.spend(160) && !window.spend(1));
        assert_eq!(window.take(40 + 160), Some(200));
        window.resize(100);
        // Smaller: the peer may still use what it was given, and gets so much less back.
        assert!(window.spend(150) && window.take(100).is_none());
        assert_eq!(window.take(50), Some(50));
        assert!(window.spend(100) && !window.spend(1));
    }

    #[test]
    fn windows_grow_for_who_is_alone_and_reads() {
        let mut window = Receiving::new(100_000);
        for (alone, kept_up, size) in
            [(true, true, 200_000), (true, false, 200_000), (true, true, 400_000), (false, true, 100_000)]
        {
            window.follow(alone, kept_up);
            assert_eq!(window.size, size, "{alone} {kept_up}");
        }
        (0..9).for_each(|_| window.follow(true, true));
        assert_eq!(window.size, LARGEST);
    }
}
