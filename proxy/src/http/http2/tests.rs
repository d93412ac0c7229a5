//! The engine alone, with no socket: against the h2 crate in either role, in any segmentation, and against noise.

use super::engine::{Engine, Fault, Role, Sent};
use super::floods;
use super::frame::{self, Head, code, flag, kind};
use super::out::Out;
use super::settings::{FRAME, Ours};
use crate::http::exchange::{self, FieldMap};
use crate::http::fields::Fields;
use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use std::collections::HashMap;
use std::task::{Context, Waker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn ours() -> Ours {
    Ours {
        stream_window: 65_535,
        connection_window: 1 << 20,
        max_frame: FRAME,
        list_bytes: 60_000,
        list_fields: 100,
        max_streams: 100,
    }
}

fn engine(role: Role) -> Engine {
    Engine::new(role, Out::new(None), ours(), 1)
}

struct Rng(u64);

impl Rng {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

/// Hands the engine what a peer sent, as it comes, and keeps what it does not take yet.
#[derive(Default)]
struct Feed(Vec<u8>);

impl Feed {
    fn give(&mut self, engine: &mut Engine, bytes: &[u8]) -> Result<Vec<super::engine::Arrival>, Fault> {
        self.0.extend_from_slice(bytes);
        let mut input = &self.0[..];
        let mut arrived = Vec::new();
        while let Some(arrival) = engine.advance(&mut input)? {
            arrived.push(arrival);
        }
        let taken = self.0.len() - input.len();
        self.0.drain(..taken);
        Ok(arrived)
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&Head::new(kind, flags, stream, payload.len()).bytes()[..], payload].concat()
}

fn hello() -> Vec<u8> {
    [&frame::PREFACE[..], &frame(kind::SETTINGS, 0, 0, &[])].concat()
}

/// `GET http://a/` by the static table, and an authority as it stands.
fn get() -> Vec<u8> {
    vec![0x82, 0x86, 0x84, 0x01, 1, b'a']
}

fn frames(mut bytes: &[u8]) -> Vec<(Head, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(head) = Head::read(bytes) {
        frames.push((head, bytes[9..9 + head.length].to_vec()));
        bytes = &bytes[9 + head.length..];
    }
    assert!(bytes.is_empty());
    frames
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn some_fields(rng: &mut Rng, round: usize) -> Vec<(HeaderName, HeaderValue)> {
    const NAMES: [&str; 9] =
        ["accept", "x-request-id", "user-agent", "accept-encoding", "x-a", "x-b", "cache-control", "date", "x-long"];
    (0..rng.next(9))
        .map(|_| {
            let name = NAMES[rng.next(NAMES.len())];
            let value = match rng.next(4) {
                0 if name == "x-long" => "l".repeat(rng.next(6000)),
                1 => format!("{round}-{}", rng.next(1 << 30)),
                2 => "gzip, deflate".to_string(),
                _ => format!("some value {}", rng.next(5)),
            };
            let mut value = HeaderValue::try_from(value).unwrap();
            value.set_sensitive(rng.next(8) == 0);
            (HeaderName::from_static(name), value)
        })
        .collect()
}

fn sorted(fields: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> Vec<(String, Vec<u8>)> {
    let mut list: Vec<_> = fields.into_iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect();
    list.sort();
    list
}

fn of_map(map: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    sorted(map.iter().map(|(n, v)| (n.clone(), v.clone())))
}

/// What the h2 crate asks is what arrives, and what is answered is what it gets: fields, bodies, trailers.
#[tokio::test]
async fn h2_as_the_client() {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let server = async move {
        let mut engine = engine(Role::Server);
        let (mut feed, mut rng) = (Feed::default(), Rng(77));
        let mut sent = 0u64;
        loop {
            let out = engine.out.take();
            far.write_all(&out).await.unwrap();
            let mut chunk = vec![0; 1 + rng.next(30_000)];
            let n = match far.read(&mut chunk).await {
                Ok(0) | Err(_) => return sent,
                Ok(n) => n,
            };
            for arrival in feed.give(&mut engine, &chunk[..n]).unwrap() {
                // The echo: the same fields, the path as body, the fields again as trailers.
                let (key, id) = (arrival.key, arrival.id);
                let fields = arrival.head.fields.0.clone();
                engine.send_answer(key, id, StatusCode::OK, &fields, false);
                let mut body = Bytes::copy_from_slice(arrival.head.path.as_str().as_bytes());
                while !body.is_empty() {
                    assert!(matches!(engine.send_data(key, id, &mut body, false, &mut cx()), Sent::Bytes(1..)));
                }
                engine.send_trailers(key, id, &fields.into());
                engine.drop_reader(key, id);
                engine.drop_writer(key, id);
                sent += 1;
            }
        }
    };
    let client = async move {
        let (mut send, connection) = h2::client::handshake(near).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut rng = Rng(0xfeed);
        for round in 0..600 {
            let path = format!("/{}", "p".repeat(rng.next(200)));
            let mut request = Request::builder().method("GET").uri(format!("http://a.test{path}")).body(()).unwrap();
            let fields = some_fields(&mut rng, round);
            for (name, value) in &fields {
                request.headers_mut().append(name, value.clone());
            }
            let (answer, _) = send.send_request(request, true).unwrap();
            let mut answer = answer.await.unwrap();
            assert_eq!((answer.status(), of_map(answer.headers())), (StatusCode::OK, sorted(fields.clone())));
            let mut body = Vec::new();
            while let Some(data) = answer.body_mut().data().await {
                let data = data.unwrap();
                answer.body_mut().flow_control().release_capacity(data.len()).unwrap();
                body.extend_from_slice(&data);
            }
            assert_eq!(body, path.as_bytes());
            let trailers = answer.body_mut().trailers().await.unwrap().unwrap_or_default();
            assert_eq!(of_map(&trailers), sorted(fields));
        }
        drop(send);
        let _ = driver.await;
    };
    let (sent, ()) = tokio::join!(server, client);
    assert_eq!(sent, 600);
}

/// The other way round.
#[tokio::test]
async fn h2_as_the_server() {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let server = async move {
        let mut connection = h2::server::handshake(near).await.unwrap();
        while let Some(Ok((mut request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let mut size = 0;
                while let Some(Ok(data)) = request.body_mut().data().await {
                    request.body_mut().flow_control().release_capacity(data.len()).unwrap();
                    size += data.len();
                }
                let mut answer = Response::new(());
                *answer.headers_mut() = request.headers().clone();
                let mut stream = respond.send_response(answer, false).unwrap();
                stream.send_data(format!("{} {size}", request.uri()).into(), true).unwrap();
            });
        }
    };
    let client = async move {
        let mut engine = engine(Role::Client);
        let (mut feed, mut rng) = (Feed::default(), Rng(0xbeef));
        for round in 0..400 {
            let fields = some_fields(&mut rng, round);
            let mut list = Fields::default();
            fields.iter().for_each(|(n, v)| list.append(n.clone(), v.clone()));
            let size = if rng.next(3) == 0 { rng.next(200_000) } else { 0 };
            let head = exchange::Head {
                method: Method::POST,
                version: Version::HTTP_2,
                authority: Some(Authority::from_static("a.test")),
                path: PathAndQuery::try_from(format!("/{round}")).unwrap(),
                asterisk: false,
                fields: FieldMap(list),
            };
            let (key, id) = engine.open(&head, size == 0);
            let mut body = Bytes::from(vec![b'x'; size]);
            let mut got = Vec::new();
            loop {
                while !body.is_empty() {
                    match engine.send_data(key, id, &mut body, true, &mut cx()) {
                        Sent::Bytes(_) => {}
                        Sent::Window => break,
                        other => panic!("{other:?}"),
                    }
                }
                far.write_all(&engine.out.take()).await.unwrap();
                let stream = engine.streams.held(key, id).unwrap();
                got.extend(stream.data.drain(..).flatten());
                if stream.remote_ended {
                    break;
                }
                let mut chunk = vec![0; 1 + rng.next(5000)];
                let n = far.read(&mut chunk).await.unwrap();
                feed.give(&mut engine, &chunk[..n]).unwrap();
            }
            let (status, answered) = *engine.streams.held(key, id).unwrap().head.take().unwrap();
            assert_eq!(status, StatusCode::OK);
            assert_eq!(sorted(answered), sorted(fields));
            assert_eq!(String::from_utf8(got).unwrap(), format!("http://a.test/{round} {size}"));
            engine.drop_writer(key, id);
            engine.drop_reader(key, id);
            engine.taken(usize::MAX >> 1);
            assert_eq!((engine.streams.open(), engine.streams.keys().len()), (0, 0));
        }
    };
    tokio::select! { () = server => panic!("the server ended"), () = client => {} }
}

/// A talk of many kinds of frames, valid as a whole.
fn talk() -> Vec<u8> {
    let mut bytes = hello();
    let mut add = |kind, flags, stream, payload: &[u8]| bytes.extend(frame(kind, flags, stream, payload));
    add(kind::SETTINGS, flag::ACK, 0, &[]);
    add(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &get());
    add(kind::PRIORITY, 0, 9, &[0, 0, 0, 3, 7]);
    let padded = [&[3][..], &[0, 0, 0, 0, 16], &get(), &[0; 3]].concat();
    add(kind::HEADERS, flag::END_HEADERS | flag::PADDED | flag::PRIORITY, 3, &padded);
    add(kind::DATA, 0, 3, &[b'x'; 3000]);
    add(kind::DATA, flag::PADDED, 3, &[&[200][..], &[b'y'; 300], &[0; 200]].concat());
    add(kind::PING, 0, 0, b"12345678");
    add(kind::WINDOW_UPDATE, 0, 3, &[0, 0, 1, 0]);
    add(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]);
    add(kind::HEADERS, 0, 5, &get()[..2]);
    add(kind::CONTINUATION, 0, 5, &get()[2..4]);
    add(kind::CONTINUATION, flag::END_HEADERS, 5, &get()[4..]);
    add(kind::DATA, flag::PADDED | flag::END_STREAM, 5, &[4, 1, 2, 0, 0, 0, 0]);
    add(99, 255, 7, b"unknown");
    add(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 3, &[0x00, 1, b't', 1, b'v']);
    add(kind::HEADERS, flag::END_HEADERS, 7, &get());
    add(kind::RST_STREAM, 0, 7, &[0, 0, 0, 8]);
    bytes
}

#[test]
fn any_segmentation_is_the_same() {
    let bytes = talk();
    let mut outcomes = Vec::new();
    for size in [1, 2, 3, 7, 10, 100, 1000, bytes.len()] {
        let (mut engine, mut feed) = (engine(Role::Server), Feed::default());
        let mut arrived = Vec::new();
        for piece in bytes.chunks(size) {
            arrived.extend(feed.give(&mut engine, piece).unwrap());
        }
        assert!(feed.0.is_empty());
        let ids: Vec<_> = arrived.iter().map(|a| (a.id, a.ends)).collect();
        assert_eq!(ids, [(1, true), (3, false), (5, false), (7, false)]);
        let three = engine.streams.held(arrived[1].key, 3).unwrap();
        let data: Vec<u8> = three.data.iter().flatten().copied().collect();
        assert_eq!((data.len(), three.trailers.as_ref().unwrap().len()), (3300, 1));
        assert!(three.remote_ended);
        let five = engine.streams.held(arrived[2].key, 5).unwrap();
        assert_eq!(five.data[0][..], [1, 2]);
        assert_eq!(engine.streams.open(), 3);
        outcomes.push((data, engine.out.take()));
    }
    outcomes.dedup();
    assert_eq!(outcomes.len(), 1);
}

/// Whatever is changed in it, nothing panics, and what is kept is bounded.
#[test]
fn noise() {
    let bytes = talk();
    let mut rng = Rng(0xabcdef);
    let mut faults: HashMap<u32, u32> = HashMap::new();
    for round in 0..30_000 {
        let role = if rng.next(4) == 0 { Role::Client } else { Role::Server };
        let (mut engine, mut feed) = (engine(role), Feed::default());
        let mut bytes = if role == Role::Client { bytes[24..].to_vec() } else { bytes.clone() };
        if role == Role::Client {
            let head = exchange::Head {
                method: Method::GET,
                version: Version::HTTP_2,
                authority: None,
                path: PathAndQuery::from_static("/"),
                asterisk: false,
                fields: FieldMap::default(),
            };
            for _ in 0..4 {
                engine.open(&head, round % 2 == 0);
            }
        }
        for _ in 0..1 + rng.next(6) {
            let at = rng.next(bytes.len());
            match rng.next(3) {
                0 => bytes[at] = rng.next(256) as u8,
                1 => bytes[at] ^= 1 << rng.next(8),
                _ => drop(bytes.remove(at)),
            }
        }
        let size = 1 + rng.next(bytes.len());
        for piece in bytes.chunks(size) {
            match feed.give(&mut engine, piece) {
                Ok(arrived) => {
                    for arrival in arrived {
                        match rng.next(3) {
                            0 => engine.send_answer(arrival.key, arrival.id, StatusCode::OK, &Fields::default(), true),
                            1 => engine.drop_reader(arrival.key, arrival.id),
                            _ => engine.drop_writer(arrival.key, arrival.id),
                        }
                    }
                }
                Err(fault) => {
                    *faults.entry(fault.code).or_default() += 1;
                    engine.last_words(fault.code);
                    break;
                }
            }
        }
        engine.end(super::streams::Why::Gone);
        assert_eq!(engine.streams.open(), 0);
        assert!(frames(&engine.out.take()[if role == Role::Client { 24 } else { 0 }..]).len() < 50);
    }
    assert!(faults.len() >= 4, "{faults:?}");
}

#[track_caller]
fn faults(bytes: &[u8], wanted: u32) {
    let (mut engine, mut feed) = (engine(Role::Server), Feed::default());
    let fault = feed.give(&mut engine, bytes).map(|_| ()).unwrap_err();
    assert_eq!(fault.code, wanted);
}

#[test]
fn faults_of_the_connection() {
    faults(b"GET / HTTP/1.1\r\n", code::PROTOCOL_ERROR);
    faults(&[&frame::PREFACE[..], &frame(kind::PING, 0, 0, &[0; 8])].concat(), code::PROTOCOL_ERROR);
    let after = |bytes: Vec<u8>| [hello(), bytes].concat();
    faults(&after(frame(kind::CONTINUATION, flag::END_HEADERS, 1, &get())), code::PROTOCOL_ERROR);
    faults(&after(frame(kind::DATA, 0, 1, b"x")), code::PROTOCOL_ERROR);
    faults(&after(frame(kind::HEADERS, flag::END_HEADERS, 2, &get())), code::PROTOCOL_ERROR);
    faults(&after(frame(kind::HEADERS, flag::END_HEADERS, 1, &[0xff; 9])), code::COMPRESSION_ERROR);
    faults(&after(frame(kind::DATA, 0, 1, &vec![0; FRAME + 1])), code::FRAME_SIZE_ERROR);
    faults(&after(frame(kind::SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])), code::FLOW_CONTROL_ERROR);
    faults(&after(frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])), code::FLOW_CONTROL_ERROR);
    let endless: Vec<u8> = (0..=floods::CONTINUATIONS).flat_map(|_| frame(kind::CONTINUATION, 0, 1, b"")).collect();
    faults(&after([frame(kind::HEADERS, 0, 1, &get()), endless].concat()), code::ENHANCE_YOUR_CALM);
}

