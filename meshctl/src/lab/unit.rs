//! One supervised process: started, watched, restarted with growing pauses, and stopped when the time comes.

use super::probe::{Ready, Resolved};
use super::process::{Inside, Recorded, signal_group};
use super::workload::Restart;
use rustix::process::Signal;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

#[derive(Clone, Debug)]
pub struct Unit {
    pub name: String,
    pub inside: Inside,
    pub address: Ipv4Addr,
    pub group: Option<u32>,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Standard output and error, appended.
    pub log: PathBuf,
    pub restart: Restart,
    pub ready: Ready,
    pub alive: Option<Resolved>,
    /// Run before each start and every few minutes; what it prints goes to the file.
    pub before: Option<(Vec<String>, PathBuf)>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub process: Option<Recorded>,
    pub ready: bool,
    /// It has ended and will not be started again; whether well.
    pub over: Option<bool>,
    pub restarts: u32,
    /// It is being started again and again.
    pub failing: bool,
    /// What it is waiting for or why it ended.
    pub note: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    #[default]
    No,
    /// Time for what is under way.
    Within(Duration),
    Now,
}

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// What ran this long is not failing.
const GOOD_RUN: Duration = Duration::from_secs(20);
/// How often it is asked whether it is ready while it is not; a lab should be up soon.
const IMPATIENT: Duration = Duration::from_millis(200);
/// A sidecar whose certificate has expired, as when the machine was asleep, finds a join token that nobody has used.
const RENEWED: Duration = Duration::from_secs(600);

/// Runs until it is told to stop, or has ended for good and is then told.
pub async fn supervise(unit: Unit, state: watch::Sender<State>, changed: Arc<Notify>, mut stop: watch::Receiver<Stop>) {
    let set = |change: &dyn Fn(&mut State)| {
        let modified = state.send_if_modified(|s| {
            let before = s.clone();
            change(s);
            *s != before
        });
        if modified {
            changed.notify_one();
        }
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = Instant::now();
        let why = match start(&unit).await {
            Err(error) => error,
            Ok(mut child) => {
                let pid = child.id().map_or(0, |pid| pid as i32);
                set(&|s| s.process = Recorded::of(pid));
                tokio::select! {
                    status = child.wait() => ended(&unit, status),
                    why = watch(&unit, &set) => {
                        terminate(&mut child, pid, Stop::Within(Duration::from_secs(10)), &mut stop).await;
                        why
                    }
                    () = stopping(&mut stop) => {
                        let how = *stop.borrow_and_update();
                        terminate(&mut child, pid, how, &mut stop).await;
                        set(&|s| *s = State { over: Some(true), ..State::default() });
                        return;
                    }
                }
            }
        };
        let well = why.is_empty();
        if unit.restart == Restart::Never || (unit.restart == Restart::OnFailure && well) {
            set(&|s| (s.process, s.ready, s.over, s.note) = (None, false, Some(well), why.clone()));
            stopping(&mut stop).await;
            return;
        }
        if begun.elapsed() >= GOOD_RUN {
            pause = FIRST_PAUSE;
        }
        set(&|s| {
            (s.process, s.ready, s.failing) = (None, false, begun.elapsed() < GOOD_RUN);
            s.restarts += 1;
            s.note = if well { "ended".into() } else { why.clone() };
        });
        tokio::select! {
            () = sleep(pause) => {}
            () = stopping(&mut stop) => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Returns when it is time to stop.
pub async fn stopping(stop: &mut watch::Receiver<Stop>) {
    // Whoever would say so has gone: that is a stop as well.
    let _ = stop.wait_for(|s| *s != Stop::No).await;
}

/// Returns when there is no time left.
pub async fn hurrying(stop: &mut watch::Receiver<Stop>) {
    let _ = stop.wait_for(|s| *s == Stop::Now).await;
}

/// Makes what the program needs fresh.
async fn prepare(unit: &Unit) -> Result<(), String> {
    if let Some((words, file)) = &unit.before {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).kill_on_drop(true).process_group(0);
        let output = command.output().await.map_err(|e| format!("{}: {e}", words[0]))?;
        if !output.status.success() {
            return Err(format!("{}: {}", words[0], String::from_utf8_lossy(&output.stderr).trim()));
        }
        write_private(file, &output.stdout).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    Ok(())
}

async fn start(unit: &Unit) -> Result<Child, String> {
    prepare(unit).await?;
    let log = File::options().create(true).append(true).open(&unit.log);
    let log = log.map_err(|e| format!("{}: {e}", unit.log.display()))?;
    let errors = log.try_clone().map_err(|e| e.to_string())?;
    // If the lab dies before it can clean up, what it started goes with it.
    let mut argv: Vec<String> = ["setpriv", "--pdeathsig", "KILL", "--"].map(Into::into).to_vec();
    argv.extend_from_slice(&unit.argv);
    let words = unit.inside.wrap(unit.group, &argv);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_clear().stdin(Stdio::null()).stdout(log).stderr(errors);
    for name in ["PATH", "HOME", "LANG", "TZ"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(unit.inside.environment()).envs(unit.env.iter().map(|(k, v)| (k, v)));
    // A group of its own: Ctrl-C is for the lab, which then ends things in order.
    command.process_group(0).kill_on_drop(true);
    command.spawn().map_err(|e| format!("{}: {e}", words[0]))
}

fn write_private(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(file)?;
    file.write_all(bytes)
}

/// Empty if it ended well.
fn ended(unit: &Unit, status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) if status.success() => String::new(),
        Ok(status) => match last_line(&unit.log) {
            Some(line) => format!("{status}: {line}"),
            None => status.to_string(),
        },
        Err(error) => error.to_string(),
    }
}

/// The last thing it had to say.
pub fn last_line(log: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(2000))).ok()?;
    let mut bytes = Vec::new();
    file.take(2000).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // What a panic says last is of no use to anybody here.
    let line = text.lines().rev().find(|l| !l.trim().is_empty() && !l.starts_with("note: run with `RUST_BACKTRACE"))?;
    Some(line.trim().chars().take(200).collect())
}

