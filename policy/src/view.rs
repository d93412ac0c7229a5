//! What a policy may see of a connection and of a request, and what it may change: borrowed bytes, no codec's types.

use crate::id::SpiffeId;
use std::net::{IpAddr, SocketAddr};

/// Header fields to read. Names are lower case.
pub trait Fields {
    /// The values of a field in order; the visitor stops the walk by returning false.
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool);

    fn first(&self, name: &str) -> Option<&[u8]>;

    /// All values joined by a comma, as a matcher must see a repeated field.
    fn joined<'b>(&self, name: &str, buffer: &'b mut Vec<u8>) -> Option<&'b [u8]> {
        buffer.clear();
        let mut found = false;
        self.each(name, &mut |value| {
            if found {
                buffer.push(b',');
            }
            buffer.extend_from_slice(value);
            found = true;
            true
        });
        found.then_some(&buffer[..])
    }
}

/// Header fields to change. Values that are not valid field values are refused at config time, not here.
pub trait FieldsMut: Fields {
    fn set(&mut self, name: &str, value: &[u8]);
    fn append(&mut self, name: &str, value: &[u8]);
    fn remove(&mut self, name: &str);
}

#[derive(Clone, Copy)]
pub struct ConnView<'a> {
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// Where the connection was going before it was redirected, or the listener's own address.
    pub destination: SocketAddr,
    /// Proven by a client certificate; nothing else counts.
    pub identity: Option<&'a SpiffeId>,
    pub server_name: Option<&'a str>,
}

pub struct RequestView<'a> {
    pub conn: ConnView<'a>,
    pub method: &'a str,
    pub scheme: &'a str,
    /// Host without port, lower case.
    pub host: &'a str,
    /// Canonical path, without the query.
    pub path: &'a str,
    /// Raw query without `?`.
    pub query: Option<&'a str>,
    pub fields: &'a dyn Fields,
}

impl RequestView<'_> {
    pub fn source_ip(&self) -> IpAddr {
        self.conn.peer.ip()
    }

    pub fn is_grpc(&self) -> bool {
        self.fields.first("content-type").is_some_and(is_grpc)
    }
}

/// `application/grpc`, alone or with a suffix or parameters.
pub fn is_grpc(content_type: &[u8]) -> bool {
    content_type
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| rest.is_empty() || matches!(rest[0], b'+' | b';' | b' '))
}
