//! `weft-proxy redirect`: sets the rules that lead a pod's connections through its sidecar, and exits. Runs in an init container
//! with NET_ADMIN; docs/redirect.md says what is redirected, docs/decisions/0009 why no `nft` is called.

pub mod netlink;
pub mod nftables;
pub mod rules;

use clap::Parser;
use ipnet::IpNet;
use netlink::{CREATE, EXCLUSIVE, Message, Socket};
use nftables::Failed;
use rustix::io::Errno;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::str::FromStr;

/// Sets the rules that lead a pod's connections through its sidecar, in place of those it set before, and exits.
#[derive(Clone, Debug, Parser)]
#[command(name = "weft-proxy redirect", bin_name = "weft-proxy redirect", version, after_help = EXAMPLES)]
pub struct Redirect {
    /// Where the app's own connections go
    #[arg(long, value_name = "PORT", default_value = "15001", value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,

    /// Where connections to the pod go
    #[arg(long, value_name = "PORT", default_value = "15006", value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,

    /// Whose connections are the sidecar's: the number of its user, or group, or of its connections' mark
    #[arg(long, value_name = "N", default_value = "1337", value_parser = clap::value_parser!(u32).range(1..u32::MAX as i64))]
    pub uid: u32,

    /// Ports of the pod that are redirected; `*` is all, nothing is none
    #[arg(long, value_name = "PORTS", default_value = "*")]
    pub inbound_ports: Which<Ports>,

    /// Ports of the pod that are left alone
    #[arg(long, value_name = "PORTS", default_value = "", hide_default_value = true)]
    pub skip_inbound_ports: List<Ports>,

    /// Ports elsewhere that are redirected whatever --outbound-cidrs says
    #[arg(long, value_name = "PORTS", default_value = "", hide_default_value = true)]
    pub outbound_ports: List<Ports>,

    /// Ports elsewhere that are left alone
    #[arg(long, value_name = "PORTS", default_value = "", hide_default_value = true)]
    pub skip_outbound_ports: List<Ports>,

    /// Addresses that are redirected; `*` is all, nothing is none
    #[arg(long, value_name = "CIDRS", default_value = "*")]
    pub outbound_cidrs: Which<Cidr>,

    /// Addresses that are left alone
    #[arg(long, value_name = "CIDRS", default_value = "", hide_default_value = true)]
    pub skip_outbound_cidrs: List<Cidr>,

    /// Users whose connections are left alone
    #[arg(long, value_name = "UIDS", default_value = "", hide_default_value = true)]
    pub skip_uids: List<Uid>,

    /// Show the rules as nft text, and set nothing
    #[arg(long, conflicts_with = "remove")]
    pub print: bool,

    /// Take the rules away
    #[arg(long)]
    pub remove: bool,
}

const EXAMPLES: &str = "\
Examples:
  weft-proxy redirect                                  all TCP, as in a pod with nothing special
  weft-proxy redirect --print                          that as nft text; needs no rights
  weft-proxy redirect --skip-outbound-ports 3306,6000-6010 --skip-inbound-ports 22
  weft-proxy redirect --outbound-cidrs 10.96.0.0/12,fd00::/8 --skip-outbound-cidrs 10.96.0.1/32
  weft-proxy redirect --inbound-ports '' --skip-uids 2000
  weft-proxy redirect --remove

PORTS, CIDRS and UIDS are separated by commas; ports may be ranges (6000-6010).
Exit codes: 0 done, 1 not done (nothing was changed), 2 wrong use.";

/// More than anybody writes by hand; as many rules are looked through by each new connection.
const MOST: usize = 200;

/// What a list is of.
pub trait Item: Clone + Send + Sync + 'static {
    type Of: Clone + Send + Sync + std::fmt::Debug;
    fn read(word: &str) -> Result<Self::Of, String>;
}

/// Values with commas between.
#[derive(Clone, Debug, Default)]
pub struct List<T: Item>(pub Vec<T::Of>);

impl<T: Item> FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split(',').map(str::trim).filter(|_| !text.trim().is_empty());
        let items = words.take(MOST + 1).map(T::read).collect::<Result<Vec<_>, _>>()?;
        if items.len() > MOST {
            return Err(format!("more than {MOST} are not taken: give fewer, or wider ranges"));
        }
        Ok(Self(items))
    }
}