/// Asks whether it is ready and whether it lives; returns, with the reason, when it does not live any more.
async fn watch(unit: &Unit, set: &impl Fn(&dyn Fn(&mut State))) -> String {
    let ready = async {
        let (delay, period, allowed) = match &unit.ready {
            Ready::Probe(p) => (p.probe.delay, p.probe.period, p.probe.failures),
            _ => (Duration::ZERO, Duration::from_secs(5), 1),
        };
        sleep(delay).await;
        let (mut failures, mut is_ready) = (0, false);
        loop {
            match unit.ready.check(&unit.inside, unit.address).await {
                Ok(()) => {
                    (failures, is_ready) = (0, true);
                    set(&|s| (s.ready, s.failing, s.note) = (true, false, String::new()));
                }
                Err(why) => {
                    failures += 1;
                    if !is_ready || failures >= allowed {
                        is_ready = false;
                        set(&|s| (s.ready, s.note) = (false, why.clone()));
                    }
                }
            }
            sleep(if is_ready { period } else { IMPATIENT }).await;
        }
    };
    let alive = async {
        let Some(check) = &unit.alive else { return std::future::pending().await };
        sleep(check.probe.delay).await;
        let mut failures = 0;
        loop {
            sleep(check.probe.period).await;
            match check.check(&unit.inside, unit.address).await {
                Ok(()) => failures = 0,
                Err(why) => {
                    failures += 1;
                    if failures >= check.probe.failures {
                        return format!("not alive: {why}");
                    }
                }
            }
        }
    };
    let renewed = async {
        loop {
            sleep(RENEWED).await;
            // What cannot be made now is made the next time.
            let _ = prepare(unit).await;
        }
    };
    tokio::select! {
        why = alive => why,
        () = ready => String::new(),
        () = renewed => String::new(),
    }
}

async fn terminate(child: &mut Child, pid: i32, how: Stop, stop: &mut watch::Receiver<Stop>) {
    if let Stop::Within(grace) = how {
        signal_group(pid, Signal::TERM);
        tokio::select! {
            _ = child.wait() => {}
            () = sleep(grace) => {}
            // Somebody lost patience.
            () = hurrying(stop) => {}
        }
    }
    // Also those that the process leaves behind.
    signal_group(pid, Signal::KILL);
    let _ = child.wait().await;
}

impl Unit {
    pub fn log_of(folder: &Path, pod: &str, unit: &str) -> PathBuf {
        folder.join(format!("{pod}.{unit}.log"))
    }
}
