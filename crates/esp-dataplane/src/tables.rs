//! SAD and SPD, published to the workers in one step.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use esp_core::esp::sa::{Encapsulation, InboundSa, OutboundSa, SaSpec};
use esp_core::policy::spd::Spd;

use crate::peers::{GsoRefusal, Heard, Peer};
use crate::tallies::Tallies;
use crate::watched::Watched;

/// An installed outbound SA with its peer and tallies.
///
/// State that changes while it is installed is shared with the entry of an SA that replaces it, because
/// workers use the former entry until they have the new tables.
#[derive(Debug)]
pub struct OutboundEntry {
    /// The SA.
    pub sa: OutboundSa,
    /// The peer's present address, shared with the tunnel's other SAs.
    pub peer: Arc<Peer>,
    /// A refused GSO send to the peer. Kept for each SA: the route decides the network card, and
    /// other peers may have one that can.
    pub gso_refused: Arc<GsoRefusal>,
    /// The packets that it has carried and dropped.
    pub tallies: Arc<Tallies>,
}

/// An installed inbound SA with its peer and tallies; like [`OutboundEntry`].
#[derive(Debug)]
pub struct InboundEntry {
    /// The SA.
    pub sa: InboundSa,
    /// The peer's present address, shared with the tunnel's other SAs.
    pub peer: Arc<Peer>,
    /// The peer's move after which the SA was last heard at the present address.
    pub heard: Arc<Heard>,
    /// True if the peer's newest packet tells where it is.
    pub follows: bool,
    /// The numbers that the control plane watches.
    pub watched: Arc<Watched>,
    /// The replay floor last reported; only the control plane reads and writes it.
    pub reported_floor: AtomicU64,
    /// The packets that it has carried and dropped.
    pub tallies: Arc<Tallies>,
}

/// One outer socket of the gateway; each worker has a socket of its own for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OuterSocket {
    /// The local address.
    pub address: IpAddr,
    /// Encapsulation of ESP.
    pub encapsulation: Encapsulation,
}

impl OuterSocket {
    /// The outer socket of an SA.
    #[must_use]
    pub const fn of(spec: &SaSpec) -> Self {
        Self {
            address: spec.local,
            encapsulation: spec.encapsulation,
        }
    }
}

/// SAD and SPD of one generation; never changed, only replaced.
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
    /// The SA that an outbound SA of former tables has become, if sockets of the same kind reach
    /// its peer.
    #[must_use]
    pub fn successor_of(&self, former: &OutboundEntry) -> Option<&Arc<OutboundEntry>> {
        let is_successor = |entry: &&Arc<OutboundEntry>| entry.sa.seq.continues(&former.sa.seq);
        let of_its_name = self.outbound.get(&former.sa.spec.name);
        let found = of_its_name.filter(is_successor);
        let found = found.or_else(|| self.outbound.values().find(is_successor))?;
        let kind = |spec: &SaSpec| (spec.encapsulation, spec.local.is_ipv4());
        (kind(&found.sa.spec) == kind(&former.sa.spec)).then_some(found)
    }

    /// Every SA with the peer that its tunnel shares.
    pub fn peers(&self) -> impl Iterator<Item = (&SaSpec, &Arc<Peer>)> {
        let inbound = self.inbound.values();
        let inbound = inbound.map(|entry| (&entry.sa.spec, &entry.peer));
        let outbound = self.outbound.values();
        inbound.chain(outbound.map(|entry| (&entry.sa.spec, &entry.peer)))
    }
}
