//! `AF_ALG` before a library: the kernel seals and opens, several packets of a batch at once; what it
//! does not do, or not right, the library does, and from then on the library alone.
//!
//! Nothing is lost or weaker by that. A sealed packet leaves only after `complete_seals`; until then
//! its text is kept, so that the library can seal the same text with the same nonce, which gives the
//! bytes that the kernel would have given: no nonce ever covers two texts on the wire. And an opened
//! packet is accepted on the word of a key whose first answer was the library's too, and one in
//! `CHECKED` since; a packet that the kernel calls forged is shown to the library before that is
//! believed.

mod aead;
mod answers;
mod keys;
mod request;
mod submitted;

pub(crate) use aead::{AfAlgAead, MAX_SIZE};
pub use keys::AfAlgKeys;
pub(crate) use keys::MAX_KEYS;
