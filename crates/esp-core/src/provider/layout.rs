//! Text and ICV in the buffers of a library's AEAD.

use crate::esp::aead::AuthError;

/// Splits `out` into the places of the sealed text and of the ICV; None if the sizes don't fit.
#[inline]
pub(super) fn split_out<'a>(
    text: &[u8],
    out: &'a mut [u8],
    icv_len: usize,
) -> Option<(&'a mut [u8], &'a mut [u8])> {
    out.split_at_mut_checked(text.len())
        .filter(|(_, icv)| icv.len() == icv_len)
}

/// Splits `sealed` into the text that `out` has room for and the ICV; None if the sizes don't fit.
#[inline]
pub(super) fn split_sealed<'a>(
    sealed: &'a [u8],
    out: &[u8],
    icv_len: usize,
) -> Option<(&'a [u8], &'a [u8])> {
    sealed
        .split_at_checked(out.len())
        .filter(|(_, icv)| icv.len() == icv_len)
}

/// The verdict of an open; deciphered bytes whose ICV doesn't hold are erased, so that nobody uses
/// them.
#[inline]
pub(super) fn verdict(is_authentic: bool, out: &mut [u8]) -> Result<(), AuthError> {
    if is_authentic {
        return Ok(());
    }
    out.fill(0);
    Err(AuthError)
}
