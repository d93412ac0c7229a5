//! Netlink: how the kernel's network tables are asked and changed. Messages of attributes, over a plain socket.

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Flags of a message.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
pub const CREATE: u16 = 0x400;
pub const EXCLUSIVE: u16 = 0x200;
pub const APPEND: u16 = 0x800;
const DUMP: u16 = 0x300;
/// Kinds the kernel answers with.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// Marks an attribute whose value is attributes.
const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;
/// The kernel takes a batch whole, so it has to fit into the socket.
const BATCH: usize = 1 << 20;
/// What the kernel sends at once is never more.
const DATAGRAM: usize = 1 << 16;
/// More than all that we ever ask for.
const ANSWER: usize = 8 << 20;
/// The kernel answers at once; never to wait for ever all the same.
const PATIENCE: Duration = Duration::from_secs(10);

/// A message to the kernel, or the inside of one.
#[derive(Clone, Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// `head` is what the subsystem has before its attributes.
    pub fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend(head);
        Self(bytes)
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.attribute(kind, |inside| {
            inside.0.extend(value);
            inside
        })
    }

    /// Names end with a zero byte.
    pub fn name(&mut self, kind: u16, name: &str) -> &mut Self {
        self.attribute(kind, |inside| {
            inside.0.extend(name.as_bytes());
            inside.0.push(0);
            inside
        })
    }

    /// Numbers are in network order.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        self.attribute(kind | NESTED, fill)
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0; 4]);
        fill(self);
        // Rules are made of a few matches; nothing here comes near 64 KiB.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn flag(&mut self, flags: u16) {
        let now = u16::from_ne_bytes([self.0[6], self.0[7]]);
        self.0[6..8].copy_from_slice(&(now | flags).to_ne_bytes());
    }

    fn seal(&mut self, number: u32) -> &[u8] {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&number.to_ne_bytes());
        &self.0
    }

    /// The attributes, after a head of that length.
    pub fn attributes(&self, head: usize) -> &[u8] {
        self.0.get(HEADER + head..).unwrap_or_default()
    }
}

/// What the kernel refused: which message, counted from 0, and why.
#[derive(Debug)]
pub struct Refused {
    pub at: usize,
    pub why: io::Error,
}

pub struct Socket(OwnedFd);

impl Socket {
    pub fn netfilter() -> io::Result<Self> {
        Self::open(Some(NETFILTER))
    }

    /// Addresses and routes: the protocol with the number 0.
    pub fn route() -> io::Result<Self> {
        Self::open(None)
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<Self> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(PATIENCE))?;
        // Whoever may not has room for a few hundred rules still.
        let _ = set_socket_send_buffer_size_force(&fd, BATCH);
        Ok(Self(fd))
    }

    /// Sends all of them at once and waits until `last` was done, or the first was refused.
    pub fn send(&self, mut messages: Vec<Message>, last: usize) -> Result<(), Refused> {
        let failed = |why: Errno| Refused { at: last, why: why.into() };
        let mut bytes = Vec::new();
        for (number, message) in messages.iter_mut().enumerate() {
            if number == last {
                message.flag(ACK);
            }
            bytes.extend(message.seal(number as u32));
        }
        send(&self.0, &bytes, SendFlags::empty()).map_err(failed)?;
        loop {
            for answer in split(&self.receive().map_err(failed)?) {
                let (ERROR, Some(code), Some(number)) = (answer.kind, int(answer.body, 0), int(answer.body, 12)) else {
                    continue;
                };
                let at = number as u32 as usize;
                if code != 0 {
                    let why = io::Error::from_raw_os_error(code.saturating_neg());
                    return Err(Refused { at, why });
                }
                if at == last {
                    return Ok(());
                }
            }
        }
    }

    /// Everything of a kind: the answers' bodies, head and attributes.
    pub fn dump(&self, mut question: Message) -> io::Result<Vec<Vec<u8>>> {
        question.flag(DUMP);
        send(&self.0, question.seal(0), SendFlags::empty())?;
        let (mut found, mut size) = (Vec::new(), 0);
        loop {
            for answer in split(&self.receive()?) {
                match (answer.kind, int(answer.body, 0)) {
                    (DONE, _) => return Ok(found),
                    (ERROR, Some(code)) => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    _ => found.push(answer.body.to_vec()),
                }
                size += answer.body.len();
            }
            if size > ANSWER {
                return Err(io::Error::other("the kernel has more to tell than can be true"));
            }
        }
    }

    fn receive(&self) -> rustix::io::Result<Vec<u8>> {
        let mut space = vec![0; DATAGRAM];
        loop {
            match recv(&self.0, &mut space[..], RecvFlags::empty()) {
                Ok((length, _)) => {
                    space.truncate(length);
                    return Ok(space);
                }
                // More answers than there was room for; the first ones, which matter, are there.
                Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
                Err(error) => return Err(error),
            }
        }
    }
}

