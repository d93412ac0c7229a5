//! A step's command, as a person would type it, in the copy of the lab's folder.

use super::steps::Run;
use crate::error::{During, Result};
use crate::lab::process::signal_group;
use crate::lab::record;
use rustix::process::Signal;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, Default)]
pub struct Output {
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Where commands run, and what they find there.
pub struct Shell {
    /// The copy, which is theirs to edit.
    pub folder: PathBuf,
    /// The folder as it is, for `cp "$EXAMPLE/more.yaml" .`
    pub example: PathBuf,
    pub lab: String,
}

/// Whatever a command has started ends with it.
struct Group(i32);

impl Drop for Group {
    fn drop(&mut self) {
        signal_group(self.0, Signal::KILL);
    }
}

impl Run {
    /// What it is, for people.
    pub fn shown(&self) -> String {
        let plain = !self.command.contains(['\n', '|', '&', ';', '<', '>', '$']);
        let command = match &self.from {
            Some(workload) if plain => format!("meshctl lab exec {workload} -- {}", self.command),
            Some(workload) => format!("meshctl lab exec {workload} -- sh -c ...\n{}", self.command),
            None => self.command.clone(),
        };
        if self.times == 1 { command } else { format!("{command}   # {} times", self.times) }
    }

    fn script(&self) -> String {
        match self.times {
            1 => self.command.clone(),
            // A line each, whether or not it ends one.
            n => format!("i=0; while [ $i -lt {n} ]; do i=$((i+1)); {}\necho; done", self.command),
        }
    }
}

impl Shell {
    pub async fn run(&self, run: &Run) -> Result<Output> {
        let this = std::env::current_exe().during("this program's own path")?;
        let mut command = match &run.from {
            Some(workload) => {
                let mut command = Command::new(&this);
                command.args(["lab", "exec", workload, "--", "sh", "-c", &run.script()]);
                command
            }
            None => {
                let mut command = Command::new("sh");
                command.args(["-c", &run.script()]);
                command
            }
        };
        let mut path = OsString::from(this.parent().unwrap_or(&this));
        if let Some(more) = std::env::var_os("PATH") {
            path.push(":");
            path.push(more);
        }
        command.current_dir(&self.folder).env("PATH", path).env("WEFT_LAB", &self.lab).env("EXAMPLE", &self.example);
        // They run elsewhere than this does.
        command.env("WEFT_LAB_HOME", std::path::absolute(record::home()).during("the lab's home")?);
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.process_group(0).kill_on_drop(true).spawn().during("sh")?;
        let _group = child.id().and_then(|id| i32::try_from(id).ok()).map(Group);
        match tokio::time::timeout(LIMIT, child.wait_with_output()).await {
            Ok(output) => {
                let output = output.during("sh")?;
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                Ok(Output { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) })
            }
            Err(_) => Ok(Output { err: format!("stopped after {} s\n", LIMIT.as_secs()), ..Output::default() }),
        }
    }
}
