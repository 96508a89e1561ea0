//! One worker's outbound SAs, looked up by selectors once a flow, and by its rate in a tunnel with
//! lanes.

use std::collections::HashMap;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use esp_core::DropReason;
use esp_core::esp::encap::SaSealer;
use esp_core::esp::sa::Mode;
use esp_core::policy::lanes::{self, Lanes};
use esp_core::policy::spd::{Policy, PolicyAction};
use esp_core::wire::flow::{FlowCache, FlowKey, WORKER_FLOWS};
use esp_core::wire::fragments::{Fragment, Fragments};
use esp_core::wire::{self, Inner};

use super::path_mtu::PathMtu;
use crate::events::Event;
use crate::lanes::{CarriedFlow, LANE0_WORKER, worker_of};
use crate::shared::Shared;
use crate::tables::{OutboundEntry, OuterSocket, Tables};

/// Milliseconds in which a flow was seen that is counted.
const LATELY: u64 = 10_000;

/// Result of a step of one packet; an error drops it.
pub(crate) type PacketResult<T> = std::result::Result<T, DropReason>;

/// An SA that this worker uses.
pub(crate) struct Slot {
    pub(crate) entry: Arc<OutboundEntry>,
    pub(crate) sealer: SaSealer,
    pub(crate) outer: OuterSocket,
    pub(crate) transport: bool,
    pub(crate) path_mtu: PathMtu,
    /// True if another worker is meant for its flows: this is lane 0's.
    pub(crate) is_strange: bool,
    /// True if flows have other lanes since its last number was used.
    passed_over: bool,
}

/// The SAs of a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The policy has one.
    Only(usize),
    /// By the flow's rate.
    Laned { sparse: usize, bulk: usize },
}

/// The SAs that this worker has used since the tables changed, each with an index.
pub(crate) struct Targets {
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    slots: Vec<Slot>,
    by_name: HashMap<Arc<str>, usize>,
    flows: FlowCache<PacketResult<Way>>,
    fragments: Fragments<PacketResult<Way>>,
    worker: usize,
    pub(crate) lanes: Lanes,
}

impl Targets {
    pub(crate) fn new(worker: usize, shared: Arc<Shared>) -> Self {
        Self {
            tables: shared.tables.load_full(),
            shared,
            slots: Vec::new(),
            by_name: HashMap::new(),
            flows: FlowCache::new(WORKER_FLOWS),
            fragments: Fragments::default(),
            worker,
            lanes: Lanes::default(),
        }
    }

    /// True if a policy has lanes.
    pub(crate) fn has_lanes(&self) -> bool {
        self.tables.spd.has_lanes()
    }

    /// Uses new tables; earlier indices become invalid.
    pub(crate) fn replace(&mut self, tables: Arc<Tables>) {
        self.tables = tables;
        self.slots.clear();
        self.by_name.clear();
        self.flows.clear();
        self.fragments.clear();
        self.lanes.forget_carriers();
    }

    /// The index of an SA of the former tables, or of the one that it has become.
    pub(crate) fn again(&mut self, entry: &OutboundEntry) -> Option<usize> {
        let tables = Arc::clone(&self.tables);
        self.slot_of(tables.successor_of(entry)?)
    }

