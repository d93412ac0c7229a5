//! What tests of policies are made of: seeded randomness, documents, endpoints and backends.

use crate::backend::{self, Backend};
use crate::diag::{Diags, Pos};
use crate::doc::{Cursor, Node, Value};
use crate::endpoint::{self, Endpoint};
use crate::id::{BackendId, EndpointId, ServiceId};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// xorshift64*.
pub struct Seeded(pub u64);

impl Seeded {
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }
}

pub fn value(value: Value) -> Node {
    Node { at: Pos { line: 1, column: 1 }, value }
}

pub fn text(s: &str) -> Node {
    value(Value::Text(s.into()))
}

pub fn int(i: i64) -> Node {
    value(Value::Int(i))
}

pub fn list<const N: usize>(items: [Node; N]) -> Node {
    value(Value::List(items.into()))
}

pub fn map<const N: usize>(entries: [(&str, Node); N]) -> Node {
    value(Value::Map(entries.into_iter().map(|(k, v)| (k.to_string(), v.at, v)).collect()))
}

/// The value, or the findings as one text.
pub fn read<T>(node: &Node, read: impl FnOnce(&mut Cursor<'_, '_>) -> Option<T>) -> Result<T, String> {
    let mut diags = Diags::default();
    let out = read(&mut Cursor::new(node, &mut diags));
    let found = diags.0.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("\n");
    match out {
        Some(out) if !diags.has_errors() => Ok(out),
        _ => Err(found),
    }
}

pub fn config(n: usize, weight: u32) -> endpoint::Config {
    endpoint::Config {
        id: EndpointId(format!("pod-{n}").into()),
        address: endpoint::Address::Direct(SocketAddr::from((Ipv4Addr::LOCALHOST, 1000 + n as u16))),
        identity: None,
        labels: Default::default(),
        weight,
        draining: false,
        workload: Default::default(),
    }
}

pub fn weighted(weights: &[u32]) -> Vec<Arc<Endpoint>> {
    weights.iter().enumerate().map(|(i, w)| Arc::new(Endpoint::new(&config(i, *w)))).collect()
}

pub fn endpoints(n: usize) -> Vec<Arc<Endpoint>> {
    weighted(&vec![1; n])
}

pub fn backend(config: backend::Config) -> Arc<Backend> {
    let id = BackendId { service: ServiceId::new("demo", "web"), port: 80, subset: None };
    Arc::new(Backend::new(id, config))
}
