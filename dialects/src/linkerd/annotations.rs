//! Linkerd's annotations of Services and routes: retries, timeouts, failure accrual, opaque ports. If a route has any of a
//! family (`retry.`, `timeout.`), the Service's of that family do not count for it.

use crate::builder::{Builder, PolicySet};
use crate::conflict::Policies;
use crate::object::ObjectRef;
use crate::overlay::{Overlay, Target};
use crate::reader::{Field, Reader, Source};
use crate::world::Clients;
use serde_json::{Map, Value, json};
use std::ops::RangeInclusive;
use std::time::Duration;
use weft_policy::diag::Severity;
use weft_policy::doc;
use weft_policy::id::ServiceId;

const ACCRUAL: &str = "balancer.linkerd.io/failure-accrual";
const OPAQUE: &str = "config.linkerd.io/opaque-ports";

/// All that are read here.
const KNOWN: [&str; 12] = [
    "retry.linkerd.io/http",
    "retry.linkerd.io/grpc",
    "retry.linkerd.io/limit",
    "retry.linkerd.io/timeout",
    "timeout.linkerd.io/request",
    "timeout.linkerd.io/response",
    "timeout.linkerd.io/idle",
    ACCRUAL,
    "balancer.linkerd.io/failure-accrual-consecutive-max-failures",
    "balancer.linkerd.io/failure-accrual-consecutive-max-penalty",
    "balancer.linkerd.io/failure-accrual-consecutive-min-penalty",
    "balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio",
];

/// Of a Service.
pub fn service(reader: &Reader<'_>, b: &mut Builder<'_>) {
    let object = reader.object;
    let id = ServiceId::new(&object.namespace, &object.name);
    check(reader);
    let (fields, from) = (fields(reader), first(reader, KNOWN[0]));
    let accrual = accrual(reader);
    let opaque = opaque(reader).or_else(|| b.opaque_ports.get(&object.namespace).cloned()).unwrap_or_default();
    let Some(service) = b.services.get_mut(&id) else { return };
    for (number, port) in &mut service.ports {
        if opaque.iter().any(|range| range.contains(number)) {
            port.protocol = "tcp";
        }
    }
    for port in service.ports.keys().copied().collect::<Vec<_>>() {
        if let Some((accrual, from)) = &accrual {
            service.add_policy(PolicySet {
                from: from.clone(),
                kind: Policies::Annotations,
                specific: 0,
                clients: Clients::default(),
                port,
                policy: Map::from_iter([("outlier".to_string(), json!({"accrual": accrual}))]),
                subsets: Vec::new(),
            });
        }
        if !fields.is_empty() {
            b.overlays.push(Overlay {
                from: from.clone(),
                kind: Policies::Annotations,
                specific: 0,
                on: Target::Service(id.clone(), port),
                fields: fields.clone(),
            });
        }
    }
}

/// Of an HTTPRoute or a GRPCRoute.
pub fn route(reader: &Reader<'_>, b: &mut Builder<'_>) {
    check(reader);
    for name in reader.object.annotations.keys().filter(|n| n.starts_with("balancer.")) {
        if let Some(field) = reader.annotated(name) {
            field.ignored("of a Service only: a breaker belongs to what requests are sent to");
        }
    }
    if reader.object.kind == "GRPCRoute"
        && let Some(http) = reader.annotated("retry.linkerd.io/http")
    {
        http.ignored("not for a GRPCRoute");
    }
    let fields = fields(reader);
    if !fields.is_empty() {
        let on: ObjectRef = reader.object.reference();
        b.overlays.push(Overlay {
            from: first(reader, KNOWN[0]),
            kind: Policies::Annotations,
            specific: 0,
            on: Target::Route(on),
            fields,
        });
    }
}

/// Where annotations stand, for what is said of all of them.
fn first(reader: &Reader<'_>, otherwise: &str) -> Source {
    let name = KNOWN.iter().find(|n| reader.object.annotations.contains_key(**n));
    let field = reader.annotated(name.unwrap_or(&otherwise));
    let mut source = field.map_or_else(|| reader.root().source(), |f| f.source());
    source.field = "metadata.annotations".into();
    source
}

