//! `curl` in the sidecar's container: what people type to look at a sidecar, in curl's words and with its exit codes. It asks
//! this pod only.

use super::ask::{self, Failed, Question, failed};
use bytes::Bytes;
use clap::Parser;
use clap::error::ErrorKind;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use hyper::body::Incoming;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Asks this pod's sidecar, or its app, as curl does: over HTTP, on localhost.
#[derive(Debug, Parser)]
#[command(name = "curl", bin_name = "curl", version, after_help = EXAMPLES)]
pub struct Curl {
    /// Where to: localhost or a loopback address
    #[arg(value_name = "URL")]
    url: String,

    /// GET, POST or HEAD; else POST if there is --data, else GET
    #[arg(short = 'X', long, value_name = "METHOD")]
    request: Option<String>,

    /// What to send; several are joined with `&`
    #[arg(short, long, value_name = "TEXT", visible_alias = "data-raw")]
    data: Vec<String>,

    /// A header, `Name: value`
    #[arg(short = 'H', long, value_name = "HEADER")]
    header: Vec<String>,

    /// Ask with HEAD, and show the answer's headers
    #[arg(short = 'I', long)]
    head: bool,

    /// Show the answer's headers before its body
    #[arg(short, long, visible_alias = "show-headers")]
    include: bool,

    /// Write the body there
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// No body and exit code 22 for a status of 400 or more
    #[arg(short, long)]
    fail: bool,

    /// Say nothing of errors
    #[arg(short, long)]
    silent: bool,

    /// Say errors in spite of --silent
    #[arg(short = 'S', long)]
    show_error: bool,

    /// Show both sides' headers on standard error
    #[arg(short, long)]
    verbose: bool,

    /// Shown after the body: %{http_code}, %{size_download}, %{time_total}, %{content_type}, \n, \t
    #[arg(short, long, value_name = "FORMAT")]
    write_out: Option<String>,

    /// Give up after so many seconds
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    max_time: Option<Duration>,
}

const EXAMPLES: &str = "\
Examples:
  curl localhost:15000/stats
  curl -s localhost:15000/stats/prometheus
  curl -s -o /dev/null -w '%{http_code}\\n' localhost:15021/ready
  curl -X POST 'localhost:15000/logging?level=debug'

Exit codes are curl's: 0 done, 2 wrong use, 6 not this pod, 7 not connected, 22 a status of 400 or more (--fail), 23 not
written, 28 too late, 52 no answer, 56 a broken one.";

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| *s > 0.0);
    seconds
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .ok_or_else(|| "a number of seconds, such as 5 or 0.5".into())
}

