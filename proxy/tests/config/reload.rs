//! A running controller and real files.

use crate::files::{Folder, until};
use std::sync::Arc;
use weft_proxy::config::{Controller, Shared};

const GOOD: &str = "\
listeners: [{name: front, role: hop, address: '127.0.0.1:1', to: web}]
services: [{name: web, port: 80, hosts: [web], endpoints: ['10.1.0.1:1']}]
";

fn start(folder: &Folder) -> Arc<Shared> {
    let (shared, task) = Controller::start(&folder.join("weft.yaml")).unwrap_or_else(|e| panic!("{e}"));
    tokio::spawn(task);
    shared
}

fn has(shared: &Shared, host: &str) -> bool {
    shared.snapshot.load().by_host(host, 80).is_some()
}

#[test]
fn a_bad_file_at_the_start_is_refused_with_every_reason() {
    let folder = Folder::new();
    folder.write("weft.yaml", &GOOD.replace("to: web", "to: wob").replace("10.1.0.1:1", "x"));
    let refused = Controller::start(&folder.join("weft.yaml")).map(|_| ()).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("weft.yaml:2: services[0].endpoints[0]"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
    let missing = Controller::start(&folder.join("gone.yaml")).map(|_| ()).unwrap_err();
    assert!(missing.to_string().contains("cannot be read"), "{missing}");
}

#[tokio::test]
async fn a_change_is_noticed_and_a_bad_one_refused() {
    let folder = Folder::new();
    folder.write("weft.yaml", GOOD);
    let shared = start(&folder);
    assert!(has(&shared, "web") && !has(&shared, "next"));
    let before = shared.snapshot.load().by_host("web", 80).unwrap().clone();

    // Half written: what was good stays, and why is told.
    folder.write("weft.yaml", &GOOD[..GOOD.len() / 2]);
    until("the refusal", || !shared.status.load().file_errors.is_empty()).await;
    assert!(Arc::ptr_eq(shared.snapshot.load().by_host("web", 80).unwrap(), &before));

    folder.write("weft.yaml", &GOOD.replace("hosts: [web]", "hosts: [web, next]"));
    until("the new host", || has(&shared, "next")).await;
    let status = shared.status.load();
    assert!(status.file_errors.is_empty() && status.last_success.is_some());

    // Gone altogether is no better than bad.
    std::fs::remove_file(folder.join("weft.yaml")).unwrap();
    until("the refusal", || !shared.status.load().file_errors.is_empty()).await;
    assert!(has(&shared, "next"));
    folder.write("weft.yaml", GOOD);
    until("the old host", || !has(&shared, "next")).await;
}

#[tokio::test]
async fn a_link_that_is_turned_is_a_change() {
    let folder = Folder::new();
    for (dir, text) in [("one", GOOD.to_string()), ("two", GOOD.replace("hosts: [web]", "hosts: [next]"))] {
        std::fs::create_dir(folder.join(dir)).unwrap();
        folder.write(&format!("{dir}/weft.yaml"), &text);
    }
    // As the kubelet does: FILE -> ..data/FILE, ..data -> a folder, and a rename turns it.
    std::os::unix::fs::symlink("one", folder.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/weft.yaml", folder.join("weft.yaml")).unwrap();
    let shared = start(&folder);
    assert!(has(&shared, "web"));
    std::os::unix::fs::symlink("two", folder.join("..tmp")).unwrap();
    std::fs::rename(folder.join("..tmp"), folder.join("..data")).unwrap();
    until("the other folder's file", || has(&shared, "next")).await;
}

#[tokio::test]
async fn followers_see_the_file_in_force() {
    let folder = Folder::new();
    folder.write("weft.yaml", GOOD);
    let shared = start(&folder);
    let mut current = shared.current.clone();
    folder.write("weft.yaml", &format!("{GOOD}telemetry: {{accessLog: json}}\n"));
    tokio::time::timeout(std::time::Duration::from_secs(20), current.changed()).await.unwrap().unwrap();
    assert_eq!(current.borrow().telemetry.access_log, weft_policy::telemetry::LogFormat::Json);
}

#[tokio::test]
async fn sighup_and_reload_read_the_file_again() {
    let folder = Folder::new();
    folder.write("weft.yaml", GOOD);
    let shared = start(&folder);
    let first = shared.status.load().last_success;
    shared.reload.notify_one();
    until("the reload", || shared.status.load().last_success != first).await;
    let second = shared.status.load().last_success;
    // The handler is there: the reload above was served by the task that installs it first.
    let own = std::process::id().to_string();
    assert!(std::process::Command::new("kill").args(["-HUP", &own]).status().unwrap().success());
    until("the reload", || shared.status.load().last_success != second).await;
}

#[tokio::test]
async fn rotated_certificates_are_taken_together() {
    let folder = Folder::new();
    folder.certificates();
    let text = format!(
        "{GOOD}identity: {{certificate: web.pem, key: web.key, trust: [{{domain: cluster.local, roots: [root.pem]}}]}}\n"
    );
    folder.write("weft.yaml", &text);
    let shared = start(&folder);
    let live = shared.identity.clone().unwrap();
    let first = live.generation();
    let leaf = live.load().identity.sha256();

    // A key that does not belong to the certificate yet: the old pair stays in use.
    let next = Folder::new();
    next.certificates();
    std::fs::copy(next.join("web.key"), folder.join("web.key")).unwrap();
    until("the refusal", || shared.status.load().identity_error.is_some()).await;
    assert_eq!((live.generation(), live.load().identity.sha256()), (first, leaf.clone()));

    std::fs::copy(next.join("root.pem"), folder.join("root.pem")).unwrap();
    std::fs::copy(next.join("web.pem"), folder.join("web.pem")).unwrap();
    until("the new leaf", || live.load().identity.sha256() != leaf).await;
    until("the error to go", || shared.status.load().identity_error.is_none()).await;
    assert!(live.generation() > first);
}
