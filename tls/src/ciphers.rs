//! Which library encrypts records: the faster one on this CPU. Handshakes, signatures and keys are aws-lc's everywhere, and so
//! is whatever is not AES-GCM under TLS 1.3.
//!
//! aws-lc has code for AVX-512; where a CPU has wide AES without it, ring's AVX2 code is almost twice as fast, at every size
//! (docs/decisions/0008 has the figures, and how to measure them).

use rustls::SupportedCipherSuite;
use rustls::crypto::{aws_lc_rs, ring};

/// AES-128-GCM, then AES-256-GCM.
pub fn preferred() -> [SupportedCipherSuite; 2] {
    use aws_lc_rs::cipher_suite as aws;
    use ring::cipher_suite as ring;
    match is_ring_faster() {
        true => [ring::TLS13_AES_128_GCM_SHA256, ring::TLS13_AES_256_GCM_SHA384],
        false => [aws::TLS13_AES_128_GCM_SHA256, aws::TLS13_AES_256_GCM_SHA384],
    }
}

#[cfg(target_arch = "x86_64")]
fn is_ring_faster() -> bool {
    let wide = is_x86_feature_detected!("vaes") && is_x86_feature_detected!("vpclmulqdq");
    wide && is_x86_feature_detected!("avx2") && !is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn is_ring_faster() -> bool {
    false
}
