//! ESP (RFC 4303) without input or output: bytes in, bytes and verdicts out.
//!
//! The way out: [`segment`] splits what the TUN gave, [`spd`] finds the SA, [`seq`] spends a
//! sequence number, [`encap`] seals. The way in: [`replay`], [`decap`], [`inner`],
//! [`sa`]'s selectors, [`coalesce`]. Nothing here panics, allocates or logs because of a packet.
#![forbid(unsafe_code)]

pub mod aead;
pub mod coalesce;
pub mod counters;
pub mod decap;
pub mod drop;
pub mod encap;
pub mod flow;
pub mod inner;
mod merge;
#[cfg(not(loom))]
pub mod provider;
pub mod reassembly;
pub mod replay;
#[cfg(not(loom))]
pub mod sa;
pub mod segment;
pub mod selector;
pub mod seq;
pub mod spd;
pub mod suite;
mod sync;
pub mod wire;

pub use drop::DropReason;
