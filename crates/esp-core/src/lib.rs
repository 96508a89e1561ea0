//! ESP (RFC 4303) without input or output: bytes in, bytes and verdicts out.
//!
//! The way out: [`offload::segment`] splits what the TUN gave, [`policy::spd`] finds the SA,
//! [`esp::seq`] spends a sequence number, [`esp::encap`] seals. The way in: [`esp::replay`],
//! [`esp::decap`], [`wire::inner`], the SA's [`policy::selector`], [`offload::coalesce`]. Nothing
//! here panics, allocates or logs because of a packet.
#![forbid(unsafe_code)]

pub mod counters;
mod drop;
pub mod esp;
pub mod offload;
pub mod policy;
#[cfg(not(loom))]
pub mod provider;
pub mod wire;

pub use drop::DropReason;
