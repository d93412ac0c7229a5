//! What wraps a body on its way.

pub mod replay;
