//! Kubernetes quantities, which some dialects have as weights: `900m`, `1`, `0.5`, `2k`.

/// In thousandths.
pub fn thousandths(text: &str) -> Option<u64> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &text[number.len()..] {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if number.is_empty() || number == "." || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    let part = if fraction.is_empty() { 0 } else { fraction.parse::<u64>().ok()? };
    let part = part.checked_mul(factor)? / 10u64.pow(fraction.len() as u32);
    whole.checked_mul(factor)?.checked_add(part)
}

/// Quantities as weights of one kind: whole numbers as they are, and all in thousandths where one of them has a part.
pub fn weights(quantities: &[u64]) -> Option<Vec<u32>> {
    let scale = if quantities.iter().all(|q| q % 1_000 == 0) { 1_000 } else { 1 };
    quantities.iter().map(|q| u32::try_from(q / scale).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, is) in [("900m", 900), ("1", 1_000), ("0.5", 500), (".25", 250), ("2k", 2_000_000), ("0", 0)] {
            assert_eq!(thousandths(text), Some(is), "{text}");
        }
        for bad in ["", "m", ".", "-1", "1e3", "1Gi", "1.2.3", "99999999999999999999", "18446744073709551615k"] {
            assert_eq!(thousandths(bad), None, "{bad}");
        }
        assert_eq!(weights(&[900, 100]), Some(vec![900, 100]));
        assert_eq!(weights(&[90_000, 10_000]), Some(vec![90, 10]));
        assert_eq!(weights(&[u64::MAX]), None);
    }
}
