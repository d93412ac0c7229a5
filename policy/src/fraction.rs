//! A share of requests, exact to a millionth: `12.5` (percent) or `{numerator: 1, denominator: 8}`.

use crate::doc::{Cursor, Value};

const WHOLE: u32 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fraction(u32);

impl Fraction {
    pub const NEVER: Self = Self(0);
    pub const ALWAYS: Self = Self(WHOLE);

    pub fn percent(percent: f64) -> Self {
        Self((percent.clamp(0.0, 100.0) * f64::from(WHOLE / 100)).round() as u32)
    }

    pub fn of(numerator: u32, denominator: u32) -> Self {
        let parts = u64::from(numerator) * u64::from(WHOLE) / u64::from(denominator.max(1));
        Self(parts.min(WHOLE.into()) as u32)
    }

    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        if !matches!(c.node.value, Value::Map(_)) {
            return c.float(0.0, 100.0).map(Self::percent);
        }
        c.fields(|f| {
            let numerator = f.req("numerator", |c| c.u32());
            let denominator = f.or("denominator", 100, |c| c.int(1, u32::MAX.into()).map(|i| i as u32));
            let numerator = numerator?;
            if numerator > denominator {
                return f.fail(
                    "numerator",
                    "is more than the whole",
                    "at most the denominator, which is 100 unless given",
                );
            }
            Some(Self::of(numerator, denominator))
        })
    }

    pub fn as_percent(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE / 100)
    }

    /// Whether a request with this randomness is one of the share.
    pub fn takes(self, random: u64) -> bool {
        ((u128::from(random) * u128::from(WHOLE)) >> 64) < u128::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Xorshift, read};

    #[test]
    fn shares() {
        let mut random = Xorshift(7);
        for (fraction, expected) in [
            (Fraction::NEVER, 0),
            (Fraction::ALWAYS, 100_000),
            (Fraction::percent(50.0), 50_000),
            (Fraction::percent(0.1), 100),
            (Fraction::of(1, 3), 33_333),
        ] {
            let taken = (0..100_000).filter(|_| fraction.takes(random.next())).count() as i64;
            assert!(
                (taken - expected).abs() <= 700 * i64::from(expected > 0 && expected < 100_000),
                "{fraction:?} {taken}"
            );
        }
        assert!(Fraction::ALWAYS.takes(u64::MAX) && !Fraction::NEVER.takes(0));
    }

    #[test]
    fn reading() {
        assert_eq!(read(Fraction::read, "12.5"), Ok(Fraction::of(1, 8)));
        assert_eq!(read(Fraction::read, r#"{"numerator": 1, "denominator": 8}"#), Ok(Fraction::of(1, 8)));
        assert_eq!(read(Fraction::read, r#"{"numerator": 5}"#), Ok(Fraction::percent(5.0)));
        for bad in ["101", "-1", r#"{"numerator": 3, "denominator": 2}"#, r#"{"denominator": 2}"#, r#""x""#] {
            assert!(read(Fraction::read, bad).is_err(), "{bad}");
        }
    }
}
