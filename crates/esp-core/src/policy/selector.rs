//! Selectors: which inner packets a policy or an SA is about (RFC 4301 4.4.1.1).

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::wire::Inner;

/// An address prefix; IPv4 addresses are in the low 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    version: u8,
    bits: u8,
    network: u128,
}

impl Prefix {
    /// The network of `bits` leading bits that `address` is in; None for more bits than the address
    /// has.
    #[must_use]
    pub fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let (version, width, value) = match address {
            IpAddr::V4(v4) => (4, 32, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (6, 128, v6.to_bits()),
        };
        (bits <= width).then(|| Self {
            version,
            bits,
            network: value & mask(version, bits),
        })
    }

    /// 4 or 6.
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version
    }

    /// The number of leading bits.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// True if an address of the same version is in the network.
    #[must_use]
    pub const fn contains(&self, address: u128) -> bool {
        address & mask(self.version, self.bits) == self.network
    }

    /// The network of the same length that `address` is in.
    pub(crate) const fn network_of(version: u8, bits: u8, address: u128) -> Self {
        Self {
            version,
            bits,
            network: address & mask(version, bits),
        }
    }
}

const fn mask(version: u8, bits: u8) -> u128 {
    let width: u32 = if version == 4 { 32 } else { 128 };
    let all = u128::MAX >> (128 - width);
    // A shift by the whole width is none that u128 has.
    match all.checked_shr(bits as u32) {
        Some(host) => all ^ host,
        None => all,
    }
}

/// Inner traffic, named from this gateway's side in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// The addresses on this side.
    pub local: Prefix,
    /// The addresses on the peer's side, of the same version.
    pub remote: Prefix,
    /// The upper-layer protocol, None for any.
    pub protocol: Option<u8>,
    /// None for any, ports or none; a range matches only packets that carry ports.
    pub local_port: Option<RangeInclusive<u16>>,
    /// The same for the port on the peer's side.
    pub remote_port: Option<RangeInclusive<u16>>,
}

impl Selector {
    /// True if only packets with certain ports match.
    #[must_use]
    pub const fn names_ports(&self) -> bool {
        self.local_port.is_some() || self.remote_port.is_some()
    }

    /// True if an outbound fragment matches the selector but for the ports, which the whole
    /// packet may have.
    #[must_use]
    pub fn may_match_whole(&self, fragment: &Inner) -> bool {
        self.local.contains(fragment.src)
            && self.remote.contains(fragment.dst)
            && self.matches_but_ports(fragment)
    }

    /// True if an outbound packet matches: its source is local.
    #[must_use]
    pub fn matches_outbound(&self, inner: &Inner) -> bool {
        self.local.contains(inner.src)
            && self.remote.contains(inner.dst)
            && self.matches(inner, inner.src_port, inner.dst_port)
    }

    /// True if an inbound inner packet matches: its destination is local.
    #[must_use]
    pub fn matches_inbound(&self, inner: &Inner) -> bool {
        self.local.contains(inner.dst)
            && self.remote.contains(inner.src)
            && self.matches(inner, inner.dst_port, inner.src_port)
    }

    fn matches(&self, inner: &Inner, local: Option<u16>, remote: Option<u16>) -> bool {
        let within = |range: &Option<RangeInclusive<u16>>, port: Option<u16>| {
            range
                .as_ref()
                .is_none_or(|range| port.is_some_and(|port| range.contains(&port)))
        };
        self.matches_but_ports(inner)
            && within(&self.local_port, local)
            && within(&self.remote_port, remote)
    }

    fn matches_but_ports(&self, inner: &Inner) -> bool {
        self.local.version == inner.version
            && self.remote.version == inner.version
            && self
                .protocol
                .is_none_or(|protocol| protocol == inner.protocol)
    }
}
