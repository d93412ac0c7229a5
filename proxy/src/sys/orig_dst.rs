//! Where a redirected connection was going.

use socket2::SockRef;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// The address the client dialled before a REDIRECT rule turned the connection to us. An error where there was no such rule.
pub fn original_destination(tcp: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(tcp);
    // An IPv4 client of a dual-stack listener is found in the IPv4 table only.
    let v4 = tcp.local_addr()?.ip().to_canonical().is_ipv4();
    let address = if v4 { socket.original_dst_v4() } else { socket.original_dst_v6() }?;
    address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}
