//! The corpus, made from a grammar: how a body is framed, how that is written, how the head is, how the body itself is cut. The
//! order is fixed and each case has a name made of its choices, so a failure can be found again. Whether a case is to be
//! served or refused is not said here: `oracle` reads that from the bytes.

pub struct Case {
    pub id: String,
    pub bytes: Vec<u8>,
}

pub const HOST: &str = "corpus.test";

struct Corpus(Vec<Case>);

/// A request with its nonce, `head` after the request line's fields that every one has.
fn request(line: &str, id: &str, head: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{line}\r\nHost: {HOST}\r\nX-Case: {id}\r\n").into_bytes();
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// Comes behind every case, on the same connection.
pub fn sentinel(id: &str) -> Vec<u8> {
    format!("GET /sentinel HTTP/1.1\r\nHost: {HOST}\r\nX-Case: {id}.sentinel\r\n\r\n").into_bytes()
}

impl Corpus {
    fn add(&mut self, id: String, bytes: Vec<u8>) {
        self.0.push(Case { id, bytes });
    }

    /// A POST with these fields and this body.
    fn post(&mut self, id: String, version: &str, head: &[u8], body: &[u8]) {
        let bytes = request(&format!("POST /t/{} {version}", self.0.len()), &id, head, body);
        self.add(id, bytes);
    }
}

const LENGTHS: [(&str, &[u8]); 26] = [
    ("exact", b"5"),
    ("short", b"3"),
    ("long", b"6"),
    ("zero", b"0"),
    ("plus", b"+5"),
    ("minus", b"-5"),
    ("hex", b"0x5"),
    ("underscore", b"0_5"),
    ("empty", b""),
    ("blank", b"5 5"),
    ("comma", b"5,5"),
    ("comma-blank", b"5, 5"),
    ("comma-other", b"5, 6"),
    ("comma-end", b"5,"),
    ("semicolon", b"5;"),
    ("fraction", b"5.0"),
    ("exponent", b"5e0"),
    ("quoted", b"\"5\""),
    ("leading-zero", b"05"),
    ("u64", b"18446744073709551621"),
    ("u64-max", b"18446744073709551615"),
    ("i64", b"9223372036854775813"),
    ("u32", b"4294967301"),
    ("vt", b"\x0b5"),
    ("nbsp", b"\xa05"),
    ("nul", b"5\x00"),
];

/// How a coding is written; the first ones are right.
const CODINGS: [(&str, &[u8]); 36] = [
    ("plain", b"Transfer-Encoding: chunked\r\n"),
    ("lower", b"transfer-encoding: chunked\r\n"),
    ("upper", b"TRANSFER-ENCODING: CHUNKED\r\n"),
    ("blanks", b"Transfer-Encoding:   chunked \t\r\n"),
    ("tight", b"Transfer-Encoding:chunked\r\n"),
    ("tab", b"Transfer-Encoding:\tchunked\r\n"),
    ("x", b"Transfer-Encoding: xchunked\r\n"),
    ("comma-first", b"Transfer-Encoding: ,chunked\r\n"),
    ("comma-last", b"Transfer-Encoding: chunked,\r\n"),
    ("identity-last", b"Transfer-Encoding: chunked, identity\r\n"),
    ("identity-first", b"Transfer-Encoding: identity, chunked\r\n"),
    ("identity", b"Transfer-Encoding: identity\r\n"),
    ("gzip", b"Transfer-Encoding: gzip, chunked\r\n"),
    ("cow", b"Transfer-Encoding: cow\r\n"),
    ("empty", b"Transfer-Encoding:\r\n"),
    ("quoted", b"Transfer-Encoding: \"chunked\"\r\n"),
    ("single-quoted", b"Transfer-Encoding: 'chunked'\r\n"),
    ("parameter", b"Transfer-Encoding: chunked;q=1\r\n"),
    ("vt-first", b"Transfer-Encoding: \x0bchunked\r\n"),
    ("vt-last", b"Transfer-Encoding: chunked\x0b\r\n"),
    ("ff", b"Transfer-Encoding: \x0cchunked\r\n"),
    ("nul", b"Transfer-Encoding: chunked\x00\r\n"),
    ("nel", b"Transfer-Encoding: chunked\x85\r\n"),
    ("nbsp", b"Transfer-Encoding: \xa0chunked\r\n"),
    ("twice", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    ("twice-cow", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n"),
    ("cow-twice", b"Transfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n"),
    ("twice-doubled", b"Transfer-Encoding: chunked, chunked\r\n"),
    ("blank-name", b"Transfer-Encoding : chunked\r\n"),
    ("tab-name", b"Transfer-Encoding\t: chunked\r\n"),
    ("fold", b"Transfer-Encoding:\r\n chunked\r\n"),
    ("fold-tab", b"Transfer-Encoding:\r\n\tchunked\r\n"),
    ("hidden-by-lf", b"X-A: b\nTransfer-Encoding: chunked\r\n"),
    ("hidden-by-cr", b"X-A: b\rTransfer-Encoding: chunked\r\n"),
    ("nul-name", b"Transfer-\x00Encoding: chunked\r\n"),
    ("underscore", b"Transfer_Encoding: chunked\r\n"),
];

const ENDS: [(&str, &[u8]); 3] =
    [("", b""), ("-close", b"Connection: close\r\n"), ("-keep", b"Connection: keep-alive\r\n")];

const CHUNKED: &[u8] = b"5\r\nhello\r\n0\r\n\r\n";

/// Bodies in chunks, right and wrong.
const CHUNKS: [(&str, &[u8]); 64] = [
    ("one", CHUNKED),
    ("none", b"0\r\n\r\n"),
    ("two", b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"),
    ("upper-hex", b"A\r\n0123456789\r\n0\r\n\r\n"),
    ("lower-hex", b"a\r\n0123456789\r\n0\r\n\r\n"),
    ("zeros", b"005\r\nhello\r\n0\r\n\r\n"),
    ("many-zeros", b"5\r\nhello\r\n0000\r\n\r\n"),
    ("crlf-inside", b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"),
    ("underscore", b"0_5\r\nhello\r\n0\r\n\r\n"),
    ("plus", b"+5\r\nhello\r\n0\r\n\r\n"),
    ("minus", b"-5\r\nhello\r\n0\r\n\r\n"),
    ("prefix", b"0x5\r\nhello\r\n0\r\n\r\n"),
    ("empty-size", b"\r\nhello\r\n0\r\n\r\n"),
    ("blank-before", b" 5\r\nhello\r\n0\r\n\r\n"),
    ("blank-after", b"5 \r\nhello\r\n0\r\n\r\n"),
    ("tab-after", b"5\t\r\nhello\r\n0\r\n\r\n"),
    ("letter", b"g\r\nhello\r\n0\r\n\r\n"),
    ("digits-16", b"0000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("digits-17", b"00000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("overflow-64", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("overflow-32", b"100000005\r\nhello\r\n0\r\n\r\n"),
    ("max", b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    ("max-less-1", b"fffffffffffffffe\r\nhello\r\n0\r\n\r\n"),
    ("nul", b"5\x00\r\nhello\r\n0\r\n\r\n"),
    ("comma", b"5,\r\nhello\r\n0\r\n\r\n"),
    ("lf", b"5\nhello\r\n0\r\n\r\n"),
    ("cr", b"5\rhello\r\n0\r\n\r\n"),
    ("crcrlf", b"5\r\r\nhello\r\n0\r\n\r\n"),
    ("lf-after-data", b"5\r\nhello\n0\r\n\r\n"),
    ("cr-after-data", b"5\r\nhello\r0\r\n\r\n"),
    ("nothing-after-data", b"5\r\nhello0\r\n\r\n"),
    ("junk-after-data", b"5\r\nhelloXX0\r\n\r\n"),
    ("too-long", b"5\r\nhello!\r\n0\r\n\r\n"),
    ("too-short", b"5\r\nhell\r\n0\r\n\r\n"),
    ("last-lf", b"5\r\nhello\r\n0\n\r\n"),
    ("last-lf-lf", b"5\r\nhello\r\n0\n\n"),
    ("end-lf", b"5\r\nhello\r\n0\r\n\n"),
    ("end-missing", b"5\r\nhello\r\n0\r\n"),
    ("end-cr", b"5\r\nhello\r\n0\r\n\rX"),
    ("no-last", b"5\r\nhello\r\n"),
    ("last-with-blank", b"5\r\nhello\r\n0 \r\n\r\n"),
    ("last-prefix", b"5\r\nhello\r\n0x0\r\n\r\n"),
    ("ext", b"5;a\r\nhello\r\n0\r\n\r\n"),
    ("ext-value", b"5;a=b\r\nhello\r\n0\r\n\r\n"),
    ("ext-quoted", b"5;a=\"b\"\r\nhello\r\n0\r\n\r\n"),
    ("ext-quoted-crlf", b"5;a=\"\r\n\"\r\nhello\r\n0\r\n\r\n"),
    ("ext-lf", b"5;a\nhello\r\n0\r\n\r\n"),
    ("ext-cr", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    ("ext-nul", b"5;\x00\r\nhello\r\n0\r\n\r\n"),
    ("ext-last", b"5\r\nhello\r\n0;a\r\n\r\n"),
    ("ext-empty", b"5;\r\nhello\r\n0\r\n\r\n"),
    ("ext-blank", b"5 ;a\r\nhello\r\n0\r\n\r\n"),
    ("ext-smuggle", b"5;\nxx\r\n4c\r\n0\r\n\r\n"),
    ("trailer", b"5\r\nhello\r\n0\r\nX-Trailer: a\r\n\r\n"),
    ("trailer-two", b"5\r\nhello\r\n0\r\nX-A: a\r\nX-B: b\r\n\r\n"),
    ("trailer-length", b"5\r\nhello\r\n0\r\nContent-Length: 40\r\n\r\n"),
    ("trailer-coding", b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("trailer-host", b"5\r\nhello\r\n0\r\nHost: other.test\r\n\r\n"),
    ("trailer-case", b"5\r\nhello\r\n0\r\nX-Forwarded-Client-Cert: By=evil\r\n\r\n"),
    ("trailer-no-colon", b"5\r\nhello\r\n0\r\nnonsense\r\n\r\n"),
    ("trailer-blank-name", b"5\r\nhello\r\n0\r\nX-A : b\r\n\r\n"),
    ("trailer-fold", b"5\r\nhello\r\n0\r\nX-A: b\r\n c\r\n\r\n"),
    ("trailer-lf", b"5\r\nhello\r\n0\r\nX-A: b\n\r\n"),
    ("trailer-nul", b"5\r\nhello\r\n0\r\nX-A: b\x00\r\n\r\n"),
];

/// One line of a head, right or wrong.
const LINES: [(&str, &[u8]); 46] = [
    ("fine", b"X-A: b\r\n"),
    ("empty-value", b"X-A:\r\n"),
    ("blank-value", b"X-A:    \r\n"),
    ("obs-text", b"X-A: \xe9\xa4\r\n"),
    ("tab-inside", b"X-A: b\tc\r\n"),
    ("colons", b"X-A: b:c:d\r\n"),
    ("odd-token", b"!#$%&'*+-.^_`|~: b\r\n"),
    ("blank-before-colon", b"X-A : b\r\n"),
    ("tab-before-colon", b"X-A\t: b\r\n"),
    ("leading-blank", b" X-A: b\r\n"),
    ("leading-tab", b"\tX-A: b\r\n"),
    ("fold", b"X-A: b\r\n c\r\n"),
    ("fold-tab", b"X-A: b\r\n\tc\r\n"),
    ("fold-empty", b"X-A: b\r\n \r\n"),
    ("no-name", b": b\r\n"),
    ("no-colon", b"X-A b\r\n"),
    ("blank-line-inside", b" \r\n"),
    ("only-colon", b":\r\n"),
    ("nul-value", b"X-A: b\x00c\r\n"),
    ("nul-name", b"X\x00A: b\r\n"),
    ("esc-value", b"X-A: \x1b[31m\r\n"),
    ("del-value", b"X-A: \x7f\r\n"),
    ("bell-value", b"X-A: \x07\r\n"),
    ("vt-value", b"X-A: \x0bb\r\n"),
    ("cr-value", b"X-A: b\rc\r\n"),
    ("cr-end", b"X-A: b\r\r\n"),
    ("lf-end", b"X-A: b\n"),
    ("lf-start", b"\nX-A: b\r\n"),
    ("cr-start", b"\rX-A: b\r\n"),
    ("latin-name", b"X-\xe9: b\r\n"),
    ("blank-name", b"X A: b\r\n"),
    ("paren-name", b"X(A): b\r\n"),
    ("slash-name", b"X/A: b\r\n"),
    ("quote-name", b"\"X\": b\r\n"),
    ("at-name", b"X@A: b\r\n"),
    ("comma-name", b"X,A: b\r\n"),
    ("second-host", b"Host: other.test\r\n"),
    ("same-host", b"Host: corpus.test\r\n"),
    ("host-underscore", b"Host_: other.test\r\n"),
    ("expect-continue", b"Expect: 100-continue\r\n"),
    ("expect-other", b"Expect: x\r\n"),
    ("upgrade-h2c", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
    ("nominate-host", b"Connection: host, x-z\r\n"),
    ("nominate-length", b"Connection: content-length\r\n"),
    ("nominate-coding", b"Connection: transfer-encoding\r\n"),
    ("line-in-line", b"X-A: b\r\n\r\nGET /hidden HTTP/1.1\r\nHost: corpus.test\r\nX-Case: hidden\r\n"),
];

/// Whole request lines.
const REQUESTS: [(&str, &[u8]); 46] = [
    ("origin", b"GET /a HTTP/1.1\r\n"),
    ("query", b"GET /a?b=c&d HTTP/1.1\r\n"),
    ("absolute", b"GET http://corpus.test/a HTTP/1.1\r\n"),
    ("absolute-other", b"GET http://other.test/a HTTP/1.1\r\n"),
    ("absolute-user", b"GET http://user@other.test/a HTTP/1.1\r\n"),
    ("absolute-port-0", b"GET http://other.test:0/a HTTP/1.1\r\n"),
    ("absolute-port-65536", b"GET http://other.test:65536/a HTTP/1.1\r\n"),
    ("absolute-empty", b"GET http:///a HTTP/1.1\r\n"),
    ("absolute-blank", b"GET http://other test/a HTTP/1.1\r\n"),
    ("no-slash", b"GET admin HTTP/1.1\r\n"),
    ("asterisk", b"GET * HTTP/1.1\r\n"),
    ("options", b"OPTIONS * HTTP/1.1\r\n"),
    ("connect-path", b"CONNECT / HTTP/1.1\r\n"),
    ("connect-no-port", b"CONNECT other.test HTTP/1.1\r\n"),
    ("connect-port-0", b"CONNECT other.test:0 HTTP/1.1\r\n"),
    ("fragment", b"GET /a#frag HTTP/1.1\r\n"),
    ("blank-in-target", b"GET /a b HTTP/1.1\r\n"),
    ("tab-in-target", b"GET /a\tb HTTP/1.1\r\n"),
    ("nul-in-target", b"GET /a\x00b HTTP/1.1\r\n"),
    ("esc-in-target", b"GET /a\x1bb HTTP/1.1\r\n"),
    ("del-in-target", b"GET /a\x7fb HTTP/1.1\r\n"),
    ("cr-in-target", b"GET /a\rb HTTP/1.1\r\n"),
    ("latin-target", b"GET /\xe9 HTTP/1.1\r\n"),
    ("two-blanks", b"GET  /a HTTP/1.1\r\n"),
    ("two-blanks-late", b"GET /a  HTTP/1.1\r\n"),
    ("blank-at-end", b"GET /a HTTP/1.1 \r\n"),
    ("blank-at-start", b" GET /a HTTP/1.1\r\n"),
    ("tabs", b"GET\t/a\tHTTP/1.1\r\n"),
    ("no-version", b"GET /a\r\n"),
    ("no-version-blank", b"GET /a \r\n"),
    ("no-target", b"GET HTTP/1.1\r\n"),
    ("version-1.2", b"GET /a HTTP/1.2\r\n"),
    ("version-0.9", b"GET /a HTTP/0.9\r\n"),
    ("version-2.0", b"GET /a HTTP/2.0\r\n"),
    ("version-11", b"GET /a HTTP/11\r\n"),
    ("version-1.10", b"GET /a HTTP/1.10\r\n"),
    ("version-01.1", b"GET /a HTTP/01.1\r\n"),
    ("version-lower", b"GET /a http/1.1\r\n"),
    ("version-none", b"GET /a HTTP/\r\n"),
    ("version-other", b"GET /a ICAP/1.0\r\n"),
    ("empty-line-first", b"\r\nGET /a HTTP/1.1\r\n"),
    ("lf-first", b"\nGET /a HTTP/1.1\r\n"),
    ("lf-end", b"GET /a HTTP/1.1\n"),
    ("method-paren", b"G(T /a HTTP/1.1\r\n"),
    ("method-nul", b"G\x00T /a HTTP/1.1\r\n"),
    ("method-own", b"FROB /a HTTP/1.1\r\n"),
];

const HOSTS: [(&str, &[u8]); 22] = [
    ("none", b""),
    ("port", b"Host: corpus.test:8080\r\n"),
    ("v6", b"Host: [::1]:80\r\n"),
    ("upper", b"HOST: CORPUS.TEST\r\n"),
    ("empty", b"Host:\r\n"),
    ("blank", b"Host: a b\r\n"),
    ("at", b"Host: a@b\r\n"),
    ("slash", b"Host: a/b\r\n"),
    ("query", b"Host: a?b\r\n"),
    ("hash", b"Host: a#b\r\n"),
    ("port-0", b"Host: a:0\r\n"),
    ("port-65536", b"Host: a:65536\r\n"),
    ("port-text", b"Host: a:b\r\n"),
    ("port-empty", b"Host: a:\r\n"),
    ("port-plus", b"Host: a:+80\r\n"),
    ("two-ports", b"Host: a:80:80\r\n"),
    ("only-port", b"Host: :80\r\n"),
    ("bracket", b"Host: [::1\r\n"),
    ("comma", b"Host: a, b\r\n"),
    ("twice", b"Host: corpus.test\r\nHost: corpus.test\r\n"),
    ("nul", b"Host: a\x00\r\n"),
    ("backslash", b"Host: a\\b\r\n"),
];

/// All of it.
pub fn all() -> Vec<Case> {
    let mut c = Corpus(Vec::new());
    // A length alone.
    for (name, length) in LENGTHS {
        for (end, field) in ENDS {
            for version in ["HTTP/1.1", "HTTP/1.0"] {
                let head = [b"Content-Length: ", length, b"\r\n", field].concat();
                c.post(format!("cl-{name}{end}-{}", &version[5..]), version, &head, b"hello");
            }
        }
        // Twice: the same, and beside a right one in both orders.
        for (pair, a, b) in
            [("same", length, length), ("right-first", b"5" as &[u8], length), ("right-last", length, b"5")]
        {
            let head = [b"Content-Length: ", a, b"\r\nContent-Length: ", b, b"\r\n"].concat();
            c.post(format!("cl2-{name}-{pair}"), "HTTP/1.1", &head, b"hello");
        }
    }
    // A coding alone, over bodies that fit it and bodies that fit none.
    for (name, coding) in CODINGS {
        for (shape, body) in [("chunked", CHUNKED), ("plain", b"hello"), ("none", b"")] {
            for (end, field) in ENDS {
                let head = [coding, field].concat();
                c.post(format!("te-{name}-{shape}{end}"), "HTTP/1.1", &head, body);
            }
        }
        c.post(format!("te-{name}-1.0"), "HTTP/1.0", coding, CHUNKED);
        // With a trap: what a reader of lengths would take for the next request.
        for (order, length) in [("cl-te", true), ("te-cl", false)] {
            for what in ["inside", "before"] {
                let id = format!("{order}-{name}-{what}");
                let trap =
                    format!("0\r\n\r\nGET /trap HTTP/1.1\r\nHost: {HOST}\r\nX-Case: {id}.trap\r\n\r\n").into_bytes();
                let n = if what == "inside" { trap.len() } else { 5 };
                let field = format!("Content-Length: {n}\r\n").into_bytes();
                let head = if length { [&field, coding].concat() } else { [coding, &field].concat() };
                c.post(id, "HTTP/1.1", &head, &trap);
            }
        }
    }
    // Odd lengths beside a right coding.
    for (name, length) in LENGTHS {
        for order in ["cl-te", "te-cl"] {
            let (te, cl) = (&b"Transfer-Encoding: chunked\r\n"[..], [b"Content-Length: ", length, b"\r\n"].concat());
            let head = if order == "cl-te" { [&cl, te].concat() } else { [te, &cl].concat() };
            c.post(format!("{order}-odd-{name}"), "HTTP/1.1", &head, CHUNKED);
        }
    }
    // What is in the chunks.
    for (name, body) in CHUNKS {
        for (end, field) in ENDS {
            let head = [b"Transfer-Encoding: chunked\r\n", field].concat();
            c.post(format!("chunk-{name}{end}"), "HTTP/1.1", &head, body);
        }
        let second = [b"2\r\nhi\r\n", body].concat();
        c.post(format!("chunk-late-{name}"), "HTTP/1.1", b"Transfer-Encoding: chunked\r\n", &second);
    }
    // Lines of the head, first and last, with and without a body.
    for (name, line) in LINES {
        for (place, before, after) in [("first", &b""[..], &b"X-Z: z\r\n"[..]), ("last", b"X-Z: z\r\n", b"")] {
            let id = format!("line-{name}-{place}");
            let hidden = String::from_utf8_lossy(line).replace("hidden\r\n", &format!("{id}.hidden\r\n")).into_bytes();
            let line = if name == "line-in-line" { &hidden[..] } else { line };
            let head = [before, line, after].concat();
            let bytes = request("GET /line HTTP/1.1", &id, &head, b"");
            c.add(id, bytes);
            let hidden = String::from_utf8_lossy(line).replace(".hidden\r\n", "-body.hidden\r\n").into_bytes();
            let line = if name == "line-in-line" { &hidden[..] } else { line };
            let head = [before, line, after, b"Content-Length: 5\r\n"].concat();
            c.post(format!("line-{name}-{place}-body"), "HTTP/1.1", &head, b"hello");
        }
    }
    for (name, line) in REQUESTS {
        for (end, field) in ENDS {
            let id = format!("request-{name}{end}");
            let mut bytes = line.to_vec();
            bytes.extend_from_slice(format!("Host: {HOST}\r\nX-Case: {id}\r\n").as_bytes());
            bytes.extend_from_slice(field);
            bytes.extend_from_slice(b"\r\n");
            c.add(id, bytes);
        }
    }
    for (name, host) in HOSTS {
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            let id = format!("host-{name}-{}", &version[5..]);
            let mut bytes = format!("GET /host {version}\r\n").into_bytes();
            bytes.extend_from_slice(host);
            bytes.extend_from_slice(format!("X-Case: {id}\r\nConnection: keep-alive\r\n\r\n").as_bytes());
            c.add(id, bytes);
        }
    }
    // Bodies where none are usual, and none where they are.
    for method in ["GET", "HEAD", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "FROB"] {
        for (name, head, body) in [
            ("none", &b""[..], &b""[..]),
            ("cl-zero", b"Content-Length: 0\r\n", b""),
            ("cl", b"Content-Length: 5\r\n", b"hello"),
            ("te", b"Transfer-Encoding: chunked\r\n", CHUNKED),
        ] {
            for (end, field) in ENDS {
                let id = format!("method-{method}-{name}{end}");
                let bytes = request(&format!("{method} /m HTTP/1.1"), &id, &[head, field].concat(), body);
                c.add(id, bytes);
            }
        }
    }
    c.0
}
