//! GRPCRoute. A call is a POST to `/SERVICE/METHOD`, so that is what it matches by.

use super::{matches, route};
use crate::builder::Builder;
use crate::reader::Reader;

pub fn translate(reader: &Reader<'_>, builder: &mut Builder<'_>) {
    route::translate(reader, builder, |field, backends| {
        field.ignore("sessionPersistence", "sessions are pinned with balance.hash of a TrafficPolicy");
        route::rule(field, backends, matches::grpc)
    });
}
