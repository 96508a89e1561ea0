//! The kinds of super-packets that the TUN refuses.

use std::sync::atomic::{AtomicBool, Ordering};

use esp_core::offload::coalesce::MergeKind;

/// The kinds that the TUN has refused to any worker.
#[derive(Debug, Default)]
pub struct MergeRefusal {
    tcp: AtomicBool,
    udp: AtomicBool,
}

impl MergeRefusal {
    /// Records a refusal; returns true if it is the first of its kind.
    pub fn record(&self, kind: MergeKind) -> bool {
        !self.of(kind).swap(true, Ordering::Relaxed)
    }

    /// True if the kind was refused.
    pub fn has(&self, kind: MergeKind) -> bool {
        self.of(kind).load(Ordering::Relaxed)
    }

    const fn of(&self, kind: MergeKind) -> &AtomicBool {
        match kind {
            MergeKind::Tcp => &self.tcp,
            MergeKind::Udp => &self.udp,
        }
    }
}

/// The name of a kind, for a person.
#[must_use]
pub const fn name_of(kind: MergeKind) -> &'static str {
    match kind {
        MergeKind::Tcp => "TCP",
        MergeKind::Udp => "UDP",
    }
}
