//! Control groups: what a cluster runs is found by them, whoever started it and whatever became of its parent.
//!
//! A cluster has one group, the same in every mounted hierarchy (v1; on a machine with v2 alone, in that one). Its
//! daemons are in `daemons` below it, and the kubelet puts the pods into `kubepods` beside that.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{During, Result};

/// Mount points of that kind of hierarchy.
fn mounted(kind: &str) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").during("mounts")?;
    let lines = mounts.lines().filter_map(|l| l.split_once(" - "));
    let lines = lines.filter(|(_, right)| right.split(' ').next() == Some(kind));
    Ok(lines.filter_map(|(left, _)| left.split(' ').nth(4)).map(PathBuf::from).collect())
}

/// Those that a kubelet uses.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let first = mounted("cgroup")?;
    let all = if first.is_empty() { mounted("cgroup2")? } else { first };
    if all.is_empty() { Err(String::from("no control groups are mounted").into()) } else { Ok(all) }
}

/// Makes the group; what has to be written to in order to join its daemons.
pub fn make(group: &str) -> Result<Vec<PathBuf>> {
    let mut doors = Vec::new();
    for hierarchy in hierarchies()? {
        let mut parent = hierarchy;
        for name in [group, "daemons"] {
            let own = parent.join(name);
            fs::create_dir_all(&own).during(own.display())?;
            // A cpuset of version 1 starts empty, and takes nobody in until it is filled.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if parent.join(file).exists() && own.join(file).exists() {
                    let value = fs::read_to_string(parent.join(file)).during(file)?;
                    if !value.trim().is_empty() {
                        fs::write(own.join(file), value).during(own.join(file).display())?;
                    }
                }
            }
            parent = own;
        }
        doors.push(parent.join("cgroup.procs"));
    }
    Ok(doors)
}

/// All groups below `folder`, the innermost first, and itself.
fn tree(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            tree(&entry.path(), all);
        }
    }
    all.push(folder.into());
}

fn groups(group: &str) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    // Where both versions are mounted, runc makes its groups in both.
    for hierarchy in [mounted("cgroup")?, mounted("cgroup2")?].concat() {
        let top = hierarchy.join(group);
        if top.exists() {
            tree(&top, &mut all);
        }
    }
    Ok(all)
}

/// Everything that runs in the group or below it.
pub fn processes(group: &str) -> Result<BTreeSet<i32>> {
    let files = groups(group)?.into_iter().map(|folder| folder.join("cgroup.procs"));
    // A group may vanish while it is read: then it was empty.
    let texts = files.filter_map(|file| fs::read_to_string(file).ok());
    Ok(texts.flat_map(|t| t.lines().filter_map(|l| l.parse().ok()).collect::<Vec<i32>>()).collect())
}

/// Ends everything in the group, by pid, and removes it.
pub fn remove(group: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let left = processes(group)?;
        for pid in left.iter().filter_map(|pid| rustix::process::Pid::from_raw(*pid)) {
            // One that is gone by now is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let refused = groups(group)?.iter().filter(|folder| fs::remove_dir(folder).is_err()).count();
        if left.is_empty() && refused == 0 {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("processes of {group} do not end: {left:?}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
