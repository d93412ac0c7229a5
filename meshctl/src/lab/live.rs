//! Who calls whom, at the bottom of the terminal for as long as the lab runs; news scroll by above it.
//!
//! There is one terminal, so what is drawn on it is one static: whoever has something to say says it through [`say`], which takes
//! the table away, writes, and puts it back. Nothing is drawn unless a person is there (a terminal, in the foreground). The
//! terminal's own settings change in one way, so that `q` needs no Enter, and are put back at the end.

use super::record::Lab;
use crate::door::Door;
use crate::stat::edges::{History, Snapshot, Wanted};
use crate::stat::table;
use crate::terminal::{Tone, coloured, paint};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpgrp, getpid, kill_process};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use std::io::{IsTerminal, Read, Write, stderr, stdin, stdout};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// What rates are over.
const WINDOW: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_millis(250);
/// Lines that are left to the news.
const NEWS: usize = 6;

static ASIDE: AtomicBool = AtomicBool::new(false);
static SCREEN: Mutex<Screen> = Mutex::new(Screen { lines: Vec::new(), drawn: Vec::new() });

/// Prints a line, above the table if there is one.
pub fn say(text: &str) {
    let mut screen = screen();
    let mut out = screen.erase();
    out.push_str(text);
    out.push('\n');
    out.push_str(&screen.draw());
    show(&out);
}

fn screen() -> MutexGuard<'static, Screen> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn show(text: &str) {
    let write = |mut out: Box<dyn Write>| out.write_all(text.as_bytes()).and_then(|()| out.flush());
    // A terminal that is gone needs no table, and the lab ends by its signal.
    let _ = write(if ASIDE.load(Relaxed) { Box::new(stderr()) } else { Box::new(stdout()) });
}

/// From now on news go to standard error: what goes to standard output is for a program.
pub fn aside() {
    ASIDE.store(true, Relaxed);
}

struct Screen {
    lines: Vec<String>,
    /// How long each line is that stands on the terminal; the cursor is below the last one.
    drawn: Vec<usize>,
}

impl Screen {
    fn erase(&mut self) -> String {
        if !self.drawn.is_empty() && !in_foreground() {
            // What stands there now is its shell's.
            self.drawn.clear();
        }
        let columns = size().0.max(1);
        let rows = rows_of(&std::mem::take(&mut self.drawn), columns);
        if rows == 0 { String::new() } else { format!("\r\x1b[{rows}A\x1b[J") }
    }

    fn draw(&mut self) -> String {
        let mut out = String::new();
        if self.lines.is_empty() || !in_foreground() {
            return out;
        }
        let (columns, rows) = size();
        for line in frame(&self.lines, columns, rows) {
            self.drawn.push(visible(&line));
            out.push_str(&line);
            out.push('\n');
        }
        out
    }

    fn put(&mut self, lines: Vec<String>) {
        let mut out = self.erase();
        self.lines = lines;
        out.push_str(&self.draw());
        show(&out);
    }
}

/// A line that was drawn on a wider terminal has become several.
fn rows_of(lengths: &[usize], columns: usize) -> usize {
    lengths.iter().map(|length| length.max(&1).div_ceil(columns)).sum()
}

/// What of the lines fits: a heading and as many rows as leave room for news, each as wide as the terminal.
fn frame(lines: &[String], columns: usize, rows: usize) -> Vec<String> {
    let room = rows.saturating_sub(NEWS).max(3);
    let mut fit: Vec<String> = lines.iter().take(room).map(|line| cut(line, columns.saturating_sub(1))).collect();
    if lines.len() > room {
        fit.pop();
        let more = format!("... and {} more: meshctl stat", lines.len() - room + 1);
        fit.push(cut(&more, columns.saturating_sub(1)));
    }
    fit
}

/// Letters that show; colours do not.
fn visible(line: &str) -> usize {
    let mut escape = false;
    let mut shows = |c: char| {
        let was = escape;
        escape = c == '\x1b' || (escape && !c.is_ascii_alphabetic());
        !was && !escape
    };
    line.chars().filter(|c| shows(*c)).count()
}

fn cut(line: &str, columns: usize) -> String {
    if visible(line) <= columns {
        return line.into();
    }
    let mut out = String::new();
    for c in line.chars() {
        out.push(c);
        if visible(&out) >= columns {
            break;
        }
    }
    if out.contains('\x1b') {
        out.push_str("\x1b[0m");
    }
    out
}

/// Columns and rows.
fn size() -> (usize, usize) {
    let told = |name| std::env::var(name).ok().and_then(|v| v.parse().ok());
    match termios::tcgetwinsize(stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (told("COLUMNS").unwrap_or(80), told("LINES").unwrap_or(24)),
    }
}

