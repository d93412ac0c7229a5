//! Gateway API, as a mesh has it: routes that are attached to a Service (GAMMA).
//!
//! Such a route decides by the address and port that was dialled; Host does not matter to it. One of the Service's own
//! namespace is for everybody (a producer's), one of another namespace only for clients of that namespace (a consumer's), and
//! those see nothing of the producer's. What no rule matches is 404. A share that leads nowhere is 500.

pub mod backend;
pub mod filters;
pub mod grpc_route;
pub mod http_route;
pub mod matches;
pub mod reference_grant;
mod route;
