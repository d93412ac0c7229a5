//! Trace context: read from a request, passed on to every attempt.
//!
//! W3C `traceparent` wins over B3, single or multi. What cannot be read starts a new trace, and the old headers are
//! replaced, so no hop ever forwards a context that the next one would read differently. A parent's sampling decision
//! stands; only roots are drawn. `tracestate` travels untouched while its `traceparent` is good.

use crate::http::exchange::FieldMap;
use crate::http::fields::Fields;
use http::{HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Longer ones are dropped rather than put into spans.
const STATE_BYTES: usize = 512;

/// Which B3 headers the request came with; these are written again on the way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct B3Form {
    pub single: bool,
    pub multi: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub trace_id: [u8; 16],
    /// This proxy's server span.
    pub span_id: [u8; 8],
    pub parent: Option<[u8; 8]>,
    pub sampled: bool,
    /// For spans; requests carry the header itself.
    pub state: Option<HeaderValue>,
    b3: B3Form,
    /// The request's `tracestate` belongs to a context that was not taken over.
    stale_state: bool,
}

struct Context {
    trace_id: [u8; 16],
    parent: [u8; 8],
    /// `None`: left to us.
    sampled: Option<bool>,
}

impl Trace {
    pub fn start(fields: &FieldMap, mut random: impl FnMut() -> u64, sampling_per_10k: u32) -> Self {
        let map = &fields.0;
        let w3c = once(map, &TRACEPARENT).and_then(|v| parse_w3c(v.as_bytes()));
        let b3 =
            B3Form { single: map.contains_key(B3), multi: map.contains_key(B3_TRACE) || map.contains_key(B3_SAMPLED) };
        let (from_w3c, mut told) = (w3c.is_some(), None);
        let context = w3c.or_else(|| {
            let (context, sampled) = if b3.single {
                once(map, &B3).map_or((None, None), |v| parse_b3(v.as_bytes()))
            } else if b3.multi {
                read_b3_multi(map)
            } else {
                (None, None)
            };
            told = sampled;
            context
        });
        let mut draw =
            || told.unwrap_or_else(|| sampling_per_10k > 0 && random() % 10_000 < u64::from(sampling_per_10k));
        let (context, sampled) = match context {
            Some(c) => {
                let sampled = c.sampled.unwrap_or_else(&mut draw);
                (Some(c), sampled)
            }
            None => (None, draw()),
        };
        let span_id = (random() | 1).to_be_bytes();
        let (trace_id, parent) = match context {
            Some(c) => (c.trace_id, Some(c.parent)),
            None => (((u128::from(random()) << 64) | u128::from(random()) | 1).to_be_bytes(), None),
        };
        let state =
            (sampled && from_w3c).then(|| map.get(TRACESTATE)).flatten().filter(|s| s.len() <= STATE_BYTES).cloned();
        Self { trace_id, span_id, parent, sampled, state, b3, stale_state: !from_w3c }
    }

    /// Writes the context of one attempt, whose client span is `span`. B3 headers are written again if the request
    /// came with them and `b3` is on.
    pub fn inject(&self, fields: &mut FieldMap, span: [u8; 8], b3: bool) {
        let map = &mut fields.0;
        let mut text = [0u8; 55];
        text[..3].copy_from_slice(b"00-");
        hex(&self.trace_id, &mut text[3..35]);
        text[35] = b'-';
        hex(&span, &mut text[36..52]);
        text[52..].copy_from_slice(if self.sampled { b"-01" } else { b"-00" });
        put(map, TRACEPARENT, &text);
        if self.stale_state {
            map.remove(TRACESTATE);
        }
        if !b3 {
            return;
        }
        let parent = &self.span_id;
        if self.b3.single {
            // {trace}-{span}-{sampled}-{parent}
            let mut text = [b'-'; 32 + 1 + 16 + 1 + 1 + 1 + 16];
            hex(&self.trace_id, &mut text[..32]);
            hex(&span, &mut text[33..49]);
            text[50] = if self.sampled { b'1' } else { b'0' };
            hex(parent, &mut text[52..]);
            put(map, B3, &text);
        }
        if self.b3.multi {
            let mut id = [0u8; 32];
            hex(&self.trace_id, &mut id);
            put(map, B3_TRACE, &id);
            hex(&span, &mut id[..16]);
            put(map, B3_SPAN, &id[..16]);
            hex(parent, &mut id[..16]);
            put(map, B3_PARENT, &id[..16]);
            map.insert(B3_SAMPLED, HeaderValue::from_static(if self.sampled { "1" } else { "0" }));
            map.remove(B3_FLAGS);
        }
    }

    pub fn trace_id_hex(&self) -> String {
        let mut text = [0u8; 32];
        hex(&self.trace_id, &mut text);
        text.iter().map(|b| char::from(*b)).collect()
    }
}

fn put(map: &mut Fields, name: HeaderName, value: &[u8]) {
    if let Ok(mut value) = HeaderValue::from_bytes(value) {
        // New for every request: HPACK's table is better kept for what comes again.
        value.set_sensitive(true);
        map.insert(name, value);
    }
}

