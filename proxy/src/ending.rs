//! How a worker's connections are told that a drain has begun, so that each can say goodbye in its own protocol: one waker per
//! connection, touched once and never per request. What must end at once is cut by `accept::live`.

use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

#[derive(Clone, Default)]
pub struct Ending(Rc<Inner>);

#[derive(Default)]
struct Inner {
    draining: Cell<bool>,
    connections: RefCell<Slab<Option<Waker>>>,
}

impl Ending {
    pub fn is_draining(&self) -> bool {
        self.0.draining.get()
    }

    /// Says goodbye on every connection; requests in flight finish.
    pub fn drain(&self) {
        self.0.draining.set(true);
        for (_, waker) in self.0.connections.borrow().iter() {
            if let Some(waker) = waker {
                waker.wake_by_ref();
            }
        }
    }

    pub fn register(&self) -> Ticket {
        let key = self.0.connections.borrow_mut().insert(None);
        Ticket { ending: self.clone(), key, waiting: false }
    }
}

/// One connection's place in the list.
pub struct Ticket {
    ending: Ending,
    key: usize,
    waiting: bool,
}

impl Ticket {
    /// Whether goodbye was said; remembers the task the first time, so it must always be polled from the same one.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.waiting {
            self.waiting = true;
            if let Some(waker) = self.ending.0.connections.borrow_mut().get_mut(self.key) {
                *waker = Some(cx.waker().clone());
            }
        }
        self.ending.is_draining()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.ending.0.connections.borrow_mut().try_remove(self.key);
    }
}
