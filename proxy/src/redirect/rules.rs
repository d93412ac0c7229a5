//! Which connections of a pod go through its sidecar: the rules, and how they look as nft text.

use super::Redirect;
use crate::sys::sockopt::OWN_APP_SEES;
use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

pub const TABLE: &str = "weft";

/// The sidecar's own ports on the pod's address: status, readiness and metrics, as Istio's and as Linkerd's users ask them.
const OWN_PORTS: [u16; 4] = [15020, 15021, 15090, 4191];
const DNS: u16 = 53;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    /// Where connections come in from; else from other chains only.
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Output,
}

impl Hook {
    /// Where destinations are translated.
    pub const PRIORITY: i32 = -100;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub when: Vec<Match>,
    pub then: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    Tcp,
    /// TCP to one of these.
    Port(RangeInclusive<u16>),
    Uid(u32),
    Gid(u32),
    Mark(u32),
    /// Whether it leaves by the loopback interface, as everything to the pod's own addresses does.
    Loopback(bool),
    From(IpNet),
    To(IpNet),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Return,
    Goto(&'static str),
    Redirect(u16),
}

fn rule(when: Match, then: Verdict) -> Rule {
    Rule { when: vec![when], then }
}

fn leave_alone(when: Match) -> Rule {
    rule(when, Verdict::Return)
}

/// All of the rules. A chain's last verdict is to leave alone.
pub fn chains(ask: &Redirect) -> Vec<Chain> {
    let mut inbound: Vec<Rule> = OWN_PORTS
        .iter()
        .chain([&ask.inbound_port])
        .map(|port| leave_alone(Match::Port(*port..=*port)))
        .chain(ask.skip_inbound_ports.0.iter().cloned().map(|ports| leave_alone(Match::Port(ports))))
        .collect();
    let to_inbound = Verdict::Redirect(ask.inbound_port);
    match ask.inbound_ports.these() {
        None => inbound.push(rule(Match::Tcp, to_inbound)),
        Some(ports) => inbound.extend(ports.iter().cloned().map(|p| rule(Match::Port(p), to_inbound.clone()))),
    }
    // A sidecar that calls its own pod through a Service arrives at itself, so that the app is reached as by any other caller;
    // but not what it passes on to its app.
    let mut sidecar = vec![leave_alone(Match::Loopback(false))];
    sidecar.extend(OWN_APP_SEES.map(|ip| leave_alone(Match::From(ip.into()))));
    sidecar.extend(loopback().map(|net| leave_alone(Match::To(net))));
    sidecar.push(rule(Match::Tcp, Verdict::Goto("inbound")));

    let own = [Match::Uid(ask.uid), Match::Gid(ask.uid), Match::Mark(ask.uid)];
    let mut output: Vec<Rule> = own.into_iter().map(|own| rule(own, Verdict::Goto("sidecar"))).collect();
    output.push(leave_alone(Match::Loopback(true)));
    output.extend(ask.skip_uids.0.iter().map(|uid| leave_alone(Match::Uid(*uid))));
    // There is nothing to route in DNS, and everything waits for it.
    if !ask.outbound_ports.0.iter().any(|ports| ports.contains(&DNS)) {
        output.push(leave_alone(Match::Port(DNS..=DNS)));
    }
    output.extend(ask.skip_outbound_ports.0.iter().cloned().map(|ports| leave_alone(Match::Port(ports))));
    output.extend(ask.skip_outbound_cidrs.0.iter().map(|net| leave_alone(Match::To(*net))));
    let to_outbound = Verdict::Redirect(ask.outbound_port);
    output.extend(ask.outbound_ports.0.iter().cloned().map(|p| rule(Match::Port(p), to_outbound.clone())));
    match ask.outbound_cidrs.these() {
        None => output.push(rule(Match::Tcp, to_outbound)),
        Some(nets) => output
            .extend(nets.iter().map(|net| Rule { when: vec![Match::To(*net), Match::Tcp], then: to_outbound.clone() })),
    }
    let prerouting = vec![rule(Match::Tcp, Verdict::Goto("inbound"))];
    vec![
        Chain { name: "inbound", hook: None, rules: inbound },
        Chain { name: "sidecar", hook: None, rules: sidecar },
        Chain { name: "output", hook: Some(Hook::Output), rules: output },
        Chain { name: "prerouting", hook: Some(Hook::Prerouting), rules: prerouting },
    ]
}

fn loopback() -> [IpNet; 2] {
    let v4 = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    [v4.into(), IpAddr::from(Ipv6Addr::LOCALHOST).into()]
}

/// A script that `nft -f -` takes, and that does the same in one transaction.
pub fn text(chains: &[Chain]) -> String {
    let mut text = format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    for (i, chain) in chains.iter().enumerate() {
        text += &format!("{}\tchain {} {{\n", if i == 0 { "" } else { "\n" }, chain.name);
        if let Some(hook) = chain.hook {
            let name = match hook {
                Hook::Prerouting => "prerouting",
                Hook::Output => "output",
            };
            text += &format!("\t\ttype nat hook {name} priority {}; policy accept;\n", Hook::PRIORITY);
        }
        for rule in &chain.rules {
            text += &format!("\t\t{rule}\n");
        }
        text += "\t}\n";
    }
    text + "}\n"
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for when in &self.when {
            match when {
                Match::Tcp => f.write_str("meta l4proto tcp ")?,
                Match::Port(ports) if ports.start() == ports.end() => write!(f, "tcp dport {} ", ports.start())?,
                Match::Port(ports) => write!(f, "tcp dport {}-{} ", ports.start(), ports.end())?,
                Match::Uid(n) => write!(f, "meta skuid {n} ")?,
                Match::Gid(n) => write!(f, "meta skgid {n} ")?,
                Match::Mark(n) => write!(f, "meta mark {n:#010x} ")?,
                Match::Loopback(true) => f.write_str("oif \"lo\" ")?,
                Match::Loopback(false) => f.write_str("oif != \"lo\" ")?,
                Match::From(net) => address(f, net, "saddr")?,
                Match::To(net) => address(f, net, "daddr")?,
            }
        }
        match &self.then {
            Verdict::Return => f.write_str("return"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
        }
    }
}

fn address(f: &mut fmt::Formatter<'_>, net: &IpNet, side: &str) -> fmt::Result {
    let family = if net.addr().is_ipv4() { "ip" } else { "ip6" };
    match net.prefix_len() == net.max_prefix_len() {
        true => write!(f, "{family} {side} {} ", net.addr()),
        false => write!(f, "{family} {side} {} ", net.trunc()),
    }
}
