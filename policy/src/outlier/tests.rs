use super::*;
use crate::trial::{self, Seeded, endpoints, int, map, text};
use std::sync::atomic::AtomicUsize;

const BAD: Signal = Signal::Status(500);
const GOOD: Signal = Signal::Status(200);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// One backend's worth of detection, with a clock to turn.
struct Bench {
    state: State,
    endpoints: Vec<Arc<Endpoint>>,
    now: Instant,
}

impl Bench {
    fn new(config: Config, n: usize) -> Self {
        Self { state: State::new(Some(&config)), endpoints: endpoints(n), now: Instant::now() }
    }

    fn pass(&self, at: usize, pass: Pass, signal: Signal) {
        self.state.record(&self.endpoints, &self.endpoints[at], pass, signal, self.now, &mut || 0);
    }

    fn feed(&self, at: usize, signal: Signal, times: usize) {
        (0..times).for_each(|_| self.pass(at, Pass::Normal, signal));
    }

    fn usable(&self, at: usize) -> Usable {
        self.state.look(&self.endpoints, self.now).usable(&self.endpoints[at])
    }

    fn out(&self) -> Vec<usize> {
        (0..self.endpoints.len()).filter(|i| self.usable(*i) == Usable::No).collect()
    }

    fn admit(&self, at: usize) -> Option<Pass> {
        self.state.admit(&self.state.look(&self.endpoints, self.now), &self.endpoints[at])
    }

    fn wait(&mut self, d: Duration) -> &Self {
        self.now += d;
        self
    }

    fn end(&self, at: usize) -> Duration {
        moment(self.endpoints[at].health.until.load(Ordering::Relaxed)) - self.now
    }
}

/// PO-14: 5 consecutive errors, 30 s interval, 60 s ejection, 50 % at most.
fn seed() -> Ejection {
    Ejection { interval: secs(30), base_ejection: secs(60), max_ejection_percent: 50, ..Ejection::default() }
}

fn accrual() -> Accrual {
    Accrual { max_failures: 3, min_penalty: secs(2), max_penalty: secs(8), jitter: 0 }
}

#[test]
fn reads() {
    let node = map([(
        "ejection",
        map([("consecutive5xx", int(0)), ("consecutiveGatewayErrors", int(3)), ("interval", text("8s"))]),
    )]);
    let expected =
        Ejection { consecutive_5xx: None, consecutive_gateway: Some(3), interval: secs(8), ..Ejection::default() };
    assert_eq!(trial::read(&node, Config::read), Ok(Config::Ejection(expected)));
    let node = map([("accrual", map([("jitter", trial::value(crate::doc::Value::Float(0.25)))]))]);
    assert_eq!(trial::read(&node, Config::read), Ok(Config::Accrual(Accrual { jitter: 250, ..Accrual::default() })));
    let both = map([("accrual", map([])), ("ejection", map([]))]);
    for bad in [
        map([]),
        both,
        map([("ejection", map([("interval", text("0s"))]))]),
        map([("ejection", map([("maxEjectionPercent", int(101))]))]),
        map([("accrual", map([("minPenalty", text("2m")), ("maxPenalty", text("1m"))]))]),
    ] {
        assert!(trial::read(&bad, Config::read).is_err_and(|e| !e.is_empty()));
    }
}

#[test]
fn the_fifth_error_ejects_and_the_sixth_request_goes_elsewhere() {
    let mut b = Bench::new(Config::Ejection(seed()), 2);
    b.usable(0);
    b.feed(0, BAD, 4);
    assert_eq!(b.usable(0), Usable::Yes);
    b.feed(0, BAD, 1);
    assert_eq!((b.usable(0), b.usable(1)), (Usable::No, Usable::Yes));
    assert_eq!((b.endpoints[0].health.word(), b.endpoints[0].health.ejections(), b.state.ejections()), ("open", 1, 1));
    // The other may fail as it likes: 50 % are out.
    b.feed(1, BAD, 20);
    assert_eq!(b.usable(1), Usable::Yes);
    // Ends at the first sweep of 30, 60, 90 s after 60 s: the sweep at 60 s.
    assert_eq!(b.wait(secs(59)).usable(0), Usable::No);
    assert_eq!(b.wait(secs(1)).usable(0), Usable::Yes);
    assert_eq!(b.endpoints[0].health.word(), "closed");
}

