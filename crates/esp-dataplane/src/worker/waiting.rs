//! Back-pressure queue of one full outer socket and worker, bounded in bytes and in time.
//!
//! Inner packets wait as they were read, and get their numbers when their turn comes, so that
//! packets of the same SA that other workers send meanwhile can't leave them behind the peer's replay
//! window. Only the batch at which the socket was found full, and the rest of its last super-packet,
//! are sealed already.
//!
//! A queue that is full drops its oldest packet: it is worth least to its receiver, its sender
//! learns of the loss soonest, and what is sent at last is never older than the queue is long.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use esp_core::DropReason;
use esp_core::wire::VnetHdr;

use super::batch::{Batch, Packet};
use crate::tables::OutboundEntry;

/// Bytes of the inner packets that wait for one socket of one worker.
const MAX_BYTES: usize = 512 * 1024;
/// Bytes that a packet costs beyond its own.
const OVERHEAD: usize = 128;
/// Longest wait of a packet.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// Least interval between two tries while the worker has other work. The kernel reports a socket
/// writable only when half of its buffer is free.
const TRY_INTERVAL: Duration = Duration::from_millis(1);
/// Tries in a row at which a socket, reported writable, takes nothing: then its first packet is to
/// blame, not its buffer.
const MAX_REFUSALS: u8 = 2;

/// An inner packet or super-packet as it was read, or a reassembled one.
pub(crate) struct Unsealed {
    pub(crate) vnet: VnetHdr,
    pub(crate) octets: Box<[u8]>,
    /// True if it was reassembled from fragments.
    pub(crate) whole: bool,
    /// Number of its segments.
    pub(crate) packets: usize,
    /// The SA that drops are counted for; another may seal it.
    pub(crate) sa: Arc<str>,
    pub(crate) since: Instant,
}

impl Unsealed {
    fn cost(&self) -> usize {
        self.octets.len() + OVERHEAD
    }
}

/// A batch, or the rest of one, that keeps the numbers it was sealed with.
pub(crate) struct Sealed {
    pub(crate) entry: Arc<OutboundEntry>,
    pub(crate) batch: Batch,
    pub(crate) packets: Vec<Packet>,
    pub(crate) octets: Box<[u8]>,
    pub(crate) since: Instant,
}

impl Sealed {
    /// Packets that were neither sent nor dropped.
    pub(crate) fn left(&self) -> usize {
        self.packets.len() - self.batch.packets_done()
    }

    /// Counts what is left as dropped.
    pub(crate) fn dropped(&self, worker: usize, reason: DropReason) {
        let tally = self.entry.tallies.of(worker);
        tally.dropped(reason, self.left() as u64);
    }

    /// True if the peer's window has passed the batch, of which `ahead` packets wait in the same
    /// queue: other workers have sent for the SA since.
    pub(crate) fn is_passed(&self, ahead: usize) -> bool {
        let next = self.octets.get(self.batch.done + 8..).unwrap_or_default();
        // The IV is the sequence number.
        let Some(iv) = next.first_chunk() else {
            return false;
        };
        let sa = &self.entry.sa;
        let behind = sa.seq.used().saturating_sub(u64::from_be_bytes(*iv));
        behind.saturating_sub((self.left() + ahead) as u64) >= u64::from(sa.spec.replay_window)
    }
}

/// The queue of a full socket, in order: the sealed batches, then the unsealed packets.
pub(crate) struct Waiting {
    pub(crate) sealed: VecDeque<Sealed>,
    unsealed: VecDeque<Unsealed>,
    bytes: usize,
    next_try: Instant,
    refusals: u8,
}

