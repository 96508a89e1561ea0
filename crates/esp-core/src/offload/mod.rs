//! Super-packets: segmentation (GSO) of TUN reads, merging (GRO) for TUN writes.

pub mod coalesce;
mod merge;
pub mod segment;
mod super_packet;
