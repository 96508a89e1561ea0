//! Lanes and workers.

use std::sync::Arc;

use esp_core::wire::flow::FlowKey;

/// The worker of every tunnel's lane 0; with more than one worker it has no other lane.
pub const LANE0_WORKER: usize = 0;

/// A flow, the time in milliseconds at which it was last seen, and the outbound SA that carried it.
pub type CarriedFlow = (FlowKey, u64, Arc<str>);

/// The worker that receives for a lane.
#[must_use]
pub fn worker_of(lane: u8, workers: usize) -> usize {
    let bulk = usize::from(lane).checked_sub(1);
    match (bulk, workers.checked_sub(1)) {
        (Some(bulk), Some(bulk_workers)) if bulk_workers > 0 => 1 + bulk % bulk_workers,
        _ => LANE0_WORKER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lane_0_has_a_worker_of_its_own_and_the_others_share_the_rest() {
        let of = |workers| -> Vec<usize> { (0..6).map(|lane| worker_of(lane, workers)).collect() };
        assert_eq!(of(1), [0, 0, 0, 0, 0, 0]);
        assert_eq!(of(2), [0, 1, 1, 1, 1, 1]);
        assert_eq!(of(4), [0, 1, 2, 3, 1, 2]);
    }
}