/// What is wrong with one stream ends that one, and its late frames are forgiven.
#[test]
fn faults_of_a_stream() {
    let (mut engine, mut feed) = (engine(Role::Server), Feed::default());
    feed.give(&mut engine, &hello()).unwrap();
    engine.out.take();
    let post = [&get()[..], &[0x0f, 13, 1, b'5']].concat();
    for (id, more) in [
        // More than was announced, less than was announced, an update of nothing, trailers that end nothing.
        (1, frame(kind::DATA, 0, 1, &[0; 6])),
        (3, frame(kind::DATA, flag::END_STREAM, 3, &[0; 4])),
        (5, frame(kind::WINDOW_UPDATE, 0, 5, &[0; 4])),
        (7, frame(kind::HEADERS, flag::END_HEADERS, 7, &[0x00, 1, b't', 1, b'v'])),
    ] {
        let head = frame(kind::HEADERS, flag::END_HEADERS, id, &post);
        let arrived = feed.give(&mut engine, &[head, more].concat()).unwrap();
        assert_eq!(arrived.len(), 1);
        let out = frames(&engine.out.take());
        assert_eq!(out, [(Head::new(kind::RST_STREAM, 0, id, 4), code::PROTOCOL_ERROR.to_be_bytes().to_vec())]);
        let late = [frame(kind::DATA, 0, id, &[0; 100]), frame(kind::HEADERS, 5, id, &[0x88])].concat();
        assert!(feed.give(&mut engine, &late).unwrap().is_empty());
        assert!(engine.out.take().is_empty());
        engine.drop_reader(arrived[0].key, id);
        engine.drop_writer(arrived[0].key, id);
    }
    // Nobody reads this one: the connection's window opens again all the same.
    for n in 0..40 {
        let id = 9 + n * 2;
        let head = frame(kind::HEADERS, flag::END_HEADERS, id, &get());
        let arrived = feed.give(&mut engine, &head).unwrap();
        engine.drop_reader(arrived[0].key, id);
        for _ in 0..3 {
            feed.give(&mut engine, &frame(kind::DATA, 0, id, &[0; 16_000])).unwrap();
        }
        engine.send_answer(arrived[0].key, id, StatusCode::OK, &Fields::default(), true);
        engine.drop_writer(arrived[0].key, id);
    }
    let out = frames(&engine.out.take());
    let given: u32 = out
        .iter()
        .filter(|(head, _)| head.kind == kind::WINDOW_UPDATE && head.stream == 0)
        .map(|(_, payload)| frame::number(payload).unwrap())
        .sum();
    assert!(given >= 40 * 48_000 - (1 << 19), "{given}");
    assert_eq!((engine.streams.open(), engine.streams.keys().len()), (0, 0));
}

