//! The crate's promises, tested through its public interface.
#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::cast_possible_truncation)]

mod build;
mod coalesce;
mod esp;
mod flow;
mod inner;
mod lanes;
mod no_panic;
mod readdress;
mod reassembly;
mod replay;
mod segment;
mod seq;
mod spd;
mod spec;
mod strategy;
mod too_big;
mod vectors;
mod wire;
