//! One worker's outbound SAs, looked up by selectors once a flow.

use std::collections::HashMap;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use esp_core::DropReason;
use esp_core::esp::encap::SaSealer;
use esp_core::esp::sa::Mode;
use esp_core::policy::spd::PolicyAction;
use esp_core::wire::flow::{FlowCache, FlowKey, WORKER_FLOWS};
use esp_core::wire::fragments::{Fragment, Fragments};
use esp_core::wire::{self, Inner};

use super::path_mtu::PathMtu;
use crate::shared::Shared;
use crate::tables::{OutboundEntry, OuterSocket, Tables};

/// Result of a step of one packet; an error drops it.
pub(crate) type PacketResult<T> = std::result::Result<T, DropReason>;

/// An SA that this worker uses.
pub(crate) struct Slot {
    pub(crate) entry: Arc<OutboundEntry>,
    pub(crate) sealer: SaSealer,
    pub(crate) outer: OuterSocket,
    pub(crate) transport: bool,
    pub(crate) path_mtu: PathMtu,
}

/// The SAs that this worker has used since the tables changed, each with an index.
pub(crate) struct Targets {
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    slots: Vec<Slot>,
    by_name: HashMap<Arc<str>, usize>,
    flows: FlowCache<PacketResult<usize>>,
    fragments: Fragments<PacketResult<usize>>,
}

impl Targets {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            tables: shared.tables.load_full(),
            shared,
            slots: Vec::new(),
            by_name: HashMap::new(),
            flows: FlowCache::new(WORKER_FLOWS),
            fragments: Fragments::default(),
        }
    }

    /// Uses new tables; earlier indices become invalid.
    pub(crate) fn replace(&mut self, tables: Arc<Tables>) {
        self.tables = tables;
        self.slots.clear();
        self.by_name.clear();
        self.flows.clear();
        self.fragments.clear();
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
        if let Some(&target) = key.as_ref().and_then(|key| self.flows.get(key)) {
            if target != Err(DropReason::NoPolicy) {
                return target;
            }
            return self.of_answered(packet, &wire::parse(packet)?, key);
        }
        let inner = wire::parse(packet)?;
        // Packets without ports at a fixed place, such as later fragments, spread by their
        // addresses.
        let flow = key.or_else(|| FlowKey::of_addresses(packet));
        let spread = flow.as_ref().map_or(0, FlowKey::spread);
        let target = match Fragment::of(packet, &inner) {
            Some(fragment) => self.of_fragment(fragment, &inner, spread),
            None => self.look_up(&inner, spread),
        };
        if let Some(key) = key {
            // Not known for long: the peer's next packet tells where it is.
            if target != Err(DropReason::NoPeer) {
                self.flows.insert(key, target);
            }
        }
        if target == Err(DropReason::NoPolicy) {
            return self.of_answered(packet, &inner, key);
        }
        target
    }

    /// The SA of a fragment: a later one, without ports, has that of the first.
    fn of_fragment(
        &mut self,
        fragment: Fragment,
        inner: &Inner,
        spread: u64,
    ) -> PacketResult<usize> {
        if fragment.is_first {
            let target = self.look_up(inner, spread);
            self.fragments.remember(fragment, target);
            return target;
        }
        let known = self.fragments.get(&fragment);
        known.unwrap_or_else(|| self.look_up(inner, spread))
    }

    /// The tunnel's SA of the flow that an ICMP error answers (RFC 4301 6.2). Never cached: another
    /// packet between the same addresses quotes something else.
    #[cold]
    fn of_answered(
        &mut self,
        packet: &[u8],
        inner: &Inner,
        key: Option<FlowKey>,
    ) -> PacketResult<usize> {
        let answered = wire::answered(packet, inner).ok_or(DropReason::NoPolicy)?;
        let flow = key.or_else(|| FlowKey::of_addresses(packet));
        let index = self.look_up(&answered, flow.as_ref().map_or(0, FlowKey::spread));
        // Transport mode has no room for the address of a router.
        match index {
            Ok(index) if !self.slots[index].transport => Ok(index),
            _ => Err(DropReason::NoPolicy),
        }
    }

    fn look_up(&mut self, inner: &Inner, spread: u64) -> PacketResult<usize> {
        let tables = Arc::clone(&self.tables);
        let policy = tables.spd.lookup(inner).ok_or(DropReason::NoPolicy)?;
        match policy.action {
            PolicyAction::Discard => return Err(DropReason::PolicyDiscard),
            PolicyAction::Bypass => return Err(DropReason::PolicyBypass),
            PolicyAction::Protect => {}
        }
        let entry = policy
            .sa_of(spread)
            .and_then(|name| tables.outbound.get(name))
            .ok_or(DropReason::NoSa)?;
        // While a reload replaces SAs, an old policy may name a new SA that leads to another peer.
        if !entry.sa.carries(inner) {
            return Err(DropReason::SelectorMismatch);
        }
        if entry.peer.is_nowhere() {
            return Err(DropReason::NoPeer);
        }
        self.slot_of(entry).ok_or(DropReason::NoSa)
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
            let entry = tables.outbound.get(policy.sa_of(spread)?)?;
            let index = self.slot_of(entry)?;
            self.slots[index].transport.then_some(index)
        }))
    }
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
