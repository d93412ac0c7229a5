//! `process_*`, from /proc. What cannot be read is left out.

use super::text::{Kind, Text};
use std::time::{SystemTime, UNIX_EPOCH};

/// The unit of /proc's CPU times towards user space, 100 on every Linux.
const TICKS: f64 = 100.0;

pub fn collect(out: &mut Text, started: SystemTime) {
    if let Some((cpu, threads, virt)) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|s| parse_stat(&s)) {
        out.single("process_cpu_seconds_total", Kind::Counter, "User and system CPU time.", cpu);
        out.single("process_threads", Kind::Gauge, "Threads of the process.", threads);
        out.single("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory.", virt);
    }
    if let Some(rss) = std::fs::read_to_string("/proc/self/status").ok().and_then(|s| parse_rss(&s)) {
        out.single("process_resident_memory_bytes", Kind::Gauge, "Resident memory.", rss);
    }
    if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
        out.single("process_open_fds", Kind::Gauge, "Open file descriptors.", fds.count().saturating_sub(1));
    }
    if let Some(max) = std::fs::read_to_string("/proc/self/limits").ok().and_then(|s| parse_limit(&s)) {
        out.single("process_max_fds", Kind::Gauge, "Most file descriptors that may be open.", max);
    }
    if let Some(bytes) = crate::sys::malloc::allocated() {
        out.single("weft_memory_allocated_bytes", Kind::Gauge, "Memory in use, as the allocator counts it.", bytes);
    }
    let started = started.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    out.single("process_start_time_seconds", Kind::Gauge, "Start of the process, in Unix time.", started);
}

/// CPU seconds, threads, virtual bytes.
fn parse_stat(stat: &str) -> Option<(f64, u64, u64)> {
    // The command's name may hold anything, so fields are counted from its closing bracket.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
    Some(((number(11)? + number(12)?) as f64 / TICKS, number(17)?, number(20)?))
}

fn parse_rss(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn parse_limit(limits: &str) -> Option<u64> {
    limits.lines().find_map(|l| l.strip_prefix("Max open files"))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_process() {
        let mut text = Text::default();
        collect(&mut text, SystemTime::now());
        for name in
            ["cpu_seconds_total", "threads", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"]
        {
            let line = text.out.lines().find(|l| l.starts_with(&format!("process_{name} "))).expect(name);
            let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            assert!(value >= 0.0, "{line}");
        }
        let odd = "1 (a) b) c) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 3 0 77 4096 9";
        assert_eq!(parse_stat(odd), Some((2.0, 3, 4096)));
    }
}
