//! What the workers share: the tables, published in one step, and the events for the control plane.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use esp_core::counters::{Counters, Tally};
use esp_core::esp::sa::{Encapsulation, InboundSa, OutboundSa};
use esp_core::policy::spd::Spd;

use crate::ciphers::Ciphers;
use crate::peers::{Heard, Peer};
use esp_linux::Error;
use esp_linux::poll::Waker;

/// Events that packets cause without end wait to be taken at most; a control plane that sleeps loses
/// later ones, and learns what they told from the next packets.
const MAX_EVENTS: usize = 4096;

/// What the control plane is told; the names are those of the SAs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Half of an outbound SA's lease is used.
    LeaseLow(Arc<str>),
    /// An eighth of an SA's sequence numbers is left.
    SoftExpired(Arc<str>),
    /// An SA has no sequence number left.
    HardExpired(Arc<str>),
    /// The newest authenticated packet of an inbound SA came from here; replies go there now.
    PeerAddressChanged(Arc<str>, SocketAddr),
    /// The kernel knows the path MTU to an address: bytes with the outer IP header.
    PathMtuChanged(IpAddr, u32),
    /// The kernel refuses GSO sends to an address, with this errno: packets go one by one now.
    GsoRefused(IpAddr, &'static str),
    /// `AF_ALG` has failed and is not used any more; every SA goes on in the library.
    AfAlgLost(Error),
    /// A worker can't go on.
    Failed(String),
}

impl Event {
    /// Whether packets cause it again and again; the others come once for each SA, peer or worker.
    const fn may_come_again(&self) -> bool {
        matches!(
            self,
            Self::PeerAddressChanged(..) | Self::PathMtuChanged(..)
        )
    }
}

/// Tallies of one SA or direction: one for each worker, which alone writes it, from its first packet
/// on.
#[derive(Debug)]
pub struct Tallies(Box<[OnceLock<Box<Line>>]>);

/// A tally on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(Tally);

impl Tallies {
    /// Make a tally for each of `workers`.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| OnceLock::new()).collect())
    }

    /// The tally of a worker.
    #[must_use]
    pub fn of(&self, worker: usize) -> &Tally {
        &self.0[worker % self.0.len()].get_or_init(Box::default).0
    }

    /// All of them added up.
    #[must_use]
    pub fn sum(&self) -> Counters {
        let mut sum = Counters::default();
        for line in self.0.iter().filter_map(OnceLock::get) {
            sum += &line.0.snapshot();
        }
        sum
    }
}

/// An outbound SA at work: where its packets go, and what it has carried.
#[derive(Debug)]
pub struct Outbound {
    /// The SA.
    pub sa: OutboundSa,
    /// Where the peer is now.
    pub peer: Arc<Peer>,
    /// With what the kernel has refused a GSO send to the peer: the route decides the network card,
    /// and what the card can't do, the other peers needn't do without.
    pub gso_refused: OnceLock<&'static str>,
    /// What it has carried.
    pub tallies: Tallies,
}

/// An inbound SA at work.
#[derive(Debug)]
pub struct Inbound {
    /// The SA.
    pub sa: InboundSa,
    /// Where the peer is now.
    pub peer: Arc<Peer>,
    /// Whether it was heard there.
    pub heard: Heard,
    /// The highest number that the control plane was told; it alone reads and writes this.
    pub told_highest: AtomicU64,
    /// What it has carried.
    pub tallies: Tallies,
}

/// One outer socket of the gateway; each worker has a socket of its own for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outer {
    /// The local address.
    pub address: IpAddr,
    /// In UDP or not.
    pub encapsulation: Encapsulation,
}

/// SAD and SPD as they are from one moment to the next; never changed, only replaced.
#[derive(Debug, Default)]
pub struct Tables {
    /// Grows with each replacement.
    pub generation: u64,
    /// By name.
    pub outbound: HashMap<Arc<str>, Arc<Outbound>>,
    /// By SPI.
    pub inbound: HashMap<u32, Arc<Inbound>>,
    /// The policies.
    pub spd: Arc<Spd>,
}

/// The events that wait, and what wakes the control plane for them.
#[derive(Debug)]
pub struct Events {
    queue: Mutex<VecDeque<Event>>,
    waker: Waker,
}

impl Events {
    /// Wake with this waker.
    #[must_use]
    pub fn new(waker: Waker) -> Self {
        Self {
            queue: Mutex::default(),
            waker,
        }
    }

    /// Put an event in the queue.
    pub fn push(&self, event: Event) {
        let mut queue = lock(&self.queue);
        if queue.len() < MAX_EVENTS || !event.may_come_again() {
            queue.push_back(event);
        }
        drop(queue);
        // A full eventfd is awake already.
        let _ = self.waker.wake();
    }

    /// Take the events that wait.
    pub fn take(&self) -> Vec<Event> {
        let _ = self.waker.clear();
        lock(&self.queue).drain(..).collect()
    }

    /// What is readable when events wait.
    #[must_use]
    pub const fn waker(&self) -> &Waker {
        &self.waker
    }
}

/// Everything that workers and control plane share.
#[derive(Debug)]
pub struct Shared {
    /// SAD and SPD.
    pub tables: ArcSwap<Tables>,
    /// What the control plane is told.
    pub events: Arc<Events>,
    /// What the SAs' AEADs are made by.
    pub ciphers: Ciphers,
    /// Set when the workers are to end.
    pub stop: AtomicBool,
    /// What belongs to no SA, outbound.
    pub outbound: Tallies,
    /// What belongs to no SA, inbound; its packets are keepalives.
    pub inbound: Tallies,
    /// The mark of outer packets.
    pub fwmark: u32,
}

impl Shared {
    /// Whether the workers are to end.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A lock that a panic elsewhere has not spoiled: what it guards is whole after every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_once_is_not_lost_behind_what_is_told_without_end() {
        let events = Events::new(Waker::new().unwrap());
        let peer = SocketAddr::from(([192, 0, 2, 1], 4500));
        for _ in 0..2 * MAX_EVENTS {
            events.push(Event::PeerAddressChanged("sa".into(), peer));
        }
        events.push(Event::LeaseLow("sa".into()));
        events.push(Event::Failed("why".into()));
        let told = events.take();
        assert_eq!(told.len(), MAX_EVENTS + 2);
        let last = [Event::LeaseLow("sa".into()), Event::Failed("why".into())];
        assert_eq!(told[MAX_EVENTS..], last);
    }
}