/// Small pieces are put together: a peer cannot make many buffers of little.
#[test]
fn small_pieces_cost_little() {
    let (mut engine, mut feed) = (engine(Role::Server), Feed::default());
    feed.give(&mut engine, &hello()).unwrap();
    let arrived = feed.give(&mut engine, &frame(kind::HEADERS, flag::END_HEADERS, 1, &get())).unwrap();
    let pieces: Vec<u8> = (0..10_000).flat_map(|_| frame(kind::DATA, 0, 1, b"ab")).collect();
    feed.give(&mut engine, &pieces).unwrap();
    let stream = engine.streams.held(arrived[0].key, 1).unwrap();
    assert!(stream.data.len() <= 6, "{}", stream.data.len());
    assert_eq!(stream.data.iter().map(|chunk| chunk.len()).sum::<usize>(), 20_000);
}

#[test]
fn a_body_is_as_long_as_announced_also_in_the_middle_of_a_frame() {
    let mut engine = engine(Role::Server);
    let mut feed = Feed::default();
    feed.give(&mut engine, &hello()).unwrap();
    // POST, with a literal content-length of 10 (name 28 of the static table).
    let head = [&[0x83, 0x86, 0x84, 0x01, 1, b'a', 0x0f, 0x0d, 2][..], b"10"].concat();
    let arrived = feed.give(&mut engine, &frame(kind::HEADERS, flag::END_HEADERS, 1, &head)).unwrap();
    let conn = std::rc::Rc::new(std::cell::RefCell::new(engine));
    let mut body = super::body::Http2Body::new(conn.clone(), arrived[0].key, arrived[0].id);
    let data = frame(kind::DATA, flag::END_STREAM, 1, b"0123456789");
    assert_eq!(body.size_hint().exact(), Some(10));
    for (at, byte) in data.iter().enumerate() {
        feed.give(&mut conn.borrow_mut(), &[*byte]).unwrap();
        assert_eq!(body.size_hint().exact(), Some(10), "after {at} bytes");
    }
    let mut cx = Context::from_waker(Waker::noop());
    let std::task::Poll::Ready(Some(Ok(read))) = body.poll_frame(&mut cx) else { panic!("data is there") };
    let read = read.into_data().unwrap().len() as u64;
    assert_eq!(body.size_hint().exact(), Some(10 - read));
}