    /// Counts packets that had an SA of this name; without an SA if it is gone.
    pub(crate) fn dropped(&self, sa: &str, worker: usize, reason: DropReason, packets: usize) {
        let entry = self.tables.outbound.get(sa);
        let tallies = entry.map_or(&self.shared.outbound, |entry| &entry.tallies);
        tallies.of(worker).dropped(reason, packets as u64);
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Slot> {
        self.slots.get_mut(index)
    }

    /// The SA of this name.
    pub(crate) fn named(&mut self, sa: &str) -> Option<usize> {
        let tables = Arc::clone(&self.tables);
        self.slot_of(tables.outbound.get(sa)?)
    }

    /// The SA of a packet whose flow has this key.
    pub(crate) fn of(&mut self, packet: &[u8], key: Option<FlowKey>) -> PacketResult<usize> {
        self.choose(packet, key, packet.len())
    }

    /// The SA that carries a packet, a segment of one that was counted, in place of an SA that has
    /// used its last number.
    ///
    /// # Errors
    /// `SeqExhausted` if flows have other lanes already.
    #[cold]
    pub(crate) fn instead_of(&mut self, index: usize, packet: &[u8]) -> PacketResult<usize> {
        if !self.pass_over(index) {
            return Err(DropReason::SeqExhausted);
        }
        let chosen = self.choose(packet, FlowKey::of(packet), 0);
        // A dummy packet is no inner packet.
        chosen.map_err(|_| DropReason::SeqExhausted)
    }

    fn choose(&mut self, packet: &[u8], key: Option<FlowKey>, bytes: usize) -> PacketResult<usize> {
        match self.way_of(packet, key)? {
            Way::Only(index) => Ok(index),
            Way::Laned { sparse, bulk } => {
                let flow = key.or_else(|| FlowKey::of_addresses(packet));
                let carried = |flow| self.lanes.carrier_of(&flow, bytes, sparse, bulk);
                let index = flow.map_or(sparse, carried);
                if self.pass_over(index) {
                    return self.choose(packet, key, 0);
                }
                Ok(index)
            }
        }
    }

    /// Has flows look for another lane, once an SA has used its last number; true if they have to.
    fn pass_over(&mut self, index: usize) -> bool {
        let slot = &mut self.slots[index];
        if slot.passed_over || !slot.entry.sa.seq.is_exhausted() {
            return false;
        }
        slot.passed_over = true;
        let sa = &slot.entry.sa;
        if sa.seq.expire() {
            let name = Arc::clone(&sa.spec.name);
            self.shared.events.push(Event::HardExpired(name));
        }
        self.flows.clear();
        self.fragments.clear();
        true
    }

    /// The flows that SAs with a lane carried lately.
    pub(crate) fn recent_flows(&self) -> Vec<CarriedFlow> {
        let recent = self.lanes.recent(LATELY);
        let recent = recent.filter_map(|(flow, seen, carrier)| {
            let name = &self.slots.get(carrier)?.entry.sa.spec.name;
            Some((flow, seen, Arc::clone(name)))
        });
        recent.collect()
    }

    fn way_of(&mut self, packet: &[u8], key: Option<FlowKey>) -> PacketResult<Way> {
        if let Some(&way) = key.as_ref().and_then(|key| self.flows.get(key)) {
            if way != Err(DropReason::NoPolicy) {
                return way;
            }
            return self.of_answered(packet, &wire::parse(packet)?, key);
        }
        let inner = wire::parse(packet)?;
        // Packets without ports at a fixed place, such as later fragments, spread by their
        // addresses.
        let flow = key.or_else(|| FlowKey::of_addresses(packet));
        let spread = flow.as_ref().map_or(0, FlowKey::spread);
        let way = match Fragment::of(packet, &inner) {
            Some(fragment) => self.of_fragment(fragment, &inner, spread),
            None => self.look_up(&inner, spread),
        };
        if let Some(key) = key {
            // Not known for long: the peer's next packet tells where it is.
            if way != Err(DropReason::NoPeer) {
                self.flows.insert(key, way);
            }
        }
        if way == Err(DropReason::NoPolicy) {
            return self.of_answered(packet, &inner, key);
        }
        way
    }

    /// The SAs of a fragment: a later one, without ports, has those of the first.
    fn of_fragment(&mut self, fragment: Fragment, inner: &Inner, spread: u64) -> PacketResult<Way> {
        if fragment.is_first {
            let way = self.look_up(inner, spread);
            self.fragments.remember(fragment, way);
            return way;
        }
        let known = self.fragments.get(&fragment);
        known.unwrap_or_else(|| self.look_up(inner, spread))
    }

    /// The tunnel's SAs of the flow that an ICMP error answers (RFC 4301 6.2). Never cached: another
    /// packet between the same addresses quotes something else.
    #[cold]
    fn of_answered(
        &mut self,
        packet: &[u8],
        inner: &Inner,
        key: Option<FlowKey>,
    ) -> PacketResult<Way> {
        let answered = wire::answered(packet, inner).ok_or(DropReason::NoPolicy)?;
        let flow = key.or_else(|| FlowKey::of_addresses(packet));
        let way = self.look_up(&answered, flow.as_ref().map_or(0, FlowKey::spread));
        let Ok(Way::Only(index) | Way::Laned { sparse: index, .. }) = way else {
            return Err(DropReason::NoPolicy);
        };
        // Transport mode has no room for the address of a router.
        if self.slots[index].transport {
            return Err(DropReason::NoPolicy);
        }
        way
    }

    fn look_up(&mut self, inner: &Inner, spread: u64) -> PacketResult<Way> {
        let tables = Arc::clone(&self.tables);
        let policy = tables.spd.lookup(inner).ok_or(DropReason::NoPolicy)?;
        match policy.action {
            PolicyAction::Discard => return Err(DropReason::PolicyDiscard),
            PolicyAction::Bypass => return Err(DropReason::PolicyBypass),
            PolicyAction::Protect => {}
        }
        let mut slot = |is_bulk| {
            let entry = working_sa(&tables, policy, spread, is_bulk).ok_or(DropReason::NoSa)?;
            // While a reload replaces SAs, an old policy may name a new SA that leads to another
            // peer.
            if !entry.sa.carries(inner) {
                return Err(DropReason::SelectorMismatch);
            }
            if entry.peer.is_nowhere() {
                return Err(DropReason::NoPeer);
            }
            self.slot_of(entry).ok_or(DropReason::NoSa)
        };
        let sparse = slot(false)?;
        if policy.sas.len() < 2 {
            return Ok(Way::Only(sparse));
        }
        let bulk = slot(true)?;
        Ok(Way::Laned { sparse, bulk })
    }

    fn slot_of(&mut self, entry: &Arc<OutboundEntry>) -> Option<usize> {
        let spec = &entry.sa.spec;
        if let Some(&index) = self.by_name.get(&spec.name) {
            return Some(index);
        }
        self.slots.push(Slot {
            sealer: entry.sa.sealer(&self.shared.aeads).ok()?,
            outer: OuterSocket::of(spec),
            transport: spec.mode == Mode::Transport,
            path_mtu: PathMtu::default(),
            is_strange: self.worker == LANE0_WORKER
                && spec
                    .lane
                    .is_some_and(|lane| worker_of(lane, self.shared.workers()) != LANE0_WORKER),
            passed_over: false,
            entry: Arc::clone(entry),
        });
        let index = self.slots.len() - 1;
        self.by_name.insert(Arc::clone(&spec.name), index);
        Some(index)
    }

    /// The transport-mode SA that may carry the whole datagram of a fragment, if any.
    pub(crate) fn transport_candidate(&mut self, packet: &[u8]) -> PacketResult<Option<usize>> {
        let inner = wire::parse(packet)?;
        if !inner.fragment {
            return Ok(None);
        }
        let spread = FlowKey::of_addresses(packet).map_or(0, |flow| flow.spread());
        let tables = Arc::clone(&self.tables);
        Ok(tables.spd.candidates(&inner).find_map(|policy| {
            let entry = working_sa(&tables, policy, spread, false)?;
            let index = self.slot_of(entry)?;
            self.slots[index].transport.then_some(index)
        }))
    }
}

/// The SA of a flow in the lane that it tries first, of those that are installed and have numbers.
/// None if no SA of the policy is installed.
fn working_sa<'t>(
    tables: &'t Tables,
    policy: &Policy,
    spread: u64,
    is_bulk: bool,
) -> Option<&'t Arc<OutboundEntry>> {
    let installed = || {
        let lanes = lanes::in_turn(policy, spread, is_bulk);
        lanes.filter_map(|lane| tables.outbound.get(policy.sas.get(lane)?))
    };
    let working = installed().find(|entry| !entry.sa.seq.is_exhausted());
    working.or_else(|| installed().next())
}

impl Index<usize> for Targets {
    type Output = Slot;

    fn index(&self, index: usize) -> &Slot {
        &self.slots[index]
    }
}

impl IndexMut<usize> for Targets {
    fn index_mut(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index]
    }
}
