//! `route list` and `route show`: routes as the mesh understands them.

use super::mesh::Way;
use crate::edit::{value, write};
use crate::error::Result;
use crate::objects::{Mesh, Output, Store, stands};
use crate::terminal::{Tone, coloured, paint, table};
use serde_json::{Value as Json, json};
use weft_dialects::reader::Source;
use weft_dialects::world::{Clients, Variant};
use weft_policy::id::ServiceId;

pub fn list(store: &Store, typed: Option<&str>, namespace: Option<&str>, output: Output) -> Result<()> {
    let mesh = store.mesh();
    let only = typed.map(|t| mesh.find(t, namespace)).transpose()?;
    let wanted = |id: &&ServiceId| match only {
        Some(only) => *id == only,
        None => namespace.is_none_or(|ns| *id.namespace == *ns),
    };
    let ids: Vec<&ServiceId> = mesh.world.services.keys().filter(wanted).collect();
    match output {
        Output::Json => println!("{:#}", Json::Array(ids.iter().map(|id| document(mesh, id)).collect())),
        Output::Yaml => print!("{}", yaml(&Json::Array(ids.iter().map(|id| document(mesh, id)).collect()))),
        Output::Table | Output::Wide => print!("{}", lines(mesh, &ids, output == Output::Wide)),
    }
    Ok(())
}

/// A line for each Service.
fn lines(mesh: &Mesh, ids: &[&ServiceId], wide: bool) -> String {
    let many = ids.iter().any(|id| id.namespace != ids[0].namespace);
    let mut heading = vec!["SERVICE", "PORTS", "ROUTES", "TO", "SAID BY"];
    if many {
        heading.insert(0, "NAMESPACE");
    }
    let row = |id: &&ServiceId| {
        let ways: Vec<Way<'_>> = (0..mesh.variants(id).len()).flat_map(|v| mesh.ways(id, v)).collect();
        let main = mesh.ways(id, mesh.variant_for(id, None));
        let last = main.iter().find(|w| w.takes_all()).or(main.first());
        let ports: Vec<String> = mesh.ports(id).iter().map(u16::to_string).collect();
        let mut row = vec![
            id.name.to_string(),
            ports.join(","),
            main.len().to_string(),
            last.map_or("itself".into(), to),
            governors(&ways).iter().map(|s| said_by(s, wide)).collect::<Vec<_>>().join(", "),
        ];
        if many {
            row.insert(0, id.namespace.to_string());
        }
        row.into_iter().map(|cell| (cell, Tone::Plain)).collect()
    };
    table(&heading, &ids.iter().map(row).collect::<Vec<_>>(), coloured())
}

fn said_by(source: &Source, wide: bool) -> String {
    match wide {
        true => place(source),
        false => source.object.to_string(),
    }
}

/// The objects whose routes and splits these are.
pub fn governors<'m>(ways: &[Way<'m>]) -> Vec<&'m Source> {
    let mut out: Vec<&Source> = Vec::new();
    for source in ways.iter().flat_map(|w| [w.from(), w.other("to")]).flatten() {
        if out.iter().all(|s| s.object != source.object) {
            out.push(source);
        }
    }
    out
}

pub fn show(store: &Store, typed: &str, namespace: Option<&str>, output: Output) -> Result<()> {
    let mesh = store.mesh();
    let id = mesh.find(typed, namespace)?;
    match output {
        Output::Json => println!("{:#}", document(mesh, id)),
        Output::Yaml => print!("{}", yaml(&document(mesh, id))),
        Output::Table | Output::Wide => print!("{}", text(mesh, id, output == Output::Wide)),
    }
    Ok(())
}

fn yaml(json: &Json) -> String {
    write::document(&value::from_json(json), &write::Hand { flows: true, ..write::Hand::default() })
}

