use super::*;
use crate::trial::{self, Seeded, endpoints, int, list, map, text, weighted};
use crate::view::{ConnView, Fields, RequestView};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

fn config(algorithm: Algorithm) -> Config {
    Config { algorithm, hash: Vec::new() }
}

fn all() -> [Algorithm; 6] {
    [
        Algorithm::default(),
        Algorithm::LeastRequest { choices: 2 },
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::Ring { min: 1024, max: 8 * 1024 * 1024 },
        Algorithm::Maglev { table: 65537 },
    ]
}

/// How often each endpoint is picked, of `n` picks without hashes.
fn spread(
    algorithm: Algorithm,
    endpoints: &[Arc<Endpoint>],
    n: usize,
    usable: &dyn Fn(&Endpoint) -> bool,
) -> Vec<usize> {
    let picker = Picker::build(&config(algorithm), endpoints);
    let mut random = Seeded(7);
    let mut counts = vec![0; endpoints.len()];
    for _ in 0..n {
        if let Some(at) = picker.pick(endpoints, &mut || random.draw(), None, Instant::now(), usable, &[]) {
            counts[at] += 1;
        }
    }
    counts
}

fn is(n: usize) -> impl Fn(&Endpoint) -> bool {
    let id = format!("pod-{n}");
    move |e| *e.id.0 == *id
}

#[test]
fn reads() {
    let node = map([
        ("algorithm", text("ringHash")),
        (
            "hash",
            list([map([("header", text("X-User"))]), map([("sourceIp", trial::value(crate::doc::Value::Bool(true)))])]),
        ),
    ]);
    let read = trial::read(&node, Config::read).unwrap();
    assert_eq!(read.hash, [HashOn::Header("x-user".into()), HashOn::SourceIp]);
    assert_eq!(read.algorithm, Algorithm::Ring { min: 1024, max: 8 * 1024 * 1024 });
    assert_eq!(trial::read(&map([]), Config::read), Ok(Config::default()));
    let cookie = |entries| map([("algorithm", text("maglev")), ("hash", list([map([("cookie", entries)])]))]);
    assert!(trial::read(&cookie(map([("name", text("user")), ("ttl", text("60s"))])), Config::read).is_ok());
    for bad in [
        map([("algorithm", text("fastest"))]),
        map([("algorithm", text("maglev")), ("tableSize", int(65536))]),
        map([("algorithm", text("ringHash")), ("minimumRingSize", int(9)), ("maximumRingSize", int(8))]),
        map([("hash", list([map([("header", text("x"))])]))]),
        map([("algorithm", text("maglev")), ("hash", list([map([("header", text("x y"))])]))]),
        map([("algorithm", text("maglev")), ("hash", list([map([("header", text("x")), ("query", text("y"))])]))]),
        cookie(map([("name", text("a=b"))])),
        cookie(map([("name", text("a")), ("path", text("/;secure"))])),
        cookie(map([])),
    ] {
        assert!(trial::read(&bad, Config::read).is_err_and(|e| !e.is_empty()), "{bad:?}");
    }
}

#[test]
fn equal_endpoints_get_equal_shares() {
    let ten = endpoints(10);
    for algorithm in all() {
        let counts = spread(algorithm, &ten, 20_000, &|_| true);
        // A ring of about a hundred places each is uneven by nature.
        let (low, high) = if matches!(algorithm, Algorithm::Ring { .. }) { (1300, 2700) } else { (1800, 2200) };
        assert!(counts.iter().all(|c| (low..high).contains(c)), "{algorithm:?}: {counts:?}");
    }
    assert_eq!(spread(Algorithm::RoundRobin, &ten, 1000, &|_| true), [100; 10]);
}

#[test]
fn weights_are_respected() {
    let three = weighted(&[1, 2, 5]);
    for algorithm in [Algorithm::RoundRobin, Algorithm::Random, all()[4], all()[5]] {
        let counts = spread(algorithm, &three, 16_000, &|_| true);
        for (count, share) in counts.iter().zip([2_000.0, 4_000.0, 10_000.0]) {
            let slack = if matches!(algorithm, Algorithm::Ring { .. }) { 0.25 } else { 0.08 };
            assert!((*count as f64 / share - 1.0).abs() < slack, "{algorithm:?}: {counts:?}");
        }
    }
    assert_eq!(spread(Algorithm::RoundRobin, &three, 800, &|_| true), [100, 200, 500]);
    // Evenly spread, not in blocks: within any eight turns each has its share, give or take one.
    let picker = Picker::build(&config(Algorithm::RoundRobin), &three);
    let turns: Vec<_> = (0..80).map(|_| picker.pick(&three, &mut || 0, None, Instant::now(), &|_| true, &[])).collect();
    for window in turns.windows(4) {
        assert!(window.iter().filter(|t| **t == Some(2)).count() <= 3, "{turns:?}");
    }
    // Weights beyond any schedule, and no weight at all.
    let counts = spread(Algorithm::RoundRobin, &weighted(&[u32::MAX, u32::MAX - 1, 0]), 9_000, &|_| true);
    assert!(counts[0].abs_diff(counts[1]) < 100 && (1..10).contains(&counts[2]), "{counts:?}");
    // Where loads are held, P2C and least request follow weights too.
    for algorithm in [Algorithm::default(), Algorithm::LeastRequest { choices: 2 }] {
        let two = weighted(&[1, 4]);
        let picker = Picker::build(&config(algorithm), &two);
        let mut random = Seeded(3);
        for _ in 0..500 {
            let at = picker.pick(&two, &mut || random.draw(), None, Instant::now(), &|_| true, &[]).unwrap();
            two[at].load.begin(Instant::now(), picker.ewma());
        }
        assert!((395..=405).contains(&two[1].load.in_flight()), "{algorithm:?}: {}", two[1].load.in_flight());
    }
}

