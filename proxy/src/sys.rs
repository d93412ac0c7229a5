//! What the operating system is asked for directly. The only place in this crate that may hold unsafe code.

pub mod limits;
#[allow(unsafe_code)]
pub mod malloc;
pub mod orig_dst;
#[allow(unsafe_code)]
pub mod sockopt;
