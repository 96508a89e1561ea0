//! Checked views of IP packets for selectors, transport mode, the TUN and its offloads.
//!
//! Every function takes the packet as a slice and reads nothing beyond it.

mod checksum;
mod fields;
pub mod flow;
pub mod fragments;
mod icmp;
pub mod inner;
mod ip;
pub mod protocol;
mod readdress;
pub mod reassembly;
mod vnet;

pub use checksum::{Sum, pseudo_header, update_checksum};
pub use fields::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};
pub(crate) use fields::{put_u16, u16_at, u32_at};
pub use icmp::{answered, too_big};
pub use ip::{
    Inner, MAX_EXTENSION_HEADERS, has_ports, packet_length, parse, set_ecn, traffic_class, version,
    write_ipv4_header, write_ipv6_header,
};
pub(crate) use ip::{ihl, is_extension};
pub use readdress::AddressChange;
pub use vnet::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHdr, complete_checksum,
};
