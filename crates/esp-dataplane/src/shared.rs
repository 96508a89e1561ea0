//! The state that all workers and the engine share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use crate::aead_factory::Ciphers;
use crate::events::Events;
use crate::tables::Tables;
use crate::tallies::Tallies;

/// Everything that workers and control plane share.
#[derive(Debug)]
pub struct Shared {
    /// SAD and SPD.
    pub tables: ArcSwap<Tables>,
    /// What the control plane is told.
    pub events: Arc<Events>,
    /// What the SAs' AEADs are made by.
    pub ciphers: Ciphers,
    /// Set when the workers are to end.
    pub stop: AtomicBool,
    /// What belongs to no SA, outbound.
    pub outbound: Tallies,
    /// What belongs to no SA, inbound; its packets are keepalives.
    pub inbound: Tallies,
    /// The mark of outer packets.
    pub fwmark: u32,
}

impl Shared {
    /// Whether the workers are to end.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
