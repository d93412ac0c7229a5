//! The rules as the kernel takes them: one transaction, all or nothing, and read back afterwards.
//!
//! A rule is a list of small instructions that load something into a register and compare it, as `nft --debug=netlink` shows;
//! numbers are those of `linux/netfilter/nf_tables.h`.

use super::netlink::{APPEND, CREATE, Message, Socket, holds, value};
use super::rules::{Chain, Hook, Match, Rule, TABLE, Verdict};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// IPv4 and IPv6 in one table.
const INET: u8 = 1;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
/// Bytes before the attributes.
const HEAD: usize = 4;

/// Why the rules are not in force: at what, and the kernel's word.
#[derive(Debug)]
pub struct Failed {
    pub at: String,
    pub why: io::Error,
}

/// Puts the chains in force, in place of those that were.
pub fn set(chains: &[Chain]) -> Result<(), Failed> {
    // Deleting what does not exist is an error, so it is made first; all within one transaction.
    let mut batch = vec![
        (BATCH_BEGIN_AT.to_string(), edge(BATCH_BEGIN)),
        (table_name(), table(NEW_TABLE, CREATE)),
        (table_name(), table(DELETE_TABLE, 0)),
        (table_name(), table(NEW_TABLE, CREATE)),
    ];
    // A rule may go to any chain, so all of these come first.
    batch.extend(chains.iter().map(|c| (format!("chain {}", c.name), chain(c))));
    for c in chains {
        batch.extend(c.rules.iter().map(|r| (format!("`{r}` of chain {}", c.name), rule(c, r))));
    }
    transact(batch)?;
    check(chains)
}

pub fn remove() -> Result<(), Failed> {
    transact(vec![
        (BATCH_BEGIN_AT.to_string(), edge(BATCH_BEGIN)),
        (table_name(), table(NEW_TABLE, CREATE)),
        (table_name(), table(DELETE_TABLE, 0)),
    ])
}

/// What the kernel answers for when it does not look at what follows.
const BATCH_BEGIN_AT: &str = "the change as a whole";

fn table_name() -> String {
    format!("table {TABLE}")
}

fn transact(batch: Vec<(String, Message)>) -> Result<(), Failed> {
    let (names, mut messages): (Vec<String>, Vec<Message>) = batch.into_iter().unzip();
    let last = messages.len() - 1;
    messages.push(edge(BATCH_END));
    let failed = |at: usize, why| Failed { at: names.get(at).cloned().unwrap_or_default(), why };
    let socket = Socket::netfilter().map_err(|why| failed(0, why))?;
    socket.send(messages, last).map_err(|refused| failed(refused.at, refused.why))
}

/// Reads back what is in force and compares it.
fn check(chains: &[Chain]) -> Result<(), Failed> {
    let read = |kind: u16, name: &str| {
        let mut question = message(kind, 0);
        // Both kinds have the table's name as their first attribute; older kernels do not look at it.
        question.name(1, TABLE);
        let all = Socket::netfilter().and_then(|socket| socket.dump(question));
        let all = all.map_err(|why| Failed { at: format!("reading the {name} back"), why })?;
        let own = [TABLE.as_bytes(), b"\0"].concat();
        let bodies = all.into_iter().filter_map(|body| body.get(HEAD..).map(<[u8]>::to_vec));
        Ok(bodies.filter(|body| value(body, 1) == Some(&own)).collect::<Vec<_>>())
    };
    let differs = |at: String| Failed { at, why: io::Error::other("what is in force is not what was set") };
    let found = read(GET_CHAIN, "chains")?;
    for c in chains {
        let said = chain(c);
        if !found.iter().any(|body| holds(said.attributes(HEAD), body)) {
            return Err(differs(format!("chain {}", c.name)));
        }
    }
    let found = read(GET_RULE, "rules")?;
    for c in chains {
        let name = [c.name.as_bytes(), b"\0"].concat();
        let of: Vec<&Vec<u8>> = found.iter().filter(|body| value(body, 2) == Some(&name)).collect();
        if of.len() != c.rules.len() {
            return Err(differs(format!("chain {}: {} rules, not {}", c.name, of.len(), c.rules.len())));
        }
        for (r, body) in c.rules.iter().zip(of) {
            if !holds(rule(c, r).attributes(HEAD), body) {
                return Err(differs(format!("`{r}` of chain {}", c.name)));
            }
        }
    }
    Ok(())
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, &[INET, 0, 0, 0])
}

/// Begin or end of a transaction.
fn edge(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[0, 0, high, low])
}

fn table(kind: u16, flags: u16) -> Message {
    let mut m = message(kind, flags);
    m.name(1, TABLE);
    m
}

