//! State shared by all workers and the engine.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use std::time::Instant;

use arc_swap::ArcSwap;

use crate::aead_factory::AeadFactory;
use crate::events::Events;
use crate::ike_relay::IkeRelay;
use crate::latency::LatencyRequests;
use crate::merge_refusal::MergeRefusal;
use crate::samples::Drawer;
use crate::socket_drops::SocketDrops;
use crate::stages::Stages;
use crate::tables::Tables;
use crate::tallies::Tallies;

/// State shared by workers and control plane.
#[derive(Debug)]
pub struct Shared {
    /// SAD and SPD.
    pub tables: ArcSwap<Tables>,
    /// The events for the control plane.
    pub events: Arc<Events>,
    /// The maker of the SAs' AEADs.
    pub aeads: AeadFactory,
    /// Set when the workers have to stop.
    pub stop: AtomicBool,
    /// The tallies of packets without an SA, outbound.
    pub outbound: Tallies,
    /// The tallies of packets without an SA, inbound; the carried ones are keepalives.
    pub inbound: Tallies,
    /// Datagrams that the kernel dropped at the outer sockets.
    pub socket_drops: SocketDrops,
    /// The samples of each worker.
    pub drawers: Box<[Arc<Drawer>]>,
    /// The kinds of super-packets that the TUN refuses.
    pub merge_refusal: MergeRefusal,
    /// The way of IKE datagrams.
    pub ike: IkeRelay,
    /// The start of the clock by which workers judge the rates of flows.
    pub began: Instant,
    /// Outbound bulk packets that lane 0's worker sealed.
    pub bulk_on_lane0: AtomicU64,
    /// The nice value of lane 0's worker, if it differs from that of the others, and the reason
    /// for a refusal.
    pub priority: Mutex<(Option<i32>, String)>,
    /// The workers' requests for a short wake-up latency.
    pub latency: Arc<LatencyRequests>,
    /// The workers' time by stage.
    pub stages: Arc<Stages>,
    /// The mark of outer packets.
    pub fwmark: u32,
    /// Outer packets of at most this many bytes are fragmented rather than refused.
    pub min_mtu: usize,
}

impl Shared {
    /// The samples of a worker.
    #[must_use]
    pub fn drawer(&self, worker: usize) -> &Arc<Drawer> {
        &self.drawers[worker % self.drawers.len()]
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.drawers.len()
    }

    /// True if the workers have to stop.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
