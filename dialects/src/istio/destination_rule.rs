//! DestinationRule.

use crate::builder::Builder;
use crate::reader::Reader;

pub fn translate(_: &Reader<'_>, _: &mut Builder<'_>) {}
