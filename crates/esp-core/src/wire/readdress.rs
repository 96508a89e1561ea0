//! Upper-layer checksums of transport mode through a NAT (RFC 3948 3.1.2), mended in place.
//!
//! They cover the addresses, which the sender had otherwise. A wrong checksum stays wrong. Sources:
//! RFC 1624 3, RFC 9293 3.1, RFC 768, RFC 8200 8.1, RFC 3828 3.1, RFC 4340 9.1, RFC 4443 2.3.

use std::net::IpAddr;

use super::fragments::Fragment;
use super::protocol::{DCCP, ICMPV6, TCP, UDP, UDPLITE};
use super::{Sum, parse, put_u16, u16_at};
use crate::DropReason;

/// The change of source and destination of packets by a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressChange {
    /// The folded sum of ~m and m' of RFC 1624, over all words of both addresses.
    sum: u16,
}

impl AddressChange {
    /// The change from the addresses that the sender had to those that the receiver has; None if
    /// they are the same.
    #[must_use]
    pub fn new(before: [IpAddr; 2], after: [IpAddr; 2]) -> Option<Self> {
        if before == after {
            return None;
        }
        let left = before.into_iter().fold(Sum::new(), |sum, address| {
            let (mut octets, length) = octets(address);
            for octet in &mut octets {
                *octet = !*octet;
            }
            sum.bytes(&octets[..length])
        });
        let both = after.into_iter().fold(left, |sum, address| {
            let (octets, length) = octets(address);
            sum.bytes(&octets[..length])
        });
        Some(Self { sum: both.folded() })
    }

    /// Updates the checksum of a packet behind its IP header, if it covers the addresses. A later
    /// fragment has none.
    ///
    /// # Errors
    /// `MalformedInner` for a broken header.
    pub fn mend(self, packet: &mut [u8]) -> Result<(), DropReason> {
        let inner = parse(packet)?;
        // 0 stands for no checksum where a sum of 0 is sent as 0xFFFF.
        let (offset, zero_is_none) = match inner.protocol {
            TCP => (16, false),
            UDP | UDPLITE => (6, true),
            DCCP => (6, false),
            ICMPV6 if inner.version == 6 => (2, false),
            _ => return Ok(()),
        };
        if inner.fragment && Fragment::of(packet, &inner).is_none_or(|each| !each.is_first) {
            return Ok(());
        }
        let at = inner.upper + offset;
        let Some(checksum) = u16_at(packet, at) else {
            return Ok(());
        };
        if zero_is_none && checksum == 0 {
            return Ok(());
        }
        let mended = Sum::new().word(!checksum).word(self.sum).checksum();
        let mended = if zero_is_none && mended == 0 {
            0xFFFF
        } else {
            mended
        };
        put_u16(packet, at, mended);
        Ok(())
    }
}

fn octets(address: IpAddr) -> ([u8; 16], usize) {
    let mut octets = [0; 16];
    match address {
        IpAddr::V4(address) => {
            octets[..4].copy_from_slice(&address.octets());
            (octets, 4)
        }
        IpAddr::V6(address) => (address.octets(), 16),
    }
}
