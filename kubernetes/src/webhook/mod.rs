//! Webhooks that an API server calls before it keeps an object.
//!
//! `review` is what it asks and what it is answered, `server` takes the calls: bounded in bytes, number and time, and a call
//! that fails is that call's failure alone. `certificate` keeps the server's certificate, of a small authority of its own, in a Secret
//! that all replicas share; `bundle` keeps that authority in the webhook configurations, whoever changes them. `figures`
//! counts, and `status` tells kubelets and Prometheus.

pub mod bundle;
pub mod certificate;
pub mod figures;
mod issue;
pub mod review;
pub mod server;
pub mod status;

pub use bundle::Configuration;
pub use certificate::{Certificate, Served};
pub use figures::Figures;
pub use review::{Answer, Request};
pub use server::{Handler, serve};
