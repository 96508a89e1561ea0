//! `AF_ALG` as a batched AEAD with a library behind it: the kernel seals and opens several packets
//! at once. After its first failure or wrong answer the library takes over for good.
//!
//! The fallback loses and weakens nothing. A sealed packet leaves only after `complete_seals`;
//! until then its text is kept, so that the library can seal the same text with the same nonce,
//! which gives the bytes that the kernel would have given: no nonce ever covers two texts on the
//! wire. Of a key, the first packet and one in `CHECKED` after it are computed by the library too
//! and compared. A packet that the kernel calls forged is dropped only if the library agrees.

mod aead;
mod answers;
mod keys;
mod request;
mod submitted;

pub(crate) use aead::{AfAlgAead, MAX_SIZE};
pub use keys::AfAlgKeys;
pub(crate) use keys::MAX_KEYS;
