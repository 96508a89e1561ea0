//! The AEAD that a provider of cryptography makes for one SA.

use std::fmt;

use super::suite::Suite;

/// Bytes of the nonce: salt, then the explicit IV (RFC 4106 4).
pub const NONCE_LEN: usize = 12;

/// The ICV doesn't hold, or what was given can't be a sealed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthError;

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the packet is not authentic")
    }
}

impl std::error::Error for AuthError {}

/// The provider could not seal; nothing of `out` may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealError;

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the packet could not be sealed")
    }
}

impl std::error::Error for SealError {}

/// An AEAD with its key set, kept for one SA by one worker (RFC 5116).
pub trait Aead: Send {
    /// Seals `text` into `out`, which has `text.len()` and the ICV's bytes, neither more nor fewer.
    ///
    /// An AEAD that works on several packets at once may leave `out` to `complete_seals`; no
    /// library does.
    ///
    /// # Errors
    /// `SealError` where the provider fails or the sizes don't fit; `out` is not to be used then.
    fn seal(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError>;

    /// Writes what `seal` has left: `outs` are those of every call since the last `complete_seals`
    /// that gave no error, in their order.
    ///
    /// # Errors
    /// `SealError` where that can't be; nothing of `outs` is to be used then.
    fn complete_seals(
        &mut self,
        _outs: &mut dyn Iterator<Item = &mut [u8]>,
    ) -> Result<(), SealError> {
        Ok(())
    }

    /// Announces a sealed packet that will be opened soon, after those announced before it. An AEAD
    /// that works on several packets at once begins with it; no library does.
    fn submit_open(&mut self, _nonce: &[u8; NONCE_LEN], _aad: &[u8], _sealed: &[u8]) {}

    /// Opens `sealed` into `out`, which has `sealed.len()` bytes without the ICV's.
    ///
    /// # Errors
    /// `AuthError` where the ICV doesn't hold; `out` is all zeros then.
    fn open(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), AuthError>;
}

/// A provider doesn't have a suite, or the key is not of its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderError(pub(crate) String);

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ProviderError {}

/// Maker of the AEADs of SAs: a choice among the libraries, or one that knows of more than these.
pub trait MakeAead {
    /// Makes the AEAD of a suite with this key, for one worker.
    ///
    /// # Errors
    /// `ProviderError` where there is none for the suite or the key is not of its size.
    fn aead(&self, suite: &'static Suite, key: &[u8]) -> Result<Box<dyn Aead>, ProviderError>;
}