/// All, or these.
#[derive(Clone, Debug)]
pub enum Which<T: Item> {
    All,
    These(List<T>),
}

impl<T: Item> Which<T> {
    pub fn these(&self) -> Option<&[T::Of]> {
        match self {
            Which::All => None,
            Which::These(list) => Some(&list.0),
        }
    }
}

impl<T: Item> FromStr for Which<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(if text.trim() == "*" { Which::All } else { Which::These(text.parse()?) })
    }
}

#[derive(Clone, Debug)]
pub enum Ports {}

impl Item for Ports {
    type Of = RangeInclusive<u16>;

    fn read(word: &str) -> Result<Self::Of, String> {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let port = |text: &str| number(text).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(first..=last),
            _ => Err(format!("{:?} is not a port (1 to 65535) or a range such as 6000-6010", short(word))),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Cidr {}

impl Item for Cidr {
    type Of = IpNet;

    fn read(word: &str) -> Result<Self::Of, String> {
        let net = word.parse::<IpNet>().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from));
        net.map(|net| net.trunc())
            .ok_or_else(|| format!("{:?} is not a range of addresses such as 10.0.0.0/8 or fd00::/8", short(word)))
    }
}

#[derive(Clone, Debug)]
pub enum Uid {}

impl Item for Uid {
    type Of = u32;

    fn read(word: &str) -> Result<u32, String> {
        number(word)
            .filter(|n| *n < u32::MAX)
            .ok_or_else(|| format!("{:?} is not the number of a user (0 to 4294967294)", short(word)))
    }
}

/// Digits and nothing else: Rust would take a plus sign.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn short(word: &str) -> String {
    word.chars().take(60).collect()
}

