//! The settings of an engine, and the offloads that a person may switch.

use std::time::Duration;

use bitflags::bitflags;
use esp_core::esp::suite::Suite;
use esp_core::provider::Choice;
use esp_linux::tun::TunFeatures;

/// Workers at most; a TUN device has at most 256 queues.
pub const MAX_WORKERS: usize = 64;

bitflags! {
    /// The offloads, each used where it is wanted and the kernel has it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offloads: u8 {
        /// TCP super-packets from the TUN.
        const TSO = 1;
        /// UDP super-packets from the TUN.
        const USO = 1 << 1;
        /// Runs of ESP packets in one send.
        const UDP_GSO = 1 << 2;
        /// Runs of ESP packets in one receive.
        const UDP_GRO = 1 << 3;
        /// Neighbours merged before the TUN write.
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

    /// Finds an offload by its name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(_, known)| *known == name);
        found.map(|(offload, _)| *offload)
    }

    /// The features asked of the TUN: checksums are left to be computed only in super-packets'
    /// company, so that without them what is read is as it would be on a wire.
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
    /// How many workers, at most [`MAX_WORKERS`]; None for the processors that the process may use.
    pub workers: Option<usize>,
    /// True if each worker stays on one processor.
    pub pin_workers: bool,
    /// How long a worker that has carried something goes on looking before it sleeps.
    pub busy_poll: Duration,
    /// The libraries that seal and open.
    pub provider: Choice,
    /// The suites with which the kernel does that before a library, by `AF_ALG`, as long as it can.
    pub af_alg: Vec<&'static Suite>,
    /// The work that may be left to the kernel and the network card.
    pub offloads: Offloads,
}