/// The only value of a header; two are as bad as none.
fn once<'m>(map: &'m Fields, name: &HeaderName) -> Option<&'m HeaderValue> {
    let mut all = map.get_all(name);
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

fn parse_w3c(text: &[u8]) -> Option<Context> {
    let (head, rest) = text.split_at_checked(55)?;
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    let mut version = [0u8; 1];
    let mut flags = [0u8; 1];
    unhex(&head[..2], &mut version, false)?;
    unhex(&head[53..55], &mut flags, false)?;
    // A later version may append fields.
    let rest_ok = rest.is_empty() || (version[0] > 0 && rest[0] == b'-');
    if !dashes || version[0] == 0xff || !rest_ok {
        return None;
    }
    let (trace_id, parent) = ids(&head[3..35], &head[36..52], false)?;
    Some(Context { trace_id, parent, sampled: Some(flags[0] & 1 == 1) })
}

fn b3_decision(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"d" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

/// `{trace}-{span}[-{sampled}[-{parent}]]`, or a decision alone.
fn parse_b3(text: &[u8]) -> (Option<Context>, Option<bool>) {
    if text.len() <= 1 {
        return (None, b3_decision(text));
    }
    let mut parts = text.split(|b| *b == b'-');
    let (Some(trace), Some(span)) = (parts.next(), parts.next()) else { return (None, None) };
    let decision = match parts.next() {
        None => None,
        Some(word) => match b3_decision(word) {
            None => return (None, None),
            some => some,
        },
    };
    let parent_ok = parts.next().is_none_or(|p| unhex(p, &mut [0u8; 8], true).is_some());
    if !parent_ok || parts.next().is_some() {
        return (None, None);
    }
    let context = ids(trace, span, true).map(|(trace_id, parent)| Context { trace_id, parent, sampled: decision });
    (context, None)
}

fn read_b3_multi(map: &Fields) -> (Option<Context>, Option<bool>) {
    let debug = map.get(B3_FLAGS).is_some_and(|v| v == "1");
    let decision = if debug { Some(true) } else { once(map, &B3_SAMPLED).and_then(|v| b3_decision(v.as_bytes())) };
    match (map.contains_key(B3_TRACE), once(map, &B3_TRACE), once(map, &B3_SPAN)) {
        (true, Some(trace), Some(span)) => {
            let ids = ids(trace.as_bytes(), span.as_bytes(), true);
            (ids.map(|(trace_id, parent)| Context { trace_id, parent, sampled: decision }), None)
        }
        (true, _, _) => (None, None),
        (false, _, _) => (None, decision),
    }
}

/// B3 trace ids may have 64 bits, and its hex may be upper case.
fn ids(trace: &[u8], span: &[u8], b3: bool) -> Option<([u8; 16], [u8; 8])> {
    let (mut trace_id, mut span_id) = ([0u8; 16], [0u8; 8]);
    let into = if b3 && trace.len() == 16 { &mut trace_id[8..] } else { &mut trace_id[..] };
    unhex(trace, into, b3)?;
    unhex(span, &mut span_id, b3)?;
    (trace_id != [0; 16] && span_id != [0; 8]).then_some((trace_id, span_id))
}

fn unhex(text: &[u8], out: &mut [u8], upper: bool) -> Option<()> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' if upper => Some(b - b'A' + 10),
        _ => None,
    };
    if text.len() != out.len() * 2 {
        return None;
    }
    for (pair, byte) in text.chunks_exact(2).zip(out) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