impl Waiting {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            sealed: VecDeque::new(),
            unsealed: VecDeque::new(),
            bytes: 0,
            next_try: now,
            refusals: 0,
        }
    }

    /// Adds a packet at the end; the oldest ones that have no room any more go to `dropped`.
    pub(crate) fn push(&mut self, packet: Unsealed, mut dropped: impl FnMut(&Unsealed)) {
        self.bytes += packet.cost();
        self.unsealed.push_back(packet);
        while self.bytes > MAX_BYTES {
            let Some(oldest) = self.pop() else { break };
            dropped(&oldest);
        }
    }

    /// Takes the oldest unsealed packet.
    pub(crate) fn pop(&mut self) -> Option<Unsealed> {
        let packet = self.unsealed.pop_front()?;
        self.bytes -= packet.cost();
        Some(packet)
    }

    /// Puts the unsealed packets of an earlier queue in front of its own.
    pub(crate) fn follow(&mut self, mut earlier: Self) {
        earlier.unsealed.append(&mut self.unsealed);
        self.unsealed = earlier.unsealed;
        self.bytes += earlier.bytes;
    }

    /// Takes over what has waited for another socket.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.sealed.append(&mut other.sealed);
        self.unsealed.append(&mut other.unsealed);
        self.bytes += other.bytes;
    }

    /// Takes the oldest sealed batch that has waited too long.
    pub(crate) fn pop_late_batch(&mut self, now: Instant) -> Option<Sealed> {
        let oldest = self.sealed.front()?;
        is_late(oldest.since, now).then(|| self.sealed.pop_front())?
    }

    /// Takes the oldest unsealed packet that has waited too long.
    pub(crate) fn pop_late(&mut self, now: Instant) -> Option<Unsealed> {
        let oldest = self.unsealed.front()?;
        is_late(oldest.since, now).then(|| self.pop())?
    }

    /// The moment at which a packet will have waited too long.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let sealed = self.sealed.front().map(|sealed| sealed.since);
        let unsealed = self.unsealed.front().map(|packet| packet.since);
        let oldest = [sealed, unsealed].into_iter().flatten().min()?;
        Some(oldest + MAX_WAIT)
    }

    /// True if the socket is to be tried although it is not reported writable.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.next_try
    }

    /// Notes that the socket is still full; `progress` is true if it took anything.
    pub(crate) fn refused(&mut self, now: Instant, progress: bool) {
        self.next_try = now + TRY_INTERVAL;
        if progress {
            self.refusals = 0;
        }
    }

    /// Takes the first batch of a socket that was reported writable and took nothing, if that has
    /// happened before.
    pub(crate) fn pop_refused(&mut self) -> Option<Sealed> {
        self.refusals += 1;
        if self.refusals < MAX_REFUSALS {
            return None;
        }
        self.refusals = 0;
        self.sealed.pop_front()
    }
}

