//! Values of annotations, each parsed to what it means and written anew: what comes out has none of the text that went in.

use ipnet::IpNet;
use std::net::IpAddr;

/// Longer values are no settings.
pub const MAX_VALUE: usize = 4096;
/// Three dialects may each have a list, and `weft-proxy redirect` takes 200 in one.
const MAX_PARTS: usize = 60;

/// `80,443,8000-8010`, checked and in one notation.
pub fn ports(value: &str) -> Result<Vec<String>, String> {
    let right = "ports and ranges, such as 80,8000-8010";
    parts(value, right)?
        .map(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| digits(text.trim()).and_then(|t| t.parse::<u16>().ok()).filter(|p| *p > 0);
            match (number(low), number(high)) {
                (Some(low), Some(high)) if low == high => Ok(low.to_string()),
                (Some(low), Some(high)) if low < high => Ok(format!("{low}-{high}")),
                _ => Err(right.to_string()),
            }
        })
        .collect()
}

/// `10.0.0.0/8,192.168.1.1`; bits behind the prefix are dropped.
pub fn cidrs(value: &str) -> Result<Vec<String>, String> {
    let right = "addresses and networks, such as 10.0.0.0/8,192.168.1.1";
    parts(value, right)?
        .map(|part| {
            let net = part.parse::<IpNet>().ok().or_else(|| part.parse::<IpAddr>().ok().map(IpNet::from));
            net.map(|net| net.trunc().to_string()).ok_or_else(|| right.to_string())
        })
        .collect()
}

/// A list, or `*` for all and nothing for none.
pub fn which(value: &str, list: fn(&str) -> Result<Vec<String>, String>) -> Result<Vec<String>, String> {
    match value.trim() {
        "" => Ok(Vec::new()),
        "*" => Ok(vec!["*".into()]),
        value => list(value).map_err(|right| format!("{right}, or *")),
    }
}

/// User ids; 0 would be most of what there is.
pub fn uids(value: &str) -> Result<Vec<String>, String> {
    let right = "user ids, such as 1001,1002";
    let id = |part: &str| digits(part).and_then(|t| t.parse::<u32>().ok()).filter(|n| (1..u32::MAX).contains(n));
    parts(value, right)?.map(|part| id(part).map(|n| n.to_string()).ok_or_else(|| right.to_string())).collect()
}

fn parts<'v>(value: &'v str, right: &str) -> Result<impl Iterator<Item = &'v str>, String> {
    if value.split(',').count() > MAX_PARTS {
        return Err(format!("at most {MAX_PARTS} {right}"));
    }
    Ok(value.split(',').map(str::trim))
}

/// As people write numbers: no sign, no leading zero.
fn digits(text: &str) -> Option<&str> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (plain && (text == "0" || !text.starts_with('0'))).then_some(text)
}

pub fn number(value: &str, from: u32, to: u32) -> Result<u32, String> {
    let found = digits(value).and_then(|t| t.parse().ok()).filter(|n| (from..=to).contains(n));
    found.ok_or_else(|| format!("a number from {from} to {to}"))
}

pub fn yes_or_no(value: &str) -> Result<bool, String> {
    match value {
        "true" | "enabled" => Ok(true),
        "false" | "disabled" => Ok(false),
        _ => Err("true or false".into()),
    }
}

/// In whole seconds, rounded up.
pub fn seconds(value: &str) -> Result<u32, String> {
    let right = || "a duration up to an hour, such as 30s".to_string();
    let number = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let millis: u64 = match &value[number.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(right()),
    };
    let count = digits(number).and_then(|t| t.parse::<u32>().ok()).ok_or_else(right)?;
    let seconds = (u64::from(count) * millis).div_ceil(1_000);
    u32::try_from(seconds).ok().filter(|s| *s <= 3_600).ok_or_else(right)
}

/// A level of ours for a word of Envoy's or Linkerd's.
pub fn level(value: &str) -> Result<String, String> {
    Ok(match value {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "critical" | "off" => "error",
        _ => return Err("trace, debug, info, warn or error".into()),
    }
    .into())
}

/// Of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Cpu,
    Bytes,
}

const NANO: u128 = 1_000_000_000;

/// A quantity that a sidecar can have, in Kubernetes' notation.
pub fn quantity(value: &str, of: Amount) -> Result<String, String> {
    let (least, most, right) = match of {
        Amount::Cpu => (NANO / 1000, 1024 * NANO, "cores from 1m to 1024, such as 100m"),
        Amount::Bytes => ((8 * NANO) << 20, NANO << 40, "bytes from 8Mi to 1Ti, such as 64Mi"),
    };
    let found = nanos(value).filter(|n| (least..=most).contains(n));
    found.map(|_| value.to_string()).ok_or_else(|| right.to_string())
}

