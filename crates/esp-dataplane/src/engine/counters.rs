//! The counters of the SAs, and their replay floors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use esp_core::DropReason;
use esp_core::counters::Counters;
use esp_core::esp::sa::SaSpec;
use esp_linux::{Error, Result};

use super::lifecycle::Engine;
use crate::samples::{MAX_SAMPLES, Opening, Refused};
use crate::tables::{InboundEntry, OutboundEntry};

/// The counters of one SA.
#[derive(Clone, Debug)]
pub struct SaCounters {
    /// Packets, bytes, drops.
    pub counters: Counters,
    /// The next number of an outbound SA, one beyond the last if all are used; the highest accepted
    /// one of an inbound SA.
    pub seq: u128,
    /// The first number behind the lease; 0 for an inbound SA.
    pub lease_end: u128,
    /// The peer's present address.
    pub peer: SocketAddr,
}

impl Engine {
    /// The packets that an outbound SA has sent.
    ///
    /// # Errors
    /// `Argument` if there is no such SA.
    pub fn sent(&self, name: &str) -> Result<u64> {
        let tables = self.shared.tables.load();
        let entry = tables.outbound.get(name);
        let entry = entry.ok_or(Error::Argument("there is no SA of this name"))?;
        Ok(entry.tallies.sum().packets)
    }

    /// The counters of every SA by name, true for outbound ones.
    #[must_use]
    pub fn sas(&self) -> Vec<(Arc<str>, bool, SaCounters)> {
        let tables = self.shared.tables.load();
        let name = |spec: &SaSpec| Arc::clone(&spec.name);
        let outbound = tables.outbound.values();
        let outbound = outbound.map(|entry| (name(&entry.sa.spec), true, outbound_counters(entry)));
        let inbound = tables.inbound.values();
        let inbound = inbound.map(|entry| (name(&entry.sa.spec), false, inbound_counters(entry)));
        outbound.chain(inbound).collect()
    }

    /// The counters of packets without an SA, outbound and inbound; the carried packets are
    /// keepalives.
    #[must_use]
    pub fn rest(&self) -> (Counters, Counters) {
        let mut inbound = self.shared.inbound.sum();
        inbound.drops[DropReason::SocketOverflow.index()] += self.shared.socket_drops.total();
        (self.shared.outbound.sum(), inbound)
    }

    /// Samples of the packets dropped since the last call.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        let drawers = self.shared.drawers.iter();
        drawers.flat_map(|drawer| drawer.take_refused()).collect()
    }

    /// The first inner packets since the last call that ask for an answer.
    #[must_use]
    pub fn openings(&self) -> Vec<Opening> {
        let drawers = self.shared.drawers.iter();
        let found = drawers.flat_map(|drawer| drawer.take_openings());
        found.take(MAX_SAMPLES).collect()
    }

    /// The replay floors that have advanced since the last call, by inbound SA: their highest
    /// accepted numbers. The cost is two loads for an idle SA: there may be thousands.
    #[must_use]
    pub fn advanced_replay_floors(&self) -> Vec<(Arc<str>, u64)> {
        let tables = self.shared.tables.load();
        let advanced = tables.inbound.values().filter_map(|entry| {
            let highest = entry.sa.window.highest();
            let previous = entry.reported_floor.swap(highest, Ordering::Relaxed);
            (highest != previous).then(|| (Arc::clone(&entry.sa.spec.name), highest))
        });
        advanced.collect()
    }
}

pub(super) fn outbound_counters(entry: &OutboundEntry) -> SaCounters {
    SaCounters {
        counters: entry.tallies.sum(),
        seq: u128::from(entry.sa.seq.used()) + 1,
        lease_end: u128::from(entry.sa.seq.limit()) + 1,
        peer: entry.sa.spec.shown(entry.peer.address()),
    }
}

pub(super) fn inbound_counters(entry: &InboundEntry) -> SaCounters {
    SaCounters {
        counters: entry.tallies.sum(),
        seq: entry.sa.window.highest().into(),
        lease_end: 0,
        peer: entry.sa.spec.shown(entry.peer.address()),
    }
}
