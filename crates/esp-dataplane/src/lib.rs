//! The data plane of the ESP gateway: worker threads, each with a TUN queue and outer sockets, and
//! the engine that commands them. The system calls are in `esp_linux`.

#![forbid(unsafe_code)]

pub mod aead_factory;
pub mod af_alg;
pub mod engine;
pub mod events;
mod ike_relay;
mod lanes;
pub mod latency;
pub mod measure;
mod merge_refusal;
pub mod peers;
pub mod samples;
mod shared;
mod socket;
mod socket_drops;
pub mod stages;
pub mod tables;
mod tallies;
mod watched;
mod worker;
