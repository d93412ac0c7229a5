//! Bytes that two parsers could read differently: a corpus against the proxy in front of a recorder that reads strictly, and
//! the rows of the threat model that a generator does not reach. Every case is followed by a sentinel on its connection.

#[path = "smuggling/corpus.rs"]
mod corpus;
#[path = "smuggling/oracle.rs"]
mod oracle;
#[path = "smuggling/recorder.rs"]
mod recorder;

use oracle::End;
use recorder::Recorder;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use weft_testkit::backend::{self, Action, Backend, Reply};
use weft_testkit::ca::Ca;
use weft_testkit::client::{self, ReadError, Response, read_response};
use weft_testkit::dir::{TempDir, free_addr};
use weft_testkit::proxy::Proxy;
use weft_testkit::raw_backend::{RawBackend, Step};

const BIN: &str = env!("CARGO_BIN_EXE_weft-proxy");
const LIMIT: Duration = Duration::from_secs(10);

/// A plain hop in front of `endpoint`.
fn hop(endpoint: SocketAddr, listener: &str, service: &str) -> (Proxy, SocketAddr) {
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\nlisteners:\n- {{name: front, role: hop, address: {address}, protocol: http, to: app{listener}}}\n\
         services:\n- {{name: app, port: 80, protocol: http, endpoints: [{endpoint}]{service}}}\n"
    );
    (Proxy::start(BIN, &yaml, admin), address)
}

/// Two sidecars in front of `app`: HTTP/1.1 in, HTTP/2 in mesh TLS between them, HTTP/1.1 out.
struct Pair {
    outbound: Proxy,
    _inbound: Proxy,
    address: SocketAddr,
    mesh: SocketAddr,
    ca: Ca,
    _dir: TempDir,
}

fn pair(app: SocketAddr) -> Pair {
    let ca = Ca::new("cluster.local");
    let dir = TempDir::new();
    let identity = |name: &str| {
        let files = ca.workload("demo", name).write(&dir, name, &[&ca]);
        format!(
            "identity: {{certificate: {:?}, key: {:?}, trust: [{{domain: cluster.local, roots: [{:?}]}}]}}\n",
            files.cert, files.key, files.roots
        )
    };
    let (mesh, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\n{}listeners:\n- {{name: in, role: inbound, address: {mesh}, app: {app}, mtls: strict}}\n",
        identity("server")
    );
    let inbound = Proxy::start(BIN, &yaml, admin);
    let (address, admin) = (free_addr(), free_addr());
    let yaml = format!(
        "admin: {admin}\n{}listeners:\n- {{name: out, role: outbound, address: {address}, protocol: http, to: app}}\n\
         services:\n- {{name: app, port: 80, protocol: http, identity: {:?}, endpoints: [{mesh}]}}\n",
        identity("client"),
        ca.id("demo", "server"),
    );
    let outbound = Proxy::start(BIN, &yaml, admin);
    Pair { outbound, _inbound: inbound, address, mesh, ca, _dir: dir }
}

/// What became of a case: `Err` says what is wrong.
#[derive(Debug, PartialEq, Clone, Copy)]
enum Outcome {
    Served,
    Refused,
}

fn dial(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    stream.set_read_timeout(Some(LIMIT)).expect("timeout");
    stream
}

