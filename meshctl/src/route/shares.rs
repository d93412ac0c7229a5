//! Shares of requests as somebody types them, and as they are written down.

use std::str::FromStr;

const MAX_WEIGHT: u32 = 1_000_000;

/// `v1=90`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub name: String,
    pub weight: u32,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        const HINT: &str = "NAME=WEIGHT, as in v1=90";
        let (name, weight) = typed.split_once('=').ok_or(HINT)?;
        let weight: u32 = weight.trim_end_matches('%').parse().map_err(|_| HINT)?;
        if name.is_empty() || weight > MAX_WEIGHT {
            return Err(format!("{HINT}, with a weight of at most {MAX_WEIGHT}"));
        }
        Ok(Self { name: name.into(), weight })
    }
}

/// The weights to be written where those before added up to `before`: to the same sum, if that can be. A file whose weights are
/// of a thousand keeps them so, whether 90 and 10 is typed or 900 and 100.
pub fn scaled(before: u64, shares: &[Share]) -> Vec<u64> {
    let total: u64 = shares.iter().map(|s| u64::from(s.weight)).sum();
    let exact = |s: &Share| before > 0 && total > 0 && (u64::from(s.weight) * before).is_multiple_of(total);
    match shares.iter().all(exact) {
        true => shares.iter().map(|s| u64::from(s.weight) * before / total).collect(),
        false => shares.iter().map(|s| u64::from(s.weight)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(text: &str) -> Vec<Share> {
        text.split(' ').map(|s| s.parse().unwrap()).collect()
    }

    #[test]
    fn the_sum_stays() {
        assert_eq!(scaled(1000, &shares("a=90 b=10")), [900, 100]);
        assert_eq!(scaled(100, &shares("a=1 b=1")), [50, 50]);
        assert_eq!(scaled(100, &shares("a=1 b=2")), [1, 2], "no thirds of a hundred");
        assert_eq!(scaled(0, &shares("a=90 b=10")), [90, 10]);
        assert_eq!(scaled(1000, &shares("a=0 b=7")), [0, 1000]);
        for wrong in ["a", "=1", "a=", "a=x", "a=-1", "a=1.5", "a=2000000"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
        assert_eq!("a=90%".parse::<Share>().unwrap().weight, 90);
    }
}