#[test]
fn an_ejection_ends_at_a_sweep_only() {
    let mut b = Bench::new(Config::Ejection(seed()), 2);
    b.usable(0);
    b.wait(secs(1)).feed(0, BAD, 5);
    assert_eq!(b.wait(secs(60)).usable(0), Usable::No, "its time is over at 61 s, the next sweep is at 90 s");
    assert_eq!(b.wait(secs(29)).usable(0), Usable::Yes);
}

#[test]
fn a_success_between_starts_over() {
    let b = Bench::new(Config::Ejection(seed()), 2);
    for good in [GOOD, Signal::Success, Signal::Status(404), Signal::Status(429), Signal::Grpc(0), Signal::Grpc(5)] {
        b.feed(0, BAD, 4);
        b.feed(0, good, 1);
        assert_eq!(b.usable(0), Usable::Yes, "{good:?}");
    }
    b.feed(0, BAD, 4);
    b.feed(0, Signal::Nothing, 10);
    assert_eq!(b.usable(0), Usable::Yes, "an own overflow counts neither way");
    b.feed(0, BAD, 1);
    assert_eq!(b.usable(0), Usable::No);
}

#[test]
fn what_counts_as_what() {
    use Signal::*;
    let counted = |config: &Ejection, signal: Signal| {
        let b = Bench::new(Config::Ejection(config.clone()), 2);
        (1..=9).find(|_| {
            b.feed(0, signal, 1);
            b.usable(0) == Usable::No
        })
    };
    let gateway = Ejection { consecutive_5xx: None, consecutive_gateway: Some(2), ..seed() };
    let split =
        Ejection { consecutive_5xx: Some(4), split_external_local: true, consecutive_local_origin: Some(3), ..seed() };
    let none = Ejection { consecutive_5xx: None, ..seed() };
    // Signal; consecutive 5xx of 5, gateway errors of 2, local errors of 3 and 5xx of 4, nothing at all.
    for (signal, plain, gw, sp) in [
        (Status(500), Some(5), None, Some(4)),
        (Status(501), Some(5), None, Some(4)),
        (Status(502), Some(5), Some(2), Some(4)),
        (Status(504), Some(5), Some(2), Some(4)),
        (Grpc(14), Some(5), Some(2), Some(4)),
        (Grpc(13), Some(5), None, Some(4)),
        (Grpc(8), None, None, None),
        (ConnectFailed, Some(5), Some(2), Some(3)),
        (Reset, Some(5), Some(2), Some(3)),
        (Timeout, Some(5), Some(2), Some(3)),
        (Status(499), None, None, None),
        (Nothing, None, None, None),
    ] {
        let got = (counted(&seed(), signal), counted(&gateway, signal), counted(&split, signal));
        assert_eq!(got, (plain, gw, sp), "{signal:?}");
        assert_eq!(counted(&none, signal), None);
        assert_eq!(signal.is_failure(), plain.is_some());
    }
    // A 500 between gateway errors breaks their run.
    let b = Bench::new(Config::Ejection(gateway), 2);
    [502, 500, 503].into_iter().for_each(|s| b.feed(0, Status(s), 1));
    assert_eq!(b.usable(0), Usable::Yes);
}

