//! ESP (RFC 4303) without I/O: bytes in, bytes and verdicts out.
//!
//! Outbound: [`offload::segment`] splits a super-packet, [`policy::spd`] finds the SA, [`esp::seq`]
//! reserves sequence numbers, [`esp::encap`] seals. Inbound: [`esp::replay`], [`esp::decap`],
//! [`wire::inner`], the SA's [`policy::selector`], [`offload::coalesce`]. Nothing here panics or logs
//! because of a packet, and only fragments make it allocate.
#![forbid(unsafe_code)]

pub mod counters;
mod drop;
pub mod esp;
pub mod offload;
pub mod policy;
#[cfg(not(loom))]
pub mod provider;
pub mod sync;
pub mod wire;

pub use drop::DropReason;