#[test]
fn only_usable_endpoints_and_always_one_of_them() {
    for n in [1, 2, 3, 50] {
        let list = endpoints(n);
        for algorithm in all() {
            assert_eq!(spread(algorithm, &list, 50, &|_| false), vec![0; n], "{algorithm:?}");
            for left in [0, n / 2, n - 1] {
                assert_eq!(spread(algorithm, &list, 50, &is(left))[left], 50, "{algorithm:?}");
            }
        }
    }
    for algorithm in all() {
        assert_eq!(spread(algorithm, &[], 5, &|_| true), [0usize; 0]);
    }
}

#[test]
fn those_left_share_what_the_unusable_had() {
    let list = endpoints(20);
    for algorithm in all() {
        let bad: Vec<_> = (0..16).map(is).collect();
        let counts = spread(algorithm, &list, 8_000, &|e| !bad.iter().any(|b| b(e)));
        assert_eq!(counts[..16], [0; 16]);
        let slack = if matches!(algorithm, Algorithm::Ring { .. }) { 1200 } else { 400 };
        assert!(counts[16..].iter().all(|c| c.abs_diff(2_000) < slack), "{algorithm:?}: {counts:?}");
    }
}

#[test]
fn retries_avoid_what_they_tried() {
    let list = endpoints(3);
    for algorithm in all() {
        let picker = Picker::build(&config(algorithm), &list);
        let mut random = Seeded(11);
        for i in 0..200u64 {
            let mut pick = |usable: &dyn Fn(&Endpoint) -> bool, tried: &[usize]| {
                picker.pick(&list, &mut || random.draw(), Some(hash::with(i, 0)), Instant::now(), usable, tried)
            };
            let first = pick(&|_| true, &[]).unwrap();
            if picker.hashes() {
                assert_eq!(pick(&|_| true, &[first]), Some(first));
                continue;
            }
            let second = pick(&|_| true, &[first]).unwrap();
            assert_ne!(first, second);
            let third = pick(&|_| true, &[first, second]).unwrap();
            assert_eq!(first + second + third, 3);
            assert!(pick(&|_| true, &[0, 1, 2]).is_some(), "rather one again than none");
            assert_eq!(pick(&is(first), &[first]), Some(first));
        }
    }
}

#[test]
fn the_same_randomness_picks_the_same() {
    let list = weighted(&[1, 2, 3, 4]);
    for algorithm in all() {
        assert_eq!(spread(algorithm, &list, 500, &|_| true), spread(algorithm, &list, 500, &|_| true));
    }
}

/// Where each of many keys lives.
fn homes(algorithm: Algorithm, list: &[Arc<Endpoint>]) -> Vec<Arc<str>> {
    let picker = Picker::build(&config(algorithm), list);
    let key = |i: u64| hash::bytes(format!("user-{i}").as_bytes());
    let home = |i| picker.pick(list, &mut || panic!("hashed"), Some(key(i)), Instant::now(), &|_| true, &[]).unwrap();
    (0..5_000).map(|i| list[home(i)].id.0.clone()).collect()
}

#[test]
fn keys_stay_when_endpoints_come_and_go() {
    for (algorithm, strays) in [(all()[4], 0), (all()[5], 150)] {
        let ten = endpoints(10);
        let before = homes(algorithm, &ten);
        assert_eq!(before, homes(algorithm, &endpoints(10)), "replicas agree");
        let mut reordered = ten.clone();
        reordered.rotate_left(3);
        let moved = before.iter().zip(homes(algorithm, &reordered)).filter(|(a, b)| *a != b).count();
        assert!(moved <= strays, "{algorithm:?}: {moved} by order");
        let mut nine = ten.clone();
        let gone = nine.remove(4).id.0.clone();
        let after = homes(algorithm, &nine);
        let strayed = before.iter().zip(&after).filter(|(a, b)| a != b && **a != gone).count();
        assert!(strayed <= strays, "{algorithm:?}: {strayed} strayed");
        assert!(after.iter().all(|home| *home != gone));
    }
}

