//! The processor's instructions for AES-GCM; the libraries detect the same by themselves.

/// The instructions that AES-GCM is computed with, for `status`; `none` if it uses tables and
/// shifts.
#[must_use]
pub fn aes_path() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("vaes") && has!("vpclmulqdq") && has!("avx512f") && has!("avx512vl") {
            return "VAES, AVX-512";
        }
        if has!("aes") && has!("pclmulqdq") {
            return if has!("avx2") {
                "AES-NI, AVX2"
            } else {
                "AES-NI"
            };
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::is_aarch64_feature_detected as has;
        if has!("aes") && has!("pmull") {
            return "ARMv8 Crypto Extensions";
        }
    }
    "none"
}