/// PO-12: whatever an attacker makes fail, no more than the percentage is lost; one may always be.
#[test]
fn the_percentage_holds() {
    for (n, percent, expected) in [
        (1, 10, 1),
        (2, 10, 1),
        (2, 50, 1),
        (3, 50, 1),
        (4, 50, 2),
        (5, 50, 2),
        (10, 10, 1),
        (10, 35, 3),
        (4, 100, 4),
        (4, 0, 1),
    ] {
        let b = Bench::new(Config::Ejection(Ejection { max_ejection_percent: percent, ..seed() }), n);
        for at in 0..n {
            b.feed(at, BAD, 20);
        }
        assert_eq!(b.out().len(), expected, "{percent} % of {n}");
    }
}

#[test]
fn panic_uses_everybody() {
    let config = Ejection { max_ejection_percent: 100, min_health_percent: 50, ..seed() };
    let b = Bench::new(Config::Ejection(config), 4);
    b.feed(0, BAD, 5);
    b.feed(1, BAD, 5);
    assert_eq!(b.out(), [0, 1], "half of them is enough");
    b.feed(2, BAD, 5);
    assert_eq!(b.out(), [0usize; 0]);
    assert!(b.state.look(&b.endpoints, b.now).panic);
}

#[test]
fn ejections_grow_and_healing_shrinks_them() {
    let config = Ejection { max_ejection: secs(150), ..seed() };
    let mut b = Bench::new(Config::Ejection(config), 2);
    b.usable(0);
    for expected in [60, 120, 150, 150, 150] {
        b.feed(0, BAD, 5);
        assert_eq!(b.end(0), secs(expected));
        assert_eq!(b.wait(secs(expected)).usable(0), Usable::Yes);
    }
    // Three grew it; two healthy sweeps, both missed by everybody, leave one.
    b.wait(secs(60)).feed(0, BAD, 5);
    assert_eq!(b.end(0), secs(120));
}

/// The same rules as a plain simulation with a sweep at each tick, over random histories.
#[test]
fn agrees_with_a_naive_model() {
    #[derive(Clone, Default)]
    struct Host {
        run: u32,
        times: u32,
        until: Option<u64>,
    }
    const TICK: u64 = 30_000;
    for seed_of in 1..=20 {
        let mut random = Seeded(seed_of);
        let percent = [10, 50, 100][random.below(3) as usize];
        let config = Ejection { max_ejection_percent: percent, max_ejection: secs(200), ..seed() };
        let mut b = Bench::new(Config::Ejection(config), 5);
        let mut model = vec![Host::default(); 5];
        let (mut ms, mut sweep) = (0, TICK);
        b.usable(0);
        for step in 0..3_000 {
            let gap = if random.below(50) == 0 { random.below(400_000) } else { random.below(3_000) };
            b.wait(Duration::from_millis(gap));
            ms += gap;
            while sweep <= ms {
                for h in &mut model {
                    match h.until {
                        Some(until) if until <= sweep => (h.until, h.run) = (None, 0),
                        Some(_) => {}
                        None => h.times = h.times.saturating_sub(1),
                    }
                }
                sweep += TICK;
            }
            let at = random.below(5) as usize;
            let bad = random.below(100) < 80;
            b.feed(at, if bad { BAD } else { GOOD }, 1);
            let out = model.iter().filter(|h| h.until.is_some()).count();
            let h = &mut model[at];
            h.run = if bad { h.run + 1 } else { 0 };
            if h.run == 5 {
                h.run = 0;
                if h.until.is_none() && (out == 0 || (out + 1) * 100 <= percent as usize * 5) {
                    if h.times == 0 || 60 * h.times < 200 {
                        h.times += 1;
                    }
                    h.until = Some(ms + (60_000 * u64::from(h.times)).min(200_000));
                }
            }
            let expected: Vec<usize> = (0..5).filter(|i| model[*i].until.is_some()).collect();
            assert_eq!(b.out(), expected, "seed {seed_of}, step {step}");
        }
        assert!(b.state.ejections() > 20);
    }
}

