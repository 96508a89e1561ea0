//! Socket addresses as the kernel's bytes (`struct sockaddr_in`, `struct sockaddr_in6`).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// `sizeof(struct sockaddr_in)`.
const V4_LEN: usize = 16;
/// `sizeof(struct sockaddr_in6)`, the larger.
const V6_LEN: usize = 28;

const AF_INET: [u8; 2] = family(libc::AF_INET);
const AF_INET6: [u8; 2] = family(libc::AF_INET6);

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // sa_family_t has 16 bits
const fn family(family: i32) -> [u8; 2] {
    (family as u16).to_ne_bytes()
}

/// Room for one socket address of either family.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
pub(crate) struct Name([u8; V6_LEN]);

impl Name {
    pub(crate) const LEN: usize = V6_LEN;
    pub(crate) const EMPTY: Self = Self([0; V6_LEN]);

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// Writes an address and returns its length for the kernel.
    pub(crate) fn set(&mut self, address: SocketAddr) -> usize {
        let bytes = &mut self.0;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&AF_INET);
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                bytes[8..V4_LEN].fill(0);
                V4_LEN
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&AF_INET6);
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                V6_LEN
            }
        }
    }

    /// Reads the address that the kernel wrote in `len` bytes; `None` if it is no IP address.
    pub(crate) fn get(&self, len: usize) -> Option<SocketAddr> {
        let bytes = self.0.get(..len)?;
        let (family, rest) = bytes.split_first_chunk::<2>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let port = u16::from_be_bytes(*port);
        if *family == AF_INET {
            let octets = rest.first_chunk::<4>()?;
            return Some(SocketAddrV4::new(Ipv4Addr::from(*octets), port).into());
        }
        if *family != AF_INET6 {
            return None;
        }
        let (flow, rest) = rest.split_first_chunk::<4>()?;
        let (octets, rest) = rest.split_first_chunk::<16>()?;
        let scope = rest.first_chunk::<4>()?;
        let ip = Ipv6Addr::from(*octets);
        let flow = u32::from_be_bytes(*flow);
        Some(SocketAddrV6::new(ip, port, flow, u32::from_ne_bytes(*scope)).into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_back_as_it_was_set() {
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 4500, 0xabcd, 7);
        for address in [
            "192.0.2.1:4500".parse().unwrap(),
            "[2001:db8::9]:500".parse().unwrap(),
            SocketAddr::V6(scoped),
        ] {
            // An earlier address must leave no bytes.
            let mut name = Name([0xff; V6_LEN]);
            let len = name.set(address);
            assert_eq!(name.get(len), Some(address));
        }
    }

    #[test]
    fn a_cut_or_foreign_address_is_none() {
        let mut name = Name::EMPTY;
        let len = name.set("[2001:db8::9]:500".parse().unwrap());
        for cut in 0..len {
            assert_eq!(name.get(cut), None, "cut at {cut}");
        }
        assert_eq!(name.get(Name::LEN + 1), None);
        assert_eq!(Name::EMPTY.get(V4_LEN), None);
    }

    #[test]
    fn the_layouts_are_the_kernels() {
        assert_eq!(V4_LEN, size_of::<libc::sockaddr_in>());
        assert_eq!(V6_LEN, size_of::<libc::sockaddr_in6>());
        assert!(align_of::<Name>() >= align_of::<libc::sockaddr_in6>());
    }
}