pub fn main(ask: &Redirect) -> ExitCode {
    if ask.inbound_port == ask.outbound_port {
        eprintln!("error: --inbound-port and --outbound-port are both {}: the sidecar has one each", ask.inbound_port);
        return ExitCode::from(2);
    }
    let done = match (ask.print, ask.remove) {
        (true, _) => Ok(rules::text(&rules::chains(ask))),
        (_, true) => remove().map(|()| "the rules are gone\n".into()),
        _ => set(ask),
    };
    match done {
        Ok(text) => {
            // A reader that went away has seen enough.
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(failed) => {
            eprintln!("error: {}: {}\n  {}", failed.at, failed.why, hint(&failed.why));
            ExitCode::from(1)
        }
    }
}

fn set(ask: &Redirect) -> Result<String, Failed> {
    let chains = rules::chains(ask);
    nftables::set(&chains)?;
    own_address(ADD).map_err(|why| Failed { at: "the address ::6 of the loopback interface".into(), why })?;
    let count: usize = chains.iter().map(|c| c.rules.len()).sum();
    Ok(format!(
        "redirected: what the app sends to port {}, what it is sent to port {}; {count} rules, read back and as they should be\n",
        ask.outbound_port, ask.inbound_port
    ))
}

fn remove() -> Result<(), Failed> {
    nftables::remove()?;
    own_address(DELETE).map_err(|why| Failed { at: "the address ::6 of the loopback interface".into(), why })
}

const ADD: u16 = 20;
const DELETE: u16 = 21;

/// What the sidecar dials its app from has to exist; all of 127.0.0.0/8 does, of IPv6 there is ::1 only.
fn own_address(kind: u16) -> io::Result<()> {
    let off = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    if off.map_or(true, |off| off.trim() != "0") {
        return Ok(());
    }
    const INET6: u8 = 10;
    const NO_DUPLICATE_CHECK: u8 = 2;
    const HOST: u8 = 254;
    let [a, b, c, d] = LOOPBACK.to_ne_bytes();
    let flags = if kind == ADD { CREATE | EXCLUSIVE } else { 0 };
    let mut message = Message::new(kind, flags, &[INET6, 128, NO_DUPLICATE_CHECK, HOST, a, b, c, d]);
    let address = Ipv6Addr::from(6).octets();
    message.bytes(1, &address).bytes(2, &address);
    match Socket::route()?.send(vec![message], 0).map_err(|refused| refused.why) {
        Err(e) if [Errno::EXIST, Errno::ADDRNOTAVAIL].iter().any(|o| e.raw_os_error() == Some(o.raw_os_error())) => {
            Ok(())
        }
        other => other,
    }
}

/// The loopback interface's number in every namespace.
const LOOPBACK: u32 = 1;

fn hint(why: &io::Error) -> &'static str {
    match Errno::from_io_error(why) {
        Some(Errno::PERM | Errno::ACCESS) => {
            "this needs the capability NET_ADMIN, as root: in the init container's securityContext `runAsUser: 0` and \
             `capabilities: {add: [NET_ADMIN]}`; a namespace of the pod-security level `baseline` or `restricted` does not \
             allow that"
        }
        Some(Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::NOENT | Errno::AFNOSUPPORT) => {
            "the node's kernel lacks a part of nf_tables: it takes 5.2 or newer with the modules nf_tables, nft_chain_nat and \
             nft_redir (`modprobe nft_redir` on the node loads them)"
        }
        Some(Errno::MSGSIZE) => "too many rules for one transaction here: give fewer or wider ranges",
        _ => "nothing was changed if rules were refused; `weft-proxy redirect --print` shows what was to be set",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Redirect, String> {
        Redirect::try_parse_from([&["redirect"], words].concat()).map_err(|e| e.to_string())
    }

    #[test]
    fn values_are_read_or_refused_with_their_name() {
        let good = parse(&["--skip-inbound-ports", "22, 6000-6010", "--outbound-cidrs", "10.1.2.3/8,fd00::1"]).unwrap();
        assert_eq!(good.skip_inbound_ports.0, [22..=22, 6000..=6010]);
        let nets: Vec<String> = good.outbound_cidrs.these().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.0.0.0/8", "fd00::1/128"]);
        assert_eq!(parse(&["--inbound-ports", ""]).unwrap().inbound_ports.these(), Some(&[][..]));
        assert_eq!(parse(&["--inbound-ports", "*"]).unwrap().inbound_ports.these(), None);
        let many = vec!["1"; MOST + 1].join(",");
        let table = [
            ("--skip-inbound-ports", "0"),
            ("--skip-inbound-ports", "65536"),
            ("--skip-inbound-ports", "*"),
            ("--skip-inbound-ports", "22,"),
            ("--skip-inbound-ports", "+22"),
            ("--skip-inbound-ports", "10-5"),
            ("--skip-inbound-ports", "1-2-3"),
            ("--skip-outbound-ports", "80 } accept; }"),
            ("--skip-outbound-ports", many.as_str()),
            ("--inbound-ports", "$(reboot)"),
            ("--outbound-cidrs", "10.0.0.0/33"),
            ("--outbound-cidrs", "example.com"),
            ("--skip-outbound-cidrs", "*"),
            ("--skip-uids", "root"),
            ("--skip-uids", "4294967295"),
            ("--uid", "0"),
            ("--uid", "4294967296"),
            ("--outbound-port", "0"),
            ("--inbound-port", "65536"),
        ];
        for (flag, value) in table {
            let error = parse(&[flag, value]).expect_err(value);
            assert!(error.contains(flag), "{flag} {value}: {error}");
        }
    }

    #[test]
    fn rules_say_what_was_asked_for() {
        let ask = parse(&["--uid", "2102", "--inbound-ports", "80,90-99", "--outbound-cidrs", "10.96.0.0/12,fd00::/8"]);
        let text = rules::text(&rules::chains(&ask.unwrap()));
        for line in [
            "meta skuid 2102 goto sidecar",
            "meta skgid 2102 goto sidecar",
            "tcp dport 15021 return",
            "tcp dport 90-99 redirect to :15006",
            "ip daddr 10.96.0.0/12 meta l4proto tcp redirect to :15001",
            "ip6 daddr fd00::/8 meta l4proto tcp redirect to :15001",
            "ip saddr 127.0.0.6 return",
            "ip6 saddr ::6 return",
        ] {
            assert!(text.lines().any(|l| l.trim() == line), "{line} in\n{text}");
        }
        assert!(!text.contains("l4proto tcp redirect to :15006"), "{text}");
        assert!(text.contains("tcp dport 53 return"));
        let ask = parse(&["--outbound-ports", "50-60"]).unwrap();
        assert!(!rules::text(&rules::chains(&ask)).contains("dport 53 "));
    }
}
