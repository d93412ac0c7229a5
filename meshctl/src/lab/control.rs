//! The lab's control plane, in the hub, and what a sidecar needs to find it.

use super::image::ours;
use super::isolation::Isolation;
use super::net::{Netns, SIDECAR};
use super::pod::Plan;
use super::probe::{Ready, Resolved};
use super::process::{Inside, path};
use super::record::Lab;
use super::unit::{State, Stop, Unit, last_line, supervise};
use super::workload::{Check, Probe, Restart, Target};
use crate::error::{During, Error, Result};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

pub const PORT: u16 = 15012;
pub const ADMIN: u16 = 15014;
pub const SIDECAR_ADMIN: u16 = 15000;

#[derive(Debug)]
pub struct Control {
    program: PathBuf,
    proxy: PathBuf,
    state: PathBuf,
    root: PathBuf,
    stop: watch::Sender<Stop>,
    running: watch::Receiver<State>,
}

impl Control {
    /// Our programs, or why there can be no mesh.
    pub fn programs() -> Result<(PathBuf, PathBuf)> {
        Ok((ours("weft-control", "weft-control")?, ours("weft-proxy", "weft-proxy")?))
    }

    /// Starts it and waits until it has a root and takes connections.
    pub async fn start(lab: &Lab, hub: &Netns, manifests: &Path, args: &[String]) -> Result<Self> {
        let (program, proxy) = Self::programs()?;
        let (state, root) = (lab.control_state(), lab.folder.join("root.pem"));
        let mut inside = Inside::of(lab, hub.clone(), "control", "control", lab.network.hub());
        inside.proxy = None;
        inside.write("", "127.0.0.1 localhost\n").during("the control plane's files")?;
        let mut argv = vec![path(&program), "--dir".into(), path(manifests), "--dir".into(), path(&lab.pods())];
        argv.extend(["--listen".into(), format!("{}:{PORT}", lab.network.hub()), "--state".into(), path(&state)]);
        argv.extend(["--admin".into(), format!("{}:{ADMIN}", lab.admin_at(lab.network.hub()))]);
        // Of pods, and of services that name none.
        let ranges = lab.network.ranges();
        argv.extend(ranges.iter().flat_map(|range| ["--mesh-range".into(), range.clone()]));
        argv.extend_from_slice(args);
        let log = lab.logs().join("control.log");
        let unit = Unit {
            name: "control".into(),
            inside,
            address: lab.network.hub(),
            group: None,
            argv,
            env: Vec::new(),
            log: log.clone(),
            restart: Restart::Always,
            ready: Ready::Listens(vec![PORT]),
            alive: None,
            before: None,
        };
        let (stop, stops) = watch::channel(Stop::No);
        let (sender, mut running) = watch::channel(State::default());
        tokio::spawn(supervise(unit, sender, Arc::new(Notify::new()), stops));
        let ready = tokio::time::timeout(Duration::from_secs(20), running.wait_for(|s| s.ready || s.restarts > 1));
        let is_up = matches!(ready.await, Ok(Ok(state)) if state.ready);
        if !is_up {
            let said = last_line(&log).unwrap_or_else(|| "nothing".into());
            return Err(Error::new(format!("the control plane does not start; it last said: {said}"), ""));
        }
        let control = Self { program, proxy, state, root, stop, running };
        let pem = control.ask(&["root"], &[]).await?;
        std::fs::write(&control.root, pem).during("root.pem")?;
        Ok(control)
    }

    pub fn state(&self) -> State {
        self.running.borrow().clone()
    }

    pub async fn stop(&self, how: Stop) {
        let _ = self.stop.send(how);
        let mut running = self.running.clone();
        // It ends with `over`, or its task has ended and so has the channel.
        let _ = tokio::time::timeout(Duration::from_secs(5), running.wait_for(|s| s.over.is_some())).await;
    }

    async fn ask(&self, verb: &[&str], rest: &[String]) -> Result<Vec<u8>> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(verb).arg("--state").arg(&self.state).args(rest);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).process_group(0).output().await;
        let output = output.during("weft-control")?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(format!("weft-control {}: {}", verb.join(" "), String::from_utf8_lossy(&output.stderr).trim()).into())
    }

    /// A sidecar's command, and the one that makes it a fresh join token: one is good for one use.
    pub fn sidecar_command(
        &self,
        plan: &Plan,
        lab: &Lab,
        state: &Path,
    ) -> Result<(Vec<String>, (Vec<String>, PathBuf))> {
        std::fs::create_dir_all(state).during("the sidecar's state")?;
        let token = state.join("token");
        let namespace = &plan.workload.namespace;
        let mut argv = vec![path(&self.proxy), "--control".into(), format!("{}:{PORT}", lab.network.hub())];
        argv.extend(["--trust-root".into(), path(&self.root), "--token-file".into(), path(&token)]);
        argv.extend(["--pod".into(), format!("{namespace}/{}", plan.name), "--state".into(), path(state)]);
        argv.extend(["--admin".into(), format!("{}:{SIDECAR_ADMIN}", lab.admin_at(plan.address))]);
        if lab.isolation == Isolation::Userns {
            // There is no second group that its traffic could be told by.
            argv.extend(["--mark".into(), SIDECAR.to_string()]);
        }
        let mut make = vec![path(&self.program), "token".into(), "--state".into(), path(&self.state)];
        make.extend(["--namespace".into(), namespace.clone(), "--pod".into(), plan.name.clone()]);
        make.extend(["--service-account".into(), plan.template().service_account.clone()]);
        Ok((argv, (make, token)))
    }

    pub fn sidecar_ready() -> Ready {
        // Its admin interface answers to loopback names only.
        let headers = vec![("host".into(), format!("127.0.0.1:{SIDECAR_ADMIN}"))];
        let check = Check::Http { port: Target::Number(SIDECAR_ADMIN), path: "/ready".into(), headers };
        let second = Duration::from_secs(1);
        let probe = Probe { check, delay: Duration::ZERO, period: 5 * second, timeout: 2 * second, failures: 3 };
        Ready::Probe(Resolved { probe, port: SIDECAR_ADMIN })
    }
}
