//! How a worker's connections are told that a drain goes on, so that each can say goodbye in its own protocol: one waker per
//! connection, touched once per step and never per request. What must end at once is cut by `accept::live`.

use crate::worker::Phase;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

#[derive(Clone, Default)]
pub struct Ending(Rc<Inner>);

#[derive(Default)]
struct Inner {
    phase: Cell<Phase>,
    connections: RefCell<Slab<Option<Waker>>>,
}

impl Ending {
    pub fn phase(&self) -> Phase {
        self.0.phase.get()
    }

    pub fn set(&self, phase: Phase) {
        self.0.phase.set(phase);
        for (_, waker) in self.0.connections.borrow().iter() {
            if let Some(waker) = waker {
                waker.wake_by_ref();
            }
        }
    }

    pub fn register(&self) -> Ticket {
        let key = self.0.connections.borrow_mut().insert(None);
        Ticket { ending: self.clone(), key, waiting: false, late: self.phase() != Phase::Running }
    }
}

/// One connection's place in the list.
pub struct Ticket {
    ending: Ending,
    key: usize,
    waiting: bool,
    /// It came when goodbye had been said already.
    pub late: bool,
}

impl Ticket {
    /// Where the drain is; remembers the task the first time, so it must always be polled from the same one.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Phase {
        if !self.waiting {
            self.waiting = true;
            if let Some(waker) = self.ending.0.connections.borrow_mut().get_mut(self.key) {
                *waker = Some(cx.waker().clone());
            }
        }
        self.ending.phase()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut connections = self.ending.0.connections.borrow_mut();
        connections.try_remove(self.key);
        if connections.is_empty() {
            connections.shrink_to_fit();
        }
    }
}
