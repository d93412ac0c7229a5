//! The processes of pods, as the machine they run on sees them.

use crate::{Mesh, Result};
use std::process::Command;

#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    pub name: String,
}

impl Process {
    fn read(&self, file: &str) -> Result<String> {
        Ok(std::fs::read_to_string(format!("/proc/{}/{file}", self.pid))?)
    }

    /// Resident memory in KiB.
    pub fn rss(&self) -> Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// CPU used so far, in microseconds, as the scheduler counts it, over all its threads.
    pub fn cpu(&self) -> Result<u64> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(sum / 1000)
    }

    /// A program in the network of this process.
    pub fn beside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-n", "--", program]);
        command
    }
}

impl Mesh {
    /// Of a pod, those that bear a name; all, if it is empty.
    pub fn processes(&self, namespace: &str, pod: &str, name: &str) -> Result<Vec<Process>> {
        let uid = self.kubectl(&["-n", namespace, "get", pod, "-o", "jsonpath={.metadata.uid}"])?;
        let of_pod = |pid: i32| {
            let process = |name: String| Process { pid, name };
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_string();
            (groups.contains(&uid) && (name.is_empty() || comm == name)).then(|| process(comm))
        };
        Ok(self.cluster.processes()?.into_iter().filter_map(of_pod).collect())
    }

    /// The only one of that name.
    pub fn process(&self, namespace: &str, pod: &str, name: &str) -> Result<Process> {
        let mut found = self.processes(namespace, pod, name)?;
        match found.len() {
            1 => Ok(found.remove(0)),
            n => Err(format!("{n} processes {name} in {pod}").into()),
        }
    }

    /// The names of the pods that a label means.
    pub fn pods(&self, namespace: &str, label: &str) -> Result<Vec<String>> {
        let names = self.kubectl(&["-n", namespace, "get", "pods", "-l", label, "-o", "name"])?;
        Ok(names.lines().map(String::from).collect())
    }
}
