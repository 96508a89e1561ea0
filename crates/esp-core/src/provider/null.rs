//! Null cipher, to measure the cost of a packet without one. For benchmarks, in no ordinary build.

use super::layout::{split_out, split_sealed};
use crate::esp::aead::{Aead, AuthError, NONCE_LEN, SealError};
use crate::esp::suite::Suite;

pub(super) const fn has(_suite: &Suite) -> bool {
    true
}

pub(super) fn aead(suite: &Suite) -> Box<dyn Aead> {
    Box::new(Null {
        icv_len: suite.icv_len,
    })
}

/// Copies the text, writes zeros as the ICV, and accepts every packet as authentic.
struct Null {
    icv_len: usize,
}

impl Aead for Null {
    fn seal(
        &mut self,
        _nonce: &[u8; NONCE_LEN],
        _aad: &[u8],
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError> {
        let (copy, icv) = split_out(text, out, self.icv_len).ok_or(SealError)?;
        copy.copy_from_slice(text);
        icv.fill(0);
        Ok(())
    }

    fn open(
        &mut self,
        _nonce: &[u8; NONCE_LEN],
        _aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), AuthError> {
        let (text, _) = split_sealed(sealed, out, self.icv_len).ok_or(AuthError)?;
        out.copy_from_slice(text);
        Ok(())
    }
}
