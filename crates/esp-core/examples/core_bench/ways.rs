//! Both directions of a worker of the native engine, with buffers in place of the TUN and the
//! socket.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use esp_core::esp::decap::{Datagram, Opener, SaOpener, classify, read_trailer};
use esp_core::esp::encap::{SaSealer, Sealer};
use esp_core::esp::sa::{Encapsulation, InboundSa, KeyMaterial, Mode, OutboundSa, SaSpec};
use esp_core::esp::seq::Lease;
use esp_core::esp::suite::{Suite, TRAILER_ROOM};
use esp_core::offload::coalesce::{Coalescer, Merging};
use esp_core::offload::segment::Segmenter;
use esp_core::policy::selector::{Prefix, Selector};
use esp_core::policy::spd::{Policy, PolicyAction, Spd};
use esp_core::provider::{Choice, Provider};
use esp_core::wire::flow::{FlowCache, FlowKey, WORKER_FLOWS};
use esp_core::wire::inner::{tunnel_next_header, tunnel_packet};
use esp_core::wire::{self, VnetHdr, pseudo_header, write_ipv4_header};

use crate::packets::{GSO_SIZE, SEGMENTS, SUPER_LEN, TCP_HEADERS_LEN, super_packet};

/// Packets of one send and of one received buffer.
const BATCH: usize = 64;
const HEAD: usize = 64;
const SPI: u32 = 300;

/// An SA of each direction, as workers share them.
pub struct Shared {
    outbound: Arc<OutboundSa>,
    inbound: Arc<InboundSa>,
    spd: Arc<Spd>,
    /// Sequence numbers of the peer's packets.
    arrived: Arc<AtomicU64>,
}

impl Shared {
    pub fn new(suite: &'static Suite) -> Self {
        let lease = Lease {
            first: 1,
            last: u64::MAX,
        };
        Self {
            outbound: Arc::new(OutboundSa::new(spec(suite, "out"), lease).unwrap()),
            inbound: Arc::new(InboundSa::new(spec(suite, "in"), 0)),
            spd: Arc::new(Spd::new(vec![Policy {
                name: "all".into(),
                action: PolicyAction::Protect,
                selectors: vec![selector()],
                sas: vec!["out".into()],
            }])),
            arrived: Arc::new(AtomicU64::new(1)),
        }
    }
}

fn selector() -> Selector {
    let all = Prefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).unwrap();
    Selector {
        local: all,
        remote: all,
        protocol: None,
        local_port: None,
        remote_port: None,
    }
}

fn spec(suite: &'static Suite, name: &str) -> SaSpec {
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    SaSpec {
        name: name.into(),
        spi: SPI,
        suite,
        keymat: KeyMaterial::new(suite, &vec![7; suite.keymat_len()]).unwrap(),
        mode: Mode::Tunnel,
        encapsulation: Encapsulation::Udp,
        local: address,
        remote: address,
        remote_port: 4500,
        local_original: None,
        remote_original: None,
        selectors: vec![selector()],
        esn: true,
        replay_window: 4096,
        pair: None,
        tunnel: None,
        lane: None,
    }
}

/// One worker's way out or in.
pub enum Way {
    Encap(Box<Outbound>),
    Decap(Box<Inbound>),
}

impl Way {
    pub fn new(test: &str, size: usize, provider: Provider, shared: &Shared) -> Self {
        let outbound = Outbound::new(size, provider, shared);
        if test == "encap" {
            Self::Encap(Box::new(outbound))
        } else {
            Self::Decap(Box::new(Inbound::new(outbound, provider, shared)))
        }
    }

    /// Carries one send or one received buffer; returns the number of ESP packets.
    pub fn batch(&mut self) -> u32 {
        match self {
            Self::Encap(outbound) => outbound.batch(),
            Self::Decap(inbound) => inbound.batch(),
        }
    }
}

pub struct Outbound {
    vnet: VnetHdr,
    head: [u8; HEAD],
    length: usize,
    input: Vec<u8>,
    output: Vec<u8>,
    reads: usize,
    flows: FlowCache<()>,
    spd: Arc<Spd>,
    sa: Arc<OutboundSa>,
    sealer: Sealer,
}

impl Outbound {
    fn new(size: usize, provider: Provider, shared: &Shared) -> Self {
        if size == SUPER_LEN {
            return Self::of_segments(SEGMENTS, provider, shared);
        }
        let packet = (VnetHdr::default(), datagram(size));
        Self::of_packet(packet, BATCH, provider, shared)
    }

    /// One super-packet a batch.
    pub fn of_segments(segments: usize, provider: Provider, shared: &Shared) -> Self {
        Self::of_packet(super_packet(segments), 1, provider, shared)
    }

    /// `reads` times the packet a batch, which has room for a trailer behind it.
    fn of_packet(
        (vnet, input): (VnetHdr, Vec<u8>),
        reads: usize,
        provider: Provider,
        shared: &Shared,
    ) -> Self {
        let sealer = shared.outbound.sealer(&Choice::Only(provider));
        let Ok(SaSealer::Plain(sealer)) = sealer else {
            panic!("{provider:?} has no AEAD for the suite");
        };
        Self {
            vnet,
            head: *input.first_chunk().unwrap(),
            length: input.len() - TRAILER_ROOM,
            input,
            output: vec![0; 2 * (65535 + 512)],
            reads,
            flows: FlowCache::new(WORKER_FLOWS),
            spd: Arc::clone(&shared.spd),
            sealer,
            sa: Arc::clone(&shared.outbound),
        }
    }

