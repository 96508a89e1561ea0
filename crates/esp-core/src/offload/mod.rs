//! Super-packets: those of the TUN segmented, and neighbours of one flow merged.

pub mod coalesce;
mod merge;
pub mod segment;
