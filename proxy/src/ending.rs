//! How the connections of a worker are told to end: politely at a drain, at once when its time is over or a policy no longer
//! lets them stand. One waker per connection, touched when the worker says so and never per request.

use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

#[derive(Clone, Default)]
pub struct Ending(Rc<Inner>);

#[derive(Default)]
struct Inner {
    draining: Cell<bool>,
    connections: RefCell<Slab<Slot>>,
}

struct Slot {
    waker: Option<Waker>,
    killed: Rc<Cell<bool>>,
    /// What the connection was admitted under; re-checked when configuration changes.
    tag: Tag,
}

/// What a live connection was admitted as.
#[derive(Clone, Debug, Default)]
pub struct Tag {
    pub listener: Option<std::sync::Arc<weft_policy::listener::Config>>,
    pub port: u16,
    pub mesh: bool,
    pub peer: Option<std::sync::Arc<crate::telemetry::record::Peer>>,
}

impl Ending {
    pub fn is_draining(&self) -> bool {
        self.0.draining.get()
    }

    /// Says goodbye on every connection; requests in flight finish.
    pub fn drain(&self) {
        self.0.draining.set(true);
        self.wake();
    }

    /// Cuts the connections that `doomed` picks; returns how many.
    pub fn kill(&self, mut doomed: impl FnMut(&Tag) -> bool) -> usize {
        let mut count = 0;
        for (_, slot) in self.0.connections.borrow().iter() {
            if doomed(&slot.tag) {
                slot.killed.set(true);
                count += 1;
            }
        }
        if count > 0 {
            self.wake();
        }
        count
    }

    pub fn live(&self) -> usize {
        self.0.connections.borrow().len()
    }

    fn wake(&self) {
        for (_, slot) in self.0.connections.borrow().iter() {
            if let Some(waker) = &slot.waker {
                waker.wake_by_ref();
            }
        }
    }

    pub fn register(&self) -> Ticket {
        self.register_as(Tag::default())
    }

    pub fn register_as(&self, tag: Tag) -> Ticket {
        let killed = Rc::new(Cell::new(false));
        let key = self.0.connections.borrow_mut().insert(Slot { waker: None, killed: killed.clone(), tag });
        Ticket { ending: self.clone(), key, killed, waiting: false }
    }
}

/// One connection's place in the list.
pub struct Ticket {
    ending: Ending,
    key: usize,
    killed: Rc<Cell<bool>>,
    waiting: bool,
}

impl Ticket {
    /// Whether goodbye was said; remembers the task the first time, so it must always be polled from the same one.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.waiting {
            self.waiting = true;
            if let Some(slot) = self.ending.0.connections.borrow_mut().get_mut(self.key) {
                slot.waker = Some(cx.waker().clone());
            }
        }
        self.ending.is_draining()
    }

    pub fn killed(&self) -> bool {
        self.killed.get()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.ending.0.connections.borrow_mut().try_remove(self.key);
    }
}
