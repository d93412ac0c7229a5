//! `mesh-sample`: a small service to put a mesh around.
//!
//! One program speaks what a mesh has to carry, one file each: JSON over HTTP/1.1 and HTTP/2 (`json.rs`), WebSocket, gRPC, and TCP
//! where the server speaks first. It says who answered, what arrived and who the mesh says has called; it calls the services
//! that the environment names, and fails as often as it is told to. `mesh-sample load` is the client: requests at a rate.

mod app;
mod call;
mod grpc;
mod json;
mod load;
mod serve;
mod tcp;
mod websocket;

use app::App;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A small service for trying a mesh with.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Port to listen on, all addresses, for HTTP/1.1, HTTP/2, WebSocket and gRPC; PORT counts as well [default: 8080]
    #[arg(long, env = "BACKEND_PORT")]
    port: Option<u16>,
    /// One more port for the same
    #[arg(long, env = "GRPC_PORT")]
    grpc_port: Option<u16>,
    /// Port of the TCP echo, which says first who it is
    #[arg(long, env = "TCP_PORT")]
    tcp_port: Option<u16>,
    /// Name to answer with
    #[arg(long, env = "SERVICE_NAME", default_value = "sample")]
    name: String,
    /// Version to answer with
    #[arg(long, env = "VERSION", default_value = "")]
    app_version: String,
    /// Share of requests, 0 to 1, to answer with 500, or UNAVAILABLE over gRPC
    #[arg(long, env = "FAILURE_RATE", default_value_t = 0.0)]
    failure_rate: f64,
    /// Milliseconds to wait before each answer
    #[arg(long, env = "DELAY_MS", default_value_t = 0)]
    delay_ms: u64,
    /// Status to answer with
    #[arg(long, env = "STATUS", default_value_t = 200)]
    status: u16,
    /// Bytes to fill each answer up with
    #[arg(long, env = "BODY_SIZE", default_value_t = 0)]
    body_size: usize,
    /// Answer with this text in place of JSON
    #[arg(long, env = "TEXT")]
    text: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Send requests at a rate, whatever becomes of them, and count the answers
    Load(load::Load),
}

const EXAMPLES: &str = "\
Examples:
  BACKEND_PORT=8080 SERVICE_NAME=users FAILURE_RATE=0.1 mesh-sample
  curl '127.0.0.1:8080/any?status=503&delay=200&size=1000'    one answer as this request wants it
  curl --http2-prior-knowledge 127.0.0.1:8080/
  TCP_PORT=9000 mesh-sample                                   nc 127.0.0.1 9000: it speaks first
  mesh-sample load http://127.0.0.1:8080/ --rps 200

Services to call, for each request that is answered with JSON; trace headers are passed on,
and HTTP goes through http_proxy if there is one:
  USERS_SERVICE_URL=http://users:8080     HTTP/1.1, with the request's path; with a path of the URL's own, that one
  USERS_SERVICE_URL=h2c://users:8080      HTTP/2 without TLS
  ECHO_SERVICE_URL=grpc://echo:8080       weft.sample.Echo/Say, or with /Chat a stream of three messages (echo.proto)
  ECHO_SERVICE_URL=ws://echo:8080         WebSocket
  ECHO_SERVICE_URL=tcp://echo:9000        TCP: its greeting, and a line that comes back";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Command::Load(load)) = args.command {
        return load.run().await;
    }
    match serve::run(App::new(args)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-sample: {error}");
            ExitCode::from(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line() {
        Args::command().debug_assert();
        for good in [&["mesh-sample"][..], &["mesh-sample", "--port", "1", "--text", "hi", "--status", "503"]] {
            assert!(Args::try_parse_from(good).is_ok(), "{good:?}");
        }
        assert!(Args::try_parse_from(["mesh-sample", "load", "http://a:80/", "--duration", "2m", "-c", "5"]).is_ok());
        assert!(Args::try_parse_from(["mesh-sample", "load", "ftp://a"]).is_err());
    }
}