#[test]
fn an_unusable_home_moves_only_its_own_keys() {
    let list = endpoints(10);
    for algorithm in [all()[4], all()[5]] {
        let picker = Picker::build(&config(algorithm), &list);
        let mut fled: HashMap<usize, usize> = HashMap::new();
        for i in 0..5_000 {
            let key = Some(hash::with(i, 9));
            let pick =
                |usable: &dyn Fn(&Endpoint) -> bool| picker.pick(&list, &mut || 0, key, Instant::now(), usable, &[]);
            let (home, now) = (pick(&|_| true).unwrap(), pick(&|e| !is(4)(e)).unwrap());
            match home {
                4 => *fled.entry(now).or_default() += 1,
                _ => assert_eq!(home, now),
            }
        }
        assert!(fled.len() >= 8 && fled.values().all(|n| *n < 150), "spread over the others: {fled:?}");
    }
}

#[test]
fn the_hash_is_fixed() {
    let known = ["", "a", "user-1", "user-2"].map(|s| hash::bytes(s.as_bytes()));
    assert_eq!(known, [0xefd0_1f60_ba99_2926, 0x82a2_a958_a9be_ce5b, 0x41a2_fca5_c684_01c5, 0xa9f4_ad0c_2263_143b]);
}

#[test]
fn p2c_prefers_the_fast_and_the_idle() {
    let list = endpoints(2);
    let ewma = Ewma::default();
    let now = Instant::now();
    let ms = Duration::from_millis;
    let picker = Picker::build(&Config::default(), &list);
    let pick = |now| picker.pick(&list, &mut || 1 << 63, None, now, &|_| true, &[]).unwrap();
    let sample = |at: usize, sample, now| {
        list[at].load.begin(now, picker.ewma());
        list[at].load.learn(now, sample, ewma);
        list[at].load.end();
    };
    sample(0, Sample::Took(ms(50)), now);
    sample(1, Sample::Took(ms(10)), now);
    assert_eq!(pick(now), 1);
    // Behind requests in flight the fast one is slower.
    (0..10).for_each(|_| list[1].load.begin(now, ewma));
    assert_eq!(pick(now), 0);
    (0..10).for_each(|_| list[1].load.end());
    assert_eq!(pick(now), 1);
    // Bad news is believed at once, and forgotten in time.
    sample(1, Sample::Took(ms(900)), now);
    assert_eq!(list[1].load.latency(now, ewma), ms(900));
    assert_eq!(pick(now), 0);
    let later = now + Duration::from_secs(60);
    assert!(list[1].load.latency(later, ewma) < ms(3));
    assert_eq!(list[0].load.in_flight() + list[1].load.in_flight(), 0);
}

/// Observed of Linkerd: of two pods the one that fails at once got most of the traffic. Not here.
#[test]
fn failing_fast_does_not_attract() {
    let list = endpoints(2);
    let picker = Picker::build(&Config::default(), &list);
    let mut random = Seeded(5);
    let mut now = Instant::now();
    let mut failed = 0;
    for _ in 0..1_000 {
        now += Duration::from_millis(10);
        let at = picker.pick(&list, &mut || random.draw(), None, now, &|_| true, &[]).unwrap();
        let sample = match at {
            0 => Sample::Failed(Duration::from_micros(300)),
            _ => Sample::Took(Duration::from_millis(10)),
        };
        failed += (at == 0) as u32;
        list[at].load.begin(now, picker.ewma());
        list[at].load.learn(now, sample, picker.ewma());
        list[at].load.end();
    }
    assert!(failed <= 20, "{failed}");
    // And one failure among many answers is no outage: its share sinks, but does not vanish.
    let list = endpoints(2);
    let mut counts = [0, 0];
    for i in 0..20_000 {
        now += Duration::from_millis(5);
        let at = picker.pick(&list, &mut || random.draw(), None, now, &|_| true, &[]).unwrap();
        counts[at] += 1;
        let rtt = Duration::from_micros(8_000 + random.below(4_000));
        let sample = if at == 0 && i % 1_000 == 0 { Sample::Failed(rtt) } else { Sample::Took(rtt) };
        list[at].load.begin(now, picker.ewma());
        list[at].load.learn(now, sample, picker.ewma());
        list[at].load.end();
    }
    assert!(counts[0] > 4_000, "{counts:?}");
}

