//! A connection that is used all the while, and when it was first refused.

use crate::process::Process;
use crate::{Result, ensure};
use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
/// Answers before anything is changed.
const WARM: usize = 20;

pub struct Warm {
    relay: Child,
    to: ChildStdin,
    from: ChildStdout,
}

impl Warm {
    /// From a process's network: what is sent there goes as if its pod had sent it.
    pub fn open(beside: &Process, ip: &str, port: u16) -> Result<Self> {
        let mut nc = beside.beside("busybox");
        nc.args(["nc", ip, &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut relay = nc.spawn()?;
        let (to, from) = (relay.stdin.take().ok_or("stdin")?, relay.stdout.take().ok_or("stdout")?);
        Ok(Self { relay, to, from })
    }

    /// The status of a GET.
    pub fn get(&mut self, host: &str) -> io::Result<u16> {
        self.to.write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())?;
        let wrong = |what: &str| io::Error::other(what.to_string());
        let (mut text, mut buffer) = (String::new(), [0; 8192]);
        loop {
            let n = self.from.read(&mut buffer)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            text += &String::from_utf8_lossy(&buffer[..n]);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = |l: &str| l.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().to_string());
            let length = head.lines().find_map(length).ok_or_else(|| wrong("no length"))?;
            if body.len() >= length.parse().map_err(|_| wrong("no length"))? {
                let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
                return status.ok_or_else(|| wrong("no status"));
            }
        }
    }

    /// A line to where lines come back from; what else has come is passed over.
    pub fn echo(&mut self) -> io::Result<()> {
        self.to.write_all(b"~\n")?;
        let mut byte = [0];
        while byte != *b"~" {
            self.from.read_exact(&mut byte)?;
        }
        Ok(())
    }

    /// Uses it until it is refused, and meanwhile, when it is warm, changes something; how long after that was done.
    pub fn refused_after(
        mut self,
        mut answered: impl FnMut(&mut Self) -> bool + Send,
        change: impl FnOnce() -> Result,
    ) -> Result<Duration> {
        let (count, relay) = (AtomicUsize::new(0), self.relay.id().to_string());
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let count = &count;
            scope.spawn(move || {
                while answered(&mut self) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                let _ = tell.send(Instant::now());
            });
            let outcome = (|| {
                let end = Instant::now() + LONG;
                while count.load(Ordering::Relaxed) < WARM {
                    ensure!(told.try_recv().is_err(), "refused from the beginning");
                    ensure!(Instant::now() < end, "no answer");
                    std::thread::sleep(Duration::from_millis(5));
                }
                change()?;
                let done = Instant::now();
                let refused = told.recv_timeout(LONG).map_err(|_| format!("still answered after {LONG:?}"))?;
                Ok(refused.saturating_duration_since(done))
            })();
            if outcome.is_err() {
                // Ends whatever the other thread waits for.
                let _ = std::process::Command::new("kill").args(["-KILL", &relay]).status();
            }
            outcome
        })
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        let _ = self.relay.kill();
        let _ = self.relay.wait();
    }
}
