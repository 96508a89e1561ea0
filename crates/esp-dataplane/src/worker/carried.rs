//! Selector check of inbound fragments: a later one has no ports, and shares the first one's verdict.

use esp_core::esp::sa::InboundSa;
use esp_core::wire::Inner;
use esp_core::wire::fragments::{Fragment, Fragments};

/// The SAs that were allowed to carry the first fragments of the latest packets; None for refused.
#[derive(Default)]
pub(super) struct CarriedFragments(Fragments<Option<usize>>);

impl CarriedFragments {
    /// True if the SA with the index `owner` may carry a packet, or was allowed its first fragment.
    pub(super) fn carry(
        &mut self,
        sa: &InboundSa,
        owner: usize,
        packet: &[u8],
        inner: &Inner,
    ) -> bool {
        let carries = sa.carries(inner);
        match Fragment::of(packet, inner) {
            Some(first) if first.is_first => {
                self.0.remember(first, carries.then_some(owner));
                carries
            }
            Some(later) => carries || self.0.get(&later) == Some(Some(owner)),
            None => carries,
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
