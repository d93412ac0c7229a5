//! `pilot-agent` as Istio's users call it in a sidecar's container: `request` asks the sidecar's pages, `wait` waits for it.

use super::ask::{self, Failed, Question, failed};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use http::{HeaderMap, Method};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Asks this pod's sidecar, in the words of Istio's agent.
#[derive(Debug, Parser)]
#[command(name = "pilot-agent", bin_name = "pilot-agent", version, after_help = EXAMPLES)]
pub struct PilotAgent {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Ask one of the sidecar's pages, and print the answer
    Request {
        /// The port of the pages
        #[arg(long, value_name = "PORT", default_value = "15000")]
        debug_port: u16,
        /// GET, or POST for what changes something
        #[arg(value_name = "METHOD")]
        method: String,
        /// Such as config_dump, stats or clusters; `help` lists them
        #[arg(value_name = "PATH")]
        path: String,
        /// What to send
        #[arg(value_name = "BODY")]
        body: Option<String>,
    },
    /// Wait until the sidecar is ready
    Wait {
        /// How long in all
        #[arg(long = "timeoutSeconds", value_name = "N", default_value = "60", value_parser = clap::value_parser!(u64).range(..=86400))]
        limit: u64,
        /// Between two questions
        #[arg(long = "periodMillis", value_name = "N", default_value = "500", value_parser = clap::value_parser!(u64).range(1..=60000))]
        pause: u64,
        /// For each question
        #[arg(long = "requestTimeoutMillis", value_name = "N", default_value = "500", value_parser = clap::value_parser!(u64).range(1..=60000))]
        each: u64,
        /// What answers 200 when it is
        #[arg(long, default_value = "http://localhost:15021/healthz/ready")]
        url: String,
    },
}

const EXAMPLES: &str = "\
Examples:
  pilot-agent request GET config_dump
  pilot-agent request GET stats
  pilot-agent request POST 'logging?level=debug'
  pilot-agent wait --timeoutSeconds 30

Exit codes: 0 done, 1 failed, 2 wrong use.";

pub fn main(agent: &PilotAgent) -> ExitCode {
    let outcome = match &agent.verb {
        Verb::Request { debug_port, method, path, body } => {
            let body = body.clone().unwrap_or_default();
            ask::run(None, request(*debug_port, method, path, body))
        }
        Verb::Wait { limit, pause, each, url } => {
            let [pause, each] = [pause, each].map(|n| Duration::from_millis(*n));
            ask::run(None, wait(Duration::from_secs(*limit), pause, each, url))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("Error: {}", failed.why);
            ExitCode::from(1)
        }
    }
}

async fn request(port: u16, method: &str, path: &str, body: String) -> Result<(), Failed> {
    let method = match method.to_ascii_uppercase().as_str() {
        "GET" => Method::GET,
        "POST" => Method::POST,
        _ => return Err(failed(2, format!("{method:?}: ask with GET or POST"))),
    };
    let (to, path) = ask::address(&format!("localhost:{port}/{}", path.trim_start_matches('/')))?;
    let question = Question { method, to, path, headers: HeaderMap::new(), body: Bytes::from(body) };
    let answer = ask::ask(question, |_| {}).await?;
    let status = answer.status();
    let mut out = io::stdout();
    ask::body(&mut answer.into_body(), |data| out.write_all(data).map_err(|e| failed(23, e.to_string()))).await?;
    out.flush().map_err(|e| failed(23, e.to_string()))?;
    match status.as_u16() {
        ..400 => Ok(()),
        _ => Err(failed(22, format!("the sidecar answered {status}"))),
    }
}

async fn wait(limit: Duration, pause: Duration, each: Duration, url: &str) -> Result<(), Failed> {
    let (to, path) = ask::address(url)?;
    let mut last = "it was not asked".to_string();
    let asking = async {
        loop {
            let (to, path) = (to.clone(), path.clone());
            let question = Question { method: Method::GET, to, path, headers: HeaderMap::new(), body: Bytes::new() };
            last = match timeout(each, ask::ask(question, |_| {})).await {
                Ok(Ok(answer)) if answer.status().is_success() => return Ok(()),
                Ok(Ok(answer)) => format!("it answered {}", answer.status()),
                // Waiting does not help.
                Ok(Err(wrong)) if [3, 6].contains(&wrong.code) => return Err(wrong),
                Ok(Err(failed)) => failed.why,
                Err(_) => format!("it did not answer within {} ms", each.as_millis()),
            };
            sleep(pause).await;
        }
    };
    match timeout(limit, asking).await {
        Ok(done) => done,
        Err(_) => Err(failed(28, format!("the sidecar is not ready after {} s: {last}", limit.as_secs()))),
    }
}
