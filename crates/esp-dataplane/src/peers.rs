//! Where the peers are. All SAs of a tunnel have one address between them, and so has a pair of SAs
//! without a tunnel: an SA that is quiet would not hear from its own packets that the peer moved.
//!
//! The newest packet of an SA tells where its peer is (RFC 7296 2.23). Sequence numbers say which
//! that is, but only within one SA: after a move the next packet of a quiet SA may be one that was
//! sent before the move and came late, and it must not turn the others back. So an SA moves its
//! tunnel if it was heard where the tunnel is, for then its packet is the newer one; any other has
//! to wait until the tunnel has been there for `SETTLE`, after which nothing on the way is that old.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use esp_core::esp::sa::{Encapsulation, SaSpec};

/// How long after a move only those SAs can move the peer again that were heard where it is.
pub const SETTLE: Duration = Duration::from_secs(5);

/// The present address of a peer, shared by its SAs.
#[derive(Debug)]
pub struct Peer(ArcSwap<Place>);

#[derive(Debug)]
struct Place {
    address: SocketAddr,
    moves: u64,
    moved: Option<Instant>,
}

/// After which of its peer's moves an inbound SA was last heard where the peer is.
#[derive(Debug)]
pub struct Heard(AtomicU64);

impl Default for Heard {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Peer {
    /// A peer that is where it is configured to be.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self(ArcSwap::from_pointee(Place {
            address,
            moves: 0,
            moved: None,
        }))
    }

    /// The present address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.load().address
    }

    /// Tells whether it is where an SA's newest packet came from; nothing more is to be done then.
    #[must_use]
    pub fn is_at(&self, src: SocketAddr, heard: &Heard) -> bool {
        let place = self.0.load();
        let here = place.address == src;
        // Looked at first: a line that all workers read is written once a move.
        if here && heard.0.load(Ordering::Relaxed) != place.moves {
            heard.0.store(place.moves, Ordering::Relaxed);
        }
        here
    }

    /// Goes to where an SA's newest packet came from; whether it may, and did.
    #[must_use]
    pub fn follow(&self, src: SocketAddr, heard: &Heard, now: Instant) -> bool {
        let place = self.0.load();
        let is_newer = heard.0.load(Ordering::Relaxed) == place.moves;
        let is_settled = |moved| now.saturating_duration_since(moved) >= SETTLE;
        if !is_newer && !place.moved.is_none_or(is_settled) {
            return false;
        }
        let moves = place.moves + 1;
        let next = Place {
            address: src,
            moves,
            moved: Some(now),
        };
        // Where another worker was quicker, the next packet tells who was right.
        let before = self.0.compare_and_swap(&place, Arc::new(next));
        if !Arc::ptr_eq(&before, &place) {
            return false;
        }
        heard.0.store(moves, Ordering::Relaxed);
        true
    }
}

/// The bond of the SAs that have one peer, and its configured address.
type Key = (Bond, IpAddr, u16);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Bond {
    Tunnel(Arc<str>),
    /// An SA and the one that names it as its pair.
    Sa(Arc<str>),
}

/// The peers of the SAs that are there, for those that come.
#[derive(Debug, Default)]
pub struct Peers(HashMap<Key, Arc<Peer>>);

impl Peers {
    /// Collects the peers of the SAs that are there.
    #[must_use]
    pub fn of<'a>(sas: impl IntoIterator<Item = (&'a SaSpec, &'a Arc<Peer>)>) -> Self {
        let mut peers = Self::default();
        for (spec, peer) in sas {
            peers.enter(spec, peer);
        }
        peers
    }

    /// The peer of an SA that comes: that of its tunnel or its pair, where there is one.
    pub fn place(&mut self, spec: &SaSpec) -> Arc<Peer> {
        let found = keys(spec).find_map(|key| self.0.get(&key).map(Arc::clone));
        let peer = found
            .unwrap_or_else(|| Arc::new(Peer::new(SocketAddr::new(spec.remote, spec.remote_port))));
        self.enter(spec, &peer);
        peer
    }

    fn enter(&mut self, spec: &SaSpec, peer: &Arc<Peer>) {
        for key in keys(spec) {
            self.0.entry(key).or_insert_with(|| Arc::clone(peer));
        }
    }
}

/// None without UDP: the peer of such an SA doesn't move.
fn keys(spec: &SaSpec) -> impl Iterator<Item = Key> + use<> {
    let (remote, port) = (spec.remote, spec.remote_port);
    let tunnel = spec.tunnel.clone().map(Bond::Tunnel);
    let pair = spec.pair.clone().map(Bond::Sa);
    let bonds = tunnel
        .into_iter()
        .chain(pair)
        .chain([Bond::Sa(spec.name.clone())]);
    let is_udp = spec.encapsulation == Encapsulation::Udp;
    bonds
        .filter(move |_| is_udp)
        .map(move |bond| (bond, remote, port))
}
