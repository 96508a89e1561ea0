//! Checked views of IP packets: what selectors, transport mode, the TUN and its offloads need.
//!
//! Every function takes the packet as a slice and reads nothing beyond it.

mod checksum;
pub mod flow;
pub mod inner;
mod ip;
pub mod reassembly;
mod vnet;

pub use checksum::{Sum, pseudo_header, update_checksum};
pub use ip::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, Inner, MAX_EXTENSION_HEADERS, has_ports, packet_length,
    parse, set_ecn, traffic_class, version, write_ipv4_header, write_ipv6_header,
};
pub(crate) use ip::{ihl, is_extension};
pub use vnet::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHdr, complete_checksum,
};

/// Protocol numbers (IANA).
pub mod protocol {
    /// Hop-by-hop options of IPv6.
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// The routing header of IPv6.
    pub const ROUTING: u8 = 43;
    /// The fragment header of IPv6.
    pub const FRAGMENT: u8 = 44;
    /// ESP.
    pub const ESP: u8 = 50;
    /// Says that nothing follows: a dummy packet of ESP (RFC 4303 2.6).
    pub const NO_NEXT_HEADER: u8 = 59;
    /// Destination options of IPv6.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u16::from_be_bytes(*word))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u32::from_be_bytes(*word))
}

/// Write two bytes; where they don't fit, nothing happens.
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}
