//! IKE datagrams that come to the port of ESP in UDP, passed on to the program that has the keys.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use esp_core::DropReason;

/// Bytes of the Non-ESP Marker (RFC 3948 2.2), which is not passed on.
const MARKER_LEN: usize = 4;
/// Bytes in front of a datagram: two addresses and two ports.
const HEADER_LEN: usize = 36;

/// The socket to the program, shared by all workers.
#[derive(Debug, Default)]
pub struct IkeRelay {
    socket: ArcSwapOption<UnixDatagram>,
    passed: AtomicU64,
}

impl IkeRelay {
    /// Passes later datagrams to another socket, or to none.
    pub fn replace(&self, socket: Option<UnixDatagram>) {
        self.socket.store(socket.map(Into::into));
    }

    /// Datagrams that were passed on.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Passes on a datagram with its marker, behind its source and destination: their addresses,
    /// IPv4 mapped into IPv6 (RFC 4291 2.5.5.2), and then their ports.
    ///
    /// # Errors
    /// `IkeDatagram` if there is no program, or it reads too slowly.
    #[cold]
    pub fn pass(
        &self,
        datagram: &[u8],
        source: SocketAddr,
        destination: impl FnOnce() -> esp_linux::Result<SocketAddr>,
    ) -> Result<(), DropReason> {
        let socket = self.socket.load();
        let socket = socket.as_ref().ok_or(DropReason::IkeDatagram)?;
        let destination = destination().map_err(|_| DropReason::IkeDatagram)?;
        let message = datagram.get(MARKER_LEN..).unwrap_or_default();
        let mut relayed = Vec::with_capacity(HEADER_LEN + message.len());
        relayed.extend_from_slice(&mapped(source.ip()).octets());
        relayed.extend_from_slice(&mapped(destination.ip()).octets());
        relayed.extend_from_slice(&source.port().to_be_bytes());
        relayed.extend_from_slice(&destination.port().to_be_bytes());
        relayed.extend_from_slice(message);
        socket.send(&relayed).map_err(|_| DropReason::IkeDatagram)?;
        self.passed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

const fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DATAGRAM: &[u8] = b"\0\0\0\0an IKE message";

    fn relay() -> (IkeRelay, UnixDatagram) {
        let (here, there) = UnixDatagram::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        there.set_nonblocking(true).unwrap();
        let relay = IkeRelay::default();
        relay.replace(Some(here));
        (relay, there)
    }

    fn pass(relay: &IkeRelay) -> Result<(), DropReason> {
        let source = "192.0.2.1:500".parse().unwrap();
        relay.pass(DATAGRAM, source, || {
            Ok("[2001:db8::1]:4500".parse().unwrap())
        })
    }

    #[test]
    fn a_datagram_is_passed_on_behind_its_addresses_and_ports() {
        let (relay, there) = relay();
        pass(&relay).unwrap();
        let mut buffer = [0; 100];
        let len = there.recv(&mut buffer).unwrap();
        let mut expected = vec![0; 10];
        expected.extend_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
        expected.extend_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend_from_slice(&[0x01, 0xf4, 0x11, 0x94]);
        expected.extend_from_slice(b"an IKE message");
        assert_eq!(buffer[..len], expected);
        assert_eq!(relay.passed(), 1);
    }

    #[test]
    fn without_a_reader_a_datagram_is_dropped_with_its_reason() {
        assert_eq!(pass(&IkeRelay::default()), Err(DropReason::IkeDatagram));
        let (slow, _there) = relay();
        let dropped = (0..100_000).find_map(|_| pass(&slow).err());
        assert_eq!(dropped, Some(DropReason::IkeDatagram));
        let (gone, there) = relay();
        drop(there);
        assert_eq!(pass(&gone), Err(DropReason::IkeDatagram));
        gone.replace(None);
        assert_eq!(pass(&gone), Err(DropReason::IkeDatagram));
        assert_eq!(gone.passed(), 0);
    }
}
