//! Rules of `tcp` and `tls`: where the bytes of a connection go. The first rule that holds for a port is the one; what only a
//! single connection can tell (its addresses, its server name) is not looked at.

use super::http::{closed, destination};
use super::matches::{Match, caller};
use super::{Destination, Rule};
use crate::builder::Builder;
use crate::reader::Field;
use crate::world::Clients;
use serde_json::Map;

pub fn rules(spec: &Field<'_>, name: &str, clients: &Clients, b: &Builder<'_>) -> Vec<Rule> {
    spec.list(name).iter().enumerate().filter_map(|(i, f)| rule(f, format!("{name}.{i}"), clients, b)).collect()
}

fn rule(field: &Field<'_>, name: String, clients: &Clients, b: &Builder<'_>) -> Option<Rule> {
    let any = || Match { clients: clients.clone(), port: None, value: Map::new() };
    let given = field.list("match");
    let mut matches: Vec<Match> = given.iter().filter_map(|m| alternative(m, clients)).collect();
    if given.is_empty() {
        matches.push(any());
    }
    let to: Vec<Option<Destination>> = field.list("route").iter().map(|f| destination(f, b)).collect();
    let mut to: Vec<Destination> = to.into_iter().collect::<Option<_>>()?;
    match &mut to[..] {
        [] => return field.fail("goes nowhere", "route: [{destination: {host: NAME}}]"),
        [only] => {
            only.rest.remove("weight");
        }
        _ => {}
    }
    if matches.is_empty() {
        closed(field);
    }
    (!matches.is_empty()).then_some(Rule {
        name,
        matches,
        to,
        mirrors: Vec::new(),
        rest: Map::new(),
        from: field.source(),
    })
}

fn alternative(m: &Field<'_>, clients: &Clients) -> Option<Match> {
    for (name, why) in [
        ("destinationSubnets", "only the Service that was dialled is looked at"),
        ("sourceSubnet", "addresses of callers are not looked at"),
    ] {
        if let Some(field) = m.get(name) {
            field.ignored(why);
            m.find(weft_policy::diag::Severity::Warning, None, format!("is without effect: {name} is not read"), "");
            return None;
        }
    }
    for name in m.list("sniHosts") {
        name.text();
        name.differs("every connection to the port is meant: server names are not told apart");
    }
    let (clients, port) = caller(m, clients)?;
    Some(Match { clients, port, value: Map::new() })
}