fn hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&'static str, &str)]) -> FieldMap {
        let mut fields = FieldMap::default();
        for (name, value) in list {
            fields.0.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        fields
    }

    fn start(list: &[(&'static str, &str)], per_10k: u32) -> Trace {
        let mut n = 0x1111_2222_3333_4444u64;
        let random = move || {
            n = n.wrapping_mul(6364136223846793005).wrapping_add(1);
            n
        };
        Trace::start(&fields(list), random, per_10k)
    }

    const T: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const S: &str = "00f067aa0ba902b7";

    #[test]
    fn taken_over() {
        let w3c = format!("00-{T}-{S}-01");
        let later = format!("01-{T}-{S}-03-what");
        let b3 = format!("{T}-{S}-1");
        let b3_parent = format!("{T}-{S}-d-{S}");
        let off = format!("00-{T}-{S}-00");
        let upper = (T.to_uppercase(), S.to_uppercase());
        let cases: &[(&[(&'static str, &str)], bool)] = &[
            (&[("traceparent", &w3c)], true),
            (&[("traceparent", &later)], true),
            (&[("traceparent", &off)], false),
            (&[("traceparent", &off), ("b3", "a-b-1")], false),
            (&[("b3", &b3)], true),
            (&[("b3", &b3_parent)], true),
            (&[("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-sampled", "1")], true),
            (&[("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-flags", "1")], true),
            (&[("x-b3-traceid", &upper.0), ("x-b3-spanid", &upper.1), ("x-b3-sampled", "0")], false),
            (&[("x-b3-traceid", T), ("x-b3-spanid", S)], false),
        ];
        for (headers, sampled) in cases {
            let trace = start(headers, 0);
            assert_eq!(trace.trace_id_hex(), T, "{headers:?}");
            assert_eq!(trace.parent, Some([0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]), "{headers:?}");
            assert_eq!(trace.sampled, *sampled, "{headers:?}");
            assert_ne!(trace.span_id, [0; 8]);
        }
        // 64-bit B3 ids; a parent without a decision is ours to draw.
        let trace = start(&[("x-b3-traceid", S), ("x-b3-spanid", S)], 10_000);
        assert!(trace.sampled);
        assert!(trace.trace_id_hex().ends_with(S) && trace.trace_id_hex().starts_with("0000"));
    }

    #[test]
    fn malformed_starts_anew() {
        let zero = format!("00-{}-{S}-01", "0".repeat(32));
        let cases = [
            String::new(),
            "x".into(),
            format!("ff-{T}-{S}-01"),
            format!("00-{T}-{S}-01-more"),
            format!("00-{}-{S}-01", T.to_uppercase()),
            format!("00-{T}-{}-01", "0".repeat(16)),
            zero,
            format!("00-{T}-{S}-0"),
            format!("00_{T}-{S}-01"),
            format!("00-{T}-{S}-zz"),
            "\u{e9}".repeat(60),
        ];
        for bad in &cases {
            let trace = start(&[("traceparent", bad), ("tracestate", "a=b")], 0);
            assert_eq!(trace.parent, None, "{bad:?}");
            assert_ne!(trace.trace_id_hex(), T);
            let mut out = fields(&[("traceparent", bad), ("tracestate", "a=b")]);
            trace.inject(&mut out, [1; 8], true);
            assert_eq!(
                *out.0.get("traceparent").unwrap(),
                format!("00-{}-0101010101010101-00", trace.trace_id_hex()).as_str()
            );
            assert!(!out.0.contains_key("tracestate"));
        }
        let twice = format!("00-{T}-{S}-01");
        assert_eq!(start(&[("traceparent", &twice), ("traceparent", &twice)], 0).parent, None);
        for bad in ["", "2", "a-b", &format!("{T}-{S}-x"), &format!("{T}-{S}-1-q"), &format!("{T}-{S}-1-{S}-1"), T] {
            assert_eq!(start(&[("b3", bad)], 0).parent, None, "{bad:?}");
        }
        assert_eq!(start(&[("x-b3-traceid", T)], 0).parent, None);
        // A decision alone: a new root that obeys it.
        assert!(start(&[("b3", "1")], 0).sampled);
        assert!(!start(&[("b3", "0")], 10_000).sampled);
        assert!(!start(&[("x-b3-sampled", "0")], 10_000).sampled);
    }

    #[test]
    fn passed_on() {
        let w3c = format!("00-{T}-{S}-01");
        let headers: &[(&'static str, &str)] = &[("traceparent", &w3c), ("tracestate", "a=b"), ("b3", "bad")];
        let trace = start(headers, 0);
        assert_eq!(trace.state.as_ref().unwrap(), "a=b");
        let mut out = fields(headers);
        trace.inject(&mut out, [0xab; 8], true);
        assert_eq!(*out.0.get("traceparent").unwrap(), format!("00-{T}-abababababababab-01").as_str());
        assert_eq!(*out.0.get("tracestate").unwrap(), "a=b");
        let mut own = [0u8; 16];
        hex(&trace.span_id, &mut own);
        let own = String::from_utf8(own.to_vec()).unwrap();
        assert_eq!(*out.0.get("b3").unwrap(), format!("{T}-abababababababab-1-{own}").as_str());

        let headers: &[(&'static str, &str)] = &[("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-flags", "1")];
        let mut out = fields(headers);
        start(headers, 0).inject(&mut out, [0xab; 8], true);
        assert_eq!(*out.0.get("x-b3-traceid").unwrap(), T);
        assert_eq!(*out.0.get("x-b3-spanid").unwrap(), "abababababababab");
        assert_eq!(*out.0.get("x-b3-sampled").unwrap(), "1");
        assert!(!out.0.contains_key("x-b3-flags") && !out.0.contains_key("b3"));
        assert_eq!(*out.0.get("traceparent").unwrap(), format!("00-{T}-abababababababab-01").as_str());

        // Without B3 in the request there is none in what is sent.
        let mut out = fields(&[]);
        start(&[], 0).inject(&mut out, [1; 8], true);
        assert_eq!(out.0.len(), 1);
    }

    #[test]
    fn roots_are_drawn() {
        let mut n = 0u64;
        let sampled = (0..100_000)
            .filter(|_| {
                let random = || {
                    n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 7
                };
                Trace::start(&FieldMap::default(), random, 100).sampled
            })
            .count();
        assert!((700..1300).contains(&sampled), "{sampled} of 100000 at 1 %");
    }
}
