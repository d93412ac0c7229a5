//! Metrics. A request touches one cell of its worker ([`cells`]); every second the cells' changes move to the process's
//! series ([`series`]), which own the label texts ([`labels`]), their bound and their end ([`table`]). A scrape asks the workers for
//! what they have, then writes text ([`text`]).

pub mod backends;
pub mod cells;
pub mod histogram;
pub mod labels;
pub mod process;
pub mod series;
pub mod table;
pub mod text;

pub use text::{Collect, Kind, Labels, Text};
