//! Linux I/O of the ESP gateway.
//!
//! [`sys`] is the system layer: safe types outside, system calls inside. It is the only place of the
//! project with unsafe code.

#![deny(unsafe_code)]

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
pub mod sys;
mod targets;
mod worker;
