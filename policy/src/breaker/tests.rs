use super::*;
use crate::backend;
use crate::trial;
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::task::Wake;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

fn backend(breaker: Config) -> Arc<Backend> {
    trial::backend(backend::Config { breaker, ..Default::default() })
}

fn connections(max: u32) -> Config {
    Config { max_connections: Some(max), ..Config::default() }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Woken {
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

/// A task that waits, and whether it was woken.
struct Task {
    woken: Arc<Woken>,
    wait: Wait,
}

impl Task {
    fn new(backend: &Arc<Backend>) -> Self {
        Self { woken: Arc::default(), wait: ConnectionPermit::wait(backend) }
    }

    fn poll(&mut self) -> Option<ConnectionPermit> {
        let waker = Waker::from(self.woken.clone());
        match Pin::new(&mut self.wait).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }
}

#[test]
fn reads_and_refuses() {
    let node = trial::map([("maxConnections", trial::int(100)), ("maxRequestsPerConnection", trial::int(2))]);
    let config = trial::read(&node, Config::read).unwrap();
    assert_eq!(config.max_connections, Some(100));
    assert_eq!(config.max_requests_per_connection, Some(2));
    assert_eq!(config.max_pending, None);
    let node = trial::map([("maxRequestsPerConnection", trial::int(0))]);
    assert!(trial::read(&node, Config::read).is_err());
}

/// PO-14: connection 101 and pending 51 are refused at once.
#[test]
fn caps_are_exact_and_given_back() {
    let b = backend(Config { max_pending: Some(50), ..connections(100) });
    let held: Vec<_> = (0..100).map(|_| ConnectionPermit::take(&b).unwrap()).collect();
    assert!(ConnectionPermit::take(&b).is_none());
    let pending: Vec<_> = (0..50).map(|_| PendingPermit::take(&b).unwrap()).collect();
    assert!(PendingPermit::take(&b).is_none());
    assert!(RequestPermit::take(&b).is_some(), "no cap");
    assert_eq!(b.breaker.overflows(Resource::Connection), 1);
    drop((held, pending));
    assert!(Resource::ALL.iter().all(|of| b.breaker.count(*of) == 0));
    let zero = backend(Config { max_retries: Some(0), ..Config::default() });
    assert!(RetryPermit::take(&zero).is_none());
}

#[test]
fn counts_stand_when_caps_change() {
    let b = backend(Config { max_requests: Some(3), ..Config::default() });
    let mut held: Vec<_> = (0..3).map(|_| RequestPermit::take(&b).unwrap()).collect();
    b.breaker.adopt(&Config { max_requests: Some(2), ..Config::default() });
    assert_eq!((b.breaker.count(Resource::Request), b.breaker.cap(Resource::Request)), (3, Some(2)));
    held.pop();
    assert!(RequestPermit::take(&b).is_none(), "2 of 2");
    held.pop();
    held.push(RequestPermit::take(&b).unwrap());
    b.breaker.adopt(&Config::default());
    held.push(RequestPermit::take(&b).unwrap());
    assert_eq!((b.breaker.count(Resource::Request), b.breaker.cap(Resource::Request)), (3, None));
}

#[test]
fn threads_never_pass_a_cap() {
    for threads in [2, 4, 8] {
        let b = backend(Config { max_requests: Some(3), ..Config::default() });
        let inside = AtomicU32::new(0);
        thread::scope(|s| {
            for _ in 0..threads {
                s.spawn(|| {
                    for _ in 0..20_000 {
                        let Some(_permit) = RequestPermit::take(&b) else { continue };
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(b.breaker.count(Resource::Request), 0);
    }
}

#[test]
fn waiters_are_served_in_order_and_not_passed() {
    let b = backend(connections(1));
    let held = ConnectionPermit::take(&b).unwrap();
    let (mut first, mut second) = (Task::new(&b), Task::new(&b));
    assert!(first.poll().is_none() && second.poll().is_none());
    assert_eq!(b.breaker.waiting(), 2);
    drop(held);
    assert!(first.woken.take() && !second.woken.take());
    assert!(ConnectionPermit::take(&b).is_none(), "a newcomer does not pass");
    assert!(second.poll().is_none());
    let held = first.poll().unwrap();
    drop(held);
    assert!(second.woken.take());
    drop(second.poll().unwrap());
    assert_eq!((b.breaker.waiting(), b.breaker.count(Resource::Connection)), (0, 0));
    assert!(ConnectionPermit::take(&b).is_some());
}

#[test]
fn who_leaves_passes_the_grant_on() {
    let b = backend(connections(1));
    let held = ConnectionPermit::take(&b).unwrap();
    let (mut first, mut second, mut third) = (Task::new(&b), Task::new(&b), Task::new(&b));
    assert!(first.poll().is_none() && second.poll().is_none() && third.poll().is_none());
    drop(second);
    drop(held);
    assert!(first.woken.take());
    drop(first);
    assert!(third.woken.take(), "the first was granted and left, the second had left before");
    drop(third.poll().unwrap());
    assert_eq!((b.breaker.waiting(), b.breaker.count(Resource::Connection)), (0, 0));
}

#[test]
fn a_raised_cap_wakes() {
    let b = backend(connections(0));
    let mut tasks: Vec<_> = (0..3).map(|_| Task::new(&b)).collect();
    assert!(tasks.iter_mut().all(|t| t.poll().is_none()));
    b.breaker.adopt(&connections(2));
    assert_eq!(tasks.iter().map(|t| t.woken.take()).collect::<Vec<_>>(), [true, true, false]);
    b.breaker.adopt(&Config::default());
    assert!(tasks[2].woken.take());
    let permits: Vec<_> = tasks.iter_mut().map(|t| t.poll().unwrap()).collect();
    assert_eq!(b.breaker.count(Resource::Connection), permits.len() as u32);
}

struct Unpark(Thread, AtomicBool);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::SeqCst);
        self.0.unpark();
    }
}

fn block_on(wait: Wait) -> ConnectionPermit {
    let unpark = Arc::new(Unpark(thread::current(), AtomicBool::new(false)));
    let waker = Waker::from(unpark.clone());
    let mut wait = pin!(wait);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Poll::Ready(permit) = wait.as_mut().poll(&mut Context::from_waker(&waker)) {
            return permit;
        }
        while !unpark.1.swap(false, Ordering::SeqCst) {
            thread::park_timeout(Duration::from_secs(5));
            assert!(Instant::now() < deadline, "a wake-up was lost");
        }
    }
}

/// Waiters, newcomers and those who give up, all at once: the cap holds, everybody gets through, nothing leaks.
#[test]
fn no_wake_up_is_lost_between_threads() {
    for cap in [1, 2] {
        let b = backend(connections(cap));
        let inside = AtomicU32::new(0);
        thread::scope(|s| {
            for n in 0..6u64 {
                let (b, inside) = (&b, &inside);
                s.spawn(move || {
                    let mut random = trial::Seeded(n + 1);
                    for _ in 0..1_000 {
                        let permit = match random.below(4) {
                            0 => ConnectionPermit::take(b),
                            1 => {
                                let mut task = Task::new(b);
                                task.poll()
                            }
                            _ => Some(block_on(ConnectionPermit::wait(b))),
                        };
                        if permit.is_some() {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < cap);
                            if random.below(4) == 0 {
                                thread::yield_now();
                            }
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!((b.breaker.waiting(), b.breaker.count(Resource::Connection)), (0, 0));
    }
}