struct Answer<'a> {
    kind: u16,
    body: &'a [u8],
}

fn split(mut bytes: &[u8]) -> Vec<Answer<'_>> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (int(bytes, 0), short(bytes, 4)) {
        let length = length as u32 as usize;
        let Some(body) = bytes.get(HEADER..length) else { break };
        found.push(Answer { kind, body });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn int(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[derive(Clone, Copy)]
struct Attribute<'a> {
    kind: u16,
    nested: bool,
    value: &'a [u8],
}

fn attributes(mut bytes: &[u8]) -> Vec<Attribute<'_>> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (short(bytes, 0), short(bytes, 2)) {
        let length = usize::from(length);
        let Some(value) = bytes.get(4..length) else { break };
        found.push(Attribute { kind: kind & KIND, nested: kind & NESTED != 0, value });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The value of the first attribute of that kind.
pub fn value(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).into_iter().find(|a| a.kind == kind).map(|a| a.value)
}

/// Whether all that was said is there: in the order of its kind, and as often. The kernel adds what we did not say (handles,
/// counts, defaults).
pub fn holds(said: &[u8], found: &[u8]) -> bool {
    let (said, found) = (attributes(said), attributes(found));
    said.iter().all(|a| {
        let of = |all: &[Attribute<'_>]| all.iter().filter(|b| b.kind == a.kind).count();
        of(&said) == of(&found)
    }) && said.iter().enumerate().all(|(i, a)| {
        let nth = said[..i].iter().filter(|b| b.kind == a.kind).count();
        found.iter().filter(|b| b.kind == a.kind).nth(nth).is_some_and(|b| match a.nested {
            true => holds(a.value, b.value),
            false => a.value == b.value,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(numbers: &[u32]) -> Message {
        let mut message = Message::new(1, 0, &[]);
        message.name(9, "weft").nest(4, |m| {
            for n in numbers {
                m.nest(1, |m| m.number(2, *n));
            }
            m
        });
        message
    }

    #[test]
    fn what_was_said_is_found_again() {
        let said = list(&[1, 2]);
        let mut more = list(&[1, 2]);
        more.number(7, 5);
        assert!(holds(said.attributes(0), more.attributes(0)));
        for other in [list(&[2, 1]), list(&[1]), list(&[1, 2, 3]), Message::new(1, 0, &[])] {
            assert!(!holds(said.attributes(0), other.attributes(0)), "{other:?}");
        }
    }

    /// Whatever comes: no panic, and an end.
    #[test]
    fn bytes_of_any_kind() {
        let good = list(&[1, 2]).attributes(0).to_vec();
        for cut in 0..good.len() {
            for byte in [0, 1, 4, 0xff] {
                let mut bytes = good[..cut].to_vec();
                bytes.push(byte);
                let _ = (attributes(&bytes), split(&bytes), holds(&good, &bytes));
            }
        }
    }
}