fn document(mesh: &Mesh, id: &ServiceId) -> Json {
    let place =
        |s: &Source| json!({"object": s.object.to_string(), "file": &*s.file, "line": s.at.line, "field": s.field});
    let variant = |(i, v): (usize, &Variant)| {
        let ways = mesh.ways(id, i);
        let mut ports = v.document["ports"].clone();
        for port in ports.as_array_mut().into_iter().flatten() {
            let number = port["port"].as_u64().unwrap_or(0);
            let here = ways.iter().filter(|w| u64::from(w.port) == number);
            let routes = here.map(|w| {
                let mut route = w.route.clone();
                route["from"] = w.from().map_or(Json::Null, place);
                if let Some(split) = w.other("to") {
                    route["toFrom"] = place(split);
                }
                route
            });
            let routes: Vec<Json> = routes.collect();
            if !routes.is_empty() {
                port["routes"] = Json::Array(routes);
            }
        }
        json!({"clients": {"namespaces": v.clients.namespaces, "labels": v.clients.labels}, "ports": ports})
    };
    let variants: Vec<Json> = mesh.variants(id).iter().enumerate().map(variant).collect();
    json!({"service": &*id.name, "namespace": &*id.namespace, "variants": variants})
}

/// What is the same for several kinds of clients is shown once.
fn text(mesh: &Mesh, id: &ServiceId, wide: bool) -> String {
    let mut seen: Vec<(Vec<&Variant>, Vec<(String, String)>)> = Vec::new();
    for (i, variant) in mesh.variants(id).iter().enumerate() {
        let ports = ports(mesh, id, i, wide);
        match seen.iter_mut().find(|(_, shown)| *shown == ports) {
            Some((of, _)) => of.push(variant),
            None => seen.push((vec![variant], ports)),
        }
    }
    let mut blocks = Vec::new();
    for (of, ports) in &seen {
        let whose = match of.iter().any(|v| v.clients == Clients::default()) {
            _ if seen.len() == 1 => String::new(),
            true => ", for everybody else".into(),
            false => format!(", for clients {}", of.iter().map(|v| clients(v)).collect::<Vec<_>>().join(" or ")),
        };
        for (head, table) in ports {
            blocks.push(format!("{}{whose}\n{table}", paint(head, Tone::Bold, coloured())));
        }
    }
    blocks.join("\n")
}

/// Each port's heading, and what there is to be told of it.
fn ports(mesh: &Mesh, id: &ServiceId, variant: usize, wide: bool) -> Vec<(String, String)> {
    let ways = mesh.ways(id, variant);
    let document = mesh.variants(id).get(variant).map(|v| &v.document);
    let ports = document.and_then(|d| d["ports"].as_array()).into_iter().flatten().enumerate();
    let port = |(index, port): (usize, &Json)| {
        let here: Vec<&Way<'_>> = ways.iter().filter(|w| port["port"] == w.port).collect();
        let mut out = "no routes: everything goes to the Service itself\n".to_string();
        if !here.is_empty() {
            let mut heading = vec!["MATCH", "TO", "TIMEOUT", "RETRIES", "FROM"];
            if wide {
                heading.insert(0, "NAME");
            }
            out = table(&heading, &here.iter().map(|w| row(w, wide)).collect::<Vec<_>>(), coloured());
        }
        for block in ["breaker", "outlier", "balance", "retryBudget", "tls"] {
            if let Some(says) = port["policy"].get(block) {
                let from = mesh.policy_from(id, variant, index, block);
                let from = from.map(|s| format!("  {}", paint(&place(s), Tone::Faint, coloured())));
                out += &format!("{block}: {}{}\n", flow(says), from.unwrap_or_default());
            }
        }
        (format!("{}.{} port {} ({})", id.name, id.namespace, port["port"], word(&port["protocol"])), out)
    };
    ports.map(port).collect()
}

fn clients(variant: &Variant) -> String {
    let namespaces: Vec<&str> = variant.clients.namespaces.iter().map(String::as_str).collect();
    let labels: Vec<String> = variant.clients.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut parts = Vec::new();
    if !namespaces.is_empty() {
        parts.push(format!("of {}", namespaces.join(", ")));
    }
    if !labels.is_empty() {
        parts.push(format!("with {}", labels.join(", ")));
    }
    parts.join(" ")
}

/// An object, and where it stands.
fn place(source: &Source) -> String {
    match stands(&source.file, source.at) {
        Some(stands) => format!("{} {stands}", source.object),
        None => source.object.to_string(),
    }
}

fn row(way: &Way<'_>, wide: bool) -> Vec<(String, Tone)> {
    // The split says where, and whoever else has a part in it is named too.
    let mut from: Vec<String> = Vec::new();
    let fields = ["to", "timeout.request", "retry.attempts", "retry.on"];
    for source in [way.from()].into_iter().chain(fields.map(|f| way.other(f))).flatten() {
        if !from.contains(&place(source)) {
            from.push(place(source));
        }
    }
    let mut row = vec![matched(way.route), to(way), timeout(way), retries(way), from.join(", ")];
    if wide {
        row.insert(0, way.name().to_string());
    }
    row.into_iter().map(|cell| (cell, Tone::Plain)).collect()
}

