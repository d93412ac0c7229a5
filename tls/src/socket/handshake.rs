//! The handshake: read, feed, write, until both sides may send data.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::session::{Ended, Out, Send, Session};
use crate::reason::HandshakeError;

/// rustls itself refuses handshake messages beyond 64 KiB; this bounds what may lie between them.
const MAX_UNREAD: usize = 192 * 1024;
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// What came in together with the end of the handshake.
#[derive(Default)]
pub(super) struct Opened {
    /// Part of a record.
    pub(super) incoming: Vec<u8>,
    pub(super) plain: Vec<u8>,
    pub(super) closed: bool,
}

pub(super) async fn run(
    tcp: &mut TcpStream,
    session: &mut Session,
    mut incoming: Vec<u8>,
) -> Result<Opened, HandshakeError> {
    let _ = tcp.set_nodelay(true);
    let mut out = Out::default();
    let mut plain = Vec::new();
    loop {
        out.clear();
        let (consumed, result) =
            session.pump(&mut incoming, Send::Nothing, &mut out, |bytes| plain.extend_from_slice(bytes));
        let ended = match result {
            Ok(ended) => ended,
            Err(error) => {
                session.last_words(incoming.get_mut(consumed..).unwrap_or_default(), &mut out);
                say_and_close(tcp, out.filled()).await;
                return Err(error.into());
            }
        };
        incoming.drain(..consumed);
        if !out.filled().is_empty() {
            tcp.write_all(out.filled()).await?;
        }
        if !session.is_handshaking() {
            return Ok(Opened { incoming, plain, closed: ended == Ended::PeerClosed });
        }
        if ended == Ended::PeerClosed || incoming.len() > MAX_UNREAD {
            return Err(HandshakeError::Closed);
        }
        if incoming.capacity() - incoming.len() < 2048 {
            incoming.reserve(4096);
        }
        if tcp.read_buf(&mut incoming).await? == 0 {
            return Err(HandshakeError::Closed);
        }
    }
}

/// Sends the alert and waits for the peer to go. Closing at once while the peer's data lies unread would reset the
/// connection and take the alert with it.
async fn say_and_close(tcp: &mut TcpStream, alert: &[u8]) {
    let farewell = async {
        tcp.write_all(alert).await?;
        tcp.shutdown().await?;
        let (mut waste, mut total) = ([0; 1024], 0);
        while total < LINGER_BYTES {
            match tcp.read(&mut waste).await? {
                0 => break,
                n => total += n,
            }
        }
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(LINGER, farewell).await;
}
