//! Flow cache: selectors are looked up once a flow.

use std::hash::{BuildHasher, RandomState};

use crate::wire::{has_ports, is_extension, u32_at, version};

/// Protocol, addresses and ports of a packet, as five words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey([u64; 5]);

impl FlowKey {
    /// Reads the key of a packet that has passed `packet_length`; the slice ends where it ends.
    ///
    /// None for a packet whose ports aren't at a fixed place (options, extension headers,
    /// fragments) or are cut off: it is parsed each time instead.
    #[must_use]
    pub fn of(packet: &[u8]) -> Option<Self> {
        match version(packet) {
            4 => Self::ipv4(packet),
            6 => Self::ipv6(packet),
            _ => None,
        }
    }

    fn ipv4(packet: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = packet.first_chunk()?;
        if header[0] != 0x45 || header[6] & 0x3F != 0 || header[7] != 0 {
            return None;
        }
        let ports = if has_ports(header[9]) {
            u32_at(packet, 20)?
        } else {
            0
        };
        Self::new(packet, header[9], ports)
    }

    fn ipv6(packet: &[u8]) -> Option<Self> {
        let header: &[u8; 40] = packet.first_chunk()?;
        if is_extension(header[6]) {
            return None;
        }
        let ports = if has_ports(header[6]) {
            u32_at(packet, 40)?
        } else {
            0
        };
        Self::new(packet, header[6], ports)
    }

    /// Reads the key of a packet, or the addresses alone where the ports aren't at a fixed place.
    ///
    /// None only for a packet that hasn't passed `packet_length`.
    #[must_use]
    pub fn of_any(packet: &[u8]) -> Option<Self> {
        Self::of(packet).or_else(|| Self::of_addresses(packet))
    }

    /// Reads the addresses alone, which all fragments of a packet have in common.
    ///
    /// None only for a packet that hasn't passed `packet_length`.
    #[must_use]
    pub fn of_addresses(packet: &[u8]) -> Option<Self> {
        Self::new(packet, 0, 0)
    }

    /// True if version and addresses are those of the other.
    #[must_use]
    pub fn has_addresses_of(&self, other: &Self) -> bool {
        self.0[0] >> 40 == other.0[0] >> 40 && self.0[1..] == other.0[1..]
    }

    fn new(packet: &[u8], protocol: u8, ports: u32) -> Option<Self> {
        let version = version(packet);
        let kind = u64::from(version) << 40 | u64::from(protocol) << 32 | u64::from(ports);
        let word = |at: usize| {
            packet
                .get(at..)?
                .first_chunk()
                .map(|w| u64::from_be_bytes(*w))
        };
        Some(Self(if version == 4 {
            let [src, dst] = [u32_at(packet, 12)?, u32_at(packet, 16)?];
            [kind, 0, src.into(), 0, dst.into()]
        } else {
            [kind, word(8)?, word(16)?, word(24)?, word(32)?]
        }))
    }

    /// A hash by which flows are spread over the SAs of a tunnel; the same in every process and in
    /// both engines, and no secret.
    ///
    /// Both directions of a flow have the same hash: the kernel puts outbound packets of a TUN
    /// device into the queue that wrote the flow's other direction, so that one worker seals for an
    /// SA. With two, packets would overtake each other and fall out of the peer's replay window.
    #[must_use]
    pub fn spread(&self) -> u64 {
        self.folded().hash(0x9E37_79B9_7F4A_7C15)
    }

    /// The same key for both directions of a flow.
    #[must_use]
    pub fn folded(&self) -> Self {
        let [kind, src_hi, src_lo, dst_hi, dst_lo] = self.0;
        let src = (src_hi, src_lo, kind >> 16 & 0xFFFF);
        let dst = (dst_hi, dst_lo, kind & 0xFFFF);
        let (low, high) = (src.min(dst), src.max(dst));
        let kind = kind >> 32 << 32 | low.2 << 16 | high.2;
        Self([kind, low.0, low.1, high.0, high.1])
    }

    fn hash(&self, seed: u64) -> u64 {
        self.0
            .iter()
            .fold(seed, |hash, &word| mix(hash ^ word, 0xD6E8_FEB8_6659_FD93))
    }
}

/// Folds the product of two words.
#[allow(clippy::cast_possible_truncation)] // both halves are used
const fn mix(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    (product as u64) ^ ((product >> 64) as u64) ^ a.rotate_left(32)
}

/// Size of a worker's flow cache for one direction.
pub const WORKER_FLOWS: usize = 8192;

const WAYS: usize = 2;

type Place<V> = [Option<(FlowKey, V)>; WAYS];

/// Bounded flow cache: newer flows evict older ones.
///
/// The hash is seeded, so that an outsider can't choose flows that collide.
#[derive(Debug)]
pub struct FlowCache<V> {
    seed: u64,
    mask: usize,
    places: Box<[Place<V>]>,
}

impl<V: Clone> FlowCache<V> {
    /// A cache of about `flows` flows, rounded up to a power of 2.
    #[must_use]
    pub fn new(flows: usize) -> Self {
        let places = flows.div_ceil(WAYS).next_power_of_two();
        Self {
            seed: RandomState::new().hash_one(places),
            mask: places - 1,
            places: std::iter::repeat_with(Default::default)
                .take(places)
                .collect(),
        }
    }

    /// The cached value of a flow.
    #[must_use]
    pub fn get(&self, key: &FlowKey) -> Option<&V> {
        self.places[self.index(key)]
            .iter()
            .flatten()
            .find_map(|(held, value)| (held == key).then_some(value))
    }

    /// Caches a flow; the older of the two in its place is evicted.
    pub fn insert(&mut self, key: FlowKey, value: V) {
        let place = &mut self.places[self.index(&key)];
        if let Some(Some((_, held))) = place
            .iter_mut()
            .find(|held| held.as_ref().is_some_and(|(k, _)| *k == key))
        {
            *held = value;
            return;
        }
        place.rotate_right(1);
        place[0] = Some((key, value));
    }

    /// The value of a flow; a new flow takes the place of the one whose value is older by `age`,
    /// which is less for older ones.
    pub fn get_or_insert(&mut self, key: FlowKey, new: V, age: impl Fn(&V) -> u64) -> &mut V {
        let place = &mut self.places[self.index(&key)];
        let is_held = |held: &Option<(FlowKey, V)>| held.as_ref().is_some_and(|(k, _)| *k == key);
        let way = place.iter().position(is_held).unwrap_or_else(|| {
            let age_of = |way: &usize| place[*way].as_ref().map(|(_, value)| age(value));
            (0..WAYS).min_by_key(age_of).unwrap_or_default()
        });
        if !is_held(&place[way]) {
            place[way] = None;
        }
        &mut place[way].get_or_insert((key, new)).1
    }

    /// Every flow with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &V)> {
        let held = self.places.iter().flatten().flatten();
        held.map(|(key, value)| (key, value))
    }

    /// Every value, to change it.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let held = self.places.iter_mut().flatten().flatten();
        held.map(|(_, value)| value)
    }

    /// Evicts every flow.
    pub fn clear(&mut self) {
        self.places.fill_with(Default::default);
    }

    #[allow(clippy::cast_possible_truncation)] // masked to the number of places
    fn index(&self, key: &FlowKey) -> usize {
        key.hash(self.seed) as usize & self.mask
    }
}
