//! Who this app is, and how well it does today: the same for every protocol.

use crate::Args;
use crate::call::Call;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

pub struct App {
    pub args: Args,
    pub instance: String,
    pub calls: Vec<Call>,
    pub ending: watch::Sender<bool>,
    served: AtomicU64,
}

const MAX_DELAY: Duration = Duration::from_secs(60);

const TRACE: [&str; 9] = [
    "traceparent",
    "tracestate",
    "x-request-id",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];

impl App {
    pub fn new(args: Args) -> Arc<Self> {
        let mut calls = Vec::new();
        for (variable, url) in std::env::vars() {
            let Some(name) = variable.strip_suffix("_SERVICE_URL") else { continue };
            match Call::new(&name.to_ascii_lowercase(), &url) {
                Ok(call) => calls.push(call),
                Err(why) => eprintln!("{variable}={url}: {why}; it is not called"),
            }
        }
        calls.sort_by(|a, b| a.name.cmp(&b.name));
        let instance = std::env::var("HOSTNAME").unwrap_or_default();
        Arc::new(Self { args, instance, calls, ending: watch::Sender::new(false), served: AtomicU64::new(0) })
    }

    /// `NAME VERSION INSTANCE`, as far as it has them.
    pub fn signature(&self) -> String {
        let parts = [&self.args.name, &self.args.app_version, &self.instance];
        parts.into_iter().filter(|p| !p.is_empty()).map(String::as_str).collect::<Vec<_>>().join(" ")
    }

    /// Takes the time an answer takes, and says whether this one fails.
    pub async fn work(&self, delay_ms: Option<u64>) -> bool {
        let nth = self.served.fetch_add(1, Ordering::Relaxed);
        let delay = Duration::from_millis(delay_ms.unwrap_or(self.args.delay_ms)).min(MAX_DELAY);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // Spread evenly instead of at random, so that a lab shows what its text says.
        let rate = self.args.failure_rate.clamp(0.0, 1.0);
        ((nth + 1) as f64 * rate).floor() > (nth as f64 * rate).floor()
    }

    /// Returns when it is time to finish.
    pub async fn ends(&self) {
        // Whoever would say so has gone: that is an end as well.
        let _ = self.ending.subscribe().wait_for(|ending| *ending).await;
    }
}

/// What an app in a mesh passes on to those it calls, so that one request is one trace.
pub fn traced(mut request: http::request::Builder, from: &http::HeaderMap) -> http::request::Builder {
    for name in TRACE {
        if let Some(value) = from.get(name) {
            request = request.header(name, value);
        }
    }
    request
}

/// Who the mesh says has called: the URI of the last certificate that a sidecar has put down.
pub fn caller(headers: &http::HeaderMap) -> Option<&str> {
    let all = headers.get("x-forwarded-client-cert")?.to_str().ok()?;
    let fields = all.rsplit(',').next()?.split(';');
    fields.filter_map(|f| f.trim().strip_prefix("URI=")).next_back()
}
