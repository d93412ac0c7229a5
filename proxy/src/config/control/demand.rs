//! Configuration on demand: a destination is asked for when the workload first calls it.
//!
//! A request or a connection whose destination nobody has configured waits here, for a second at most, until the control plane
//! has told what it needs or that there is nothing. Whoever comes later finds the answer in the snapshot, or goes on at once as
//! to any unknown destination. What is asked for stays subscribed to, so nothing is asked twice; a service that appears later
//! comes by itself.

use rustc_hash::FxHashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_secs(1);
/// An app that calls more names than these goes to the rest as to any unknown destination.
const MOST: usize = 4096;

#[derive(Clone)]
pub struct Demand(Arc<Inner>);

struct Inner {
    asked: Mutex<FxHashMap<String, Asked>>,
    ask: mpsc::Sender<String>,
    news: watch::Sender<()>,
}

#[derive(Clone, Copy)]
enum Asked {
    Since(Instant),
    Answered,
}

impl Demand {
    /// With what is to be asked.
    pub fn new() -> (Self, mpsc::Receiver<String>) {
        let (ask, asked) = mpsc::channel(MOST);
        (Self(Arc::new(Inner { asked: Mutex::default(), ask, news: watch::Sender::new(()) })), asked)
    }

    /// Comes back when it is known what a host means, or that it means nothing.
    pub async fn host(&self, host: &str, port: u16) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if !host.is_empty() && host.len() <= 253 && host.bytes().all(plain) {
            self.wait(format!("host/{host}:{port}")).await;
        }
    }

    pub async fn address(&self, address: SocketAddr) {
        self.wait(format!("address/{address}")).await;
    }

    /// The names that are not answered yet.
    pub fn open(&self) -> Vec<String> {
        let asked = self.asked();
        asked.iter().filter(|(_, a)| matches!(a, Asked::Since(_))).map(|(name, _)| name.clone()).collect()
    }

    /// What they need is in force, or there is nothing.
    pub fn answered<'n>(&self, names: impl Iterator<Item = &'n String>) {
        let mut asked = self.asked();
        let mut any = false;
        for name in names {
            if let Some(asked) = asked.get_mut(name) {
                *asked = Asked::Answered;
                any = true;
            }
        }
        drop(asked);
        if any {
            self.0.news.send_replace(());
        }
    }

    async fn wait(&self, name: String) {
        // Before asking, so that no answer is missed.
        let mut news = self.0.news.subscribe();
        let until = match self.since(&name) {
            Some(since) => since + PATIENCE,
            None => return,
        };
        let answered = async {
            while matches!(self.asked().get(&name), Some(Asked::Since(_))) {
                if news.changed().await.is_err() {
                    return;
                }
            }
        };
        // A control plane that does not answer holds up the first second, not every request.
        let _ = tokio::time::timeout_at(until.into(), answered).await;
    }

    /// Since when it is asked for; `None`: there is nothing to wait for.
    fn since(&self, name: &str) -> Option<Instant> {
        let mut asked = self.asked();
        match asked.get(name) {
            Some(Asked::Answered) => None,
            Some(Asked::Since(at)) => Some(*at),
            None if asked.len() >= MOST => None,
            None => {
                self.0.ask.try_send(name.to_string()).ok()?;
                let now = Instant::now();
                asked.insert(name.to_string(), Asked::Since(now));
                Some(now)
            }
        }
    }

    fn asked(&self) -> MutexGuard<'_, FxHashMap<String, Asked>> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_waits_and_the_others_do_not() {
        let (demand, mut asked) = Demand::new();
        let first = demand.host("app", 80);
        let answer = async {
            assert_eq!(asked.recv().await.as_deref(), Some("host/app:80"));
            assert_eq!(demand.open(), ["host/app:80"]);
            demand.answered(["host/app:80".to_string()].iter());
        };
        tokio::join!(first, answer);
        // None of these waits, and none is asked for.
        demand.host("app", 80).await;
        demand.host("", 80).await;
        demand.host("a/b", 80).await;
        assert!(demand.open().is_empty() && asked.try_recv().is_err());
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_the_first() {
        let (demand, mut asked) = Demand::new();
        let begun = Instant::now();
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        demand.address(address).await;
        assert!(begun.elapsed() >= PATIENCE);
        let since = demand.since("address/10.0.0.1:80").unwrap();
        assert!(since <= begun + PATIENCE && since + PATIENCE <= Instant::now());
        demand.address(address).await;
        assert_eq!(asked.try_recv().as_deref(), Ok("address/10.0.0.1:80"));
        assert!(asked.try_recv().is_err());
    }
}
