//! The process-wide series of one family: monotonic, bounded, forgotten when idle.

use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a series adds up.
pub trait Numbers: Default {
    fn add(&mut self, other: &Self);
}

impl Numbers for u64 {
    fn add(&mut self, other: &Self) {
        *self += other;
    }
}

/// Where a cell's series was last time; checked before it is used.
#[derive(Clone, Copy, Debug)]
pub struct At {
    slot: u32,
    generation: u64,
}

#[derive(Debug)]
struct Slot<N> {
    /// `None`: free.
    labels: Option<Arc<str>>,
    generation: u64,
    numbers: N,
    touched: Instant,
}

#[derive(Debug)]
pub struct Table<N> {
    slots: Vec<Slot<N>>,
    free: Vec<u32>,
    index: FxHashMap<Arc<str>, u32>,
    cap: usize,
    generation: u64,
    overflow: N,
    overflowed: u64,
}

const OVERFLOW: u32 = u32::MAX;
/// The label of what found no room.
pub const OVERFLOW_LABELS: &str = "overflow=\"true\"";

impl<N: Numbers> Table<N> {
    pub fn new(cap: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: FxHashMap::default(),
            cap,
            generation: 1,
            overflow: N::default(),
            overflowed: 0,
        }
    }

    pub fn set_cap(&mut self, cap: usize) {
        self.cap = cap;
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// How many additions found no room.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }

    /// Adds to the series that `at` remembers, or that `labels` name; `None` is the overflow series.
    pub fn add(&mut self, at: &mut Option<At>, labels: impl FnOnce() -> Option<String>, numbers: &N, now: Instant) {
        let known = at.filter(|at| match self.slots.get(at.slot as usize) {
            Some(slot) => slot.labels.is_some() && slot.generation == at.generation,
            // The overflow is asked again once something has been forgotten.
            None => at.slot == OVERFLOW && at.generation == self.generation && self.index.len() >= self.cap,
        });
        let found = known.unwrap_or_else(|| self.find(labels(), now));
        *at = Some(found);
        match self.slots.get_mut(found.slot as usize) {
            Some(slot) => {
                slot.numbers.add(numbers);
                slot.touched = now;
            }
            None => {
                self.overflow.add(numbers);
                self.overflowed += 1;
            }
        }
    }

    fn find(&mut self, labels: Option<String>, now: Instant) -> At {
        let overflow = At { slot: OVERFLOW, generation: self.generation };
        let Some(labels) = labels else { return overflow };
        if let Some(slot) = self.index.get(labels.as_str()) {
            return At { slot: *slot, generation: self.slots[*slot as usize].generation };
        }
        if self.index.len() >= self.cap {
            return overflow;
        }
        let labels: Arc<str> = labels.into();
        let made =
            Slot { labels: Some(labels.clone()), generation: self.generation, numbers: N::default(), touched: now };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = made;
                slot
            }
            None => {
                self.slots.push(made);
                (self.slots.len() - 1) as u32
            }
        };
        self.index.insert(labels, slot);
        At { slot, generation: self.generation }
    }

    /// Forgets series that nobody added to for `idle`.
    pub fn expire(&mut self, now: Instant, idle: Duration) {
        let before = self.free.len();
        for (i, slot) in self.slots.iter_mut().enumerate() {
            if now.saturating_duration_since(slot.touched) < idle {
                continue;
            }
            if let Some(labels) = slot.labels.take() {
                self.index.remove(&labels);
                slot.numbers = N::default();
                self.free.push(i as u32);
            }
        }
        if self.free.len() > before {
            self.generation += 1;
        }
    }

    /// Every series, the overflow last.
    pub fn each(&self) -> impl Iterator<Item = (&str, &N)> {
        let overflow = (self.overflowed > 0).then_some((OVERFLOW_LABELS, &self.overflow));
        self.slots.iter().filter_map(|s| Some((s.labels.as_deref()?, &s.numbers))).chain(overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(table: &mut Table<u64>, at: &mut Option<At>, labels: &str, now: Instant) {
        table.add(at, || Some(labels.into()), &1, now);
    }

    fn all(table: &Table<u64>) -> Vec<(String, u64)> {
        let mut all: Vec<_> = table.each().map(|(l, n)| (l.to_string(), *n)).collect();
        all.sort();
        all
    }

    #[test]
    fn bounded_and_idle_ones_forgotten() {
        let (start, idle) = (Instant::now(), Duration::from_secs(600));
        let mut table = Table::new(2);
        let (mut a, mut b, mut c) = (None, None, None);
        for _ in 0..3 {
            add(&mut table, &mut a, "a", start);
            add(&mut table, &mut b, "b", start);
            add(&mut table, &mut c, "c", start);
        }
        // Another worker's cell of the same labels is the same series.
        add(&mut table, &mut None, "a", start);
        let over = (OVERFLOW_LABELS.to_string(), 3);
        assert_eq!(all(&table), [("a".into(), 4), ("b".into(), 3), over.clone()]);
        assert_eq!(table.overflowed(), 3);

        let later = start + idle;
        add(&mut table, &mut a, "a", later);
        table.expire(later, idle);
        assert_eq!(all(&table), [("a".into(), 5), over.clone()]);
        // There is room again, and the stale position of b must not reach c's series.
        add(&mut table, &mut c, "c", later);
        add(&mut table, &mut b, "b", later);
        assert_eq!(all(&table), [("a".into(), 5), ("c".into(), 1), (over.0, 4)]);
    }

    #[test]
    fn a_million_labels() {
        let mut table = Table::new(100);
        let now = Instant::now();
        for i in 0..1_000_000u32 {
            table.add(&mut None, || Some(i.to_string()), &1u64, now);
        }
        assert_eq!(table.len(), 100);
        assert_eq!(table.each().map(|(_, n)| n).sum::<u64>(), 1_000_000);
        assert_eq!(table.overflowed(), 999_900);
    }
}
