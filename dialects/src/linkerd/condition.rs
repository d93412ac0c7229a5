//! Conditions of a ServiceProfile's routes, as matches.
//!
//! A condition is a tree of `all`, `any` and `not` over `method` and `pathRegex`; a route's matches are alternatives of a
//! path and a method. So the tree is multiplied out, and what then needs two paths at once, or a path that is not, is said to
//! be beyond us: such an alternative would match too much without its condition, so it is left out.

use crate::reader::Field;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What the alternatives may grow to while they are multiplied out, which is what one route may have.
const MAX_ALTERNATIVES: usize = 64;

/// Methods that a `not` can mean; others nobody can list.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// One alternative: a path that matches, one of the methods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Alternative {
    path: Option<String>,
    methods: Option<BTreeSet<String>>,
}

#[derive(Clone, Debug)]
enum Condition {
    Path(String),
    Method(String),
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
}

/// Which methods a route is for, as far as that is said: whether repeating its requests is safe depends on it.
pub struct Matches {
    pub alternatives: Vec<Value>,
    pub methods: BTreeSet<String>,
}

/// `None`: nothing can be matched, and it was said why.
pub fn read(field: &Field<'_>) -> Option<Matches> {
    let condition = tree(field, 0)?;
    match expand(&condition, false) {
        Ok(found) if found.is_empty() => field.fail("matches no request", ""),
        Ok(found) => Some(Matches {
            methods: found.iter().flat_map(|a| a.methods.iter().flatten().cloned()).collect(),
            alternatives: found.iter().map(Alternative::json).collect(),
        }),
        Err(why) => field.fail(why, "write it as several routes, the more special ones first"),
    }
}

/// Several conditions in one node must all hold: Linkerd takes one, and people write two.
fn tree(field: &Field<'_>, depth: usize) -> Option<Condition> {
    if depth > 16 {
        return field.fail("is nested too deeply", "at most 16 levels");
    }
    let mut all = Vec::new();
    if let Some(path) = field.get("pathRegex") {
        all.push(Condition::Path(path.text()?));
    }
    if let Some(method) = field.get("method") {
        match method.text()? {
            text if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-') => {
                return method.fail(format!("{text:?} is not a method"), "a method such as GET");
            }
            text => all.push(Condition::Method(text)),
        }
    }
    if let Some(list) = field.get("all") {
        all.push(Condition::All(list.items().iter().map(|c| tree(c, depth + 1)).collect::<Option<_>>()?));
    }
    if let Some(list) = field.get("any") {
        all.push(Condition::Any(list.items().iter().map(|c| tree(c, depth + 1)).collect::<Option<_>>()?));
    }
    if let Some(not) = field.get("not") {
        all.push(Condition::Not(Box::new(tree(&not, depth + 1)?)));
    }
    match all.len() {
        0 => field.fail("has no condition", "pathRegex, method, all, any or not"),
        _ => Some(Condition::All(all)),
    }
}

fn expand(condition: &Condition, not: bool) -> Result<Vec<Alternative>, String> {
    match condition {
        Condition::Path(_) if not => Err("a path that does not match cannot be a condition here".into()),
        Condition::Path(path) => Ok(vec![Alternative { path: Some(path.clone()), methods: None }]),
        Condition::Method(method) => {
            let methods = match not {
                false => BTreeSet::from([method.clone()]),
                true => METHODS.iter().filter(|m| *m != method).map(|m| m.to_string()).collect(),
            };
            Ok(vec![Alternative { path: None, methods: Some(methods) }])
        }
        Condition::Not(inner) => expand(inner, !not),
        // What is not all of them is one that is not.
        Condition::All(list) if not => any(list, not),
        Condition::Any(list) if !not => any(list, not),
        Condition::All(list) | Condition::Any(list) => {
            let mut product = vec![Alternative::default()];
            for condition in list {
                let each = expand(condition, not)?;
                let pairs = product.iter().flat_map(|a| each.iter().map(move |b| a.and(b)));
                product = pairs.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
                within(&product)?;
            }
            Ok(product)
        }
    }
}

fn any(list: &[Condition], not: bool) -> Result<Vec<Alternative>, String> {
    let mut sum = Vec::new();
    for condition in list {
        sum.extend(expand(condition, not)?);
        within(&sum)?;
    }
    Ok(sum)
}

fn within(alternatives: &[Alternative]) -> Result<(), String> {
    match alternatives.len() {
        n if n > MAX_ALTERNATIVES => Err(format!("makes more than {MAX_ALTERNATIVES} alternatives")),
        _ => Ok(()),
    }
}

impl Alternative {
    /// `None`: no request is both.
    fn and(&self, other: &Self) -> Result<Option<Self>, String> {
        let path = match (&self.path, &other.path) {
            (Some(a), Some(b)) if a != b => return Err("two paths at once cannot be a condition here".into()),
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        let methods = match (&self.methods, &other.methods) {
            (Some(a), Some(b)) => Some(a.intersection(b).cloned().collect::<BTreeSet<_>>()),
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        Ok(methods.as_ref().is_none_or(|m| !m.is_empty()).then_some(Self { path, methods }))
    }

    fn json(&self) -> Value {
        let mut out = json!({});
        if let Some(path) = &self.path {
            out["path"] = json!({"regex": path});
        }
        if let Some(methods) = &self.methods {
            out["method"] = match methods.len() {
                1 => json!(methods.first()),
                _ => json!({"regex": methods.iter().cloned().collect::<Vec<_>>().join("|")}),
            };
        }
        out
    }
}