/// What runs in the background has no claim on the terminal: its shell does.
fn in_foreground() -> bool {
    termios::tcgetpgrp(stdout()).is_ok_and(|group| group == getpgrp())
}

/// A table that is drawn until this is dropped; the last one stays, as text.
pub struct Live {
    drawing: tokio::task::JoinHandle<()>,
    _keys: Option<Keys>,
}

impl Live {
    /// `None` where nobody looks.
    pub fn start(lab: Lab) -> Option<Self> {
        if !stdout().is_terminal() || !in_foreground() {
            return None;
        }
        let keys = Keys::listen();
        let end = if keys.is_some() { "q" } else { "Ctrl-C" };
        Some(Self { drawing: tokio::spawn(draw(Door::control(&lab), end)), _keys: keys })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.drawing.abort();
        let mut screen = screen();
        screen.lines.clear();
        screen.drawn.clear();
    }
}

async fn draw(door: Door, end: &'static str) {
    let mut history = History::new(WINDOW);
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let asked = door.json("/edges").await;
        if let Ok(edges) = &asked {
            history.push(Snapshot::of(edges));
        }
        let note = match asked {
            Ok(_) => format!("last {:.0} s; {end} ends the lab", history.seconds().max(1.0)),
            Err(_) => "the control plane does not answer: meshctl lab logs control".into(),
        };
        let lines = lines(&history, &note, coloured());
        screen().put(lines);
    }
}

fn lines(history: &History, note: &str, coloured: bool) -> Vec<String> {
    let rows = history.rows(true, &Wanted::default());
    let mut lines = vec![paint(&format!("-- who calls whom -- {note}"), Tone::Faint, coloured)];
    if rows.is_empty() {
        lines.push("Nobody has called anybody yet.".into());
    } else {
        lines.extend(table::plain(&rows, coloured).lines().map(String::from));
    }
    lines
}

/// Keys as they are pressed, where there is somebody to press them.
struct Keys {
    before: Termios,
    over: Arc<Mutex<bool>>,
}

impl Keys {
    fn listen() -> Option<Self> {
        let before = termios::tcgetattr(stdin()).ok().filter(|_| in_foreground())?;
        let over = Arc::new(Mutex::new(false));
        let ends = over.clone();
        // Not a task: a read of a terminal may take for ever.
        let listening = std::thread::Builder::new().name("keys".into()).spawn(move || {
            loop {
                let over = ends.lock().unwrap_or_else(PoisonError::into_inner);
                if *over {
                    return;
                }
                take_keys_singly();
                drop(over);
                let soon = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
                let stdin = stdin();
                let pressed = poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&soon));
                let mut keys = [0; 16];
                match pressed {
                    Ok(n) if n > 0 && in_foreground() => match stdin.lock().read(&mut keys) {
                        Ok(0) | Err(_) => return,
                        // As Ctrl-C, so that a second one is one, too.
                        Ok(n) if keys[..n].contains(&b'q') => drop(kill_process(getpid(), Signal::INT)),
                        Ok(_) => {}
                    },
                    Ok(0) => {}
                    _ => std::thread::sleep(EVERY),
                }
            }
        });
        listening.is_ok().then_some(Self { before, over })
    }
}

/// Also after a while in the background, from which shells bring back the terminal as they like it.
fn take_keys_singly() {
    if let Ok(mut settings) = termios::tcgetattr(stdin())
        && settings.local_modes.contains(LocalModes::ICANON)
        && in_foreground()
    {
        settings.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &settings);
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // Whoever holds this is not between looking at it and changing the terminal.
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        *over = true;
        // In the background the terminal is somebody else's.
        if in_foreground() {
            let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_the_terminal() {
        let lines: Vec<String> = (0..30).map(|n| format!("line {n}")).collect();
        let all = frame(&lines, 80, 50);
        assert_eq!(all, lines);
        let few = frame(&lines, 80, 16);
        assert_eq!((few.len(), few[0].as_str(), few[8].as_str()), (10, "line 0", "line 8"));
        assert_eq!(few[9], "... and 21 more: meshctl stat");
        assert!(frame(&lines, 5, 3).iter().all(|l| visible(l) < 5));
    }

    #[test]
    fn colours_take_no_room() {
        let red = paint("failing", Tone::Bad, true);
        assert_eq!((visible(&red), visible("plain"), visible("")), (7, 5, 0));
        assert_eq!(cut(&red, 7), red);
        assert_eq!(cut(&red, 4), "\x1b[31mfail\x1b[0m");
        assert_eq!(cut("plain", 3), "pla");
    }

    #[test]
    fn a_narrower_terminal_is_cleared_whole() {
        assert_eq!(rows_of(&[240, 10, 0], 80), 5);
        assert_eq!(rows_of(&[80, 81], 80), 3);
    }
}
