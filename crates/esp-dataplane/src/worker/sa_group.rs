//! The inbound SAs that one worker uses, by the kind of their AEAD.

use std::sync::Arc;

use esp_core::esp::decap::Opener;
use esp_core::esp::sa::Mode;
use esp_core::wire::inner::transport_header_len;

use crate::tables::InboundEntry;

/// An SA that this worker uses.
pub(super) struct Slot<A: ?Sized> {
    pub(super) entry: Arc<InboundEntry>,
    pub(super) opener: Opener<A>,
    /// Bytes in front of the text for the IP header of transport mode.
    pub(super) header_len: usize,
    /// Index of the SA in `InboundPath::entries`.
    pub(super) owner: usize,
}

/// The SAs of one kind of AEAD.
pub(super) struct SaGroup<A: ?Sized> {
    pub(super) slots: Vec<Slot<A>>,
    /// The slot of the packet before; packets come in trains.
    pub(super) recent: usize,
}

impl<A: ?Sized> SaGroup<A> {
    pub(super) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            recent: 0,
        }
    }

    /// The slot of the packet before, if this packet has the same SPI.
    #[inline]
    pub(super) fn of_train(&self, spi: u32) -> Option<usize> {
        let slot = self.slots.get(self.recent)?;
        (slot.entry.sa.spec.spi == spi).then_some(self.recent)
    }

    /// Adds an SA; returns its slot.
    pub(super) fn add(
        &mut self,
        entry: &Arc<InboundEntry>,
        opener: Opener<A>,
        owner: usize,
    ) -> usize {
        let spec = &entry.sa.spec;
        self.slots.push(Slot {
            header_len: match spec.mode {
                Mode::Tunnel => 0,
                Mode::Transport => transport_header_len(spec.local),
            },
            opener,
            entry: Arc::clone(entry),
            owner,
        });
        self.slots.len() - 1
    }
}
