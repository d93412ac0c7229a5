//! The annotation `config.linkerd.io/default-inbound-policy`: who may call, as far as that is a matter of mesh mTLS. Of a
//! Namespace, or of a Pod, which wins. On a ServiceProfile Linkerd does not look for it, and labs write it there.

use crate::builder::Builder;
use crate::istio::peer_authentication::PeerAuthentication;
use crate::reader::{Field, Reader};
use std::collections::BTreeMap;
use weft_policy::id::ServiceId;

const NAME: &str = "config.linkerd.io/default-inbound-policy";

pub fn namespace(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let Some(field) = reader.annotated(NAME) else { return };
    if reader.object.name == b.options.root_namespace {
        return field.ignored("would be for the whole mesh here: its objects live in this namespace");
    }
    add(&field, &reader.object.name, BTreeMap::new(), b);
}

pub fn pod(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let (object, Some(field)) = (reader.object, reader.annotated(NAME)) else { return };
    match object.labels.is_empty() {
        true => field.ignored("this pod has no labels to be known by"),
        false => add(&field, &object.namespace, object.labels.clone(), b),
    }
}

/// For the pods of the profile's Service.
pub fn profile(reader: &Reader<'_>, id: &ServiceId, b: &mut Builder<'_>) {
    let Some(field) = reader.annotated(NAME) else { return };
    let hint = "annotate the namespace or the pod template";
    field.warn(Some("G3"), "has no effect here in Linkerd; taken for the pods of this Service", hint);
    let selector = b.services.get(id).map(|s| s.selector.clone()).unwrap_or_default();
    match selector.is_empty() {
        true => field.ignored("this Service selects no pods"),
        false => add(&field, &id.namespace, selector, b),
    }
}

fn add(field: &Field<'_>, namespace: &str, selector: BTreeMap<String, String>, b: &mut Builder<'_>) {
    let mode = match field.text().as_deref() {
        Some("all-authenticated") => "strict",
        Some("all-unauthenticated") => "permissive",
        Some("cluster-authenticated") => {
            field.differs("whoever the mesh proves, of this cluster or not");
            "strict"
        }
        _ => return field.ignored("only all-authenticated and all-unauthenticated are understood here"),
    };
    // Replicas say it once.
    let same = |a: &PeerAuthentication| a.namespace == namespace && a.selector == selector && a.mode == Some(mode);
    if !b.peer_authentications.iter().any(same) {
        let (from, ports) = (field.source(), BTreeMap::new());
        b.peer_authentications.push(PeerAuthentication {
            from,
            namespace: namespace.into(),
            selector,
            mode: Some(mode),
            ports,
        });
    }
}
