//! The data plane of the ESP gateway: worker threads, each with a TUN queue and outer sockets, and
//! the engine that commands them. The system calls are in `esp_linux`.

#![forbid(unsafe_code)]

mod af_alg;
pub mod ciphers;
pub mod engine;
mod floors;
mod inbound;
pub mod measure;
mod outbound;
mod patience;
pub mod peers;
mod run;
pub mod settings;
pub mod shared;
pub mod socket;
mod status;
mod targets;
mod worker;
