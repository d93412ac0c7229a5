//! Whether an object is one that can be worked on: bounded, and lists where lists belong. What a field holds otherwise is the
//! API server's to judge.

use crate::{MAX_BYTES, MAX_DEPTH, workload};
use serde_json::Value;
use std::io;

/// What is wrong, in one sentence. A workload without a pod template passes: it is only skipped.
pub fn check(object: &Value) -> Result<(), String> {
    if depth(object) > MAX_DEPTH {
        return Err(format!("it is nested more than {MAX_DEPTH} levels deep"));
    }
    let mut counter = Counter(0);
    if serde_json::to_writer(&mut counter, object).is_err() {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    let Some(pod) = workload::pointer(object).and_then(|p| object.pointer(p)) else { return Ok(()) };
    let wrong = |what: &str, is: &str| Err(format!("{what} is no {is}, so an API server would refuse it"));
    let spec = match pod.get("spec") {
        Some(Value::Object(spec)) => spec,
        // Without a template it is skipped.
        None => return Ok(()),
        Some(_) => return wrong("the pod's spec", "map"),
    };
    match pod.get("metadata") {
        None | Some(Value::Null) => {}
        Some(Value::Object(meta)) => {
            for name in ["labels", "annotations"] {
                if !matches!(meta.get(name), None | Some(Value::Null | Value::Object(_))) {
                    return wrong(name, "map");
                }
            }
        }
        Some(_) => return wrong("metadata", "map"),
    }
    for name in ["containers", "initContainers", "volumes", "imagePullSecrets"] {
        match spec.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) if items.iter().all(Value::is_object) => {}
            Some(_) => return wrong(name, "list of maps"),
        }
    }
    Ok(())
}

/// Without recursion, for the stack is bounded too.
fn depth(value: &Value) -> usize {
    let (mut open, mut deepest) = (vec![(value, 1)], 0);
    while let Some((value, at)) = open.pop() {
        deepest = deepest.max(at);
        // Further down it is too deep already.
        if at > MAX_DEPTH {
            break;
        }
        match value {
            Value::Array(items) => open.extend(items.iter().map(|v| (v, at + 1))),
            Value::Object(items) => open.extend(items.values().map(|v| (v, at + 1))),
            _ => {}
        }
    }
    deepest
}

struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        if self.0 > MAX_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
