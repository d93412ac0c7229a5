//! Socket options.

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::net::TcpStream;

/// What the kernel queues while a worker is busy; it caps this by `somaxconn`.
const BACKLOG: i32 = 4096;
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// A listening socket that other workers, and a successor of this process, can share the port of.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Small messages go out at once; a peer that vanished without a word is noticed within two minutes.
pub fn tune(tcp: &TcpStream) {
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_PROBES);
    let socket = SockRef::from(tcp);
    // A socket that refuses these is about to fail anyway.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Bytes that were handed to the kernel and that the peer has not acknowledged.
pub fn unsent(tcp: &TcpStream) -> u64 {
    let mut bytes: libc::c_int = 0;
    // Safety: the descriptor is open as long as the stream lives, and TIOCOUTQ writes one int.
    let failed = unsafe { libc::ioctl(tcp.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } != 0;
    if failed { 0 } else { bytes.unsigned_abs().into() }
}

/// Makes the close that follows a reset: the peer's next call fails.
pub fn reset_on_close(tcp: &TcpStream) {
    let _ = tcp.set_zero_linger();
}
