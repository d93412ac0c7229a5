//! The first lab: a pair of sidecars in front of the sample app, on this machine, from two files.
//!
//! Makes certificates, starts the app and both sidecars, sends a few requests and shows what they show; then it stays up for
//! you to try things, until Ctrl-C. Nothing is left behind.

use clap::Parser;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A pair of sidecars in front of the sample app.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  examples/pair/run\n  examples/pair/run --check     # send the requests, check the answers, leave"
)]
struct Args {
    /// Folder with client.yaml and server.yaml
    #[arg(long, default_value = "examples/pair")]
    lab: PathBuf,
    /// Leave after the requests; exit 0 only if every one was answered as expected
    #[arg(long)]
    check: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let folder = std::env::temp_dir().join(format!("weft-pair-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let outcome = tokio::select! {
        outcome = lab(&args, &folder) => outcome,
        _ = tokio::signal::ctrl_c() => { println!("\nstopping"); Ok(()) }
    };
    std::fs::remove_dir_all(&folder)?;
    outcome
}

async fn lab(args: &Args, folder: &Path) -> Result<()> {
    let beside = std::env::current_exe()?.parent().ok_or("no folder")?.to_path_buf();
    println!("certificates: one root, one identity each for web and reviews");
    certificates(folder)?;
    for file in ["client.yaml", "server.yaml"] {
        std::fs::copy(args.lab.join(file), folder.join(file))
            .map_err(|e| format!("{file} in {}: {e}", args.lab.display()))?;
    }
    println!("starting: the app on 25080, its sidecar on 25006, the caller's sidecar on 25001");
    let quiet = |program: &str| {
        let mut command = Command::new(beside.join(program));
        command.kill_on_drop(true).stdin(Stdio::null());
        command
    };
    let sidecar = |file: &str, log: &str| -> Result<Child> {
        let log = std::fs::File::create(folder.join(log))?;
        let mut command = quiet("weft-proxy");
        command.arg("--config").arg(folder.join(file)).stdout(log.try_clone()?).stderr(log);
        Ok(command.spawn().map_err(|e| format!("weft-proxy: {e}; build it with cargo build --release"))?)
    };
    let mut app = quiet("mesh-sample")
        .env("BACKEND_PORT", "25080")
        .env("SERVICE_NAME", "reviews")
        .env("FAILURE_RATE", "0.5")
        .stderr(Stdio::null())
        .spawn()?;
    let mut server = sidecar("server.yaml", "server.log")?;
    let mut client = sidecar("client.yaml", "client.log")?;
    for admin in ["127.0.0.1:25000", "127.0.0.1:26000"] {
        ready(admin).await.map_err(|e| logged(folder, &e))?;
    }

    let mut good = 0;
    let mut wrong = Vec::new();
    let mut expect = |what: &str, got: &str, holds: bool| {
        println!("{} {what}: {got}", if holds { "ok  " } else { "FAIL" });
        if holds { good += 1 } else { wrong.push(what.to_string()) }
    };
    println!("\n$ curl -H 'Host: reviews' http://127.0.0.1:25001/");
    let answer = get("127.0.0.1:25001", "reviews", "/").await?;
    println!("{}", answer.trim_end());
    expect("an answer through both sidecars", first_line(&answer), answer.starts_with("HTTP/1.1 200"));
    expect(
        "the app was told who called",
        "x-forwarded-client-cert",
        answer.contains("URI=spiffe://cluster.local/ns/demo/sa/web"),
    );
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(!get("127.0.0.1:25001", "reviews", "/retry").await?.starts_with("HTTP/1.1 200"));
    }
    expect("40 calls to an app that fails every second one", &format!("{failed} failed"), failed == 0);
    let teapot = get("127.0.0.1:25001", "reviews", "/teapot").await?;
    expect("a route that answers by itself", first_line(&teapot), teapot.starts_with("HTTP/1.1 418"));
    let plain = get("127.0.0.1:25006", "reviews", "/").await;
    expect("plaintext to the app's sidecar", "refused", plain.map_or(true, |text| text.is_empty()));
    let metrics = get("127.0.0.1:25000", "127.0.0.1:25000", "/stats/prometheus").await?;
    let line = metrics.lines().find(|l| l.starts_with("istio_requests_total{") && l.contains("response_code=\"200\""));
    expect("a metric that says so", line.unwrap_or("none"), line.is_some());

    println!("\nthe caller's sidecar wrote:");
    let log = std::fs::read_to_string(folder.join("client.log"))?;
    log.lines().filter(|l| l.starts_with('[')).take(2).for_each(|l| println!("  {l}"));
    println!("\n{good} passed, {} failed", wrong.len());
    if args.check {
        return if wrong.is_empty() { Ok(()) } else { Err(format!("not as expected: {}", wrong.join("; ")).into()) };
    }
    println!(
        "\nUp until Ctrl-C. Try:\n  curl -i -H 'Host: reviews' http://127.0.0.1:25001/teapot\n  \
         curl -s http://127.0.0.1:25000/clusters\n  curl -s http://127.0.0.1:25000/stats/prometheus | grep istio_requests_total\n  \
         edit {}/client.yaml (routes, retries, a fault) and ask again: it is re-read within a second\n  \
         tail -f {}/client.log",
        folder.display(),
        folder.display()
    );
    tokio::select! {
        status = client.wait() => Err(logged(folder, &format!("the caller's sidecar ended: {}", status?)).into()),
        status = server.wait() => Err(logged(folder, &format!("the app's sidecar ended: {}", status?)).into()),
        status = app.wait() => Err(format!("the app ended: {} (is port 25080 in use?)", status?).into()),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("nothing")
}

fn logged(folder: &Path, why: &str) -> String {
    let mut text = why.to_string();
    for log in ["client.log", "server.log"] {
        let lines = std::fs::read_to_string(folder.join(log)).unwrap_or_default();
        text.push_str(&format!("\n{log}:\n{lines}"));
    }
    text
}

async fn ready(admin: &str) -> std::result::Result<(), String> {
    for _ in 0..100 {
        if get(admin, admin, "/ready").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("the sidecar with admin address {admin} is not ready after 5 s"))
}

/// One request, the whole answer as text.
async fn get(addr: &str, host: &str, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: lab\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn certificates(folder: &Path) -> Result<()> {
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::new(Vec::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_cert = root.self_signed(&root_key)?;
    std::fs::write(folder.join("root.pem"), root_cert.pem())?;
    let issuer = Issuer::new(root, root_key);
    for name in ["web", "reviews"] {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(Vec::new())?;
        leaf.subject_alt_names = vec![SanType::URI(format!("spiffe://cluster.local/ns/demo/sa/{name}").try_into()?)];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        std::fs::write(folder.join(format!("{name}.pem")), leaf.signed_by(&key, &issuer)?.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