fn chain(chain: &Chain) -> Message {
    let mut m = message(NEW_CHAIN, CREATE);
    m.name(1, TABLE).name(3, chain.name);
    if let Some(hook) = chain.hook {
        let number = match hook {
            Hook::Prerouting => 0,
            Hook::Output => 3,
        };
        m.nest(4, |m| m.number(1, number).number(2, Hook::PRIORITY as u32));
        m.number(5, ACCEPT).name(7, "nat");
    }
    m
}

const ACCEPT: u32 = 1;

fn rule(chain: &Chain, rule: &Rule) -> Message {
    let mut m = message(NEW_RULE, CREATE | APPEND);
    m.name(1, TABLE).name(2, chain.name);
    m.nest(4, |m| {
        rule.when.iter().for_each(|when| matching(m, when));
        match &rule.then {
            Verdict::Return => immediate(m, VERDICT, |m| m.nest(2, |m| m.number(1, -5i32 as u32))),
            Verdict::Goto(to) => immediate(m, VERDICT, |m| m.nest(2, |m| m.number(1, -4i32 as u32).name(2, to))),
            Verdict::Redirect(port) => {
                immediate(m, REGISTER, |m| m.bytes(1, &port.to_be_bytes()));
                // Flags: the port is given.
                expression(m, "redir", |m| m.number(1, REGISTER).number(3, 2));
            }
        }
        m
    });
    m
}

/// What decides about the packet, and the register everything else goes through.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;

const MARK: u32 = 3;
const OUT_INTERFACE: u32 = 5;
const USER: u32 = 10;
const GROUP: u32 = 11;
const FAMILY: u32 = 15;
const PROTOCOL: u32 = 16;

const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// Every network namespace's loopback has this number.
const LOOPBACK: u32 = 1;

fn matching(m: &mut Message, when: &Match) {
    match when {
        Match::Tcp => {
            meta(m, PROTOCOL);
            compare(m, EQUAL, &[6]);
        }
        Match::Port(ports) => {
            matching(m, &Match::Tcp);
            payload(m, TRANSPORT, 2, 2);
            range(m, ports);
        }
        // These are in the machine's byte order.
        Match::Uid(n) => same(m, USER, *n),
        Match::Gid(n) => same(m, GROUP, *n),
        Match::Mark(n) => same(m, MARK, *n),
        Match::Loopback(yes) => {
            meta(m, OUT_INTERFACE);
            compare(m, if *yes { EQUAL } else { UNEQUAL }, &LOOPBACK.to_ne_bytes());
        }
        Match::From(net) => address(m, *net, 12, 8),
        Match::To(net) => address(m, *net, 16, 24),
    }
}

fn same(m: &mut Message, key: u32, value: u32) {
    meta(m, key);
    compare(m, EQUAL, &value.to_ne_bytes());
}

fn range(m: &mut Message, ports: &RangeInclusive<u16>) {
    let (first, last) = (ports.start().to_be_bytes(), ports.end().to_be_bytes());
    if first == last {
        return compare(m, EQUAL, &first);
    }
    compare(m, AT_LEAST, &first);
    compare(m, AT_MOST, &last);
}

/// The address at these offsets of the IPv4 or IPv6 header.
fn address(m: &mut Message, net: ipnet::IpNet, v4: u32, v6: u32) {
    let bytes = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (address, mask) = (bytes(net.network()), bytes(net.netmask()));
    let (family, at) = if net.addr().is_ipv4() { (2, v4) } else { (10, v6) };
    let length = address.len() as u32;
    meta(m, FAMILY);
    compare(m, EQUAL, &[family]);
    payload(m, NETWORK, at, length);
    if net.prefix_len() < net.max_prefix_len() {
        expression(m, "bitwise", |m| {
            m.number(1, REGISTER).number(2, REGISTER).number(3, length);
            m.nest(4, |m| m.bytes(1, &mask));
            m.nest(5, |m| m.bytes(1, &vec![0; mask.len()]))
        });
    }
    compare(m, EQUAL, &address);
}

fn expression(m: &mut Message, name: &str, fill: impl FnOnce(&mut Message) -> &mut Message) {
    m.nest(1, |m| m.name(1, name).nest(2, fill));
}

fn meta(m: &mut Message, key: u32) {
    expression(m, "meta", |m| m.number(1, REGISTER).number(2, key));
}

fn payload(m: &mut Message, base: u32, offset: u32, length: u32) {
    expression(m, "payload", |m| m.number(1, REGISTER).number(2, base).number(3, offset).number(4, length));
}

fn compare(m: &mut Message, how: u32, with: &[u8]) {
    expression(m, "cmp", |m| {
        m.number(1, REGISTER).number(2, how);
        m.nest(3, |m| m.bytes(1, with))
    });
}

fn immediate(m: &mut Message, to: u32, data: impl FnOnce(&mut Message) -> &mut Message) {
    expression(m, "immediate", |m| m.number(1, to).nest(2, data));
}
