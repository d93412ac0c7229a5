//! Who is who: the authority and its roots, join tokens, signing, and the callers that certificates prove.

pub mod ca;
pub mod caller;
pub mod own;
pub mod rotate;
pub mod sign;
pub mod token;

pub use ca::{Authority, CaError};
pub use caller::Caller;
