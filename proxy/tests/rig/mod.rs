//! One proxy as a plain hop in front of the service `web`, with what every suite of policies asks of it: an access log to look
//! a request up in, changes of its file, and an account of what is open.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weft_testkit::backend::{Action, Handler, Reply};
use weft_testkit::client::{Http1, Response, http1};
use weft_testkit::dir::free_addr;
use weft_testkit::proxy::{Proxy, Start};
use weft_testkit::wait;

/// For whatever ought to be there in milliseconds, on a machine that may be busy.
pub const SOON: Duration = Duration::from_secs(15);

pub struct Hop {
    pub proxy: Proxy,
    pub addr: SocketAddr,
    fixed: String,
    mark: SocketAddr,
    generation: AtomicU64,
}

/// In front of `services`, a list in YAML in which `web` (port 80) is the destination.
#[track_caller]
pub fn hop(services: &str) -> Hop {
    hop_with("", 1, services)
}

/// `top` stands at the top level of the file.
#[track_caller]
pub fn hop_with(top: &str, workers: usize, services: &str) -> Hop {
    let (addr, admin, mark) = (free_addr(), free_addr(), free_addr());
    let fixed = format!(
        "admin: {admin}\ntelemetry: {{accessLog: json}}\n{top}\n\
         listeners:\n- {{name: front, role: hop, address: '{addr}', to: web}}\n\
         - {{name: mark, role: hop, address: '{mark}', protocol: http1, to: mark}}\n"
    );
    let yaml = whole(&fixed, services, 0);
    let args = vec!["--workers".into(), workers.to_string()];
    let bin = env!("CARGO_BIN_EXE_weft-proxy");
    let proxy = Proxy::with(Start { bin, yaml: &yaml, admin: Some(admin), args, ..Start::default() });
    Hop { proxy, addr, fixed, mark, generation: AtomicU64::new(0) }
}

/// A service beside the others says which version of the file is in force.
fn whole(fixed: &str, services: &str, generation: u64) -> String {
    format!(
        "{fixed}services:\n{services}\n- name: mark\n  port: 80\n  routes: [{{respond: {{status: 200, body: \"{generation}\"}}}}]\n"
    )
}

impl Hop {
    pub fn client(&self) -> Http1 {
        http1(self.addr).host("web")
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.client().get(path)
    }

    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.client().request(method, path, headers, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// Puts another list of services into force, and comes back when it is.
    #[track_caller]
    pub fn change(&self, services: &str) {
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        self.proxy.reconfigure(&whole(&self.fixed, services, generation));
        self.proxy.sighup();
        let mut client = http1(self.mark);
        wait::until("the changed file is in force", SOON, || client.get("/").text() == generation.to_string());
    }

    /// The access log's line of the request with this `x-request-id`.
    #[track_caller]
    pub fn line(&self, id: &str) -> serde_json::Value {
        let wanted = format!("\"request_id\":\"{id}\"");
        let line = self.proxy.wait_log(|l| l.contains(&wanted), SOON);
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    /// Flags and reason of that line.
    #[track_caller]
    pub fn flags(&self, id: &str) -> (String, String) {
        let line = self.line(id);
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_string();
        (text("flags"), text("reason"))
    }

    /// What breakers count as open now, over all backends.
    pub fn held(&self, of: &str) -> f64 {
        self.proxy.metric(&format!("weft_backend_{of}"), &[])
    }

    /// No request, no waiter and no retry holds anything any more.
    #[track_caller]
    pub fn wait_released(&self) {
        for of in ["active_requests", "pending_requests", "active_retries"] {
            wait::until(&format!("no {of}"), SOON, || self.held(of) == 0.0);
        }
    }
}

/// A request id of its own for every request of this process.
pub fn id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Answers by path: `/status/503`, `/slow/5000` (milliseconds); everything else is echoed.
pub fn app() -> Handler {
    std::sync::Arc::new(|seen| {
        let path = seen.path().to_string();
        let number = |prefix: &str| path.strip_prefix(prefix).and_then(|n| n.parse::<u64>().ok());
        if let Some(status) = number("/status/") {
            return Action::Reply(Reply::text(status as u16, format!("the app's own {status}")));
        }
        match number("/slow/") {
            Some(ms) => Action::Reply(Reply::text(200, "late").delayed(Duration::from_millis(ms))),
            None => Action::Echo,
        }
    })
}

pub fn timed<T>(f: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    (f(), begun.elapsed())
}

/// `n` at once, each on a thread of its own; the results in order.
pub fn at_once<T: Send>(n: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n)
            .map(|i| {
                scope.spawn({
                    let f = &f;
                    move || f(i)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    })
}
