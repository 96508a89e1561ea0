//! ESP itself (RFC 4303): suites and AEADs, sequence numbers, the anti-replay window, SAs, one
//! packet sealed and one opened.

pub mod aead;
pub mod decap;
pub mod encap;
pub mod replay;
#[cfg(not(loom))]
pub mod sa;
pub mod seq;
pub mod suite;
