//! How text looks on a terminal: colours only where they are wanted, tables whose columns line up.

use std::fmt::Write as _;
use std::io::IsTerminal;

#[derive(Clone, Copy)]
pub enum Tone {
    Plain,
    Bold,
    Good,
    Bad,
    Faint,
}

/// Whether standard output takes colours.
pub fn coloured() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::io::stdout().is_terminal()
}

pub fn paint(text: &str, tone: Tone, coloured: bool) -> String {
    let code = match tone {
        Tone::Bold => "1",
        Tone::Good => "32",
        Tone::Bad => "31",
        Tone::Faint => "2",
        Tone::Plain => return text.into(),
    };
    if coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
}

/// Rows under a heading; the last column is as wide as it likes.
pub fn table(heading: &[&str], rows: &[Vec<(String, Tone)>], coloured: bool) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, (cell, _)) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = (&str, Tone)>| {
        let mut text = String::new();
        for (i, (cell, tone)) in cells.enumerate() {
            let room = widths.get(i).copied().unwrap_or(0) - cell.chars().count();
            let _ = write!(text, "{}{:room$}   ", paint(cell, tone, coloured), "");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut heading.iter().map(|h| (*h, Tone::Bold)));
    for row in rows {
        line(&mut row.iter().map(|(cell, tone)| (cell.as_str(), *tone)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec![("web".to_string(), Tone::Plain), ("yes".to_string(), Tone::Good)],
            vec![("a-longer-name".to_string(), Tone::Plain), ("no".to_string(), Tone::Bad)],
        ];
        assert_eq!(
            table(&["NAME", "READY"], &rows, false),
            "NAME            READY\nweb             yes\na-longer-name   no\n"
        );
        assert!(table(&["NAME", "READY"], &rows, true).contains("\x1b[31mno\x1b[0m"));
    }
}
