//! The canonical path of a request: decided once, then used by routing, policies, metrics and for forwarding, so that no two
//! of them can read a path differently.
//!
//! It is Istio's forwarding form: dot segments are resolved (also when written `%2e`), escaped unreserved characters are
//! decoded, `\` is `/`, bytes that must not stand in a path are escaped. Kept as they came: `%2f` and every other escape
//! (with the case of its digits), `//`, path parameters (`;x=y`). A NUL, control bytes, blanks and escapes that are none are
//! refused; a fragment is dropped. Canonical paths are fixed points, and a path that is one already costs no allocation.

use std::borrow::Cow;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("a path starts with /")]
    NotAbsolute,
    #[error("a path has no blanks and no control characters")]
    Byte,
    #[error("% is followed by two hexadecimal digits")]
    Escape,
    #[error("%00 is not allowed in a path")]
    Nul,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    pub path: Cow<'a, str>,
    /// As it came, without `?`.
    pub query: Option<&'a str>,
}

/// Reads a request target in origin form (`/path?query`) or asterisk form.
pub fn parse(target: &str) -> Result<Target<'_>, PathError> {
    let target = target.split_once('#').map_or(target, |(before, _)| before);
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if query.is_some_and(|q| q.bytes().any(|b| b <= b' ' || b == 0x7f)) {
        return Err(PathError::Byte);
    }
    Ok(Target { path: canonical(path)?, query })
}

/// The canonical form of a path that has neither query nor fragment.
pub fn canonical(path: &str) -> Result<Cow<'_, str>, PathError> {
    match path {
        "" => return Ok(Cow::Borrowed("/")),
        "*" => return Ok(Cow::Borrowed(path)),
        _ if !matches!(path.as_bytes()[0], b'/' | b'\\') => return Err(PathError::NotAbsolute),
        _ => {}
    }
    if is_canonical(path.as_bytes())? {
        return Ok(Cow::Borrowed(path));
    }
    Ok(Cow::Owned(resolve_dots(&decode(path))))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Plain,
    Dot,
    Percent,
    Backslash,
    /// Must be written as an escape.
    Escape,
    Refused,
}

const CLASS: [Class; 256] = {
    let mut table = [Class::Plain; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = match i as u8 {
            0..=b' ' | 0x7f => Class::Refused,
            b'.' => Class::Dot,
            b'%' => Class::Percent,
            b'\\' => Class::Backslash,
            b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'?' | b'#' | 0x80.. => Class::Escape,
            _ => Class::Plain,
        };
        i += 1;
    }
    table
};

/// Whether nothing has to change; also finds everything that is refused.
fn is_canonical(path: &[u8]) -> Result<bool, PathError> {
    let mut clean = true;
    for (i, &byte) in path.iter().enumerate() {
        match CLASS[usize::from(byte)] {
            Class::Plain => {}
            Class::Dot => clean &= !(i > 0 && path[i - 1] == b'/' && starts_with_dot_segment(&path[i..])),
            Class::Percent => match escaped(&path[i..]) {
                None => return Err(PathError::Escape),
                Some(0) => return Err(PathError::Nul),
                Some(byte) => clean &= !is_unreserved(byte),
            },
            Class::Backslash | Class::Escape => clean = false,
            Class::Refused => return Err(PathError::Byte),
        }
    }
    Ok(clean)
}

fn starts_with_dot_segment(path: &[u8]) -> bool {
    let end = path.iter().position(|&b| b == b'/').unwrap_or(path.len());
    matches!(&path[..end], b"." | b"..")
}

/// The byte that an escape at the start of `text` stands for.
fn escaped(text: &[u8]) -> Option<u8> {
    let digit = |at: usize| text.get(at).and_then(|b| char::from(*b).to_digit(16));
    Some((digit(1)? * 16 + digit(2)?) as u8)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len() + 16);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match CLASS[usize::from(byte)] {
            Class::Percent => match escaped(&bytes[at..]).filter(|b| is_unreserved(*b)) {
                Some(byte) => {
                    out.push(char::from(byte));
                    at += 2;
                }
                None => out.push('%'),
            },
            Class::Backslash => out.push('/'),
            Class::Escape => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
            _ => out.push(char::from(byte)),
        }
        at += 1;
    }
    out
}

