//! Configuration on demand: a destination is asked for when the workload first calls it.
//!
//! A request or a connection whose destination nobody has configured waits here, for a second at most, until the control plane
//! has told what it needs or that there is nothing. Whoever comes later finds the answer in the snapshot, or goes on at once as
//! to any unknown destination. What is asked for stays subscribed to, so a service that appears later comes by itself. That
//! there is nothing is forgotten when nobody calls it for a while: what an app once tried must not be kept for ever.

use rustc_hash::FxHashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

const PATIENCE: Duration = Duration::from_secs(1);
/// An app that calls more names than these at a time is told nothing of the rest.
const MOST: usize = 4096;
/// Of a name that leads nowhere, or of which nothing was heard: since the last call to it.
const FORGET: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
pub struct Demand(Arc<Inner>);

#[derive(Default)]
struct Inner {
    asked: Mutex<FxHashMap<String, Asked>>,
    /// There is something to ask.
    ask: Notify,
    news: watch::Sender<()>,
}

struct Asked {
    since: Instant,
    /// The last time that somebody called it.
    used: Instant,
    answer: Answer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Open,
    Known,
    Nothing,
}

impl Demand {
    /// Comes back when it is known what a host means, or that it means nothing; `false`: when it could not be waited for any longer.
    pub async fn host(&self, host: &str, port: u16) -> bool {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        match !host.is_empty() && host.len() <= 253 && host.bytes().all(plain) {
            true => self.wait(format!("host/{host}:{port}")).await,
            // Nothing that a service could be called.
            false => true,
        }
    }

    pub async fn address(&self, address: SocketAddr) -> bool {
        self.wait(name(address)).await
    }

    /// Whether it has been answered already.
    pub fn knows(&self, address: SocketAddr) -> bool {
        self.asked().get(&name(address)).is_some_and(|asked| asked.answer != Answer::Open)
    }

    /// Comes back when there are names to be asked for.
    pub async fn wanting(&self) {
        self.0.ask.notified().await;
    }

    /// Everything that has been asked for and is not forgotten.
    pub fn names(&self) -> Vec<String> {
        self.asked().keys().cloned().collect()
    }

    /// Lets those go on who wait for what is in force now (`leads`), or is not there (`nothing`).
    pub fn answered(&self, leads: impl Fn(&str) -> bool, nothing: &[String]) {
        let mut asked = self.asked();
        for (name, asked) in asked.iter_mut() {
            if leads(name) {
                asked.answer = Answer::Known;
            }
        }
        for name in nothing {
            if let Some(asked) = asked.get_mut(name) {
                asked.answer = Answer::Nothing;
            }
        }
        drop(asked);
        self.0.news.send_replace(());
    }

    /// Forgets what leads nowhere and nobody calls any more, and says what that was.
    pub fn forget(&self, now: Instant) -> Vec<String> {
        let mut gone = Vec::new();
        self.asked().retain(|name, asked| {
            let keep = asked.answer == Answer::Known || now.saturating_duration_since(asked.used) < FORGET;
            if !keep {
                gone.push(name.clone());
            }
            keep
        });
        gone
    }

    async fn wait(&self, name: String) -> bool {
        // Before asking, so that no answer is missed.
        let mut news = self.0.news.subscribe();
        let until = match self.ask(&name) {
            Ok(since) => since + PATIENCE,
            Err(answered) => return answered,
        };
        let answered = async {
            while self.asked().get(&name).is_some_and(|asked| asked.answer == Answer::Open) {
                if news.changed().await.is_err() {
                    return;
                }
            }
        };
        // A control plane that does not answer holds up the first second, not every request.
        let _ = tokio::time::timeout_at(until.into(), answered).await;
        self.asked().get(&name).is_some_and(|asked| asked.answer != Answer::Open)
    }

    /// Since when it is asked for, or whether there is an answer where there is nothing to wait for.
    fn ask(&self, name: &str) -> Result<Instant, bool> {
        let now = Instant::now();
        let mut asked = self.asked();
        let full = asked.len() >= MOST;
        match asked.get_mut(name) {
            Some(known) => {
                known.used = now;
                if known.answer == Answer::Open { Ok(known.since) } else { Err(true) }
            }
            None if full => Err(false),
            None => {
                asked.insert(name.to_string(), Asked { since: now, used: now, answer: Answer::Open });
                self.0.ask.notify_one();
                Ok(now)
            }
        }
    }

    fn asked(&self) -> MutexGuard<'_, FxHashMap<String, Asked>> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(address: SocketAddr) -> String {
    format!("address/{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_waits_and_the_others_do_not() {
        let demand = Demand::default();
        let first = demand.host("app", 80);
        let answer = async {
            demand.wanting().await;
            assert_eq!(demand.names(), ["host/app:80"]);
            demand.answered(|name| name == "host/app:80", &[]);
        };
        assert!(tokio::join!(first, answer).0);
        // None of these waits, and none is asked for.
        assert!(demand.host("app", 80).await && demand.host("", 80).await && demand.host("a/b", 80).await);
        assert_eq!(demand.names().len(), 1);
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_the_first() {
        let demand = Demand::default();
        let begun = Instant::now();
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        assert!(!demand.address(address).await && !demand.knows(address));
        assert!(begun.elapsed() >= PATIENCE);
        assert!(demand.ask("address/10.0.0.1:80").unwrap() + PATIENCE <= Instant::now());
        assert!(!demand.address(address).await);
        demand.answered(|_| false, &["address/10.0.0.1:80".to_string()]);
        assert!(demand.address(address).await && demand.knows(address));
    }

    #[test]
    fn what_leads_nowhere_is_forgotten() {
        let demand = Demand::default();
        for name in ["known", "nothing", "open"] {
            demand.ask(name).unwrap();
        }
        demand.answered(|name| name == "known", &["nothing".to_string()]);
        assert!(demand.forget(Instant::now()).is_empty());
        let mut gone = demand.forget(Instant::now() + FORGET);
        gone.sort();
        assert_eq!(gone, ["nothing", "open"]);
        assert_eq!(demand.names(), ["known"]);
    }

    #[test]
    fn more_than_can_be_asked_for_is_no_answer() {
        let demand = Demand::default();
        assert!((0..MOST).all(|n| demand.ask(&n.to_string()).is_ok()));
        assert_eq!(demand.ask("one more"), Err(false));
        demand.forget(Instant::now() + FORGET);
        demand.ask("one more").unwrap();
    }
}