fn is_late(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= MAX_WAIT
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use esp_core::esp::sa::{Encapsulation, KeyMaterial, Mode, OutboundSa, SaSpec};
    use esp_core::esp::seq::Lease;
    use esp_core::esp::suite::SUITES;

    use super::*;
    use crate::peers::Peer;
    use crate::tallies::Tallies;

    const LARGE: usize = 60_000;
    const WINDOW: u16 = 64;
    const SIZE: usize = 40;

    fn entry() -> Arc<OutboundEntry> {
        let suite = &SUITES[0];
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let spec = SaSpec {
            name: "sa".into(),
            spi: 0x1001,
            suite,
            keymat: KeyMaterial::new(suite, &vec![1; suite.keymat_len()]).unwrap(),
            mode: Mode::Tunnel,
            encapsulation: Encapsulation::Udp,
            local,
            remote: local,
            remote_port: 4500,
            local_original: None,
            remote_original: None,
            selectors: Vec::new(),
            esn: true,
            replay_window: WINDOW,
            pair: None,
            tunnel: None,
            lane: None,
        };
        let lease = Lease {
            first: 1,
            last: 9999,
        };
        Arc::new(OutboundEntry {
            sa: OutboundSa::new(spec, lease).unwrap(),
            peer: Arc::new(Peer::new(SocketAddr::new(local, 4500))),
            gso_refused: Arc::default(),
            tallies: Arc::new(Tallies::new(1)),
        })
    }

    /// A batch of the SA's next numbers, `done` packets of which were sent.
    fn batch(entry: &Arc<OutboundEntry>, count: u32, done: usize) -> Sealed {
        let numbers = entry.sa.seq.reserve(count).unwrap();
        let mut octets = Vec::new();
        for seq in numbers.first..=numbers.last() {
            octets.extend([0; 8]);
            octets.extend(seq.to_be_bytes());
            octets.resize(octets.len() + SIZE - 16, 0);
        }
        let packet = Packet {
            bytes: 20,
            any_link: false,
        };
        Sealed {
            entry: Arc::clone(entry),
            batch: Batch {
                slot: 0,
                dst: entry.peer.address(),
                tos: 0,
                segment: SIZE,
                len: octets.len(),
                max_packets: 128,
                done: done * SIZE,
                closed: true,
                may_fragment: false,
            },
            packets: vec![packet; count as usize],
            octets: octets.into(),
            since: Instant::now(),
        }
    }

    #[test]
    fn a_batch_is_passed_once_others_have_sent_a_whole_window_behind_it() {
        let entry = entry();
        let mut first = batch(&entry, 10, 4);
        let second = batch(&entry, 100, 0);
        assert_eq!((first.left(), second.left()), (6, 100));
        // More than a window, but all of it waits behind the batch.
        assert!(!first.is_passed(second.left()));
        entry.sa.seq.reserve(u32::from(WINDOW) - 1).unwrap();
        assert!(!first.is_passed(second.left()) && !second.is_passed(0));
        entry.sa.seq.reserve(2).unwrap();
        assert!(first.is_passed(second.left()) && second.is_passed(0));
        first.dropped(0, DropReason::QueueTimeout);
        let counted = entry.tallies.sum().dropped(DropReason::QueueTimeout);
        assert_eq!(counted, 6);
        first.batch.done = first.octets.len();
        assert!(!first.is_passed(0), "nothing is left of it");
    }

    #[test]
    fn a_batch_that_a_writable_socket_refuses_twice_is_taken_out() {
        let entry = entry();
        let now = Instant::now();
        let mut waiting = Waiting::new(now);
        waiting.sealed.push_back(batch(&entry, 1, 0));
        assert!(waiting.pop_refused().is_none());
        // Progress in between, and it was the buffer.
        waiting.refused(now, true);
        assert!(waiting.pop_refused().is_none());
        waiting.refused(now, false);
        assert!(waiting.pop_refused().is_some());
        assert!(waiting.sealed.is_empty());
    }

    fn packet(number: u8, since: Instant) -> Unsealed {
        Unsealed {
            vnet: VnetHdr::default(),
            octets: vec![number; LARGE].into(),
            whole: false,
            packets: number.into(),
            sa: Arc::from("sa"),
            since,
        }
    }

    fn numbers(waiting: &mut Waiting) -> Vec<usize> {
        std::iter::from_fn(|| waiting.pop())
            .map(|packet| packet.packets)
            .collect()
    }

    #[test]
    fn a_full_queue_drops_its_oldest_packets_and_is_bounded_in_bytes() {
        let now = Instant::now();
        let mut waiting = Waiting::new(now);
        let mut dropped = Vec::new();
        for number in 1..=12 {
            waiting.push(packet(number, now), |oldest| dropped.push(oldest.packets));
            assert!(waiting.bytes <= MAX_BYTES);
        }
        assert_eq!(dropped, [1, 2, 3, 4]);
        assert_eq!(numbers(&mut waiting), [5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(waiting.bytes, 0);
    }

    #[test]
    fn tiny_packets_are_bounded_in_number() {
        let now = Instant::now();
        let mut waiting = Waiting::new(now);
        let mut dropped = 0;
        for _ in 0..10_000 {
            let tiny = Unsealed {
                octets: Box::from([0; 20]),
                ..packet(1, now)
            };
            waiting.push(tiny, |_| dropped += 1);
        }
        assert_eq!(10_000 - dropped, MAX_BYTES / (20 + OVERHEAD));
    }

    #[test]
    fn what_waits_too_long_is_late_and_the_rest_keeps_its_deadline() {
        let began = Instant::now();
        let mut waiting = Waiting::new(began);
        assert_eq!(waiting.deadline(), None);
        waiting.push(packet(1, began), |_| ());
        waiting.push(packet(2, began + MAX_WAIT / 2), |_| ());
        assert_eq!(waiting.deadline(), Some(began + MAX_WAIT));
        assert!(waiting.pop_late(began + MAX_WAIT / 2).is_none());
        let late = waiting.pop_late(began + MAX_WAIT);
        assert_eq!(late.map(|packet| packet.packets), Some(1));
        assert!(waiting.pop_late(began + MAX_WAIT).is_none());
        assert_eq!(waiting.deadline(), Some(began + MAX_WAIT * 3 / 2));
    }

    #[test]
    fn packets_that_waited_before_come_first() {
        let now = Instant::now();
        let (mut earlier, mut waiting) = (Waiting::new(now), Waiting::new(now));
        for number in 1..=3 {
            earlier.push(packet(number, now), |_| ());
        }
        waiting.push(packet(4, now), |_| ());
        waiting.follow(earlier);
        assert_eq!(waiting.bytes, 4 * (LARGE + OVERHEAD));
        assert_eq!(numbers(&mut waiting), [1, 2, 3, 4]);
    }

    #[test]
    fn what_has_waited_for_another_socket_comes_last_with_its_bytes() {
        let entry = entry();
        let began = Instant::now();
        let (mut waiting, mut other) = (Waiting::new(began), Waiting::new(began));
        waiting.push(packet(1, began + MAX_WAIT), |_| ());
        other.push(packet(2, began), |_| ());
        other.sealed.push_back(batch(&entry, 3, 1));
        waiting.join(other);
        assert_eq!(waiting.sealed.front().map(Sealed::left), Some(2));
        assert_eq!(waiting.bytes, 2 * (LARGE + OVERHEAD));
        assert_eq!(numbers(&mut waiting), [1, 2]);
        assert_eq!(waiting.bytes, 0);
    }

    #[test]
    fn a_socket_is_tried_again_once_an_interval() {
        let now = Instant::now();
        let mut waiting = Waiting::new(now);
        assert!(waiting.is_due(now));
        waiting.refused(now, false);
        assert!(!waiting.is_due(now));
        assert!(waiting.is_due(now + TRY_INTERVAL));
    }
}
