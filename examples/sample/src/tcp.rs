//! TCP whose server speaks first, as a database or a mail server does: a line that says who it is, then whatever comes goes back.

use crate::app::App;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// No greeting is longer.
const LINE: u64 = 4096;

pub async fn echo(app: &App, mut stream: TcpStream) {
    let served = async {
        stream.write_all(format!("{}\n", app.signature()).as_bytes()).await?;
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await?;
        to.shutdown().await
    };
    tokio::select! {
        _ = served => {}
        () = app.ends() => {}
    }
}

pub async fn call(authority: &str) -> Result<Value, String> {
    let of = |e: std::io::Error| e.to_string();
    let mut stream = BufReader::new(TcpStream::connect(authority).await.map_err(of)?);
    let (mut greeting, mut echo) = (String::new(), String::new());
    (&mut stream).take(LINE).read_line(&mut greeting).await.map_err(of)?;
    stream.write_all(b"hello\n").await.map_err(of)?;
    (&mut stream).take(LINE).read_line(&mut echo).await.map_err(of)?;
    Ok(json!({"greeting": greeting.trim_end(), "echo": echo.trim_end()}))
}
