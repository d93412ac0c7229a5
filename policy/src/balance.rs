//! Load balancing: which endpoint of a backend gets a request.
//!
//! ```yaml
//! balance:
//!   algorithm: p2c             # or leastRequest, roundRobin, random, ringHash, maglev
//!   decay: 10s                 # p2c: how fast latencies are forgotten
//!   defaultRtt: 30ms           # p2c: what an endpoint nobody has tried is taken for
//!   hash:                      # ringHash and maglev; the sources that a request has are combined
//!     - header: x-user
//!     - cookie: { name: user, path: /, ttl: 60s }        # with a ttl, missing cookies are issued
//!     - query: user
//!     - sourceIp: true
//! ```
//!
//! A [`Picker`] is built for one list of endpoints and rebuilt with it; what was learned of an endpoint ([`Load`]) lives in
//! the endpoint and stays. A pick is bounded: after a few tries, or a walk over as many places as there are endpoints, it
//! looks at each endpoint once. It is a function of the loads, the randomness given and the hash (round robin also of its
//! own counter), so tests and replicas agree. Weights are relative; 0 counts as 1.
//!
//! Requests without a hash are spread at random. Endpoints tried before are avoided while there are others, except by
//! consistent hashing: who asked for one endpoint gets it, unless it is not usable.

pub mod affinity;
pub mod hash;
mod least;
mod load;
mod maglev;
mod p2c;
mod random;
mod ring;
mod round_robin;

pub use affinity::{Affinity, HashOn};
pub use load::{Ewma, Load, Sample};

use crate::doc::Cursor;
use crate::endpoint::Endpoint;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    pub algorithm: Algorithm,
    /// In order; for the algorithms that hash.
    pub hash: Vec<HashOn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The better of two by latency and requests in flight.
    P2cEwma(Ewma),
    /// The best of a few by requests in flight.
    LeastRequest {
        choices: u32,
    },
    RoundRobin,
    Random,
    Ring {
        min: u32,
        max: u32,
    },
    Maglev {
        table: u32,
    },
}

impl Default for Algorithm {
    fn default() -> Self {
        Algorithm::P2cEwma(Ewma::default())
    }
}

const MAX_RING: i64 = 8 * 1024 * 1024;
const MAX_TABLE: i64 = 5_000_011;

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        #[derive(Clone, Copy)]
        enum Word {
            P2c,
            Least,
            RoundRobin,
            Random,
            Ring,
            Maglev,
        }
        let words = [
            ("p2c", Word::P2c),
            ("leastRequest", Word::Least),
            ("roundRobin", Word::RoundRobin),
            ("random", Word::Random),
            ("ringHash", Word::Ring),
            ("maglev", Word::Maglev),
        ];
        c.fields(|f| {
            let size = |max| move |c: &mut Cursor<'_, '_>| c.int(1, max).map(|n| n as u32);
            let word = f.or("algorithm", Word::P2c, |c| c.word(&words));
            let algorithm = match word {
                Word::P2c => Algorithm::P2cEwma(Ewma::read(f)),
                Word::Least => {
                    Algorithm::LeastRequest { choices: f.or("choices", 2, |c| c.int(1, 16).map(|n| n as u32)) }
                }
                Word::RoundRobin => Algorithm::RoundRobin,
                Word::Random => Algorithm::Random,
                Word::Ring => {
                    let (min, max) =
                        (f.or("minimumRingSize", 1024, size(MAX_RING)), f.opt("maximumRingSize", size(MAX_RING)));
                    let max = max.unwrap_or(MAX_RING as u32);
                    if min > max {
                        return f.fail("minimumRingSize", "is above maximumRingSize", "at most maximumRingSize");
                    }
                    Algorithm::Ring { min, max }
                }
                Word::Maglev => {
                    let table = f.or("tableSize", maglev::DEFAULT_TABLE, size(MAX_TABLE));
                    if !maglev::is_prime(table) {
                        return f.fail("tableSize", format!("{table} is not a prime number"), "a prime such as 65537");
                    }
                    Algorithm::Maglev { table }
                }
            };
            let hash = f.list("hash", HashOn::read);
            if !hash.is_empty() && !matches!(algorithm, Algorithm::Ring { .. } | Algorithm::Maglev { .. }) {
                return f.fail("hash", "this algorithm does not hash", "set algorithm to ringHash or maglev");
            }
            Some(Self { algorithm, hash })
        })
    }
}

/// Chooses among the endpoints it was built for.
#[derive(Debug)]
pub struct Picker {
    how: How,
    ewma: Ewma,
}

