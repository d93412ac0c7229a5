//! Another parser as the reference: whatever is read here as a whole request, hyper must read as the same one. It may take
//! more; what is refused here is refused on purpose.

use super::Ahead;
use super::body::{Decoder, Piece};
use super::head::{self, Framing, Search};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use tokio::io::AsyncWriteExt;
use weft_policy::listener::Limits;
use weft_testkit::rng::Rng;

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    method: Method,
    version: Version,
    authority: Option<String>,
    path: String,
    fields: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Short,
    Refused,
    Last,
    Leaves,
}

/// Whole requests, and why there are no more.
fn ours(parts: &[&[u8]]) -> (Vec<Seen>, End) {
    let limits = Limits::default();
    let mut ahead = Ahead::default();
    let mut parts = parts.iter();
    let mut seen = Vec::new();
    let mut more = |ahead: &mut Ahead| parts.next().map(|part| ahead.bytes.extend_from_slice(part)).is_some();
    loop {
        let mut search = Search::default();
        let end = loop {
            while ahead.bytes.starts_with(b"\r\n") {
                ahead.skip(2);
                search = Search::default();
            }
            match search.find(&ahead.bytes) {
                Some(end) => break end,
                None if more(&mut ahead) => {}
                None => return (seen, End::Short),
            }
        };
        let Ok(asked) = head::request(&ahead.take(end), search.lines(), &limits) else { return (seen, End::Refused) };
        let mut decoder = Decoder::new(asked.framing, true, limits.header_bytes);
        let (mut body, mut trailers) = (Vec::new(), HeaderMap::new());
        while !decoder.is_done() {
            match decoder.decode(&mut ahead) {
                Ok(Piece::Data(data)) => body.extend_from_slice(&data),
                Ok(Piece::Trailers(fields)) => trailers = fields,
                Ok(Piece::End) => {}
                Ok(Piece::More) if more(&mut ahead) => {}
                Ok(Piece::More) => return (seen, End::Short),
                Err(_) => return (seen, End::Refused),
            }
        }
        seen.push(Seen {
            method: asked.head.method,
            version: asked.head.version,
            authority: asked.head.authority.map(|a| a.to_string()),
            path: asked.head.path.to_string(),
            fields: asked.head.fields.0.into(),
            body,
            trailers,
        });
        if asked.leaving {
            return (seen, End::Leaves);
        }
        if !asked.keep {
            return (seen, End::Last);
        }
    }
}

async fn theirs(bytes: &[u8]) -> Vec<Seen> {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    near.write_all(bytes).await.unwrap();
    near.shutdown().await.unwrap();
    let all: Rc<RefCell<Vec<Seen>>> = Rc::default();
    let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let all = all.clone();
        async move {
            let (head, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                let path = head.uri.path_and_query().map_or("/".to_string(), ToString::to_string);
                all.borrow_mut().push(Seen {
                    method: head.method,
                    version: head.version,
                    authority: head.uri.authority().map(ToString::to_string),
                    path,
                    fields: head.headers,
                    trailers: body.trailers().cloned().unwrap_or_default(),
                    body: body.to_bytes().to_vec(),
                });
            }
            Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .max_headers(200)
        .serve_connection(hyper_util::rt::TokioIo::new(far), service)
        .await;
    all.take()
}

const SEEDS: [&str; 9] = [
    "GET /a?b HTTP/1.1\r\nHost: a.test\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n1\r\nx\r\n0\r\nX-T: 1\r\nY: \r\n\r\n",
    "GET http://b.test:80/d HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nX-A: 2\r\nConnection: keep-alive\r\n\r\n",
    "\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\nX-Long-Name-Of-A-Field:  spaced\tout \t\r\n\r\n",
    "GET /e HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "POST /f HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n",
    "DELETE /g;h/%20 HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n",
];

/// What a reader may stumble over, beside plain accidents.
const TOKENS: [&str; 28] = [
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    " ",
    "\t",
    "\0",
    "\x0b",
    "\u{e9}",
    ":",
    ",",
    ";",
    "0",
    "5",
    "+",
    "-",
    "0x",
    "_",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding: identity\r\n",
    "Host: b\r\n",
    "Connection: close\r\n",
    "Expect: x\r\n",
    " folded\r\n",
    "GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "0\r\n\r\n",
    "HTTP/1.1",
];

const ANSWERS: [&str; 8] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\nhello",
    "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n3;e=1\r\nabc\r\n0\r\nx: y\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0 200 OK\r\nX-A: 1\r\nX-A: 2\r\n\r\nuntil the end",
    "HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n",
    "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
];

type Answer = (StatusCode, HeaderMap, Vec<u8>, HeaderMap);

