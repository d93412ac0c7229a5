//! Who is who: the authority and its roots, join tokens, signing, and the callers that certificates prove. In Kubernetes
//! (`cluster`) the authority is in a Secret, its roots in a ConfigMap of every namespace, and ServiceAccount tokens prove pods.

pub mod attest;
pub mod ca;
pub mod caller;
pub mod cluster;
pub mod own;
pub mod replicas;
pub mod roots;
pub mod rotate;
pub mod secret;
pub mod sign;
pub mod token;

pub use ca::{Authority, CaError};
pub use caller::Caller;