#[test]
fn a_config_change_ends_and_prolongs_nothing() {
    let mut b = Bench::new(Config::Ejection(seed()), 2);
    b.usable(0);
    b.feed(0, BAD, 5);
    b.feed(1, BAD, 4);
    let before = b.end(0);
    for base in [1, 3000] {
        b.state.adopt(Some(&Config::Ejection(Ejection { base_ejection: secs(base), interval: secs(1), ..seed() })));
        assert_eq!((b.usable(0), b.end(0)), (Usable::No, before));
    }
    assert_eq!(b.wait(secs(59)).usable(0), Usable::No);
    assert_eq!(b.wait(secs(2)).usable(0), Usable::Yes, "the shorter interval sweeps earlier");
    b.feed(1, BAD, 1);
    assert_eq!(b.usable(1), Usable::No, "four before the change, one after");

    let mut b = Bench::new(Config::Accrual(accrual()), 2);
    b.feed(0, BAD, 3);
    let before = b.end(0);
    b.state.adopt(Some(&Config::Accrual(Accrual {
        max_failures: 9,
        min_penalty: secs(60),
        max_penalty: secs(60),
        jitter: 0,
    })));
    assert_eq!((b.usable(0), b.end(0)), (Usable::No, before));
    assert_eq!(b.wait(secs(2)).usable(0), Usable::Probe);
    b.state.adopt(None);
    assert_eq!(b.usable(0), Usable::Yes, "switched off");
    assert_eq!(b.admit(0), Some(Pass::Normal));
    b.state.adopt(Some(&Config::Accrual(accrual())));
    assert_eq!(b.usable(0), Usable::Probe);
}

/// As observed of Linkerd: 3 failures, then one request after 2, 4, 8, 8 s.
#[test]
fn accrual_lets_one_probe_through() {
    let mut b = Bench::new(Config::Accrual(accrual()), 2);
    b.feed(0, BAD, 2);
    b.feed(0, GOOD, 1);
    b.feed(0, BAD, 2);
    assert_eq!(b.usable(0), Usable::Yes);
    b.feed(0, Signal::Timeout, 1);
    for penalty in [2, 4, 8, 8] {
        assert_eq!((b.usable(0), b.end(0)), (Usable::No, secs(penalty)));
        assert_eq!(b.admit(0), None);
        assert_eq!(b.state.next_probe(&b.endpoints[..1], b.now), Some(b.now + secs(penalty)));
        assert_eq!(b.wait(secs(penalty)).usable(0), Usable::Probe);
        assert_eq!(b.admit(0), Some(Pass::Probe));
        assert_eq!((b.admit(0), b.usable(0)), (None, Usable::No));
        assert_eq!(b.endpoints[0].health.word(), "half-open");
        // Answers to requests from before decide nothing.
        b.feed(0, GOOD, 1);
        b.feed(0, BAD, 5);
        assert_eq!(b.endpoints[0].health.word(), "half-open");
        b.pass(0, Pass::Probe, BAD);
    }
    b.wait(secs(8));
    assert_eq!(b.admit(0), Some(Pass::Probe));
    b.pass(0, Pass::Probe, GOOD);
    assert_eq!((b.usable(0), b.admit(0)), (Usable::Yes, Some(Pass::Normal)));
    b.feed(0, BAD, 3);
    assert_eq!(b.end(0), secs(2), "the penalty starts over");
    assert_eq!(b.state.next_probe(&b.endpoints, b.now), Some(b.now), "the other is fine");
}

#[test]
fn a_probe_without_an_answer_makes_room() {
    let mut b = Bench::new(Config::Accrual(accrual()), 1);
    b.feed(0, BAD, 3);
    b.wait(secs(2));
    assert_eq!(b.admit(0), Some(Pass::Probe));
    b.pass(0, Pass::Probe, Signal::Nothing);
    assert_eq!(b.admit(0), Some(Pass::Probe), "the client went away");
    // Lost altogether: after the longest penalty there is another.
    assert_eq!(b.wait(secs(7)).admit(0), None);
    assert_eq!(b.wait(secs(1)).admit(0), Some(Pass::Probe));
    b.pass(0, Pass::Probe, GOOD);
    assert_eq!(b.usable(0), Usable::Yes);
}

