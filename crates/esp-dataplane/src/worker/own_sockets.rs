//! Send-only sockets of the peers that have met a full outer socket, so that no peer waits for
//! another's packets.
//!
//! Such a socket has the address, port and options of the outer socket. It is the peer's until
//! another peer needs its place, no SA has the peer any more, or the outer socket closes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use esp_linux::Result;
use esp_linux::poll::{Interest, Poller};

use crate::socket::Socket;
use crate::tables::OuterSocket;

/// Most peers of one outer socket that have a socket of their own.
const MAX_OWN: usize = 16;
/// Least interval between a failure to open such a socket and the next try.
const OPEN_INTERVAL: Duration = Duration::from_millis(100);
/// The least poll token of a peer's socket.
const FIRST_TOKEN: u64 = 1 << 63;

/// A socket in its role of sender: the outer socket, or a peer's own one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SendingSocket {
    /// The outer socket.
    pub outer: OuterSocket,
    /// The peer whose socket it is; None for the outer socket itself.
    pub peer: Option<IpAddr>,
}

impl SendingSocket {
    /// The outer socket itself.
    #[must_use]
    pub const fn shared(outer: OuterSocket) -> Self {
        Self { outer, peer: None }
    }
}

/// The peers' sockets of one worker.
#[derive(Debug)]
pub(super) struct OwnSockets {
    /// Each key has a peer.
    open: HashMap<SendingSocket, Own>,
    /// The time of the next try, after a failure.
    next_try: HashMap<OuterSocket, Instant>,
    next_token: u64,
}

#[derive(Debug)]
struct Own {
    socket: Socket,
    token: u64,
    polled: bool,
    /// When it was opened or found full.
    needed: Instant,
}

impl OwnSockets {
    pub(super) fn new() -> Self {
        Self {
            open: HashMap::new(),
            next_try: HashMap::new(),
            next_token: FIRST_TOKEN,
        }
    }

    /// The peer's own socket, if it has one.
    #[inline]
    pub(super) fn of(&self, outer: OuterSocket, peer: IpAddr) -> Option<&Socket> {
        if self.open.is_empty() {
            return None;
        }
        let peer = Some(peer);
        self.get(&SendingSocket { outer, peer })
    }

    pub(super) fn get(&self, own: &SendingSocket) -> Option<&Socket> {
        self.open.get(own).map(|own| &own.socket)
    }

    /// Opens a socket for a peer; None if there is no place or the kernel refuses. `waits` is true
    /// for a socket that packets wait for.
    pub(super) fn open(
        &mut self,
        peer: IpAddr,
        (outer, shared): (OuterSocket, &Socket),
        now: Instant,
        waits: impl Fn(&SendingSocket) -> bool,
    ) -> Option<&Socket> {
        if self.next_try.get(&outer).is_some_and(|&next| now < next) {
            return None;
        }
        let room = self.make_room(outer, waits);
        let Some(socket) = room.then(|| shared.send_only().ok()).flatten() else {
            self.next_try.insert(outer, now + OPEN_INTERVAL);
            return None;
        };
        self.next_try.remove(&outer);
        let own = Own {
            socket,
            token: self.next_token,
            polled: false,
            needed: now,
        };
        self.next_token += 1;
        let peer = Some(peer);
        let own = self
            .open
            .entry(SendingSocket { outer, peer })
            .insert_entry(own);
        Some(&own.into_mut().socket)
    }

    /// Makes room for a socket, if need be by closing the one that was needed longest ago and that
    /// nothing waits for; true if there is room.
    fn make_room(&mut self, outer: OuterSocket, waits: impl Fn(&SendingSocket) -> bool) -> bool {
        let of_outer = || self.open.iter().filter(|(key, _)| key.outer == outer);
        if of_outer().count() < MAX_OWN {
            return true;
        }
        let idle = of_outer().filter(|(key, _)| !waits(key));
        let oldest = idle.min_by_key(|(_, own)| own.needed).map(|(key, _)| *key);
        oldest.is_some_and(|key| self.open.remove(&key).is_some())
    }

    /// Notes that a peer's socket is full.
    pub(super) fn found_full(&mut self, full: &SendingSocket, now: Instant) {
        if let Some(own) = self.open.get_mut(full) {
            own.needed = now;
        }
    }

    /// The socket that has a poll token.
    pub(super) fn by_token(&self, token: u64) -> Option<SendingSocket> {
        let mut found = self.open.iter().filter(|(_, own)| own.token == token);
        found.next().map(|(key, _)| *key)
    }

