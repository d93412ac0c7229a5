//! A ServiceProfile: where requests go by its `dstOverrides`, timeouts and retries of its routes.

use super::set::{Limit, Settings};
use super::shares::Share;
use super::smi::weigh;
use super::split::Context;
use crate::edit::value;
use crate::error::{Error, Result};
use weft_dialects::builder::service_of;
use weft_policy::doc::Node;

pub fn split(node: &mut Node, shares: &[Share], context: &Context<'_>) -> Result<()> {
    let service = |entry: &Node| {
        let authority = value::word_at(entry, "authority")?;
        let host = authority.rsplit_once(':').map_or(&*authority, |(host, _)| host);
        service_of(host, &context.service.namespace, "cluster.local")
    };
    let of = |entry: &Node, name: &str| service(entry).is_some_and(|id| Some(id) == context.service_named(name));
    value::within(node, "spec", |spec| {
        value::with_items(spec, "dstOverrides", |overrides| {
            let without_port =
                overrides.iter().filter_map(|o| value::word_at(o, "authority")).any(|a| !a.contains(':'));
            weigh(overrides, shares, of, |name| {
                let Some(id) = context.service_named(name) else {
                    let why = format!("there is no Service {name} in {}", context.namespace);
                    return Err(context.unknown(name, &why, &[]));
                };
                let host = format!("{}.{}.svc.cluster.local", id.name, id.namespace);
                // Without a port, the one that was dialled.
                let authority = match (&context.ports[..], &context.mesh.ports(&id)[..]) {
                    ([port], theirs) if theirs.contains(port) && !without_port => format!("{host}:{port}"),
                    _ => host,
                };
                Ok(value::map([("authority", value::text(authority))]))
            })
        })
    })
}

pub fn set(node: &mut Node, field: &str, settings: &Settings) -> Result<()> {
    let Some(route) = value::at_mut(node, field) else { return Err(format!("{field} is not there").into()) };
    if let Some(Limit::Of(on)) = &settings.retry_on {
        let hint = "responseClasses: [{condition: {status: {min: 500, max: 599}}, isFailure: true}] in the route";
        return Err(Error::new(
            format!("a ServiceProfile says what is retried by responseClasses, not by words such as {on}"),
            hint,
        ));
    }
    settings.timeout.iter().for_each(|t| t.put(route, "timeout"));
    match settings.retries {
        Some(0) => {
            value::remove(route, "retries");
            value::remove(route, "isRetryable");
            return Ok(());
        }
        None if settings.per_try_timeout.is_none() => return Ok(()),
        _ => {}
    }
    // Linkerd's own words have no number; ours, which many labs use, have.
    value::within(route, "retries", |retries| {
        settings.attempts_known(value::get(retries, "limit").is_some())?;
        settings.retries.iter().for_each(|n| value::put(retries, "limit", value::int(*n)));
        settings.per_try_timeout.iter().for_each(|t| t.put(retries, "timeout"));
        Ok(())
    })
}
