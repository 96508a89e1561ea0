//! Peer addresses. All SAs of a tunnel share one address, and so does a pair of SAs without a
//! tunnel: a quiet SA would not learn of a move from its own packets.
//!
//! The newest packet of an SA gives the peer's address (RFC 7296 2.23). Sequence numbers decide
//! which packet is the newest, but only within one SA: after a move the next packet of a quiet SA
//! may be a late one that was sent before the move, and it must not turn the others back. So an SA
//! may move its tunnel at once if it was heard at the tunnel's present address, for then its packet
//! is the newer one. Any other SA has to wait until the tunnel has been there for `SETTLE`: no
//! packet in flight is that old.
//!
//! A peer that may be anywhere has the unspecified address until one of its packets tells where it is.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use esp_core::esp::sa::SaSpec;

/// Time after a move in which only SAs heard at the present address can move the peer again.
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

/// Number of the peer's move after which an inbound SA was last heard at the peer's address.
#[derive(Debug)]
pub struct Heard(AtomicU64);

impl Default for Heard {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Peer {
    /// A peer at its configured address.
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

    /// True while it is not known where the peer is: nothing can be sent to it.
    #[must_use]
    pub fn is_nowhere(&self) -> bool {
        self.address().ip().is_unspecified()
    }

    /// Takes the peer to be at this address, unless it is known or of the other IP version.
    pub fn place(&self, address: SocketAddr) {
        let place = self.0.load();
        if place.address.ip().is_unspecified() && place.address.is_ipv4() == address.is_ipv4() {
            let next = Place {
                address,
                moves: place.moves,
                moved: None,
            };
            // A packet of the peer itself may have been quicker.
            self.0.compare_and_swap(&place, Arc::new(next));
        }
    }

    /// True if an SA's newest packet came from the present address; records that the SA was heard
    /// there.
    #[must_use]
    pub fn is_at(&self, src: SocketAddr, heard: &Heard) -> bool {
        let place = self.0.load();
        let here = place.address == src;
        // Read first: a cache line that all workers read is written once a move.
        if here && heard.0.load(Ordering::Relaxed) != place.moves {
            heard.0.store(place.moves, Ordering::Relaxed);
        }
        here
    }

    /// Moves to the source of an SA's newest packet; true if that is allowed and was done.
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
        // If another worker was quicker, the next packet settles the address.
        let before = self.0.compare_and_swap(&place, Arc::new(next));
        if !Arc::ptr_eq(&before, &place) {
            return false;
        }
        heard.0.store(moves, Ordering::Relaxed);
        true
    }
}

/// A refusal of GSO on the way to a peer; where the peer is now, another network card may send.
#[derive(Debug, Default)]
pub struct GsoRefusal(ArcSwapOption<(IpAddr, &'static str)>);

impl GsoRefusal {
    /// Errno of the refused GSO send to this address, if there was one since the peer's last move.
    #[must_use]
    pub fn at(&self, peer: IpAddr) -> Option<&'static str> {
        let refused = self.0.load();
        let (address, errno) = refused.as_deref()?;
        (*address == peer).then_some(*errno)
    }

    /// Records a refused send; true if none to this address was known.
    #[must_use]
    pub fn record(&self, peer: IpAddr, errno: &'static str) -> bool {
        let is_new = self.at(peer).is_none();
        if is_new {
            self.0.store(Some(Arc::new((peer, errno))));
        }
        is_new
    }
}

/// Key of the SAs that share one peer, with its configured address.
type Key = (Bond, IpAddr, u16);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Bond {
    Tunnel(Arc<str>),
    /// An SA and the SA that names it as its pair.
    Sa(Arc<str>),
}

/// The peers of the installed SAs, to be shared with new ones.
#[derive(Debug, Default)]
pub struct Peers(HashMap<Key, Arc<Peer>>);

impl Peers {
    /// Collects the peers of the installed SAs.
    #[must_use]
    pub fn of<'a>(sas: impl IntoIterator<Item = (&'a SaSpec, &'a Arc<Peer>)>) -> Self {
        let mut peers = Self::default();
        for (spec, peer) in sas {
            peers.enter(spec, peer);
        }
        peers
    }

    /// The peer of a new SA: its tunnel's or its pair's, if there is one.
    pub fn place(&mut self, spec: &SaSpec) -> Arc<Peer> {
        let found = keys(spec).find_map(|key| self.0.get(&key).map(Arc::clone));
        let peer = found
            .unwrap_or_else(|| Arc::new(Peer::new(SocketAddr::new(spec.remote, spec.remote_port))));
        self.enter(spec, &peer);
        peer
    }

    /// The peer of an SA that replaces `before`, whose peer is `peer`: the same while its
    /// configured end is, unless it comes to a tunnel or pair that has a peer there.
    pub fn moved(&mut self, peer: &Arc<Peer>, before: &SaSpec, spec: &SaSpec) -> Arc<Peer> {
        let end = |spec: &SaSpec| (spec.encapsulation, spec.remote, spec.remote_port);
        if end(before) != end(spec) {
            return self.place(spec);
        }
        let is_bound_anew = (&before.tunnel, &before.pair) != (&spec.tunnel, &spec.pair);
        let found = keys(spec).find_map(|key| self.0.get(&key).filter(|_| is_bound_anew));
        let peer = Arc::clone(found.unwrap_or(peer));
        self.enter(spec, &peer);
        peer
    }

    fn enter(&mut self, spec: &SaSpec, peer: &Arc<Peer>) {
        for key in keys(spec) {
            self.0.entry(key).or_insert_with(|| Arc::clone(peer));
        }
    }
}

/// None for a peer that doesn't move.
fn keys(spec: &SaSpec) -> impl Iterator<Item = Key> + use<> {
    let (remote, port) = (spec.remote, spec.remote_port);
    let tunnel = spec.tunnel.clone().map(Bond::Tunnel);
    let pair = spec.pair.clone().map(Bond::Sa);
    let bonds = tunnel
        .into_iter()
        .chain(pair)
        .chain([Bond::Sa(spec.name.clone())]);
    let follows = spec.follows_peer();
    bonds
        .filter(move |_| follows)
        .map(move |bond| (bond, remote, port))
}
