//! TUN queues, outer sockets, the kernel's ciphers, readiness, memory, processors and their idle
//! states, as safe types over system calls.
//!
//! Of ESP only [`bpf`] knows anything: it reads the SPI. Nothing allocates after it was made but
//! [`alg`], and no call blocks but [`poll::Poller::wait`] and [`alg::AlgKey::receive`].
//!
//! This is the only crate of the project with unsafe code, and only the modules named below have
//! any.

#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod adopted;
#[allow(unsafe_code)]
mod aio;
#[allow(unsafe_code)]
pub mod alg;
mod batch_socket;
pub mod bpf;
mod cmsg;
pub mod cpu;
mod error;
pub mod latency;
#[allow(unsafe_code)]
pub mod mem;
#[allow(unsafe_code)]
mod message;
pub mod poll;
pub mod priority;
pub mod random;
pub mod raw;
#[allow(unsafe_code)]
mod recv;
#[allow(unsafe_code)]
mod send;
mod sockaddr;
#[allow(unsafe_code)]
mod sockopt;
#[allow(unsafe_code)]
pub mod tun;
#[allow(unsafe_code)]
pub mod tun_device;
mod tun_features;
pub mod udp;

pub use batch_socket::BatchSocket;
pub use error::{Errno, Error, Result};
pub use message::Transmit;
pub use recv::{RecvArena, RecvMeta};
pub use send::{SendArena, SendOutcome};
pub use sockopt::{SocketOptions, received_drops};
