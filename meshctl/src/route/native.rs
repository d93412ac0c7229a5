//! What a TrafficPolicy says.

use super::set::Settings;
use crate::edit::{value, write};
use crate::error::Result;
use weft_policy::doc::Node;

pub fn set(node: &mut Node, settings: &Settings) -> Result<()> {
    value::within(node, "spec", |spec| say(spec, settings))
}

/// Into a `spec`.
pub fn say(spec: &mut Node, settings: &Settings) -> Result<()> {
    settings.timeout.iter().for_each(|t| value::within(spec, "timeout", |timeout| t.put(timeout, "request")));
    if let Some(n) = settings.max_connections {
        value::within(spec, "breaker", |breaker| value::put(breaker, "maxConnections", value::int(n)));
    }
    if let Some(n) = settings.consecutive_5xx {
        value::within(spec, "outlier", |outlier| {
            value::within(outlier, "ejection", |ejection| value::put(ejection, "consecutive5xx", value::int(n)));
        });
    }
    if !settings.retry() {
        return Ok(());
    }
    value::within(spec, "retry", |retry| {
        settings.attempts_known(value::get(retry, "attempts").is_some())?;
        settings.retries.iter().for_each(|n| value::put(retry, "attempts", value::int(*n)));
        settings.per_try_timeout.iter().for_each(|t| t.put(retry, "perTryTimeout"));
        settings.retry_on.iter().for_each(|on| on.put(retry, "on"));
        Ok(())
    })
}

/// What would stand in one, for people to copy.
pub fn fields(settings: &Settings) -> String {
    let mut spec = value::map([]);
    let _ =
        say(&mut spec, &Settings { retries: settings.retries.or(settings.retry().then_some(2)), ..settings.clone() });
    let text = write::Hand::default().flow(&spec);
    text.trim_start_matches('{').trim_end_matches('}').to_string()
        + &"}".repeat(text.len() - text.trim_end_matches('}').len() - 1)
}
