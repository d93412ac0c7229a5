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
