//! Protocol numbers (IANA).

/// Hop-by-hop options of IPv6.
pub const HOP_BY_HOP: u8 = 0;
/// ICMP.
pub const ICMP: u8 = 1;
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
/// `ICMPv6`.
pub const ICMPV6: u8 = 58;
/// No next header: a dummy packet of ESP (RFC 4303 2.6).
pub const NO_NEXT_HEADER: u8 = 59;
/// Destination options of IPv6.
pub const DESTINATION_OPTIONS: u8 = 60;
/// SCTP.
pub const SCTP: u8 = 132;
/// UDP-Lite.
pub const UDPLITE: u8 = 136;