    /// Polls each socket while packets wait for it, and only then.
    ///
    /// # Errors
    /// The error of the system call.
    pub(super) fn poll(
        &mut self,
        poller: &Poller,
        waits: impl Fn(&SendingSocket) -> bool,
    ) -> Result<()> {
        for (key, own) in &mut self.open {
            match (waits(key), own.polled) {
                // A failure does no harm: an unpolled socket is still tried while packets come.
                (true, false) => {
                    let added = poller.add(&own.socket, own.token, Interest::WRITE);
                    own.polled = added.is_ok();
                }
                (false, true) => {
                    poller.remove(&own.socket)?;
                    own.polled = false;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Closes the sockets of an outer socket.
    pub(super) fn close(&mut self, outer: OuterSocket) {
        self.open.retain(|key, _| key.outer != outer);
        self.next_try.remove(&outer);
    }

    /// Closes the sockets that aren't used any more, and returns which they were.
    pub(super) fn close_unused(
        &mut self,
        is_used: impl Fn(&SendingSocket) -> bool,
    ) -> Vec<SendingSocket> {
        let keys = self.open.keys().copied();
        let unused: Vec<SendingSocket> = keys.filter(|key| !is_used(key)).collect();
        self.open.retain(|key, _| !unused.contains(key));
        unused
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use esp_core::esp::sa::Encapsulation;
    use esp_linux::SocketOptions;
    use esp_linux::poll::Events;
    use esp_linux::udp::{UdpFeatures, UdpSocket};

    use esp_linux::bpf::Steering;

    use super::*;

    const OUTER: OuterSocket = OuterSocket {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        encapsulation: Encapsulation::Udp,
    };
    const SECOND: Duration = Duration::from_secs(1);

    fn shared() -> Socket {
        let options = SocketOptions {
            local: SocketAddr::new(OUTER.address, 0),
            mark: 0,
            buffer: 1 << 16,
        };
        let none = UdpFeatures {
            gso: false,
            gro: false,
        };
        let mut group =
            UdpSocket::bind_group(&options, none, &Steering::by_spi(1).unwrap()).unwrap();
        Socket::Udp(group.remove(0))
    }

    fn peer(number: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
    }

    fn own(number: u8) -> SendingSocket {
        SendingSocket {
            outer: OUTER,
            peer: Some(peer(number)),
        }
    }

    /// The sockets of as many peers as there may be, the first opened first.
    fn full_house(shared: &Socket, now: Instant) -> OwnSockets {
        let mut sockets = OwnSockets::new();
        for number in 0..16 {
            let now = now + SECOND * u32::from(number);
            let opened = sockets.open(peer(number), (OUTER, shared), now, |_| false);
            assert!(opened.is_some());
        }
        sockets
    }

    #[test]
    fn the_socket_that_was_needed_longest_ago_makes_room_and_none_that_is_waited_for() {
        let (shared, began) = (shared(), Instant::now());
        let now = began + 100 * SECOND;
        let mut sockets = full_house(&shared, began);
        sockets.found_full(&own(0), began + 50 * SECOND);
        let waits = |key: &SendingSocket| *key == own(1);
        assert!(
            sockets
                .open(peer(16), (OUTER, &shared), now, waits)
                .is_some()
        );
        assert!(sockets.of(OUTER, peer(2)).is_none());
        let kept = [0, 1, 3, 15, 16];
        assert!(kept.map(|n| sockets.of(OUTER, peer(n)).is_some()) == [true; 5]);
        assert_eq!(sockets.open.len(), MAX_OWN);
    }

    #[test]
    fn where_all_are_waited_for_the_next_try_comes_later() {
        let (shared, began) = (shared(), Instant::now());
        let mut sockets = full_house(&shared, began);
        let mut try_at = |now, all_wait: bool| {
            let opened = sockets.open(peer(99), (OUTER, &shared), now, |_| all_wait);
            opened.is_some()
        };
        assert!(!try_at(began, true));
        assert!(!try_at(began + OPEN_INTERVAL / 2, false));
        assert!(try_at(began + OPEN_INTERVAL, false));
    }

    #[test]
    fn a_socket_is_polled_while_it_is_waited_for_and_found_by_its_token() {
        let (shared, now) = (shared(), Instant::now());
        let mut sockets = full_house(&shared, now);
        let (poller, mut events) = (Poller::new().unwrap(), Events::new(32));
        let mut ready = |sockets: &mut OwnSockets, waiting: &[u8]| {
            let waits = |key: &SendingSocket| waiting.iter().any(|&number| *key == own(number));
            sockets.poll(&poller, waits).unwrap();
            poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
            let tokens = events.iter().map(|event| sockets.by_token(event.token));
            tokens.map(Option::unwrap).collect::<Vec<_>>()
        };
        assert_eq!(ready(&mut sockets, &[]), []);
        assert_eq!(ready(&mut sockets, &[3]), [own(3)]);
        assert_eq!(ready(&mut sockets, &[4]), [own(4)]);
        // Closed while it is polled, and opened again for the same peer.
        assert_eq!(sockets.close_unused(|key| *key != own(4)), [own(4)]);
        let opened = sockets.open(peer(4), (OUTER, &shared), now, |_| false);
        assert!(opened.is_some());
        assert_eq!(ready(&mut sockets, &[4]), [own(4)]);
        sockets.close(OUTER);
        assert!(sockets.open.is_empty() && sockets.of(OUTER, peer(4)).is_none());
        assert_eq!(ready(&mut sockets, &[4]), []);
    }
}