/// In billionths, so that all notations compare. What has more digits than anybody writes is none.
pub fn nanos(value: &str) -> Option<u128> {
    const UNITS: [(&str, u128); 15] = [
        ("n", 1),
        ("u", 1_000),
        ("m", 1_000_000),
        ("", NANO),
        ("k", 1_000 * NANO),
        ("M", 1_000_000 * NANO),
        ("G", NANO * NANO),
        ("T", 1_000 * NANO * NANO),
        ("P", 1_000_000 * NANO * NANO),
        ("Ki", NANO << 10),
        ("Mi", NANO << 20),
        ("Gi", NANO << 30),
        ("Ti", NANO << 40),
        ("Pi", NANO << 50),
        ("Ei", NANO << 60),
    ];
    let number = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == &value[number.len()..])?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let part_digits = part.bytes().all(|b| b.is_ascii_digit()) && (1..=6).contains(&part.len());
    if whole.len() > 12 || !part_digits {
        return None;
    }
    let whole = digits(whole)?.parse::<u128>().ok()?.checked_mul(*unit)?;
    let part = part.parse::<u128>().ok()?.checked_mul(*unit)? / 10u128.pow(part.len() as u32);
    whole.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(ports("80, 443,8000-8010,9-9"), Ok(["80", "443", "8000-8010", "9"].map(String::from).into()));
        for bad in ["", "*", "0", "65536", "80,", "9-8", "-1", "+1", "80;reboot", "$(id)", "080", "1-2-3", "80\n81"] {
            assert!(ports(bad).is_err(), "{bad:?}");
        }
        assert!(ports(&vec!["80"; 61].join(",")).is_err());
        let found = cidrs("10.1.2.3/8, 192.168.1.1,fd00::/8");
        assert_eq!(found, Ok(["10.0.0.0/8", "192.168.1.1/32", "fd00::/8"].map(String::from).into()));
        for bad in ["", "*", "10.0.0.0/33", "10.0.0.256", "10.0.0.0/8 -j ACCEPT", "example.com"] {
            assert!(cidrs(bad).is_err(), "{bad:?}");
        }
        assert_eq!(uids("1001,2"), Ok(vec!["1001".into(), "2".into()]));
        for bad in ["", "0", "root", "-1", "4294967295", "4294967296"] {
            assert!(uids(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn quantities() {
        for (text, of) in [
            ("100m", Amount::Cpu),
            ("2", Amount::Cpu),
            ("0.5", Amount::Cpu),
            ("1024", Amount::Cpu),
            ("64Mi", Amount::Bytes),
            ("1.5Gi", Amount::Bytes),
            ("128M", Amount::Bytes),
            ("16777216", Amount::Bytes),
        ] {
            assert_eq!(quantity(text, of).as_deref(), Ok(text));
        }
        for (text, of) in [
            ("0", Amount::Cpu),
            ("-1", Amount::Cpu),
            ("1e3", Amount::Cpu),
            ("100x", Amount::Cpu),
            ("1000000", Amount::Cpu),
            ("NaN", Amount::Cpu),
            ("1.", Amount::Cpu),
            ("", Amount::Cpu),
            ("64", Amount::Bytes),
            ("5Ti", Amount::Bytes),
            ("99999999999999999999Ei", Amount::Bytes),
            ("64Mi; rm -rf /", Amount::Bytes),
            ("\u{0661}\u{0660}\u{0660}m", Amount::Cpu),
        ] {
            assert!(quantity(text, of).is_err(), "{text:?}");
        }
        assert!(nanos("0.5") < nanos("501m") && nanos("1Gi") > nanos("1G"));
    }

    #[test]
    fn times_numbers_and_words() {
        for (text, is) in [("5s", 5), ("1500ms", 2), ("2m", 120), ("1h", 3600), ("0s", 0)] {
            assert_eq!(seconds(text), Ok(is), "{text}");
        }
        for bad in ["", "5", "s", "-5s", "1.5s", "2h", "99999999999h", "5s5s", "5 s"] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
        assert_eq!(number("12", 1, 20), Ok(12));
        assert!(number("21", 1, 20).is_err() && number("0x1", 0, 20).is_err());
        assert_eq!(level("warning").as_deref(), Ok("warn"));
        assert!(level("info,weft=trace").is_err());
        assert!(yes_or_no("yes please").is_err());
    }
}
