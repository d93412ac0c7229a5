//! Socket options.

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};

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

/// What a sidecar dials its own app from, as Istio's does. Rules tell it by this from a sidecar that calls its own pod through
/// a Service, which must arrive at the sidecar.
pub const OWN_APP_SEES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)), IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6))];

/// A socket to dial `to` with. `mark` is what redirection rules know our connections by where they cannot by a group; to set
/// one takes CAP_NET_ADMIN.
pub fn dialler(to: SocketAddr, own_app: bool, mark: Option<u32>) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    if own_app {
        bind_late(&socket);
        let from = OWN_APP_SEES[usize::from(to.is_ipv6())];
        // Where the address does not exist nobody has made rules about it.
        let _ = socket.bind(SocketAddr::new(from, 0));
    }
    Ok(socket)
}

/// The port is chosen when it is known whom it is for, so that as many connections to each app fit as without a bind.
fn bind_late(socket: &TcpSocket) {
    let yes: libc::c_int = 1;
    // Safety: the descriptor is open as long as the socket lives, and the option is one int.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const yes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
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
