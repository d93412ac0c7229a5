//! Where a rule sends requests: Services, by name and port. One that is not there, or in another namespace without its leave,
//! is `invalid`: its share is answered with 500.

use super::reference_grant::{Grant, Referrer};
use crate::builder::{Builder, Service};
use crate::reader::Field;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use weft_policy::id::ServiceId;

pub struct Backends<'b> {
    services: &'b BTreeMap<ServiceId, Service>,
    grants: &'b [Grant],
    /// Who refers to them.
    referrer: Referrer<'b>,
}

/// What a route's status calls it; `message` is one of `Backends::resolve`.
pub fn reason(message: &str) -> &'static str {
    match message {
        _ if message.contains("may not be referred to") => "RefNotPermitted",
        _ if message.contains("is no backend here") => "InvalidKind",
        _ => "BackendNotFound",
    }
}

impl<'b> Backends<'b> {
    pub fn of(builder: &'b Builder<'_>, referrer: Referrer<'b>) -> Self {
        Self { services: &builder.services, grants: &builder.grants, referrer }
    }

    /// `{service, namespace, port}`, or `{invalid: true}` and a finding of what happens `otherwise`. `None`: it cannot be read.
    pub fn resolve(&self, field: &Field<'_>, otherwise: &str) -> Option<Map<String, Value>> {
        let text = |name: &str, default: &str| field.get(name).map_or(Some(default.to_string()), |f| f.text());
        let (group, kind) = (text("group", "")?, text("kind", "Service")?);
        let namespace = text("namespace", self.referrer.namespace)?;
        let Some(name) = field.get("name") else { return field.fail("has no name", "the name of a Service") };
        let name = name.text()?;
        let port = field.get("port").map_or(Some(None), |p| p.port().map(Some))?;
        let answered = || Some(Map::from_iter([("invalid".to_string(), json!(true))]));
        let invalid = |why: String, hint: &str| {
            field.fail::<()>(format!("{why}; {otherwise}"), hint);
            answered()
        };
        let absent = |why: String, hint: &str| {
            field.absent::<()>(format!("{why}; {otherwise}"), hint);
            answered()
        };
        // Linkerd's own routes call the core group by a name.
        if !matches!(&*group, "" | "core") || kind != "Service" {
            return invalid(format!("{kind} ({group}) is no backend here"), "kind: Service");
        }
        let own = namespace == self.referrer.namespace;
        if !own && !self.grants.iter().any(|g| g.permits(self.referrer, &namespace, &name)) {
            let Referrer { group, kind, namespace: from } = self.referrer;
            let hint = format!(
                "a ReferenceGrant in {namespace}: from {{group: {group}, kind: {kind}, namespace: {from}}}, to {{group: \"\", kind: Service}}"
            );
            return absent(format!("Services of {namespace} may not be referred to from {from}"), &hint);
        }
        let Some(service) = self.services.get(&ServiceId::new(&namespace, &name)) else {
            return absent(format!("there is no Service {name} in {namespace}"), "");
        };
        let Some(port) = port else { return invalid("has no port".into(), "the port of the Service") };
        if !service.ports.contains_key(&port) {
            let ports: Vec<String> = service.ports.keys().map(u16::to_string).collect();
            return absent(format!("Service {name} has no port {port}"), &format!("one of {}", ports.join(", ")));
        }
        let fields = [("service", json!(name)), ("namespace", json!(namespace)), ("port", json!(port))];
        Some(fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect())
    }
}