    pub fn batch(&mut self) -> u32 {
        let (mut at, mut packets) = (0, 0);
        for _ in 0..self.reads {
            // Stands for a TUN read; only the headers must be restored.
            self.input[..HEAD].copy_from_slice(&self.head);
            packets += self.forward(&mut at);
        }
        black_box(&self.output[..at]);
        packets
    }

    fn forward(&mut self, at: &mut usize) -> u32 {
        let packet = &self.input[..self.length];
        assert_eq!(wire::packet_length(packet), Ok(self.length));
        let key = FlowKey::of(packet).unwrap();
        if self.flows.get(&key).is_none() {
            let inner = wire::parse(packet).unwrap();
            assert!(self.spd.lookup(&inner).is_some() && self.sa.carries(&inner));
            self.flows.insert(key, ());
        }
        let next_header = tunnel_next_header(packet);
        black_box(wire::traffic_class(packet));
        let mut segments = Segmenter::new(&self.vnet, &mut self.input, self.length).unwrap();
        let count = u32::try_from(segments.count()).unwrap();
        let numbers = self.sa.seq.reserve(count).unwrap();
        black_box((self.sa.seq.passed_low(), self.sa.seq.passed_soft()));
        assert_eq!(numbers.count, count);
        let mut seq = numbers.first;
        while let Some(range) = segments.next(&mut self.input) {
            let (start, payload_len) = (range.start, range.len());
            let (buf, out) = (&mut self.input[start..], &mut self.output[*at..]);
            *at += self
                .sealer
                .seal(seq, buf, payload_len, next_header, out)
                .unwrap();
            seq += 1;
        }
        count
    }
}

pub struct Inbound {
    /// ESP packets of one size, as UDP GRO gives them.
    received: Vec<u8>,
    esp_len: usize,
    first_seq: u64,
    flows: FlowCache<usize>,
    sa: Arc<InboundSa>,
    opener: Opener,
    coalescer: Coalescer,
    arrived: Arc<AtomicU64>,
}

impl Inbound {
    fn new(mut outbound: Outbound, provider: Provider, shared: &Shared) -> Self {
        let first_seq = shared.outbound.seq.used() + 1;
        let count = outbound.batch() as usize;
        let esp_len = outbound.sealer.esp_len(if outbound.length == SUPER_LEN {
            TCP_HEADERS_LEN + GSO_SIZE
        } else {
            outbound.length
        });
        outbound.output.truncate(count * esp_len);
        let opener = shared.inbound.opener(&Choice::Only(provider));
        let Ok(SaOpener::Plain(opener)) = opener else {
            panic!("{provider:?} has no AEAD for the suite");
        };
        Self {
            received: outbound.output,
            esp_len,
            first_seq,
            flows: FlowCache::new(WORKER_FLOWS),
            sa: Arc::clone(&shared.inbound),
            opener,
            coalescer: Coalescer::new(Merging {
                vnet_len: VnetHdr::LEN,
                tcp: true,
                udp: true,
                max_segments: 64,
            }),
            arrived: Arc::clone(&shared.arrived),
        }
    }

    fn batch(&mut self) -> u32 {
        let mut packets = 0;
        // The same packets come again and again; the numbers that the window sees go on.
        let count = (self.received.len() / self.esp_len) as u64;
        let first = self.arrived.fetch_add(count, Ordering::Relaxed);
        for (k, esp) in (0..).zip(self.received.chunks_exact(self.esp_len)) {
            let (seq, number) = (self.first_seq + k, first + k);
            let Ok(Datagram::Esp(spi)) = classify(esp, true) else {
                panic!("no ESP packet")
            };
            assert_eq!(spi, self.sa.spec.spi);
            let slot = 0;
            assert!(self.sa.comes_by(Encapsulation::Udp, true));
            let text_len = self.opener.text_len(esp.len()).unwrap();
            // The numbers of a preempted thread may have left the window.
            if self.sa.window.check(number).is_err() {
                continue;
            }
            let text = self.coalescer.place(text_len).unwrap();
            self.opener.open(seq, esp, text).unwrap();
            if black_box(self.sa.window.commit(number)).is_err() {
                self.coalescer.cancel();
                continue;
            }
            let opened = read_trailer(text).unwrap();
            let payload = &mut text[..opened.payload_len];
            let length = tunnel_packet(payload, opened.next_header, 0).unwrap();
            let packet = &payload[..length];
            let key = FlowKey::of(packet).unwrap();
            if self.flows.get(&key) != Some(&slot) {
                assert!(self.sa.carries(&wire::parse(packet).unwrap()));
                self.flows.insert(key, slot);
            }
            self.coalescer.accept(length, slot as u64);
            while let Some(ready) = self.coalescer.due() {
                black_box(ready.frame);
            }
            packets += 1;
        }
        self.coalescer.flush();
        while let Some(ready) = self.coalescer.due() {
            black_box(ready.frame);
        }
        packets
    }
}

/// A UDP datagram of `size` bytes with its IP header, and room for a trailer.
fn datagram(size: usize) -> Vec<u8> {
    let mut packet = vec![7; size + TRAILER_ROOM];
    let length = u16::try_from(size).unwrap();
    write_ipv4_header(&mut packet, 0x0A00_0001, 0x0A00_0002, 17, length, 0);
    packet[20..28].copy_from_slice(&[0, 80, 1, 2, 0, 0, 0, 0]);
    packet[24..26].copy_from_slice(&(length - 20).to_be_bytes());
    let sum = pseudo_header(&packet, 17, u32::from(length) - 20).bytes(&packet[20..size]);
    packet[26..28].copy_from_slice(&sum.checksum().to_be_bytes());
    packet
}
