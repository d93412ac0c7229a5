//! Taking a lab away: whatever runs in its namespaces, the namespaces, its folder. Also one whose own process was killed.

use super::check;
use super::net::Netns;
use super::process::{Recorded, kill, strays};
use super::record::{self, Lab};
use serde_json::Value;
use std::time::Duration;

/// Removes what labs that are no more have left; the names of those it found.
pub async fn dead() -> Vec<String> {
    let mut cleaned = Vec::new();
    for lab in Lab::all().into_iter().filter(|lab| !lab.runs.runs()) {
        remove(&lab).await;
        cleaned.push(lab.id);
    }
    for folder in record::unfinished() {
        let _ = std::fs::remove_dir_all(folder);
    }
    check::sweep();
    cleaned
}

/// Everything of one lab. Its folder goes last: as long as anything is left, it can be found again.
pub async fn remove(lab: &Lab) {
    for process in recorded(&lab.status().unwrap_or_default()) {
        process.kill();
    }
    let all = Netns::of_lab(lab);
    for _ in 0..50 {
        let left: Vec<i32> = all.iter().flat_map(Netns::processes).chain(strays(&lab.id)).collect();
        if left.is_empty() {
            break;
        }
        left.into_iter().for_each(kill);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for ns in &all {
        ns.remove().await;
    }
    if Netns::of_lab(lab).is_empty() {
        let _ = std::fs::remove_dir_all(&lab.folder);
        // The home goes with its last lab, if nobody else has put anything there.
        let _ = std::fs::remove_dir(record::home());
    }
}

fn recorded(status: &Value) -> Vec<Recorded> {
    let pods = status["pods"].as_array().into_iter().flatten();
    let processes = pods.flat_map(|pod| pod["processes"].as_array().into_iter().flatten());
    processes
        .filter_map(|p| {
            Some(Recorded { pid: i32::try_from(p["pid"].as_i64()?).ok()?, started: p["started"].as_u64()? })
        })
        .collect()
}
