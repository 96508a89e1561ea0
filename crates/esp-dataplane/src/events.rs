//! Events for the control plane, and their queue.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use esp_core::sync::lock;
use esp_linux::Error;
use esp_linux::poll::Waker;

/// Queue limit of recurring events. A control plane that doesn't take them loses later ones; the
/// next packets cause them again.
const MAX_EVENTS: usize = 4096;

/// An event for the control plane; the names are those of the SAs.
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
    /// An inbound SA has received this number, above the one that is watched.
    CeilingNear(Arc<str>, u64),
    /// The kernel knows the path MTU to an address: bytes with the outer IP header.
    PathMtuChanged(IpAddr, u32),
    /// The kernel refuses GSO sends to an address, with this errno; packets are sent one by one.
    GsoRefused(IpAddr, &'static str),
    /// The TUN refuses super-packets of a kind, TCP or UDP; such packets are written one by one.
    MergeRefused(&'static str),
    /// `AF_ALG` has failed and is disabled; every SA continues in the library.
    AfAlgLost(Error),
    /// A worker has ended.
    EngineFailed(String),
}

impl Event {
    /// True if packets cause it repeatedly; the others come once for each SA, peer or worker.
    const fn may_come_again(&self) -> bool {
        matches!(
            self,
            Self::PeerAddressChanged(..) | Self::PathMtuChanged(..)
        )
    }
}

/// The queued events, and the waker of the control plane.
#[derive(Debug)]
pub struct Events {
    queue: Mutex<VecDeque<Event>>,
    waker: Waker,
}

impl Events {
    /// Makes an empty queue with this waker.
    #[must_use]
    pub fn new(waker: Waker) -> Self {
        Self {
            queue: Mutex::default(),
            waker,
        }
    }

    /// Puts an event in the queue.
    pub fn push(&self, event: Event) {
        let mut queue = lock(&self.queue);
        if queue.len() < MAX_EVENTS || !event.may_come_again() {
            queue.push_back(event);
        }
        drop(queue);
        // A full eventfd is readable already.
        let _ = self.waker.wake();
    }

    /// Takes the queued events.
    pub fn take(&self) -> Vec<Event> {
        let _ = self.waker.clear();
        lock(&self.queue).drain(..).collect()
    }

    /// The descriptor that is readable while events wait.
    #[must_use]
    pub const fn waker(&self) -> &Waker {
        &self.waker
    }
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
        events.push(Event::EngineFailed("why".into()));
        let told = events.take();
        assert_eq!(told.len(), MAX_EVENTS + 2);
        let last = [
            Event::LeaseLow("sa".into()),
            Event::EngineFailed("why".into()),
        ];
        assert_eq!(told[MAX_EVENTS..], last);
    }
}
