//! SMI, as far as its traffic goes: TrafficSplit, and the HTTPRouteGroup that its last version may name.

pub mod http_route_group;
pub mod traffic_split;