fn resolve_dots(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." => {}
            ".." => out.truncate(out.rfind('/').unwrap_or(0)),
            _ => {
                out.push('/');
                out.push_str(segment);
                continue;
            }
        }
        if segments.peek().is_none() {
            out.push('/');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Xorshift;

    #[test]
    fn table() {
        let cases = [
            // clean
            ("/", "/"),
            ("", "/"),
            ("*", "*"),
            ("/a", "/a"),
            ("/a/b/", "/a/b/"),
            ("/a.b/.c/d./..e/f../...", "/a.b/.c/d./..e/f../..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a-b_c~d!$&'()*+,;=:@", "/a-b_c~d!$&'()*+,;=:@"),
            ("/A/b", "/A/b"),
            ("/a|b^c[d]", "/a|b^c[d]"),
            // dot segments
            ("/.", "/"),
            ("/./", "/"),
            ("/..", "/"),
            ("/../", "/"),
            ("/../../..", "/"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/b/../", "/a/"),
            ("/a/./b", "/a/b"),
            ("/./admin", "/admin"),
            ("/x/../admin", "/admin"),
            ("/a/b/../../c", "/c"),
            ("/a/../../b", "/b"),
            ("/../admin", "/admin"),
            ("/a/.../b", "/a/.../b"),
            ("/a/..b", "/a/..b"),
            // empty segments stay
            ("//", "//"),
            ("//admin", "//admin"),
            ("/a//b", "/a//b"),
            ("/a//../b", "/a/b"),
            ("/a/..//b", "//b"),
            ("//../a", "/a"),
            ("/a///", "/a///"),
            // unreserved characters are decoded
            ("/%61dmin", "/admin"),
            ("/%41", "/A"),
            ("/%7Ea", "/~a"),
            ("/%7ea", "/~a"),
            ("/%2D%5F%2E", "/-_."),
            ("/%30%39", "/09"),
            ("/%2e%2e/admin", "/admin"),
            ("/%2E%2E/admin", "/admin"),
            ("/a/%2e/b", "/a/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/%2e%2e", "/"),
            // other escapes stay, with their case
            ("/admin%2fx", "/admin%2fx"),
            ("/admin%2Fx", "/admin%2Fx"),
            ("/a%5cb", "/a%5cb"),
            ("/a%20b", "/a%20b"),
            ("/a%3fb", "/a%3fb"),
            ("/a%23b", "/a%23b"),
            ("/a%3Bb", "/a%3Bb"),
            ("/a%0ab", "/a%0ab"),
            ("/%e4%bd%a0", "/%e4%bd%a0"),
            ("/%252e%252e/a", "/%252e%252e/a"),
            ("/%25%32%65", "/%252e"),
            ("/..%2fadmin", "/..%2fadmin"),
            ("/%2e%2e%2fadmin", "/..%2fadmin"),
            // path parameters stay
            ("/a;x=y/b", "/a;x=y/b"),
            ("/;/admin", "/;/admin"),
            ("/a/..;x=y/b", "/a/..;x=y/b"),
            ("/a/..;/b", "/a/..;/b"),
            // backslashes
            ("/a\\b", "/a/b"),
            ("\\a", "/a"),
            ("/a\\..\\b", "/b"),
            ("/a/..\\b", "/b"),
            // escaped where it must not stand in a path
            ("/a\"b", "/a%22b"),
            ("/<a>", "/%3Ca%3E"),
            ("/{a}", "/%7Ba%7D"),
            ("/`", "/%60"),
            ("/ä", "/%C3%A4"),
            ("/你/../x", "/x"),
        ];
        assert!(cases.len() >= 60);
        for (path, expected) in cases {
            assert_eq!(canonical(path).as_deref(), Ok(expected), "{path}");
            assert_eq!(
                canonical(expected).map(|p| matches!(p, Cow::Borrowed(_))),
                Ok(true),
                "{path} is not a fixed point"
            );
        }
    }

    #[test]
    fn refused() {
        let cases = [
            ("a", PathError::NotAbsolute),
            ("http://x/", PathError::NotAbsolute),
            ("%2fa", PathError::NotAbsolute),
            (".", PathError::NotAbsolute),
            ("**", PathError::NotAbsolute),
            ("/ok%00admin", PathError::Nul),
            ("/%00", PathError::Nul),
            ("/%", PathError::Escape),
            ("/%2", PathError::Escape),
            ("/%zz", PathError::Escape),
            ("/%%35", PathError::Escape),
            ("/%2%35", PathError::Escape),
            ("/%+1", PathError::Escape),
            ("/%u0041", PathError::Escape),
            ("/a b", PathError::Byte),
            ("/a\tb", PathError::Byte),
            ("/a\r\nb", PathError::Byte),
            ("/a\0b", PathError::Byte),
            ("/a\u{7f}", PathError::Byte),
        ];
        for (path, expected) in cases {
            assert_eq!(canonical(path), Err(expected), "{path:?}");
        }
    }

    #[test]
    fn targets() {
        for (target, path, query) in [
            ("/a?b", "/a", Some("b")),
            ("/a?", "/a", Some("")),
            ("/a?b?c=/../", "/a", Some("b?c=/../")),
            ("/a#b?c", "/a", None),
            ("/a?b#c", "/a", Some("b")),
            ("?x=1", "/", Some("x=1")),
            ("/a/../b?x=%61", "/b", Some("x=%61")),
            ("*", "*", None),
        ] {
            assert_eq!(parse(target), Ok(Target { path: path.into(), query }), "{target}");
        }
        assert_eq!(parse("/a?b c"), Err(PathError::Byte));
        assert_eq!(parse("/a?b\n"), Err(PathError::Byte));
    }

    /// Whatever comes in, what comes out is a fixed point without dot segments, and clean paths borrow.
    #[test]
    fn canonical_paths_are_fixed_points() {
        const PARTS: [&str; 20] = [
            "/", "/", "/", ".", "..", "%2e", "%2E", "%2f", "\\", "a", "B", "%61", ";x=y", "%25", "%32", "{", "~", "ä",
            "%5c", "//",
        ];
        let mut random = Xorshift(0x5eed);
        for _ in 0..50_000 {
            let parts = random.below(12);
            let path = (0..parts).fold(String::from("/"), |path, _| path + PARTS[random.below(PARTS.len())]);
            let once = canonical(&path).unwrap();
            assert!(once.starts_with('/') && once.is_ascii() && !once.contains('\\'), "{path} {once}");
            assert!(once.split('/').all(|s| s != "." && s != ".."), "{path} {once}");
            assert_eq!(matches!(once, Cow::Borrowed(_)), once == path, "{path}");
            assert!(matches!(canonical(&once), Ok(Cow::Borrowed(_))), "{path} {once}");
        }
    }
}