/// Names that are nobody's, and those of Linkerd that do nothing here.
fn check(reader: &Reader<'_>) {
    let families = ["retry.linkerd.io/", "timeout.linkerd.io/", "balancer.linkerd.io/", "balancer.alpha.linkerd.io/"];
    for name in reader.object.annotations.keys() {
        let ours = families.iter().any(|f| name.starts_with(f));
        if !ours || KNOWN.contains(&name.as_str()) {
            continue;
        }
        let Some(field) = reader.annotated(name) else { continue };
        match name.starts_with("balancer.alpha.") {
            true => field.ignored("an alpha of Linkerd's; the balancer here counts a failure as a slow answer"),
            false => {
                field.ignored("not known here");
                let near = doc::nearest(name, KNOWN.into_iter());
                let hint = near.map(|n| format!("did you mean {n}?")).unwrap_or_default();
                field.warn(None, "is not known here and has no effect", &hint);
            }
        }
    }
}

fn duration<'r>(reader: &'r Reader<'_>, name: &str) -> Option<(Field<'r>, Duration, String)> {
    let field = reader.annotated(name)?;
    let (text, duration) = (field.text()?, field.duration()?);
    Some((field, duration, text))
}

/// `retry` and `timeout`.
fn fields(reader: &Reader<'_>) -> Map<String, Value> {
    let mut out = Map::new();
    if let Some(retry) = retry(reader) {
        out.insert("retry".into(), retry.into());
    }
    let timeout = timeout(reader);
    if !timeout.is_empty() {
        out.insert("timeout".into(), timeout.into());
    }
    out
}

fn retry(reader: &Reader<'_>) -> Option<Map<String, Value>> {
    let http = reader.annotated("retry.linkerd.io/http").filter(|_| reader.object.kind != "GRPCRoute");
    let grpc = reader.annotated("retry.linkerd.io/grpc");
    let limit = reader.annotated("retry.linkerd.io/limit");
    let per_try = duration(reader, "retry.linkerd.io/timeout");
    if http.is_none() && grpc.is_none() && limit.is_none() && per_try.is_none() {
        return None;
    }
    let code = |w: &str| w.parse::<u16>().is_ok_and(|c| (100..600).contains(&c));
    let status = |w: &str| match w.split_once('-') {
        _ if matches!(w, "5xx" | "gateway-error") => true,
        Some((from, to)) => code(from) && code(to) && from <= to,
        None => code(w),
    };
    let grpc_code =
        |w: &str| ["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"].contains(&w);
    let mut on = vec!["connect-failure".to_string(), "refused-stream".into()];
    // A retried timeout is what the limit of one attempt is for.
    if per_try.is_some() {
        on.push("reset".into());
    }
    // One word that is not known makes the whole set void, as in Linkerd.
    on.extend(
        http.as_ref()
            .map_or(Some(Vec::new()), |f| words(f, status, "5xx, gateway-error, codes or ranges such as 500-504"))?,
    );
    on.extend(grpc.as_ref().map_or(Some(Vec::new()), |f| {
        words(f, grpc_code, "cancelled, deadline-exceeded, internal, resource-exhausted or unavailable")
    })?);
    if http.is_none() && grpc.is_none() {
        let at = limit.as_ref().or(per_try.as_ref().map(|(f, ..)| f));
        at.inspect(|f| {
            let hint = "retry.linkerd.io/http: 5xx, say";
            f.warn(None, "says how often, and no annotation says what is retried", hint);
        });
    }
    let attempts = match &limit {
        Some(field) => match field.text()?.parse::<u32>() {
            // As in Linkerd, 0 is not said.
            Ok(0) => 1,
            Ok(n) if n <= 100 => n,
            _ => return field.fail("is not a number of retries", "a whole number up to 100"),
        },
        None => 1,
    };
    let mut out = Map::from_iter([("on".to_string(), json!(on.join(","))), ("attempts".to_string(), json!(attempts))]);
    if let Some((field, _, text)) = per_try {
        field.differs("the last attempt has this limit as well");
        out.insert("perTryTimeout".into(), json!(text));
    }
    Some(out)
}

fn words(field: &Field<'_>, known: impl Fn(&str) -> bool, hint: &str) -> Option<Vec<String>> {
    let text = field.text()?;
    let words: Vec<&str> = text.split(',').map(str::trim).filter(|w| !w.is_empty()).collect();
    match words.iter().find(|w| !known(w)) {
        Some(word) => field.fail(format!("{word:?} is not a retry condition"), hint),
        None => Some(words.into_iter().map(String::from).collect()),
    }
}

