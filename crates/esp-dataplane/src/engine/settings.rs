//! The settings of an engine, and the switches of its offloads.

use std::time::Duration;

use bitflags::bitflags;
use esp_core::esp::suite::Suite;
use esp_core::provider::Choice;
use esp_linux::tun::TunFeatures;

/// Most workers; a TUN device has at most 256 queues.
pub const MAX_WORKERS: usize = 64;

bitflags! {
    /// The offloads, each used if it is wanted and the kernel has it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offloads: u8 {
        /// TCP super-packets from the TUN.
        const TSO = 1;
        /// UDP super-packets from the TUN.
        const USO = 1 << 1;
        /// Batches of ESP packets in one send (UDP GSO).
        const UDP_GSO = 1 << 2;
        /// Batches of ESP packets in one receive (UDP GRO).
        const UDP_GRO = 1 << 3;
        /// Neighbours merged before the TUN write (GRO).
        const MERGE = 1 << 4;
    }
}

impl Offloads {
    /// Each with its name in the configuration.
    pub const NAMES: [(Self, &'static str); 5] = [
        (Self::TSO, "tso"),
        (Self::USO, "uso"),
        (Self::UDP_GSO, "udp_gso"),
        (Self::UDP_GRO, "udp_gro"),
        (Self::MERGE, "merge"),
    ];

    /// The TUN's features. Partial checksums are requested only together with segmentation offload,
    /// so that without it packets are read as they would be on a wire.
    #[must_use]
    pub fn tun_features(self) -> TunFeatures {
        let mut wanted = TunFeatures::empty();
        if self.contains(Self::TSO) {
            wanted |= TunFeatures::CSUM | TunFeatures::TSO;
        }
        if self.contains(Self::USO) {
            wanted |= TunFeatures::CSUM | TunFeatures::USO;
        }
        wanted
    }
}

/// The settings of an engine, fixed when it starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The TUN device's name.
    pub interface: String,
    /// The UDP port of encapsulated ESP.
    pub port: u16,
    /// The mark of outer packets.
    pub fwmark: u32,
    /// Outer packets of at most this many bytes, IP header included, are fragmented rather than
    /// refused where they exceed the path MTU.
    pub min_mtu: usize,
    /// Number of workers, at most [`MAX_WORKERS`]; None for one on each allowed processor.
    pub workers: Option<usize>,
    /// True if each worker stays on one processor.
    pub pin_workers: bool,
    /// Time after its last packet for which a worker still keeps processors out of idle states;
    /// None for never.
    pub low_latency: Option<Duration>,
    /// The libraries that seal and open.
    pub provider: Choice,
    /// The suites that use `AF_ALG` before a library, until it fails.
    pub af_alg: Vec<&'static Suite>,
    /// The wanted offloads.
    pub offloads: Offloads,
}