pub fn main(words: &[OsString]) -> ExitCode {
    let curl = match Curl::try_parse_from(words) {
        Ok(curl) => curl,
        Err(error) => {
            let _ = error.print();
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if help { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    let loud = !curl.silent || curl.show_error;
    match ask::run(curl.max_time, curl.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { code, why }) => {
            if loud {
                eprintln!("curl: ({code}) {why}");
            }
            ExitCode::from(code)
        }
    }
}

/// What `--write-out` can tell.
struct Told {
    status: u16,
    kind: String,
    size: usize,
    took: Duration,
}

impl Curl {
    async fn run(&self) -> Result<(), Failed> {
        let began = Instant::now();
        let mut told = Told { status: 0, kind: String::new(), size: 0, took: Duration::ZERO };
        let outcome = self.transfer(&mut told).await;
        told.took = began.elapsed();
        if let Some(format) = &self.write_out {
            io::stdout().write_all(written(format, &told).as_bytes()).map_err(unwritten)?;
        }
        outcome
    }

    async fn transfer(&self, told: &mut Told) -> Result<(), Failed> {
        let answer = ask::ask(self.question()?, |request| {
            if self.verbose {
                eprint!("> {} {} HTTP/1.1\n{}>\n", request.method(), request.uri(), lines("> ", request.headers()));
            }
        })
        .await?;
        told.status = answer.status().as_u16();
        told.kind = text(answer.headers().get(header::CONTENT_TYPE));
        if self.verbose {
            eprint!("< {}\n{}<\n", status_line(&answer), lines("< ", answer.headers()));
        }
        let refused = self.fail && told.status >= 400;
        let mut out: Box<dyn Write> = match &self.output {
            Some(path) => Box::new(File::create(path).map_err(|e| failed(23, format!("{}: {e}", path.display())))?),
            None => Box::new(io::stdout()),
        };
        if (self.include || self.head) && !refused {
            let head = format!("{}\r\n{}\r\n", status_line(&answer), lines("", answer.headers()).replace('\n', "\r\n"));
            out.write_all(head.as_bytes()).map_err(unwritten)?;
        }
        if refused {
            return Err(failed(22, format!("The requested URL returned error: {}", told.status)));
        }
        ask::body(&mut answer.into_body(), |data| {
            told.size += data.len();
            out.write_all(data).map_err(unwritten)
        })
        .await?;
        out.flush().map_err(unwritten)
    }

    fn question(&self) -> Result<Question, Failed> {
        let (to, path) = ask::address(&self.url)?;
        let method = match (self.request.as_deref(), self.head, self.data.is_empty()) {
            (Some("GET"), ..) | (None, false, true) => Method::GET,
            (Some("POST"), ..) | (None, false, false) => Method::POST,
            (Some("HEAD"), ..) | (None, true, _) => Method::HEAD,
            (Some(other), ..) => return Err(failed(2, format!("{other:?}: this curl asks with GET, POST or HEAD"))),
        };
        if self.data.iter().any(|d| d.starts_with('@')) {
            return Err(failed(2, "--data @FILE is not read by this curl: give the text itself"));
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("curl/weft-", env!("CARGO_PKG_VERSION"))));
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        if !self.data.is_empty() {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(header::CONTENT_TYPE, form);
        }
        for line in &self.header {
            let wrong = || failed(2, format!("{line:?} is not a header: give it as 'Name: value'"));
            let (name, value) = line.split_once(':').ok_or_else(wrong)?;
            let name: HeaderName = name.parse().map_err(|_| wrong())?;
            headers.insert(name, value.trim().parse().map_err(|_| wrong())?);
        }
        Ok(Question { method, to, path, headers, body: Bytes::from(self.data.join("&")) })
    }
}

/// Also a reader that went away, as in `curl ... | head`.
fn unwritten(error: io::Error) -> Failed {
    failed(23, format!("Failure writing output to destination: {error}"))
}

fn status_line(answer: &Response<Incoming>) -> String {
    let reason = answer.status().canonical_reason().unwrap_or("");
    format!("{:?} {} {reason}", answer.version(), answer.status().as_u16())
}

fn lines(before: &str, headers: &HeaderMap) -> String {
    headers.iter().map(|(name, value)| format!("{before}{name}: {}\n", text(Some(value)))).collect()
}

fn text(value: Option<&HeaderValue>) -> String {
    value.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default()
}

fn written(format: &str, told: &Told) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['%', '\\']) {
        out += &rest[..at];
        let (special, after) = rest.split_at(at + 1);
        rest = after;
        if special.ends_with('\\') {
            match after.chars().next() {
                Some(c @ ('n' | 't' | 'r')) => out.push(match c {
                    'n' => '\n',
                    't' => '\t',
                    _ => '\r',
                }),
                Some(c) => out.extend(['\\', c]),
                None => out.push('\\'),
            }
            rest = after.chars().next().map_or("", |c| &after[c.len_utf8()..]);
            continue;
        }
        if let Some(after) = after.strip_prefix('%') {
            out.push('%');
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('{').and_then(|v| v.split_once('}')) {
            rest = after;
            match name {
                "http_code" | "response_code" => out += &format!("{:03}", told.status),
                "size_download" => out += &told.size.to_string(),
                "time_total" => out += &format!("{:.6}", told.took.as_secs_f64()),
                "content_type" => out += &told.kind,
                _ => eprintln!("curl: unknown --write-out variable: '{name}'"),
            }
        } else {
            out.push('%');
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(words: &[&str]) -> Result<Question, u8> {
        let curl = Curl::try_parse_from([&["curl"], words].concat()).map_err(|_| 2)?;
        curl.question().map_err(|f| f.code)
    }

    #[test]
    fn what_people_type() {
        let table: &[(&[&str], &str, &str, &str)] = &[
            (&["localhost:15000/stats"], "GET", "localhost:15000", "/stats"),
            (&["-s", "http://localhost:15000/stats/prometheus"], "GET", "localhost:15000", "/stats/prometheus"),
            (
                &["-sS", "-X", "POST", "localhost:15000/logging?level=debug"],
                "POST",
                "localhost:15000",
                "/logging?level=debug",
            ),
            (&["-XPOST", "127.0.0.1:15000/drain"], "POST", "127.0.0.1:15000", "/drain"),
            (&["-sSfo/dev/null", "-w%{http_code}", "[::1]:15021?a#b"], "GET", "[::1]:15021", "/?a"),
            (&["-d", "a=1", "-d", "b=2", "localhost"], "POST", "localhost", "/"),
            (&["-I", "localhost"], "HEAD", "localhost", "/"),
        ];
        for (words, method, to, path) in table {
            let asked = question(words).unwrap_or_else(|code| panic!("{words:?}: {code}"));
            assert_eq!(
                (asked.method.as_str(), asked.to.as_str(), asked.path.as_str()),
                (*method, *to, *path),
                "{words:?}"
            );
        }
        assert_eq!(question(&["-d", "a=1", "-d", "b=2", "localhost"]).unwrap().body, "a=1&b=2");
        let host = question(&["-H", "Host: shop", "-H", "x-a:1", "localhost"]).unwrap().headers;
        assert_eq!((host["host"].as_bytes(), host["x-a"].as_bytes()), (&b"shop"[..], &b"1"[..]));
        for (words, code) in [
            (&["https://localhost"][..], 1),
            (&["-X", "DELETE", "localhost"], 2),
            (&["-H", "nothing", "localhost"], 2),
            (&["-H", "a: b\r\nc: d", "localhost"], 2),
            (&["-d", "@/etc/passwd", "localhost"], 2),
            (&["http://"], 3),
            (&["--proxy", "x", "localhost"], 2),
            (&[], 2),
        ] {
            assert_eq!(question(words).err(), Some(code), "{words:?}");
        }
    }

    #[test]
    fn what_is_written_afterwards() {
        let told = Told { status: 204, kind: "text/plain".into(), size: 7, took: Duration::from_millis(1500) };
        assert_eq!(written(r"%{http_code} %{size_download}\n", &told), "204 7\n");
        assert_eq!(written("100%% %{time_total} %{content_type}", &told), "100% 1.500000 text/plain");
        assert_eq!(written(r"%{nothing}%x\q\", &told), r"%x\q\");
        assert_eq!(written("%{http_code", &told), "%{http_code");
    }
}