/// The shares in percent, as far as there are several.
pub fn to(way: &Way<'_>) -> String {
    if let Some(redirect) = way.route.get("redirect") {
        return format!("redirect {}", flow(redirect));
    }
    if let Some(respond) = way.route.get("respond") {
        return format!("answer {}", respond["status"]);
    }
    let to = way.to();
    let total: u64 = to.iter().map(|(_, weight)| weight).sum();
    if let [(only, _)] = &to[..] {
        return only.name(way);
    }
    let share = |weight: u64| {
        let percent = weight as f64 * 100.0 / total.max(1) as f64;
        format!("{}", (percent * 100.0).round() / 100.0)
    };
    to.iter().map(|(t, weight)| format!("{}% {}", share(*weight), t.name(way))).collect::<Vec<_>>().join(", ")
}

pub fn timeout(way: &Way<'_>) -> String {
    match word(&way.route["timeout"]["request"]) {
        "" => "-".into(),
        text => text.into(),
    }
}

pub fn retries(way: &Way<'_>) -> String {
    let Some(retry) = way.route.get("retry").filter(|_| way.forwards()) else {
        return if way.forwards() { "only what no app has seen".into() } else { "-".into() };
    };
    let attempts = retry["attempts"].as_u64().unwrap_or(2);
    let on = match &retry["on"] {
        Json::Array(list) => list.iter().map(|w| word(w).to_string()).collect::<Vec<_>>().join(","),
        on => word(on).to_string(),
    };
    let on = if on.is_empty() { "connect-failure,refused-stream".into() } else { on };
    match (attempts, word(&retry["perTryTimeout"])) {
        (0, _) => "none".into(),
        (n, "") => format!("{n} on {on}"),
        (n, each) => format!("{n} on {on}, {each} each"),
    }
}

fn matched(route: &Json) -> String {
    let alternatives = match &route["match"] {
        Json::Null => return "any".into(),
        Json::Array(list) => list.iter().map(alternative).collect::<Vec<_>>(),
        one => vec![alternative(one)],
    };
    alternatives.join(" or ")
}

fn alternative(one: &Json) -> String {
    let mut parts = Vec::new();
    for (key, says) in one.as_object().into_iter().flatten() {
        match &**key {
            "method" => parts.insert(0, text_match(says)),
            "path" => parts.push(path(says)),
            "headers" => {
                let each = says.as_object().into_iter().flatten();
                parts.extend(each.map(|(name, m)| format!("{name}: {}", text_match(m))));
            }
            "query" => {
                let each = says.as_object().into_iter().flatten();
                parts.extend(each.map(|(name, m)| format!("?{name}={}", text_match(m))));
            }
            key => parts.push(format!("{key} {}", text_match(says))),
        }
    }
    if parts.is_empty() { "any".into() } else { parts.join(" ") }
}

fn path(says: &Json) -> String {
    let first = says.as_object().into_iter().flatten().find(|(k, _)| *k != "ignoreCase");
    match first.map(|(k, v)| (&**k, word(v))) {
        Some(("pathPrefix", "/")) => "/*".into(),
        Some(("pathPrefix", path)) => format!("{path}[/*]"),
        Some(("prefix", path)) => format!("{path}*"),
        Some(("regex", path)) => format!("~{path}"),
        _ => text_match(says),
    }
}

fn text_match(says: &Json) -> String {
    match says {
        Json::String(text) => text.clone(),
        Json::Object(fields) if fields.len() == 1 => {
            let (kind, value) = fields.iter().next().map_or(("", Json::Null), |(k, v)| (k, v.clone()));
            match (kind, value.as_str()) {
                ("exact", Some(text)) => text.to_string(),
                ("prefix", Some(text)) => format!("{text}*"),
                ("suffix", Some(text)) => format!("*{text}"),
                ("regex", Some(text)) => format!("~{text}"),
                _ => flow(says),
            }
        }
        other => flow(other),
    }
}

fn word(json: &Json) -> &str {
    json.as_str().unwrap_or_default()
}

fn flow(json: &Json) -> String {
    write::Hand::default().flow(&value::from_json(json))
}