/// Among busy peers that are faster than the default, a new endpoint must not starve until its default has decayed.
#[test]
fn a_new_endpoint_is_tried_soon_and_once() {
    let list = endpoints(3);
    let picker = Picker::build(&Config::default(), &list);
    let mut random = Seeded(5);
    let mut now = Instant::now();
    let fast = Sample::Took(Duration::from_millis(1));
    for at in [0, 1] {
        list[at].load.begin(now, picker.ewma());
        list[at].load.learn(now, fast, picker.ewma());
        list[at].load.end();
    }
    let mut tried = 0;
    for _ in 0..200 {
        now += Duration::from_millis(1);
        let at = picker.pick(&list, &mut || random.draw(), None, now, &|_| true, &[]).unwrap();
        list[at].load.begin(now, picker.ewma());
        // The new one does not answer; its client goes away.
        tried += (at == 2) as u32;
        list[at].load.learn(now, if at == 2 { Sample::Nothing } else { fast }, picker.ewma());
        list[at].load.end();
    }
    assert_eq!(tried, 1);
    list[2].load.learn(now, fast, picker.ewma());
    assert_eq!(
        list[2].load.latency(now, picker.ewma()),
        Duration::from_millis(1),
        "the first answer replaces the default"
    );
}

struct Lines(Vec<(&'static str, &'static str)>);

impl Fields for Lines {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        for (_, value) in self.0.iter().filter(|(n, _)| *n == name) {
            if !visit(value.as_bytes()) {
                return;
            }
        }
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes())
    }
}

fn affinity(hash: &[HashOn], lines: &[(&'static str, &'static str)], query: Option<&str>, peer: &str) -> Affinity {
    let peer: SocketAddr = peer.parse().unwrap();
    let conn = ConnView { peer, destination: peer, identity: None, server_name: None };
    let fields = Lines(lines.to_vec());
    let view = RequestView { conn, method: "GET", scheme: "http", host: "web", path: "/", query, fields: &fields };
    Config { hash: hash.to_vec(), ..Config::default() }.affinity(&view, &mut || 0x9b1f_ba1b_c806_3eee)
}

#[test]
fn what_requests_are_hashed_on() {
    let one = "1.2.3.4:5";
    let user = |hash: &[HashOn], lines: &[_]| affinity(hash, lines, None, one).hash;
    let header = [HashOn::Header("x-user".into())];
    let of = |s: &str| Some(hash::bytes(s.as_bytes()));
    assert_eq!(user(&header, &[("x-user", "a")]), of("a"));
    assert_eq!(user(&header, &[("x-user", "a"), ("x-user", "b")]), of("a,b"));
    assert_eq!(user(&header, &[]), None);
    let query = [HashOn::Query("u".into())];
    for (q, found) in [("x=1&u=a&u=b", of("a")), ("u", of("")), ("uu=a", None), ("", None)] {
        assert_eq!(affinity(&query, &[], Some(q), one).hash, found, "{q}");
    }
    let ip = |peer| affinity(&[HashOn::SourceIp], &[], None, peer).hash;
    assert_eq!(ip("1.2.3.4:5"), ip("1.2.3.4:6"));
    assert_eq!(ip("1.2.3.4:5"), ip("[::ffff:1.2.3.4]:5"));
    assert_ne!(ip("1.2.3.4:5"), ip("1.2.3.5:5"));
    let both = [header[0].clone(), HashOn::SourceIp];
    assert_ne!(user(&both, &[("x-user", "a")]), user(&header, &[("x-user", "a")]));
    assert_eq!(user(&both, &[]), ip(one), "what is there counts");
}

/// As observed of Istio.
#[test]
fn cookies_are_read_and_issued() {
    let cookie = |path: Option<&str>, ttl| [HashOn::Cookie { name: "user".into(), path: path.map(String::from), ttl }];
    let minute = Some(Duration::from_secs(60));
    let new = affinity(&cookie(None, minute), &[("cookie", "other=1; users=2")], None, "1.2.3.4:5");
    assert_eq!(new.set_cookie, ["user=\"9b1fba1bc8063eee\"; Max-Age=60; HttpOnly"]);
    // What comes back leads to the same place, quoted or not, in any line.
    for lines in [
        vec![("cookie", "user=\"9b1fba1bc8063eee\"")],
        vec![("cookie", "a=b;user=9b1fba1bc8063eee;c=d")],
        vec![("cookie", "a=b"), ("cookie", "c=d; user=9b1fba1bc8063eee")],
    ] {
        let back = affinity(&cookie(None, minute), &lines, None, "1.2.3.4:5");
        assert_eq!(back, Affinity { hash: new.hash, set_cookie: vec![] });
    }
    assert_eq!(affinity(&cookie(None, None), &[], None, "1.2.3.4:5"), Affinity::default());
    let session = affinity(&cookie(Some("/a"), Some(Duration::ZERO)), &[], None, "1.2.3.4:5");
    assert_eq!(session.set_cookie, ["user=\"9b1fba1bc8063eee\"; Path=/a; HttpOnly"]);
}
