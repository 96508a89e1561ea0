//! The two kinds of AEAD: plain ([`Aead`], by a library) and batched ([`BatchAead`], the seam for
//! offload).

use std::fmt;

use super::suite::Suite;

/// Bytes of the nonce: salt, then the explicit IV (RFC 4106 4).
pub const NONCE_LEN: usize = 12;

/// Most datagrams that are announced to a [`BatchAead`] before the first of them is opened.
pub const MAX_ANNOUNCED: usize = 8;

/// The ICV doesn't hold, or the input can't be a sealed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthError;

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the packet is not authentic")
    }
}

impl std::error::Error for AuthError {}

/// The provider could not seal; no byte of `out` may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealError;

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the packet could not be sealed")
    }
}

impl std::error::Error for SealError {}

/// A plain AEAD with its key set, owned by one worker for one SA (RFC 5116).
///
/// Both operations are complete on return. Libraries implement this trait.
pub trait Aead: Send {
    /// Seals `text` into `out`, which has exactly the bytes of `text` and of the ICV.
    ///
    /// # Errors
    /// `SealError` if the provider fails or the sizes don't fit; `out` must not be used.
    fn seal(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError>;

    /// Opens `sealed` into `out`, which has the bytes of `sealed` without the ICV.
    ///
    /// # Errors
    /// `AuthError` if the ICV doesn't hold; `out` is all zeros.
    fn open(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), AuthError>;
}

/// The seam for offload: an AEAD that works on the packets of a batch together, with its key set,
/// owned by one worker for one SA.
///
/// The kernel's `AF_ALG` implements it. To add an accelerator (a crypto engine, a network card, a
/// co-processor): implement this trait; in `AeadFactory` of esp-dataplane return it from `make` as
/// [`SaAead::Batched`], with a library's AEAD behind it, report it in `of`, and let `check` refuse
/// what it can't do; choose it by a setting. A second accelerator also needs its keys in
/// `AeadFactory::new`, which takes those of `AF_ALG`. The workers need no change.
///
/// The caller promises:
/// - A batch of seals is any number of `submit_seal`, then one `complete_seals` with their `out`
///   buffers in the same order. No packet is sent before `complete_seals` has returned without an
///   error.
/// - `text` is overwritten after `submit_seal` returns; an implementation copies what it needs.
/// - `submit_open` is a hint: an announced packet may never be opened, and one that was not
///   announced may be. Packets are opened in the order of their announcement.
/// - Only datagrams that came in one UDP buffer are announced, at most [`MAX_ANNOUNCED`] before the
///   first of them is opened; packets of protocol 50 are opened without an announcement.
/// - A nonce is used for one text only.
/// - An AEAD may be dropped with packets submitted and not completed; they are never sent.
///
/// The implementation promises:
/// - Its bytes are those of the suite's RFC. On a failure it seals the same text with the same
///   nonce by other means (a library), or fails the whole batch; a nonce never covers two texts.
/// - `complete_open` accepts a packet only if its ICV holds for exactly these bytes.
/// - No operation blocks without a bound, and none panics because of a packet.
pub trait BatchAead: Send {
    /// Takes `text` to be sealed. `out`, which has exactly the bytes of `text` and of the ICV, is
    /// written now or by `complete_seals`.
    ///
    /// # Errors
    /// `SealError` if the packet can't be sealed or the sizes don't fit; the packet is no part of
    /// the batch.
    fn submit_seal(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError>;

    /// Completes the batch: `outs` are the buffers of every `submit_seal` that succeeded since the
    /// last call, in their order.
    ///
    /// # Errors
    /// `SealError` if a packet could not be sealed; none of `outs` may be used.
    fn complete_seals(
        &mut self,
        outs: &mut dyn Iterator<Item = &mut [u8]>,
    ) -> Result<(), SealError>;

    /// Announces a sealed packet that is likely to be opened soon.
    fn submit_open(&mut self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8]);

    /// Opens `sealed`, announced or not, into `out`, which has the bytes of `sealed` without the
    /// ICV.
    ///
    /// # Errors
    /// `AuthError` if the ICV doesn't hold; `out` is all zeros.
    fn complete_open(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), AuthError>;
}

/// The AEAD of one SA and worker. The kind is decided here, once; sealers and openers of the two
/// kinds are different types, and the plain ones contain nothing of a batch.
pub enum SaAead {
    /// A library's.
    Plain(Box<dyn Aead>),
    /// An accelerator's.
    Batched(Box<dyn BatchAead>),
}

/// A suite that the provider lacks, or a key of another size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderError(pub(crate) String);

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ProviderError {}

/// Maker of the AEADs of SAs: a choice among the libraries, or a factory that also has
/// accelerators.
pub trait MakeAead {
    /// Makes the AEAD of a suite with this key, for one worker.
    ///
    /// # Errors
    /// `ProviderError` if there is no AEAD for the suite or the key has another size.
    fn make(&self, suite: &'static Suite, key: &[u8]) -> Result<SaAead, ProviderError>;
}
