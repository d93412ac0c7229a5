//! The hash behind consistent hashing. Fixed: replicas and versions must agree on where a key lives, so it is written down
//! here rather than taken from a library, and the test pins its values.
//!
//! FNV-1a over the bytes, then the finalizer of MurmurHash3, because a ring needs all 64 bits well mixed and FNV alone leaves
//! similar keys close together. Not made against chosen keys: a client that chooses keys chooses its endpoint anyway.

pub fn bytes(data: &[u8]) -> u64 {
    mix(data.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)))
}

/// A second independent hash of the same thing, or one more number.
pub fn with(hash: u64, n: u64) -> u64 {
    mix(hash ^ mix(n.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}
