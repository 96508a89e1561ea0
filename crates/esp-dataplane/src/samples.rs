//! Samples of refused packets and of openings, for the control plane: the addresses and SPIs that a
//! counter doesn't show.
//!
//! Each worker has a drawer, and never waits for the control plane. A packet of a known flow costs
//! nothing. In a flood a packet costs a comparison: the worker remembers the samples it has taken.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use esp_core::DropReason;
use esp_core::sync::lock;
use esp_core::wire::protocol::{ESP, ICMP, ICMPV6, TCP, UDP};
use esp_core::wire::{self, Inner};

/// Most distinct samples of one reason and worker, and most openings, since they were last taken.
pub const MAX_SAMPLES: usize = 8;

/// The reasons with samples: of outer packets, then of inner ones.
const REASONS: [DropReason; 9] = [
    DropReason::UnknownSpi,
    DropReason::WrongEncapsulation,
    DropReason::AuthFailed,
    DropReason::ReplayOld,
    DropReason::ReplayDuplicate,
    DropReason::NoPolicy,
    DropReason::NoSa,
    DropReason::SelectorMismatch,
    DropReason::TooBig,
];
const OUTER_REASONS: usize = 5;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const TCP_FLAGS: usize = 13;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

/// A packet that was dropped. An outer one has its source and SPI, an inner one its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason.
    pub reason: DropReason,
    /// The SA that counts it, if any.
    pub sa: Option<Arc<str>>,
    /// The source; its port is 0 for a packet without ports.
    pub source: SocketAddr,
    /// The destination of an inner packet.
    pub destination: Option<SocketAddr>,
    /// The inner protocol, or UDP or ESP.
    pub protocol: u8,
    /// The SPI of an outer packet.
    pub spi: Option<u32>,
}

/// The first packet of a flow that came through an SA and asks for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The SA.
    pub sa: Arc<str>,
    /// The inner source.
    pub source: IpAddr,
    /// The inner destination; its port is 0 for an echo request.
    pub destination: SocketAddr,
    /// TCP, ICMP or `ICMPv6`.
    pub protocol: u8,
}

/// One worker's samples since they were last taken.
#[derive(Debug, Default)]
pub struct Drawer {
    /// Number of times that the refused packets were taken.
    taken: AtomicU64,
    refused: Mutex<Vec<Refused>>,
    openings: Mutex<Vec<Opening>>,
}

impl Drawer {
    /// Takes the samples of refused packets, at most [`MAX_SAMPLES`] of each reason.
    pub fn take_refused(&self) -> Vec<Refused> {
        let mut held = lock(&self.refused);
        if held.is_empty() {
            return Vec::new();
        }
        let mut found = std::mem::take(&mut *held);
        // Under the lock: whoever adds the next sample has forgotten those that were taken.
        self.taken.fetch_add(1, Ordering::Relaxed);
        drop(held);
        // Each direction of a worker has a bound of its own.
        let mut counts = [0; DropReason::COUNT];
        found.retain(|refused| {
            let count = &mut counts[refused.reason.index()];
            *count += 1;
            *count <= MAX_SAMPLES
        });
        found
    }

    /// Takes the openings.
    pub fn take_openings(&self) -> Vec<Opening> {
        std::mem::take(&mut *lock(&self.openings))
    }
}

/// Identity of a sample among those of its reason: SPI or IP version, and two addresses.
type Key = (u64, u128, u128);

/// The samples of one reason that a direction of a worker has taken.
#[derive(Clone, Copy, Default)]
struct Known {
    keys: [Key; MAX_SAMPLES],
    count: usize,
}

/// Takes the samples of one direction of a worker.
pub(crate) struct Sampler {
    drawer: Arc<Drawer>,
    /// `Drawer::taken` when `known` was last cleared.
    taken: u64,
    known: Box<[Known; REASONS.len()]>,
}

impl Sampler {
    pub(crate) fn new(drawer: &Arc<Drawer>) -> Self {
        Self {
            drawer: Arc::clone(drawer),
            taken: 0,
            known: Box::default(),
        }
    }

    /// Samples an ESP packet that was dropped.
    #[cold]
    pub(crate) fn outer(
        &mut self,
        reason: DropReason,
        sa: Option<&Arc<str>>,
        spi: u32,
        src: SocketAddr,
        in_udp: bool,
    ) {
        let Some(kind) = kind_of(reason).filter(|kind| *kind < OUTER_REASONS) else {
            return;
        };
        let (port, protocol) = if in_udp { (src.port(), UDP) } else { (0, ESP) };
        self.take(kind, (spi.into(), bits(src.ip()), 0), || Refused {
            reason,
            sa: sa.map(Arc::clone),
            source: SocketAddr::new(src.ip(), port),
            destination: None,
            protocol,
            spi: Some(spi),
        });
    }

    /// Samples a packet of the TUN that was dropped.
    #[cold]
    pub(crate) fn packet(&mut self, reason: DropReason, sa: Option<&Arc<str>>, packet: &[u8]) {
        if self.has_room(reason) {
            // After a reassembly `packet` is cut to the length of the last fragment.
            if let Ok(inner) = wire::parse(packet) {
                self.inner(reason, sa, &inner);
            }
        }
    }

    /// Samples an inner packet that was dropped.
    #[cold]
    pub(crate) fn inner(&mut self, reason: DropReason, sa: Option<&Arc<str>>, inner: &Inner) {
        let Some(kind) = kind_of(reason).filter(|kind| *kind >= OUTER_REASONS) else {
            return;
        };
        let key = (inner.version.into(), inner.src, inner.dst);
        self.take(kind, key, || Refused {
            reason,
            sa: sa.map(Arc::clone),
            source: end(inner.version, inner.src, inner.src_port),
            destination: Some(end(inner.version, inner.dst, inner.dst_port)),
            protocol: inner.protocol,
            spi: None,
        });
    }

