//! How far the replay windows have come: what the ledger writes down.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::engine::Engine;

impl Engine {
    /// The inbound SAs whose windows have advanced since this was last asked, with the highest
    /// numbers that they accepted. A look costs two loads an SA: there may be thousands at rest.
    #[must_use]
    pub fn advanced(&self) -> Vec<(Arc<str>, u64)> {
        let tables = self.shared.tables.load();
        let advanced = tables.inbound.values().filter_map(|entry| {
            let highest = entry.sa.window.highest();
            let before = entry.told_highest.swap(highest, Ordering::Relaxed);
            (highest != before).then(|| (Arc::clone(&entry.sa.spec.name), highest))
        });
        advanced.collect()
    }
}
