//! Node: in which zone its pods are, and which addresses they get. ServiceCIDR: which addresses Services get.

use crate::builder::Builder;
use crate::reader::{Field, Reader};
use ipnet::IpNet;
use std::collections::BTreeMap;

/// Labels that an endpoint has of its node's, as with Istio: a DestinationRule's subset may be a zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
pub const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/region", ZONE];

pub fn translate(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let (object, spec) = (reader.object, reader.spec());
    let labels = TOPOLOGY.iter().filter_map(|name| Some((name.to_string(), object.labels.get(*name)?.clone())));
    let labels: BTreeMap<String, String> = labels.filter(|(_, value)| !value.is_empty()).collect();
    if !labels.is_empty() {
        b.nodes.insert(object.name.clone(), labels);
    }
    let one = spec.get("podCIDR").filter(|_| !spec.has("podCIDRs"));
    ranges(one.into_iter().chain(spec.list("podCIDRs")), b);
    spec.rest_ignored("Kubernetes' own");
}

pub fn services(reader: &Reader<'_>, b: &mut Builder<'_>) {
    ranges(reader.spec().list("cidrs").into_iter(), b);
}

fn ranges<'r>(fields: impl Iterator<Item = Field<'r>>, b: &mut Builder<'_>) {
    for field in fields {
        let Some(text) = field.text() else { continue };
        match text.parse::<IpNet>() {
            // Everything would be the mesh's.
            Ok(range) if range.prefix_len() > 0 => b.ranges.push(range.trunc()),
            _ => {
                let why = format!("{text:?} is no range of addresses that a mesh may have");
                field.ignored(&why);
                field.warn(None, why, "");
            }
        }
    }
}

/// The mesh's own addresses: those that were given, or else what the cluster says of itself, in as few ranges as that takes.
pub fn mesh_ranges(b: &Builder<'_>) -> Vec<String> {
    if !b.options.mesh_ranges.is_empty() {
        return b.options.mesh_ranges.clone();
    }
    IpNet::aggregate(&b.ranges).iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Objects, Options};

    #[test]
    fn what_is_given_wins() {
        let (objects, mut options) = (Objects::default(), Options::default());
        let of = |options: &Options| {
            let mut b = Builder::new(&objects, options);
            b.ranges =
                ["10.244.1.0/24", "10.96.0.0/16", "10.244.0.0/24", "fd00::/64"].map(|r| r.parse().unwrap()).into();
            mesh_ranges(&b)
        };
        assert_eq!(of(&options), ["10.96.0.0/16", "10.244.0.0/23", "fd00::/64"]);
        options.mesh_ranges = vec!["10.0.0.0/8".into()];
        assert_eq!(of(&options), ["10.0.0.0/8"]);
    }
}