    /// True if a sample of an inner packet that was dropped for this reason may be taken.
    pub(crate) fn has_room(&mut self, reason: DropReason) -> bool {
        self.follow();
        kind_of(reason)
            .is_some_and(|kind| kind >= OUTER_REASONS && self.known[kind].count < MAX_SAMPLES)
    }

    /// Samples the first packet of a flow, without extension headers, if it asks for an answer.
    pub(crate) fn opening(&self, sa: &Arc<str>, packet: &[u8], inner: &Inner) {
        if !asks(packet, inner) {
            return;
        }
        if let Ok(mut held) = self.drawer.openings.try_lock() {
            if held.len() < MAX_SAMPLES {
                held.push(Opening {
                    sa: Arc::clone(sa),
                    source: end(inner.version, inner.src, None).ip(),
                    destination: end(inner.version, inner.dst, inner.dst_port),
                    protocol: inner.protocol,
                });
            }
        }
    }

    /// Forgets the samples that were taken from the drawer.
    fn follow(&mut self) {
        let taken = self.drawer.taken.load(Ordering::Relaxed);
        if taken != self.taken {
            self.taken = taken;
            *self.known = Default::default();
        }
    }

    fn take(&mut self, kind: usize, key: Key, make: impl FnOnce() -> Refused) {
        self.follow();
        let Known { keys, count } = &self.known[kind];
        if *count == MAX_SAMPLES || keys[..*count].contains(&key) {
            return;
        }
        {
            // The control plane holds the lock for a moment; the next packet is as good a sample.
            let drawer = &self.drawer;
            let Ok(mut held) = drawer.refused.try_lock() else {
                return;
            };
            if drawer.taken.load(Ordering::Relaxed) != self.taken {
                return;
            }
            held.push(make());
        }
        let Known { keys, count } = &mut self.known[kind];
        keys[*count] = key;
        *count += 1;
    }
}

fn kind_of(reason: DropReason) -> Option<usize> {
    REASONS.iter().position(|known| *known == reason)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn end(version: u8, address: u128, port: Option<u16>) -> SocketAddr {
    let address = if version == 4 {
        #[allow(clippy::cast_possible_truncation)] // IPv4 addresses are in the low 32 bits
        IpAddr::V4((address as u32).into())
    } else {
        IpAddr::V6(address.into())
    };
    SocketAddr::new(address, port.unwrap_or(0))
}

/// True for a SYN without ACK and for an echo request.
fn asks(packet: &[u8], inner: &Inner) -> bool {
    let upper = packet.get(inner.upper..).unwrap_or_default();
    match (inner.version, inner.protocol) {
        (_, TCP) => upper
            .get(TCP_FLAGS)
            .is_some_and(|flags| flags & (SYN | ACK) == SYN),
        (4, ICMP) => upper.first() == Some(&ECHO_REQUEST),
        (6, ICMPV6) => upper.first() == Some(&ECHO_REQUEST_V6),
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SRC: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4500);

    fn spis(drawer: &Drawer) -> Vec<u32> {
        let taken = drawer.take_refused();
        taken.iter().filter_map(|refused| refused.spi).collect()
    }

    #[test]
    fn a_worker_takes_the_first_samples_that_differ_until_they_are_taken_from_it() {
        let drawer = Arc::new(Drawer::default());
        let mut sampler = Sampler::new(&drawer);
        let mut refuse = |spi| sampler.outer(DropReason::UnknownSpi, None, spi, SRC, true);
        (0..100).for_each(|n| refuse(n / 2));
        assert_eq!(spis(&drawer), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(spis(&drawer), []);
        refuse(7);
        refuse(7);
        assert_eq!(spis(&drawer), [7]);
    }

    #[test]
    fn a_worker_waits_for_nobody_and_samples_the_next_packet_instead() {
        let drawer = Arc::new(Drawer::default());
        let mut sampler = Sampler::new(&drawer);
        let held = drawer.refused.lock().unwrap();
        sampler.outer(DropReason::AuthFailed, None, 1, SRC, true);
        drop(held);
        sampler.outer(DropReason::AuthFailed, None, 1, SRC, true);
        assert_eq!(spis(&drawer), [1]);
    }

    #[test]
    fn both_directions_together_leave_no_more_than_one() {
        let drawer = Arc::new(Drawer::default());
        let mut inner = wire::parse(&[
            0x45, 0, 0, 20, 0, 0, 0, 0, 64, 47, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ])
        .unwrap();
        for _ in 0..2 {
            let mut sampler = Sampler::new(&drawer);
            for _ in 0..MAX_SAMPLES {
                inner.dst += 1;
                sampler.inner(DropReason::SelectorMismatch, None, &inner);
            }
        }
        assert_eq!(drawer.take_refused().len(), MAX_SAMPLES);
    }

    #[test]
    fn reasons_without_a_sample_leave_none() {
        let drawer = Arc::new(Drawer::default());
        let mut sampler = Sampler::new(&drawer);
        sampler.outer(DropReason::Dummy, None, 1, SRC, true);
        sampler.outer(DropReason::SelectorMismatch, None, 1, SRC, true);
        sampler.packet(DropReason::PolicyDiscard, None, &[0x45; 20]);
        assert!(drawer.take_refused().is_empty());
    }
}