fn run(front: SocketAddr, recorder: &Recorder, case: &corpus::Case) -> Result<Outcome, String> {
    let bytes = [&case.bytes[..], &corpus::sentinel(&case.id)].concat();
    let want = oracle::read(&bytes);
    let mut stream = dial(front);
    // A refusal may come, and with it the end, before everything is written.
    let _ = stream.write_all(&bytes);
    if want.end != End::Clean {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answers: Vec<Response> = Vec::new();
    let mut refusal = None;
    while answers.len() <= want.requests.len() {
        if answers.len() == want.requests.len() && want.end == End::Clean && !want.requests.last().is_some_and(|r| r.last) {
            break;
        }
        let head_only = want.requests.get(answers.len()).is_some_and(|r| r.method == "HEAD");
        match read_response(&mut stream, head_only) {
            Ok(answer) if answer.header("x-nonce").is_some() => answers.push(answer),
            Ok(answer) => {
                refusal = Some(answer.status);
                break;
            }
            Err(ReadError::NoAnswer) => break,
            Err(e) => return Err(format!("after {} answers: {e}", answers.len())),
        }
    }
    let served = answers.len();
    if let Some(status) = refusal
        && !matches!(status, 400 | 404 | 408 | 414 | 417 | 431 | 501 | 505)
    {
        return Err(format!("status {status}"));
    }
    if served > want.requests.len() {
        return Err(format!("{served} answers to {} requests", want.requests.len()));
    }
    let ended = refusal.is_some() || served < want.requests.len() || want.end != End::Clean;
    if ended {
        let mut rest = Vec::new();
        // A reset is an end as well: our bytes lay unread.
        match stream.read_to_end(&mut rest) {
            Err(e) if client::is_timeout(&e) => return Err("refused, and the connection stays".into()),
            _ if !rest.is_empty() => return Err(format!("bytes after the end: {:?}", String::from_utf8_lossy(&rest))),
            _ => {}
        }
    }
    // Everything that was answered was seen once, as sent.
    for (answer, sent) in answers.iter().zip(&want.requests) {
        let id = String::from_utf8_lossy(sent.field(recorder::CASE).unwrap_or_default()).into_owned();
        if answer.header("x-nonce") != Some(id.as_str()) || answer.status != 200 {
            return Err(format!("the answer of {:?} for {id}", answer.header("x-nonce")));
        }
        let seen = recorder.whole(&id);
        let [seen] = &seen[..] else { return Err(format!("{id} was seen {} times", seen.len())) };
        let plain = sent.target.starts_with('/') && !sent.odd;
        if seen.method != sent.method || seen.body != sent.body || (plain && seen.target != sent.target) {
            return Err(format!("sent {sent:?}, seen {seen:?}"));
        }
        for field in ["transfer_encoding", "connection", "http2-settings", "keep-alive", "te"] {
            if field != "transfer_encoding" && seen.field(field).is_some() {
                return Err(format!("{field} was passed on"));
            }
        }
        for trailer in ["content-length", "transfer-encoding", "host", "x-forwarded-client-cert"] {
            if seen.trailers.iter().any(|(n, _)| n == trailer) {
                return Err(format!("{trailer} was passed on in trailers"));
            }
        }
        let nominated = sent.field("connection").is_some_and(|v| v.ends_with(b"x-z"));
        if nominated && seen.field("x-z").is_some() {
            return Err("a nominated field was passed on".into());
        }
    }
    // And nothing else was.
    for sent in &want.requests[served..] {
        let id = String::from_utf8_lossy(sent.field(recorder::CASE).unwrap_or_default()).into_owned();
        if !recorder.whole(&id).is_empty() {
            return Err(format!("{id} was seen and not answered"));
        }
    }
    if served < want.requests.len() {
        // Only what is odd may be refused, and what stands behind it.
        let odd = want.requests[..=served].iter().any(|r| r.odd);
        if !odd {
            return Err(format!("refused ({refusal:?}) though valid; the oracle ends with {:?}", want.end));
        }
        return Ok(Outcome::Refused);
    }
    Ok(if want.end == End::Clean { Outcome::Served } else { Outcome::Refused })
}

/// Cases in the corpus; a change of the grammar changes it on purpose.
const CASES: usize = 1508;

fn run_corpus(front: SocketAddr, recorder: &Recorder) {
    let cases = corpus::all();
    let ids: std::collections::HashSet<&str> = cases.iter().map(|c| c.id.as_str()).collect();
    assert_eq!((cases.len(), ids.len()), (CASES, CASES));
    let (next, served, refused) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    match run(front, recorder, case) {
                        Ok(Outcome::Served) => served.fetch_add(1, Ordering::SeqCst),
                        Ok(Outcome::Refused) => refused.fetch_add(1, Ordering::SeqCst),
                        Err(why) => {
                            wrong.lock().expect("wrong").push(format!("{}: {why}", case.id));
                            0
                        }
                    };
                }
            });
        }
    });
    let (served, refused) = (served.into_inner(), refused.into_inner());
    println!("{} cases: {served} served, {refused} refused; the backend saw {} requests", cases.len(), recorder.requests());
    let wrong = wrong.into_inner().expect("wrong");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(recorder.faults(), Vec::<String>::new());
    assert_eq!(served + refused, CASES);
    // The corpus has both kinds in earnest.
    assert!(served > 200 && refused > 600, "{served} served, {refused} refused");
}

#[test]
fn corpus_through_a_hop() {
    let recorder = Recorder::start();
    let (_proxy, front) = hop(recorder.addr(), "", "");
    run_corpus(front, &recorder);
}

#[test]
fn corpus_through_a_pair() {
    let recorder = Recorder::start();
    let pair = pair(recorder.addr());
    run_corpus(pair.address, &recorder);
}