#[test]
fn jitter_stays_within_bounds() {
    let accrual = Accrual { jitter: 500, ..accrual() };
    for (before, low, high) in [(0, 2, 3), (1, 4, 6), (2, 8, 8), (40, 8, 8)] {
        assert_eq!(accrual.penalty(before, 0), secs(low));
        let most = accrual.penalty(before, u64::MAX);
        assert!(most <= secs(high) && most.as_secs_f64() > high as f64 - 0.01, "{before}: {most:?}");
    }
}

#[test]
fn threads_get_one_probe_and_one_ejection() {
    let b = Bench::new(Config::Accrual(accrual()), 1);
    b.feed(0, BAD, 3);
    let later = b.now + secs(2);
    for round in 0..200u32 {
        let probes = AtomicUsize::new(0);
        let at = later + secs(20) * round;
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    if b.state.admit(&b.state.look(&b.endpoints, at), &b.endpoints[0]) == Some(Pass::Probe) {
                        probes.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(probes.into_inner(), 1);
        b.state.record(&b.endpoints, &b.endpoints[0], Pass::Probe, BAD, at, &mut || 0);
    }

    let b = Bench::new(Config::Ejection(seed()), 4);
    std::thread::scope(|s| {
        for t in 0..8 {
            let b = &b;
            s.spawn(move || (0..2_000).for_each(|i| b.feed((t + i) % 4, BAD, 1)));
        }
    });
    assert_eq!((b.out().len(), b.state.ejections()), (2, 2));
}

#[test]
fn endpoints_that_leave_make_room() {
    let mut b = Bench::new(Config::Ejection(seed()), 4);
    b.feed(0, BAD, 5);
    b.feed(1, BAD, 5);
    b.feed(2, BAD, 5);
    assert_eq!(b.out(), [0, 1]);
    b.endpoints.remove(0);
    b.endpoints.remove(0);
    b.feed(0, BAD, 5);
    assert_eq!(b.out(), [0], "one of two");
    b.endpoints.clear();
    let gone = endpoints(1);
    b.state.record(&[], &gone[0], Pass::Normal, BAD, b.now, &mut || 0);
}

/// Through the backend: a changed policy, another algorithm and other endpoints leave an ejection and the counts alone.
#[test]
fn a_backend_keeps_what_it_learned() {
    use crate::{backend, balance, breaker};
    let config = |max, algorithm, base| backend::Config {
        outlier: Some(Config::Ejection(Ejection { base_ejection: secs(base), ..seed() })),
        breaker: breaker::Config { max_requests: Some(max), ..Default::default() },
        balance: balance::Config { algorithm, hash: Vec::new() },
        ..Default::default()
    };
    let b = trial::backend(config(2, balance::Algorithm::Random, 60));
    b.set_endpoints(&[trial::config(0, 1), trial::config(1, 1)]);
    let _held = breaker::RequestPermit::take(&b).unwrap();
    let now = Instant::now();
    let set = b.endpoints.load_full();
    for _ in 0..5 {
        b.outlier.record(&set.endpoints, &set.endpoints[0], Pass::Normal, BAD, now, &mut || 0);
    }
    let kept = || {
        let set = b.endpoints.load_full();
        let look = b.outlier.look(&set.endpoints, now + secs(59));
        let pick = || set.picker.pick(&set.endpoints, &mut || 0, None, now, &|e| look.usable(e) == Usable::Yes, &[]);
        assert_eq!(look.usable(&set.endpoints[0]), Usable::No);
        assert!((0..20).all(|_| pick() == Some(1)));
        assert_eq!(b.breaker.count(breaker::Resource::Request), 1);
    };
    kept();
    b.adopt(config(1, balance::Algorithm::RoundRobin, 1));
    kept();
    assert!(breaker::RequestPermit::take(&b).is_none(), "the new cap");
    b.set_endpoints(&[trial::config(0, 1), trial::config(2, 1)]);
    kept();
}