#[derive(Debug)]
enum How {
    P2c(p2c::P2c),
    Least(least::Least),
    RoundRobin(round_robin::RoundRobin),
    Random(random::Random),
    Ring(ring::Ring),
    Maglev(maglev::Maglev),
}

/// Whether the endpoint at this place may be taken.
type Open<'a> = &'a dyn Fn(usize) -> bool;
type Randomness<'a> = &'a mut dyn FnMut() -> u64;

impl Picker {
    pub fn build(config: &Config, endpoints: &[Arc<Endpoint>]) -> Self {
        let ewma = match config.algorithm {
            Algorithm::P2cEwma(ewma) => ewma,
            _ => Ewma::default(),
        };
        let how = match config.algorithm {
            Algorithm::P2cEwma(ewma) => How::P2c(p2c::P2c { ewma }),
            Algorithm::LeastRequest { choices } => How::Least(least::Least { choices }),
            Algorithm::RoundRobin => How::RoundRobin(round_robin::RoundRobin::build(&weights(endpoints))),
            Algorithm::Random => How::Random(random::Random::build(&weights(endpoints))),
            Algorithm::Ring { min, max } => How::Ring(ring::Ring::build(endpoints, min, max)),
            Algorithm::Maglev { table } => How::Maglev(maglev::Maglev::build(endpoints, table)),
        };
        Self { how, ewma }
    }

    /// The place of an endpoint in the list this picker was built for; `None` if none is usable. What was `tried` is taken
    /// again only if there is nothing else.
    pub fn pick(
        &self,
        endpoints: &[Arc<Endpoint>],
        random: &mut dyn FnMut() -> u64,
        hash: Option<u64>,
        now: std::time::Instant,
        usable: &dyn Fn(&Endpoint) -> bool,
        tried: &[usize],
    ) -> Option<usize> {
        let open = |i: usize| endpoints.get(i).is_some_and(|e| usable(e));
        if tried.is_empty() || matches!(self.how, How::Ring(_) | How::Maglev(_)) {
            return self.choose(endpoints, random, hash, now, &open);
        }
        let fresh = |i: usize| !tried.contains(&i) && open(i);
        self.choose(endpoints, random, hash, now, &fresh).or_else(|| self.choose(endpoints, random, hash, now, &open))
    }

    fn choose(
        &self,
        endpoints: &[Arc<Endpoint>],
        random: Randomness<'_>,
        hash: Option<u64>,
        now: std::time::Instant,
        open: Open<'_>,
    ) -> Option<usize> {
        if endpoints.len() <= 1 {
            return (0..endpoints.len()).find(|i| open(*i));
        }
        match &self.how {
            How::P2c(p2c) => p2c.pick(endpoints, random, now, open),
            How::Least(least) => least.pick(endpoints, random, open),
            How::RoundRobin(round) => round.pick(endpoints.len(), random, open),
            How::Random(weighted) => weighted.pick(random, open),
            How::Ring(ring) => ring.pick(hash.unwrap_or_else(random), endpoints.len(), open),
            How::Maglev(maglev) => maglev.pick(hash.unwrap_or_else(random), endpoints.len(), open),
        }
    }

    /// Whether requests need a hash at all.
    pub fn hashes(&self) -> bool {
        matches!(self.how, How::Ring(_) | How::Maglev(_))
    }

    /// How [`Load::end`] is to learn.
    pub fn ewma(&self) -> Ewma {
        self.ewma
    }
}

fn weight(endpoint: &Endpoint) -> u32 {
    endpoint.weight().max(1)
}

fn weights(endpoints: &[Arc<Endpoint>]) -> Vec<u32> {
    endpoints.iter().map(|e| weight(e)).collect()
}

/// The better of two drawn from those that are open: where a few tries met none.
fn better_open(n: usize, random: u64, open: Open<'_>, cost: impl Fn(usize) -> f64) -> Option<usize> {
    let count = (0..n).filter(|i| open(*i)).count();
    let nth = |k: usize| (0..n).filter(|i| open(*i)).nth(k);
    if count < 2 {
        return nth(0);
    }
    let (a, b) = p2c::pair(count, random);
    let better = [nth(a), nth(b)].into_iter().flatten().min_by(|a, b| cost(*a).total_cmp(&cost(*b)));
    // Health is shared: fewer may be open now than were counted.
    better.or_else(|| nth(0))
}

/// A number below `n` (above 0), from 64 random bits, without a division.
fn below(n: usize, random: u64) -> usize {
    ((u128::from(random) * n as u128) >> 64) as usize
}

/// Every place once, going round from where the hash points.
fn from_hash(hash: u64, n: usize) -> impl Iterator<Item = usize> {
    let from = below(n, hash);
    (from..n).chain(0..from)
}

#[cfg(test)]
mod tests;