/// A stream that has its connection to itself and is read at once gets ever more; beside others it is given what it was at first.
#[test]
fn the_window_of_bulk_grows_and_falls_back() {
    let (mut engine, mut feed) = (engine(Role::Server), Feed::default());
    feed.give(&mut engine, &hello()).unwrap();
    let arrived = feed.give(&mut engine, &frame(kind::HEADERS, flag::END_HEADERS, 1, &get())).unwrap();
    let conn = std::rc::Rc::new(std::cell::RefCell::new(engine));
    let mut body = super::body::Http2Body::new(conn.clone(), arrived[0].key, arrived[0].id);
    let mut given = |feed: &mut Feed, megabytes: usize| {
        let mut updates = Vec::new();
        for _ in 0..megabytes << 6 {
            feed.give(&mut conn.borrow_mut(), &frame(kind::DATA, 0, 1, &[b'x'; 16_384])).unwrap();
            assert!(matches!(body.poll_frame(&mut cx()), std::task::Poll::Ready(Some(Ok(_)))));
            let sent = frames(&conn.borrow_mut().out.take());
            let of_stream = sent.iter().filter(|(head, _)| head.kind == kind::WINDOW_UPDATE && head.stream == 1);
            updates.extend(of_stream.map(|(_, by)| u32::from_be_bytes(by[..].try_into().unwrap())));
        }
        updates
    };
    let alone = given(&mut feed, 4);
    // Half a window each time.
    assert_eq!((alone.first(), alone.last()), (Some(&32_768), Some(&(1 << 19))), "{alone:?}");
    feed.give(&mut conn.borrow_mut(), &frame(kind::HEADERS, flag::END_HEADERS, 3, &get())).unwrap();
    let beside = given(&mut feed, 4);
    assert!(beside.iter().skip(1).all(|by| *by <= 65_535), "{beside:?}");
}
