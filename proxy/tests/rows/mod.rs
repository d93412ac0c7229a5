//! The long rows: mixed load from an open loop while something changes, and how it is counted. A fifth of the full length;
//! `WEFT_FULL=1` runs the whole 30 s.

#![allow(dead_code)]

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use weft_testkit::load::{LoadGen, Plan, Totals};
use weft_testkit::proxy::Proxy;
use weft_testkit::wait::until;

/// Generous: the machine may be busy with other suites.
pub const SOON: Duration = Duration::from_secs(30);

/// Two loads at once would measure each other.
static ALONE: Mutex<()> = Mutex::new(());

pub fn length() -> Duration {
    Duration::from_secs(if std::env::var_os("WEFT_FULL").is_some() { 30 } else { 6 })
}

/// Requests per second; `WEFT_RATE` overrides.
pub fn rate() -> u32 {
    let given = std::env::var("WEFT_RATE").ok().and_then(|r| r.parse().ok());
    given.unwrap_or(if cfg!(debug_assertions) { 300 } else { 1000 })
}

pub struct Load {
    gen_: LoadGen,
    began: Instant,
}

impl Load {
    pub fn start(target: SocketAddr, host: &str) -> Self {
        // The machine may be busy: what comes late is not lost.
        let patient =
            Plan { timeout: Duration::from_secs(30), late: Duration::from_secs(5), ..Plan::new(target, host, rate()) };
        let load = Self { gen_: LoadGen::start(patient), began: Instant::now() };
        until("load flows", SOON, || load.gen_.so_far().ok > 20);
        load
    }

    /// Goes on for the whole length of a row, then a little longer than the last change.
    #[track_caller]
    pub fn stop(self, row: &str) -> Totals {
        let wait = length().saturating_sub(self.began.elapsed()).max(Duration::from_millis(500));
        std::thread::sleep(wait);
        let took = self.began.elapsed();
        let totals = self.gen_.stop();
        println!("{row}: {} rps for {took:.1?}: {totals}", rate());
        assert_eq!((totals.failures(), totals.ok), (0, totals.sent), "{row}: {totals}");
        assert!(totals.sent as f64 >= f64::from(rate()) * length().as_secs_f64() * 0.9, "{row}: {totals}");
        assert!(totals.per_kind.iter().all(|n| *n > 0), "{row}: {totals}");
        totals
    }
}

pub fn logged(proxies: &[&Proxy]) -> u64 {
    let lines =
        |p: &Proxy| p.log_lines().iter().filter(|l| l.starts_with("{\"ts\"") && l.contains("\"method\"")).count();
    proxies.iter().map(|p| lines(p)).sum::<usize>() as u64
}

/// Every request the client sent is in the log once; none got lost, none was sent twice.
#[track_caller]
pub fn books_balance(row: &str, sent: u64, proxies: &[&Proxy]) {
    let balanced = weft_testkit::wait::poll(SOON, || (logged(proxies) >= sent).then_some(()));
    assert!(balanced.is_some() && logged(proxies) == sent, "{row}: sent {sent}, logged {}", logged(proxies));
}

pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
