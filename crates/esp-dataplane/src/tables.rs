//! SAD and SPD: the SAs at work and the policies, published to the workers in one step.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use esp_core::esp::sa::{Encapsulation, InboundSa, OutboundSa, SaSpec};
use esp_core::policy::spd::Spd;

use crate::peers::{Heard, Peer};
use crate::tallies::Tallies;

/// An outbound SA at work: where its packets go, and what it has carried.
#[derive(Debug)]
pub struct OutboundEntry {
    /// The SA.
    pub sa: OutboundSa,
    /// The peer's present address, shared with the tunnel's other SAs.
    pub peer: Arc<Peer>,
    /// With what the kernel has refused a GSO send to the peer: the route decides the network card,
    /// and what the card can't do, the other peers needn't do without.
    pub gso_refused: OnceLock<&'static str>,
    /// The packets that it has carried and dropped.
    pub tallies: Tallies,
}

/// An inbound SA at work.
#[derive(Debug)]
pub struct InboundEntry {
    /// The SA.
    pub sa: InboundSa,
    /// The peer's present address, shared with the tunnel's other SAs.
    pub peer: Arc<Peer>,
    /// True if it was heard there.
    pub heard: Heard,
    /// The replay floor that the control plane was last told; it alone reads and writes this.
    pub reported_floor: AtomicU64,
    /// The packets that it has carried and dropped.
    pub tallies: Tallies,
}

/// One outer socket of the gateway; each worker has a socket of its own for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OuterSocket {
    /// The local address.
    pub address: IpAddr,
    /// In UDP or not.
    pub encapsulation: Encapsulation,
}

/// SAD and SPD as they are from one moment to the next; never changed, only replaced.
#[derive(Debug, Default)]
pub struct Tables {
    /// Grows with each replacement.
    pub generation: u64,
    /// By name.
    pub outbound: HashMap<Arc<str>, Arc<OutboundEntry>>,
    /// By SPI.
    pub inbound: HashMap<u32, Arc<InboundEntry>>,
    /// The policies.
    pub spd: Arc<Spd>,
}

impl Tables {
    /// Every SA with the peer that it shares with the others of its tunnel.
    pub fn peers(&self) -> impl Iterator<Item = (&SaSpec, &Arc<Peer>)> {
        let inbound = self.inbound.values();
        let inbound = inbound.map(|entry| (&entry.sa.spec, &entry.peer));
        let outbound = self.outbound.values();
        inbound.chain(outbound.map(|entry| (&entry.sa.spec, &entry.peer)))
    }
}
