//! Backends of a TrafficSplit. Weights stay in the notation of the file: whole numbers, or thousandths as in `900m`.

use super::shares::{Share, scaled};
use super::split::Context;
use crate::edit::value;
use crate::error::{Error, Result};
use weft_dialects::builder::service_of;
use weft_dialects::quantity::thousandths;
use weft_policy::doc::{Node, Value};

pub fn split(node: &mut Node, shares: &[Share], context: &Context<'_>) -> Result<()> {
    let service = |backend: &Node| {
        let host = value::word_at(backend, "service")?;
        service_of(&host, context.namespace, "cluster.local")
    };
    let of = |backend: &Node, name: &str| service(backend).is_some_and(|id| Some(id) == context.service_named(name));
    value::within(node, "spec", |spec| {
        value::with_items(spec, "backends", |backends| {
            weigh(backends, shares, of, |name| match context.service_named(name) {
                Some(id) if *id.namespace == *context.namespace => Ok(value::map([("service", value::text(name))])),
                Some(_) => Err(Error::new(
                    format!("{name} is of another namespace, and a TrafficSplit is for its own"),
                    "a Service of the same namespace, or an HTTPRoute with a ReferenceGrant",
                )),
                None if context.mesh.subsets(context.service).iter().any(|s| s == name) => Err(Error::new(
                    format!("a TrafficSplit cannot name subsets, and {name} is one"),
                    format!("a Service that selects only {name}'s pods"),
                )),
                None => {
                    let why = format!("there is no Service {name} in {}", context.namespace);
                    Err(context.unknown(name, &why, &[]))
                }
            })
        })
    })
}

/// Gives the shares to the entries of a list that they mean, and nothing to the others; `new` makes an entry.
pub fn weigh(
    entries: &mut Vec<Node>,
    shares: &[Share],
    is: impl Fn(&Node, &str) -> bool,
    new: impl Fn(&str) -> Result<Node>,
) -> Result<()> {
    let notation = Notation::of(entries);
    let mut left: Vec<usize> = (0..entries.len()).collect();
    for (share, weight) in shares.iter().zip(scaled(notation.sum(entries), shares)) {
        let found: Vec<usize> = (0..entries.len()).filter(|i| is(&entries[*i], &share.name)).collect();
        match &found[..] {
            [one] => {
                value::put(&mut entries[*one], "weight", notation.write(weight));
                left.retain(|i| i != one);
            }
            [] => {
                let mut entry = new(&share.name)?;
                value::put(&mut entry, "weight", notation.write(weight));
                entries.push(entry);
            }
            _ => return Err(Error::new(format!("{} is there several times", share.name), "edit it by hand")),
        }
    }
    left.into_iter().for_each(|i| value::put(&mut entries[i], "weight", notation.write(0)));
    Ok(())
}

/// How a file writes weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notation {
    Whole,
    WholeText,
    Thousandths,
}

impl Notation {
    fn of(entries: &[Node]) -> Self {
        let weights = || entries.iter().filter_map(|e| value::get(e, "weight"));
        let texts = weights().any(|w| matches!(w.value, Value::Text(_)));
        let whole = weights().filter_map(value::word).all(|w| w.bytes().all(|b| b.is_ascii_digit()));
        match (whole, texts) {
            (true, false) => Self::Whole,
            (true, true) => Self::WholeText,
            (false, _) => Self::Thousandths,
        }
    }

    fn sum(self, entries: &[Node]) -> u64 {
        let weights = entries.iter().filter_map(|e| thousandths(&value::word_at(e, "weight")?));
        let sum: u64 = weights.fold(0, u64::saturating_add);
        if self == Self::Thousandths { sum } else { sum / 1_000 }
    }

    fn write(self, weight: u64) -> Node {
        match self {
            Self::Whole => value::int(i64::try_from(weight).unwrap_or(i64::MAX)),
            Self::WholeText => value::text(weight.to_string()),
            Self::Thousandths => value::text(format!("{weight}m")),
        }
    }
}