/// The answer to a GET, if these bytes are one and it is whole.
fn our_answer(bytes: &[u8]) -> Option<Answer> {
    let mut ahead = Ahead::default();
    ahead.bytes.extend_from_slice(bytes);
    loop {
        while ahead.bytes.starts_with(b"\r\n") {
            ahead.skip(2);
        }
        let mut search = Search::default();
        let end = search.find(&ahead.bytes)?;
        let answered = head::response(&ahead.take(end), search.lines(), 100).ok()?;
        if answered.status.is_informational() {
            continue;
        }
        let empty = matches!(answered.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let framing = if empty { Framing::None } else { answered.framing };
        let mut decoder = Decoder::new(framing, false, 1000);
        let (mut body, mut trailers) = (Vec::new(), HeaderMap::new());
        while !decoder.is_done() {
            match decoder.decode(&mut ahead).ok()? {
                Piece::Data(data) => body.extend_from_slice(&data),
                Piece::Trailers(fields) => trailers = fields,
                Piece::End => {}
                Piece::More => decoder.end().ok()?,
            }
        }
        let mut fields = HeaderMap::from(answered.fields);
        fields.remove(http::header::CONTENT_LENGTH);
        return Some((answered.status, fields, body, trailers));
    }
}

async fn their_answer(bytes: &[u8]) -> Option<Answer> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get("/").header("host", "a").body(Empty::<Bytes>::new()).unwrap();
    let sent = sender.send_request(request);
    let answering = async {
        // Before it has asked, an answer would be one to nothing.
        let mut asked = [0; 64];
        let _ = tokio::io::AsyncReadExt::read(&mut far, &mut asked).await;
        far.write_all(bytes).await.unwrap();
        far.shutdown().await.unwrap();
    };
    let (response, ()) = tokio::join!(sent, answering);
    let (mut head, body) = response.ok()?.into_parts();
    let body = body.collect().await.ok()?;
    head.headers.remove(http::header::CONTENT_LENGTH);
    let trailers = body.trailers().cloned().unwrap_or_default();
    Some((head.status, head.headers, body.to_bytes().to_vec(), trailers))
}

#[tokio::test]
async fn answers_that_are_believed_here_are_the_same_there() {
    let mut rng = Rng::new(9110);
    for bytes in ANSWERS {
        let ours = our_answer(bytes.as_bytes());
        assert!(ours.is_some(), "{bytes:?}");
        assert_eq!(ours, their_answer(bytes.as_bytes()).await, "{bytes:?}");
    }
    let mut believed = 0;
    for _ in 0..10_000 {
        let mut bytes = ANSWERS[rng.below(ANSWERS.len() as u64) as usize].as_bytes().to_vec();
        mutate(&mut rng, &mut bytes);
        if let Some(ours) = our_answer(&bytes) {
            let theirs = their_answer(&bytes).await;
            assert_eq!(Some(ours), theirs, "{:?}", String::from_utf8_lossy(&bytes));
            believed += 1;
        }
    }
    println!("{believed} answers believed");
    assert!(believed > 1000, "{believed}");
}

fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.below(3) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        let token = TOKENS[rng.below(TOKENS.len() as u64) as usize].as_bytes();
        match rng.below(5) {
            0 if at < bytes.len() => bytes[at] = rng.below(256) as u8,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => {
                let end = (at + token.len()).min(bytes.len());
                bytes.splice(at..end, token.iter().copied());
            }
            3 => {
                // At the beginning of a line, where framing is.
                let line = bytes[at..].windows(2).position(|w| w == b"\r\n").map_or(at, |n| at + n + 2);
                bytes.splice(line..line, token.iter().copied());
            }
            _ => drop(bytes.splice(at..at, token.iter().copied())),
        }
    }
}

fn compare(bytes: &[u8], ours: &[Seen], theirs: &[Seen]) {
    for (i, one) in ours.iter().enumerate() {
        assert_eq!(Some(one), theirs.get(i), "request {i} of {:?}", String::from_utf8_lossy(bytes));
    }
}

#[tokio::test]
async fn seeds_read_the_same_wherever_they_are_cut() {
    let all = SEEDS.concat().into_bytes();
    let whole = ours(&[&all]);
    assert_eq!((whole.0.len(), whole.1), (SEEDS.len(), End::Last));
    compare(&all, &whole.0, &theirs(&all).await);
    for cut in 1..all.len() {
        let (a, b) = all.split_at(cut);
        assert_eq!(ours(&[a, b]), whole, "{cut}");
    }
    let bytes: Vec<&[u8]> = all.chunks(1).collect();
    assert_eq!(ours(&bytes), whole);
}

#[tokio::test]
async fn what_is_accepted_here_reads_the_same_there() {
    let mut rng = Rng::new(9112);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = Vec::new();
        for _ in 0..=rng.below(2) {
            let mut seed = SEEDS[rng.below(SEEDS.len() as u64) as usize].as_bytes().to_vec();
            mutate(&mut rng, &mut seed);
            bytes.extend_from_slice(&seed);
        }
        let (seen, end) = ours(&[&bytes]);
        compare(&bytes, &seen, &theirs(&bytes).await);
        accepted += seen.len();
        refused += usize::from(end == End::Refused);
        // Two cuts change nothing but how soon a fault is seen.
        let (a, b) = (rng.below(bytes.len() as u64 + 1) as usize, rng.below(bytes.len() as u64 + 1) as usize);
        let (a, b) = (a.min(b), a.max(b));
        assert_eq!(ours(&[&bytes[..a], &bytes[a..b], &bytes[b..]]), (seen, end), "{a} {b} {bytes:?}");
    }
    println!("{accepted} requests accepted, {refused} inputs refused");
    assert!(accepted > 3_000 && refused > 3_000, "{accepted} {refused}");
}
