use super::*;
use crate::testing::{List, Xorshift, read, view, warnings};

fn path(json: &str) -> PathMatch {
    read(PathMatch::read, json).unwrap_or_else(|e| panic!("{json}: {e:?}"))
}

fn request(json: &str) -> RequestMatch {
    read(RequestMatch::read, json).unwrap_or_else(|e| panic!("{json}: {e:?}"))
}

#[test]
fn prefixes_in_both_meanings() {
    for (matcher, path_of, expected) in [
        (r#"{"prefix": "/weather"}"#, "/weather", true),
        (r#"{"prefix": "/weather"}"#, "/weather/x", true),
        (r#"{"prefix": "/weather"}"#, "/weatherfoo", true),
        (r#"{"prefix": "/weather"}"#, "/weathe", false),
        (r#"{"prefix": "/weather/"}"#, "/weather", false),
        (r#"{"prefix": "/"}"#, "/x", true),
        (r#"{"prefix": "/Weather", "ignoreCase": true}"#, "/wEATHERx", true),
        (r#"{"pathPrefix": "/weather"}"#, "/weather", true),
        (r#"{"pathPrefix": "/weather"}"#, "/weather/", true),
        (r#"{"pathPrefix": "/weather"}"#, "/weather/x", true),
        (r#"{"pathPrefix": "/weather"}"#, "/weatherfoo", false),
        (r#"{"pathPrefix": "/weather"}"#, "/weather;x=y", false),
        (r#"{"pathPrefix": "/weather/"}"#, "/weather", true),
        (r#"{"pathPrefix": "/weather/"}"#, "/weather/x", true),
        (r#"{"pathPrefix": "/weather/"}"#, "/weatherfoo", false),
        (r#"{"pathPrefix": "/"}"#, "/", true),
        (r#"{"pathPrefix": "/"}"#, "/x/y", true),
        (r#"{"pathPrefix": "/"}"#, "//x", true),
        (r#"{"pathPrefix": "/A", "ignoreCase": true}"#, "/a/x", true),
        (r#"{"exact": "/a"}"#, "/a", true),
        (r#"{"exact": "/a"}"#, "/a/", false),
        (r#"{"exact": "/a"}"#, "/A", false),
        (r#"{"exact": "/a", "ignoreCase": true}"#, "/A", true),
        (r#"{"regex": "/api/data"}"#, "/api/data/1", false),
        (r#"{"regex": "/api/.*"}"#, "/api/data/1", true),
        (r#"{"regex": "/a|/b"}"#, "/bx", false),
        (r#"{"regex": "/a|/ab"}"#, "/ab", true),
    ] {
        assert_eq!(path(matcher).matches(path_of), expected, "{matcher} {path_of}");
    }
}

#[test]
fn regexes_match_the_whole_text() {
    for (regex, text, expected) in [
        ("j.*n", "jason", true),
        ("j.*n", "json", true),
        ("j.*n", "xjasonx", false),
        ("j.*n", "jason\n", false),
        ("", "", true),
        ("", "x", false),
        ("(?i)abc", "ABC", true),
        ("^abc$", "abc", true),
        ("(?m)^a$", "b\na", false),
        ("a|b|", "", true),
    ] {
        assert_eq!(Pattern::parse(regex).unwrap().matches(text), expected, "{regex} {text:?}");
    }
    for bad in ["(", "a)|(b", r"(a)\1", "(?=a)", "a{1001}{1001}", "[z-a]", "(?x)a # b", &"a".repeat(2000)] {
        let why = Pattern::parse(bad).unwrap_err();
        assert!(!why.contains('\n') && why.len() > 10, "{bad}: {why}");
    }
    for large in [r"[a-z0-9._-]{1,255}", r"\w{1,16}@\w+", r"(?i)/api/v[0-9]+/[a-z0-9-]{1,63}(/.*)?"] {
        assert!(Pattern::parse(large).is_ok(), "{large}");
    }
    assert_eq!(Pattern::parse("a").unwrap(), Pattern::parse("a").unwrap());
    assert_ne!(Pattern::parse("a").unwrap(), Pattern::ignoring_case("a").unwrap());
    assert_ne!(Pattern::parse("a").unwrap(), Pattern::parse("b").unwrap());
}

/// Exponential for a backtracking engine, quadratic for many; here a bound that any linear one meets by far.
#[test]
fn catastrophic_patterns_are_linear() {
    let start = std::time::Instant::now();
    for (regex, filler) in
        [(r"(a+)+", "a"), (r"(a|aa)+", "a"), (r"(.*)*x", "y"), (r"([a-z]+)*\d", "q"), ("(a?){30}a{30}", "a")]
    {
        let text = filler.repeat(60_000) + "!";
        assert!(!Pattern::parse(regex).unwrap().matches(&text), "{regex}");
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn headers() {
    let fields =
        List::of(&[("x-user", "jason"), ("x-empty", ""), ("x-two", "1"), ("x-two", "2"), ("cookie", "a=b; user=x")]);
    let fields = List([fields.0, vec![("x-bytes".into(), b"a\xff".to_vec())]].concat());
    for (headers, expected) in [
        (r#"{"x-user": "jason"}"#, true),
        (r#"{"X-User": {"exact": "jason"}}"#, true),
        (r#"{"x-user": {"exact": "JASON"}}"#, false),
        (r#"{"x-user": {"exact": "JASON", "ignoreCase": true}}"#, true),
        (r#"{"x-user": {"prefix": "ja"}}"#, true),
        (r#"{"x-user": {"suffix": "on"}}"#, true),
        (r#"{"x-user": {"suffix": "xxxjason"}}"#, false),
        (r#"{"x-user": {"regex": "j.*n"}}"#, true),
        (r#"{"x-user": {"regex": "aso"}}"#, false),
        (r#"{"cookie": {"regex": "^(.*?;)? ?(user=x)(;.*)?$"}}"#, true),
        (r#"{"x-user": {}}"#, true),
        (r#"{"x-user": {"present": true}}"#, true),
        (r#"{"x-user": {"present": false}}"#, false),
        (r#"{"x-empty": {}}"#, true),
        (r#"{"x-empty": {"exact": ""}}"#, true),
        (r#"{"x-none": {}}"#, false),
        (r#"{"x-none": {"exact": ""}}"#, false),
        (r#"{"x-none": {"present": false}}"#, true),
        (r#"{"x-none": {"not": {}}}"#, true),
        (r#"{"x-none": {"not": {"exact": "a"}}}"#, true),
        (r#"{"x-user": {"not": {"exact": "jason"}}}"#, false),
        (r#"{"x-user": {"not": {"exact": "eve"}}}"#, true),
        // repeated: joined
        (r#"{"x-two": "1"}"#, false),
        (r#"{"x-two": "1,2"}"#, true),
        (r#"{"x-two": {"prefix": "1"}}"#, true),
        (r#"{"x-two": {"suffix": "2"}}"#, true),
        (r#"{"x-two": {"not": {"exact": "1"}}}"#, true),
        (r#"{"x-two": {"not": {"exact": "1,2"}}}"#, false),
        (r#"{"x-two": {}}"#, true),
        // not UTF-8: a regex cannot decide, whichever way round
        (r#"{"x-bytes": {"regex": ".*"}}"#, false),
        (r#"{"x-bytes": {"not": {"regex": "b.*"}}}"#, false),
        (r#"{"x-bytes": {"prefix": "a"}}"#, true),
        (r#"{"x-bytes": {}}"#, true),
        // all must hold
        (r#"{"x-user": "jason", "x-empty": {}}"#, true),
        (r#"{"x-user": "jason", "x-none": {}}"#, false),
    ] {
        let matcher = request(&format!(r#"{{"headers": {headers}}}"#));
        assert_eq!(matcher.matches(&view("a", "/", &fields)), expected, "{headers}");
    }
}

#[test]
fn queries() {
    let none = List::default();
    for (query, target, expected) in [
        (r#"{"q": "1"}"#, "/?q=1&q=2", true),
        (r#"{"q": "2"}"#, "/?q=1&q=2", false),
        (r#"{"q": {}}"#, "/?q", true),
        (r#"{"q": {}}"#, "/?q=", true),
        (r#"{"q": ""}"#, "/?q", true),
        (r#"{"q": {}}"#, "/?x=q", false),
        (r#"{"q": {}}"#, "/", false),
        (r#"{"q": {"present": false}}"#, "/", true),
        (r#"{"q": {"regex": "a+"}}"#, "/?x&q=aaa", true),
        (r#"{"q": {"regex": "a+"}}"#, "/?x&q=aaab", false),
        (r#"{"q": "a=b"}"#, "/?q=a=b", true),
        (r#"{"q": "%61"}"#, "/?q=%61", true),
        (r#"{"Q": {}}"#, "/?q=1", false),
        (r#"{"a": "1", "b": "2"}"#, "/?b=2&a=1", true),
        (r#"{"a": "1", "b": "2"}"#, "/?a=1", false),
    ] {
        let matcher = request(&format!(r#"{{"query": {query}}}"#));
        assert_eq!(matcher.matches(&view("a", target, &none)), expected, "{query} {target}");
    }
}

#[test]
fn methods_hosts_schemes_ports() {
    let none = List::default();
    for (matcher, expected) in [
        (r#"{}"#, true),
        (r#"{"method": "GET"}"#, true),
        (r#"{"method": "get"}"#, false),
        (r#"{"method": {"regex": "GET|HEAD"}}"#, true),
        (r#"{"method": {"regex": "GE"}}"#, false),
        (r#"{"host": "Reviews.Example.com:8080"}"#, true),
        (r#"{"host": "reviews"}"#, false),
        (r#"{"host": {"prefix": "REVIEWS."}}"#, true),
        (r#"{"host": {"suffix": ".example.com"}}"#, true),
        (r#"{"host": {"regex": "Reviews\\..*(:\\d+)?"}}"#, true),
        (r#"{"scheme": "http"}"#, true),
        (r#"{"scheme": "https"}"#, false),
        (r#"{"port": 80}"#, true),
        (r#"{"port": 81}"#, false),
        (r#"{"path": {"exact": "/a"}, "method": "GET", "host": "reviews.example.com", "port": 80}"#, true),
        (r#"{"path": {"exact": "/b"}, "method": "GET"}"#, false),
    ] {
        assert_eq!(request(matcher).matches(&view("reviews.example.com", "/a?b", &none)), expected, "{matcher}");
    }
}

#[test]
fn wrong_documents_say_what_would_be_right() {
    for (json, hint) in [
        (r#"{"path": "/a"}"#, "pathPrefix: /a"),
        (r#"{"path": {}}"#, "pathPrefix: /a"),
        (r#"{"path": {"exact": "a"}}"#, "starts with /"),
        (r#"{"path": {"exact": "/a?b"}}"#, "`query`"),
        (r#"{"path": {"exact": "/a", "prefix": "/b"}}"#, "one of exact"),
        (r#"{"path": {"regex": "("}}"#, "RE2"),
        (r#"{"path": {"regex": "a", "ignoreCase": true}}"#, "(?i)"),
        (r#"{"path": {"exact": "/%zz"}}"#, "hexadecimal"),
        (r#"{"path": {"prefx": "/a"}}"#, "did you mean prefix"),
        (r#"{"headers": {"host": "a"}}"#, "`host`"),
        (r#"{"headers": {":path": "a"}}"#, "`path`"),
        (r#"{"headers": {"a b": "a"}}"#, "letters"),
        (r#"{"headers": {"a": "1", "A": "2"}}"#, "twice"),
        (r#"{"headers": {"a": {"exakt": "1"}}}"#, "did you mean exact"),
        (r#"{"headers": {"a": {"not": {"not": {}}}}}"#, "unknown field"),
        (r#"{"headers": {"a": {"exact": "1", "not": {}}}}"#, "one condition"),
        (r#"{"method": {"present": false}}"#, "another condition"),
        (r#"{"headers": {"a": "1", "A": "2"}, "port": 1, "method": "GET"}"#, "twice"),
        (r#"{"query": {"": {}}}"#, "as it is written"),
        (r#"{"query": {"a=b": {}}}"#, "as it is written"),
        (r#"{"port": 0}"#, "1 to 65535"),
        (r#"{"hosts": "a"}"#, "did you mean host"),
        (r#""x""#, "a map"),
    ] {
        let errors = read(RequestMatch::read, json).expect_err(json);
        assert!(errors.iter().any(|e| e.contains(hint)), "{json}: {errors:?}");
        // One mistake does not make known fields unknown.
        assert!(errors.len() == 1 || hint.starts_with("did you mean"), "{json}: {errors:?}");
    }
    for (json, canonical) in
        [(r#"{"exact": "/a/../b"}"#, "/b"), (r#"{"prefix": "/%61"}"#, "/a"), (r#"{"pathPrefix": "/{x}"}"#, "/%7Bx%7D")]
    {
        assert!(warnings(PathMatch::read, json).iter().any(|w| w.contains(canonical)), "{json}");
    }
    assert!(warnings(PathMatch::read, r#"{"prefix": "/."}"#).is_empty());
    assert!(
        warnings(PathMatch::read, r#"{"prefix": "/a%2"}"#).is_empty()
            && read(PathMatch::read, r#"{"prefix": "/a%2"}"#).is_err()
    );
}

/// A matcher and its opposite: exactly one matches what can be decided, neither what cannot.
#[test]
fn what_cannot_be_decided_does_not_match() {
    const BYTES: [u8; 7] = [b'a', b'b', b'c', b',', 0xff, 0xc3, 0xa4];
    let matchers = [
        StringMatch::exact("ab"),
        StringMatch::Prefix(Text::new("a")),
        StringMatch::Suffix(Text { text: "B".into(), ignore_case: true }),
        StringMatch::Regex(Pattern::parse("a.*b|[^a].*").unwrap()),
        StringMatch::Present,
    ];
    let mut random = Xorshift(0xdeed);
    let mut undecided = 0;
    for _ in 0..20_000 {
        let mut bytes = || (0..random.below(4)).map(|_| BYTES[random.below(BYTES.len())]).collect::<Vec<u8>>();
        let values = [bytes(), bytes(), bytes()];
        let fields = List(values[..random.below(3) + 1].iter().map(|v| ("x".to_string(), v.clone())).collect());
        let mut buffer = Vec::new();
        let utf8 = std::str::from_utf8(fields.joined("x", &mut buffer).unwrap()).is_ok();
        for value in &matchers {
            let of = |invert| FieldMatch { name: "x".into(), value: value.clone(), invert }.matches_field(&fields);
            let decidable = utf8 || !matches!(value, StringMatch::Regex(_));
            let expected = if decidable { 1 } else { 0 };
            assert_eq!(i32::from(of(true)) + i32::from(of(false)), expected, "{value:?} {fields:?}");
            undecided += usize::from(!decidable);
        }
    }
    assert!(undecided > 1000);
}

#[test]
fn the_first_condition_that_does_not_hold_is_told() {
    let fields = List::of(&[("x-user", "anna")]);
    let at = view("web", "/api/x?v=1", &fields);
    for (json, told) in [
        (r#"{"path": {"pathPrefix": "/api"}, "headers": {"x-user": "anna"}, "query": {"v": "1"}}"#, ""),
        (r#"{"path": {"exact": "/api"}, "method": "PUT"}"#, r#"is "/api""#),
        (r#"{"path": {"regex": "/[ab]"}}"#, "matches the regex /[ab]"),
        (r#"{"method": {"regex": "PUT|POST"}}"#, "matches the regex PUT|POST"),
        (r#"{"host": {"suffix": ".test"}}"#, r#"ends with ".test""#),
        (r#"{"headers": {"x-user": {"not": {"prefix": "an"}}}}"#, r#"x-user not: begins with "an""#),
        (r#"{"query": {"v": {"present": false}}}"#, "v not: is there"),
        (r#"{"port": 81}"#, "81"),
    ] {
        let request = request(json);
        let miss = request.miss(&at).map_or(String::new(), |miss| match miss {
            Miss::Path(m) => m.to_string(),
            Miss::Method(m) | Miss::Host(m) | Miss::Scheme(m) => m.to_string(),
            Miss::Header(m) | Miss::Query(m) => m.to_string(),
            Miss::Port(port) => port.to_string(),
        });
        assert_eq!((miss.as_str(), request.matches(&at)), (told, told.is_empty()), "{json}");
    }
}
