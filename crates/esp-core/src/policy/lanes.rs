//! Lanes of a tunnel with several SAs: the first SA for sparse flows, the others for bulk.
//!
//! A flow begins on lane 0. It moves to a bulk lane once it has sent much in an interval, or once
//! its peer's packets come by a bulk lane, and back after a time without either. A lane is the SA's
//! position in the tunnel's list, and the bulk lane follows from a symmetric hash, so that both ends
//! choose the same.

use crate::policy::spd::Policy;
use crate::wire::flow::{FlowCache, FlowKey};

/// Flows whose rates a worker keeps.
pub const LANE_FLOWS: usize = 8192;
/// Milliseconds in which a flow's bytes are counted together.
pub const INTERVAL: u64 = 100;
/// Bytes of an interval that make a sparse flow bulk: 2.6 Mbit/s, or half of a super-packet.
pub const BULK: usize = 32 * 1024;
/// Bytes of an interval that keep a bulk flow bulk.
pub const STAY: usize = 8 * 1024;
/// Milliseconds after which a bulk flow that sends less is sparse, and a silent one as new.
pub const QUIET: u64 = 2000;
/// Least milliseconds between two moves of a flow: each may reorder its packets.
pub const HOLD: u64 = 1000;

/// The recent rate of one flow. Times are in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Begin of the interval.
    since: u64,
    /// Bytes of the interval: sent, and heard by a bulk lane.
    bytes: usize,
    /// The last time that it was seen to be bulk.
    busy: u64,
    /// The last move; None before the first one.
    moved: Option<u64>,
    is_bulk: bool,
    /// The last packet in either direction.
    seen: u64,
    /// The carrier of its last outbound packet.
    carrier: Option<usize>,
}

impl Rate {
    const fn new(now: u64) -> Self {
        Self {
            since: now,
            bytes: 0,
            busy: 0,
            moved: None,
            is_bulk: false,
            seen: now,
            carrier: None,
        }
    }

    fn sent(&mut self, bytes: usize, now: u64) {
        self.count(bytes, now);
        let is_busy = self.bytes >= if self.is_bulk { STAY } else { BULK };
        if is_busy {
            self.busy = now;
        }
        let is_quiet = now - self.busy >= QUIET;
        if self.is_bulk && is_quiet || !self.is_bulk && is_busy {
            self.move_over(now);
        }
    }

    /// A little that is heard keeps no flow bulk: two ends would keep each other so for good.
    fn heard(&mut self, bytes: usize, now: u64) {
        self.count(bytes, now);
        if !self.is_bulk || self.bytes >= STAY {
            self.busy = now;
        }
        if !self.is_bulk {
            self.move_over(now);
        }
    }

    fn count(&mut self, bytes: usize, now: u64) {
        self.see(now);
        if now - self.since >= INTERVAL {
            self.since = now;
            self.bytes = 0;
        }
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// A flow that was silent begins anew: none of its packets is on the way.
    const fn see(&mut self, now: u64) {
        if now - self.seen >= QUIET {
            *self = Self {
                carrier: self.carrier,
                ..Self::new(now)
            };
        }
        self.seen = now;
    }

    fn move_over(&mut self, now: u64) {
        if self.moved.is_none_or(|moved| now - moved >= HOLD) {
            self.is_bulk = !self.is_bulk;
            self.moved = Some(now);
        }
    }
}

/// The recent rates of one worker's flows, both directions as one.
///
/// Bounded: of the flows that meet in a place the one that was silent longest is forgotten, and is
/// sparse when it comes back.
#[derive(Debug, Default)]
pub struct Lanes {
    /// None until a tunnel has lanes.
    flows: Option<FlowCache<Rate>>,
    now: u64,
}

impl Lanes {
    /// Sets the time for what follows, in milliseconds; it never goes back.
    pub fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
    }

    /// Counts outbound bytes of a flow, and returns its carrier: one of two numbers of the
    /// caller's.
    pub fn carrier_of(
        &mut self,
        flow: &FlowKey,
        bytes: usize,
        sparse: usize,
        bulk: usize,
    ) -> usize {
        let now = self.now;
        let rate = self.rate(flow);
        rate.sent(bytes, now);
        let carrier = if rate.is_bulk { bulk } else { sparse };
        rate.carrier = Some(carrier);
        carrier
    }

    /// Counts bytes of a flow that came by a bulk lane.
    pub fn heard(&mut self, flow: &FlowKey, bytes: usize) {
        let now = self.now;
        self.rate(flow).heard(bytes, now);
    }

    /// Forgets every flow's carrier.
    pub fn forget_carriers(&mut self) {
        for rate in self.flows.iter_mut().flat_map(FlowCache::values_mut) {
            rate.carrier = None;
        }
    }

    /// The flows that were seen in the last `span` milliseconds and have a carrier: key, time, and
    /// carrier.
    pub fn recent(&self, span: u64) -> impl Iterator<Item = (FlowKey, u64, usize)> {
        let flows = self.flows.iter().flat_map(FlowCache::iter);
        let recent = flows.filter(move |(_, rate)| self.now - rate.seen <= span);
        recent.filter_map(|(flow, rate)| Some((*flow, rate.seen, rate.carrier?)))
    }

    fn rate(&mut self, flow: &FlowKey) -> &mut Rate {
        let new = Rate::new(self.now);
        let flows = &mut self.flows;
        let flows = flows.get_or_insert_with(|| FlowCache::new(LANE_FLOWS));
        flows.get_or_insert(flow.folded(), new, |rate| rate.seen)
    }
}

/// The lane of a bulk flow by its [`FlowKey::spread`], in a tunnel with `count` lanes.
#[must_use]
pub const fn bulk_lane(spread: u64, count: usize) -> usize {
    if count < 2 {
        return 0;
    }
    #[allow(clippy::cast_possible_truncation)] // less than `count`
    let lane = (spread % (count as u64 - 1)) as usize;
    1 + lane
}

/// The lanes of a policy in the order in which a flow tries them: a bulk flow its own, the bulk ones
/// behind it, and those before it; lane 0 is last for it, and first for a sparse one.
pub fn in_turn(policy: &Policy, spread: u64, is_bulk: bool) -> impl Iterator<Item = usize> {
    let count = policy.sas.len();
    let own = bulk_lane(spread, count);
    let bulk = (own..count).chain(1..own);
    let (before, behind) = if is_bulk { (0..0, 0..1) } else { (0..1, 0..0) };
    before
        .chain(bulk)
        .chain(behind)
        .filter(move |&lane| lane < count)
}