fn timeout(reader: &Reader<'_>) -> Map<String, Value> {
    let mut out = Map::new();
    let request = duration(reader, "timeout.linkerd.io/request");
    let response = duration(reader, "timeout.linkerd.io/response");
    if let Some((field, ..)) = &response {
        field.differs("counted from the request's head, as timeout.linkerd.io/request is; the shorter of both counts");
    }
    // Zero is no limit, so it is not the shorter one.
    let mut limits: Vec<_> = [request, response].into_iter().flatten().collect();
    limits.sort_by_key(|(_, d, _)| if d.is_zero() { Duration::MAX } else { *d });
    if let Some((_, _, text)) = limits.first() {
        out.insert("request".into(), json!(text));
    }
    limits.iter().skip(1).for_each(|(field, ..)| field.ignored("the other limit is shorter"));
    if let Some((field, _, text)) = duration(reader, "timeout.linkerd.io/idle") {
        field.differs("runs before the answer's head as well");
        out.insert("idle".into(), json!(text));
    }
    out
}

/// An `accrual`, and where it was said.
fn accrual(reader: &Reader<'_>) -> Option<(Value, Source)> {
    let of = |name: &str| reader.annotated(&format!("{ACCRUAL}-consecutive-{name}"));
    let (failures, max, min, jitter) = (of("max-failures"), of("max-penalty"), of("min-penalty"), of("jitter-ratio"));
    let Some(mode) = reader.annotated(ACCRUAL) else {
        for field in [failures, max, min, jitter].into_iter().flatten() {
            field.ignored(format!("without {ACCRUAL} nothing is counted"));
        }
        return None;
    };
    let unified = match mode.text()?.as_str() {
        "consecutive" => false,
        "unified" => {
            mode.differs("failures in a row are counted; the rate of successes is not looked at");
            true
        }
        _ => return mode.fail("is not a way of counting failures", "consecutive"),
    };
    let penalty = |field: Option<Field<'_>>, otherwise: Duration| match field {
        Some(field) => field.duration(),
        None => Some(otherwise),
    };
    let jitter = match jitter {
        Some(field) => match field.text()?.parse::<f64>() {
            Ok(ratio) if (0.0..=100.0).contains(&ratio) => ratio,
            _ => return field.fail("is not a ratio", "a number from 0 to 100"),
        },
        None => 0.5,
    };
    let failures = match failures {
        Some(field) => match field.text()?.parse::<u32>() {
            Ok(0) if unified => return None,
            Ok(n) if n > 0 => n,
            _ => return field.fail("is not a number of failures", "a whole number above 0"),
        },
        None => 7,
    };
    let (min, max) = (penalty(min, Duration::from_secs(1))?, penalty(max, Duration::from_secs(60))?);
    if min > max || min.is_zero() {
        return mode.fail("the shortest penalty is longer than the longest, or nothing; so nothing is counted", "");
    }
    let text = |d: Duration| format!("{}ms", d.as_millis());
    let accrual = json!({"maxFailures": failures, "minPenalty": text(min), "maxPenalty": text(max), "jitter": jitter});
    Some((accrual, mode.source()))
}

/// Of a Namespace: for its Services that say nothing of it.
pub fn namespace(reader: &Reader<'_>, b: &mut Builder<'_>) {
    if let Some(ranges) = opaque(reader) {
        b.opaque_ports.insert(reader.object.name.clone(), ranges);
    }
}

fn opaque(reader: &Reader<'_>) -> Option<Vec<RangeInclusive<u16>>> {
    let field = reader.annotated(OPAQUE)?;
    Some(ranges(&field.text()?, reader, &field))
}

fn ranges(text: &str, reader: &Reader<'_>, field: &Field<'_>) -> Vec<RangeInclusive<u16>> {
    let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
    let read = |part: &str| match range(part) {
        Some(range) => Some(range),
        None => {
            reader.finding(Severity::Error, None, &field.path, format!("{part:?} is no port"), "80, or 8080-8090");
            None
        }
    };
    parts.filter_map(read).collect()
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let port = |s: &str| s.trim().parse::<u16>().ok().filter(|p| *p > 0);
    let (from, to) = (port(from)?, port(to)?);
    (from <= to).then_some(from..=to)
}

/// `opaquePorts` of a ServiceProfile.
pub fn ports_of(spec: &Field<'_>) -> Vec<RangeInclusive<u16>> {
    let read = |field: &Field<'_>| match field.text().as_deref().map(range)? {
        Some(range) => Some(range),
        None => field.fail("is no port", "80, or 8080-8090"),
    };
    spec.list("opaquePorts").iter().filter_map(read).collect()
}
