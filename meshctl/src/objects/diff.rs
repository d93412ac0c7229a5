//! Two texts, and what of one is different in the other, as `diff -u` shows it.

use crate::terminal::{Tone, paint};
use std::fmt::Write as _;

/// Equal lines around a change.
const AROUND: usize = 3;
/// Beyond as many comparisons, what differs is shown as gone and come altogether.
const MAX_COMPARISONS: usize = 4_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Same,
    Gone,
    Come,
}

/// `None` for a file that is not there.
pub fn unified(name: &str, before: Option<&str>, after: Option<&str>, coloured: bool) -> String {
    if before == after {
        return String::new();
    }
    let side = |text: Option<&str>| if text.is_some() { name.to_string() } else { "/dev/null".to_string() };
    let mut out = String::new();
    let mut head = |sign: &str, side: String| {
        let _ = writeln!(out, "{}", paint(&format!("{sign} {side}"), Tone::Bold, coloured));
    };
    head("---", side(before));
    head("+++", side(after));
    let old: Vec<&str> = before.unwrap_or_default().split_inclusive('\n').collect();
    let new: Vec<&str> = after.unwrap_or_default().split_inclusive('\n').collect();
    let lines = compare(&old, &new);
    let changed: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].0 != Line::Same).collect();
    let mut from = 0;
    while from < changed.len() {
        let mut to = from;
        while to + 1 < changed.len() && changed[to + 1] - changed[to] <= 2 * AROUND + 1 {
            to += 1;
        }
        let range = changed[from].saturating_sub(AROUND)..(changed[to] + AROUND + 1).min(lines.len());
        hunk(&mut out, &lines, range, coloured);
        from = to + 1;
    }
    out
}

fn hunk(out: &mut String, lines: &[(Line, &str)], range: std::ops::Range<usize>, coloured: bool) {
    let count = |lines: &[(Line, &str)], not: Line| lines.iter().filter(|(l, _)| *l != not).count();
    let side = |not: Line| {
        let (before, here) = (count(&lines[..range.start], not), count(&lines[range.clone()], not));
        format!("{},{here}", if here == 0 { before } else { before + 1 })
    };
    let _ = writeln!(out, "@@ -{} +{} @@", side(Line::Come), side(Line::Gone));
    for (line, text) in &lines[range] {
        let (sign, tone) = match line {
            Line::Same => (' ', Tone::Plain),
            Line::Gone => ('-', Tone::Bad),
            Line::Come => ('+', Tone::Good),
        };
        let shown = text.trim_end_matches('\n').trim_end_matches('\r');
        let _ = writeln!(out, "{}", paint(&format!("{sign}{shown}"), tone, coloured));
        if !text.ends_with('\n') {
            let _ = writeln!(out, "\\ No newline at end of file");
        }
    }
}

/// The longest common part stays; what is equal at both ends needs no thought.
fn compare<'t>(old: &[&'t str], new: &[&'t str]) -> Vec<(Line, &'t str)> {
    let front = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let room = old.len().min(new.len()) - front;
    let back = old.iter().rev().zip(new.iter().rev()).take(room).take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[front..old.len() - back], &new[front..new.len() - back]);
    let mut out: Vec<(Line, &str)> = old[..front].iter().map(|l| (Line::Same, *l)).collect();
    if a.len().saturating_mul(b.len()) > MAX_COMPARISONS {
        out.extend(a.iter().map(|l| (Line::Gone, *l)));
        out.extend(b.iter().map(|l| (Line::Come, *l)));
    } else {
        // How much is common from here on.
        let mut common = vec![vec![0u32; b.len() + 1]; a.len() + 1];
        for i in (0..a.len()).rev() {
            for j in (0..b.len()).rev() {
                common[i][j] = match a[i] == b[j] {
                    true => common[i + 1][j + 1] + 1,
                    false => common[i + 1][j].max(common[i][j + 1]),
                };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < a.len() || j < b.len() {
            if i < a.len() && j < b.len() && a[i] == b[j] {
                out.push((Line::Same, a[i]));
                (i, j) = (i + 1, j + 1);
            } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
                out.push((Line::Gone, a[i]));
                i += 1;
            } else {
                out.push((Line::Come, b[j]));
                j += 1;
            }
        }
    }
    out.extend(old[old.len() - back..].iter().map(|l| (Line::Same, *l)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_diff_shows_it() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\nl\nm\n";
        let after = before.replace("b\n", "B\nB2\n").replace("m\n", "m");
        assert_eq!(
            unified("x.yaml", Some(before), Some(&after), false),
            "--- x.yaml\n+++ x.yaml\n@@ -1,5 +1,6 @@\n a\n-b\n+B\n+B2\n c\n d\n e\n@@ -10,4 +11,4 @@\n j\n k\n l\n-m\n+m\n\
             \\ No newline at end of file\n"
        );
        assert_eq!(unified("x", Some("a"), Some("a"), false), "");
        assert_eq!(unified("x", None, Some("a\n"), false), "--- /dev/null\n+++ x\n@@ -0,0 +1,1 @@\n+a\n");
        assert!(unified("x", Some("a\n"), None, true).contains("\x1b[31m-a\x1b[0m"));
    }
}
