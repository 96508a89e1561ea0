//! Nanoseconds of the core alone: AEADs, one packet, a super-packet. `cargo bench -p esp-core`.
#![allow(missing_docs, clippy::unwrap_used)]

mod packets;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use esp_core::esp::aead::Aead;
use esp_core::esp::decap::Opener;
use esp_core::esp::encap::Sealer;
use esp_core::esp::replay::ReplayWindow;
use esp_core::esp::seq::{Lease, SeqCounter};
use esp_core::esp::suite::{Suite, TRAILER_ROOM};
use esp_core::offload::coalesce::{Coalescer, Merging};
use esp_core::offload::segment::Segmenter;
use esp_core::provider::Provider;
use esp_core::wire::VnetHdr;

use crate::packets::{SEGMENTS, SUPER_LEN, super_packet};

const SIZES: [usize; 3] = [64, 576, 1400];
const SUITES: [&str; 4] = [
    "aes256gcm16",
    "aes128gcm16",
    "chacha20poly1305",
    "aes256gmac",
];

fn main() {
    divan::main();
}

fn cases() -> Vec<(Provider, &'static str, usize)> {
    let mut cases = Vec::new();
    for name in SUITES {
        for &provider in Provider::ALL {
            if aead(provider, name).is_some() {
                cases.extend(SIZES.map(|size| (provider, name, size)));
            }
        }
    }
    cases
}

struct Case(Provider, &'static str, usize);

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.1, self.0.name(), self.2)
    }
}

fn all() -> impl Iterator<Item = Case> {
    cases()
        .into_iter()
        .map(|(provider, name, size)| Case(provider, name, size))
}

fn suite(name: &str) -> &'static Suite {
    Suite::by_name(name).unwrap()
}

fn aead(provider: Provider, name: &str) -> Option<Box<dyn Aead>> {
    let suite = suite(name);
    provider.aead(suite, &vec![7; suite.key_len]).ok()
}

fn sealer(provider: Provider, name: &str) -> Sealer {
    Sealer::new(
        aead(provider, name).unwrap(),
        suite(name),
        300,
        [1; 4],
        true,
    )
}

fn opener(provider: Provider, name: &str) -> Opener {
    Opener::new(aead(provider, name).unwrap(), suite(name), [1; 4], true)
}

fn every_number() -> SeqCounter {
    let lease = Lease {
        first: 1,
        last: u64::MAX,
    };
    SeqCounter::new(u64::MAX, lease).unwrap()
}

#[divan::bench(args = all())]
fn encap(bencher: Bencher, case: &Case) {
    let Case(provider, name, size) = *case;
    let mut sealer = sealer(provider, name);
    let seqs = every_number();
    let mut buf = vec![7; size + TRAILER_ROOM];
    let mut out = vec![0; sealer.esp_len(size)];
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        let seq = seqs.reserve(1).unwrap().first;
        sealer
            .seal(seq, black_box(&mut buf), size, 4, &mut out)
            .unwrap()
    });
}

#[divan::bench(args = all())]
fn decap(bencher: Bencher, case: &Case) {
    let Case(provider, name, size) = *case;
    let mut sealer = sealer(provider, name);
    let mut opener = opener(provider, name);
    let mut buf = vec![7; size + TRAILER_ROOM];
    let mut esp = vec![0; sealer.esp_len(size)];
    sealer.seal(9, &mut buf, size, 4, &mut esp).unwrap();
    let (window, noted) = (ReplayWindow::new(1024, 0), ReplayWindow::new(1024, 0));
    let mut text = vec![0; opener.text_len(esp.len()).unwrap()];
    let mut next = 10;
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        let seq = opener.check(&window, black_box(&esp)).unwrap();
        opener.open(seq, &esp, &mut text).unwrap();
        // The packet is always the same; the window gets another number.
        next += 1;
        black_box(noted.commit(next)).unwrap();
        esp_core::esp::decap::read_trailer(&text)
            .unwrap()
            .payload_len
    });
}

/// Splits and seals into `out`; returns the length of each ESP packet.
fn split_and_seal(
    vnet: &VnetHdr,
    buf: &mut [u8],
    sealer: &mut Sealer,
    first_seq: u64,
    out: &mut [u8],
) -> usize {
    let mut segmenter = Segmenter::new(vnet, buf, SUPER_LEN).unwrap();
    let (mut seq, mut at) = (first_seq, 0);
    while let Some(range) = segmenter.next(buf) {
        let length = range.len();
        at += sealer
            .seal(seq, &mut buf[range.start..], length, 4, &mut out[at..])
            .unwrap();
        seq += 1;
    }
    at / segmenter.count()
}

#[divan::bench(args = SUITES)]
fn super_packet_split_and_sealed(bencher: Bencher, name: &str) {
    let (vnet, packet) = super_packet(SEGMENTS);
    let mut sealer = sealer(Provider::OpenSsl, name);
    let mut out = vec![0; 80_000];
    let mut buf = packet.clone();
    let seqs = every_number();
    bencher
        .counter(BytesCount::new(SUPER_LEN))
        .counter(ItemsCount::new(SEGMENTS))
        .bench_local(|| {
            // Stands for a TUN read; only the headers must be restored.
            buf[..64].copy_from_slice(&packet[..64]);
            let range = seqs.reserve(45).unwrap();
            split_and_seal(
                &vnet,
                black_box(&mut buf),
                &mut sealer,
                range.first,
                &mut out,
            )
        });
}

#[divan::bench]
fn super_packet_split_only(bencher: Bencher) {
    let (vnet, packet) = super_packet(SEGMENTS);
    let mut buf = packet.clone();
    bencher
        .counter(BytesCount::new(SUPER_LEN))
        .counter(ItemsCount::new(SEGMENTS))
        .bench_local(|| {
            buf[..64].copy_from_slice(&packet[..64]);
            let mut segmenter = Segmenter::new(&vnet, &mut buf, SUPER_LEN).unwrap();
            let mut bytes = 0;
            while let Some(range) = segmenter.next(&mut buf) {
                bytes += range.len();
            }
            bytes
        });
}

#[divan::bench(args = SUITES)]
fn super_packet_opened_and_merged(bencher: Bencher, name: &str) {
    let (vnet, mut packet) = super_packet(SEGMENTS);
    let mut sealer = sealer(Provider::OpenSsl, name);
    let mut opener = opener(Provider::OpenSsl, name);
    let mut out = vec![0; 80_000];
    let size = split_and_seal(&vnet, &mut packet, &mut sealer, 1, &mut out);
    let mut coalescer = Coalescer::new(Merging {
        vnet_len: 10,
        tcp: true,
        udp: true,
        max_segments: 64,
    });
    bencher
        .counter(BytesCount::new(SUPER_LEN))
        .counter(ItemsCount::new(SEGMENTS))
        .bench_local(|| {
            let window = ReplayWindow::new(1024, 0);
            let mut writes = 0;
            for esp in black_box(&out[..45 * size]).chunks(size) {
                let place = coalescer
                    .place(opener.text_len(esp.len()).unwrap())
                    .unwrap();
                let (opened, _) = opener.decap(&window, esp, place).unwrap();
                let payload = &mut place[..opened.payload_len];
                let length =
                    esp_core::wire::inner::tunnel_packet(payload, opened.next_header, 0).unwrap();
                coalescer.accept(length, 0);
                writes += usize::from(coalescer.due().is_some());
            }
            coalescer.flush();
            writes += usize::from(coalescer.due().is_some());
            assert_eq!(writes, 1);
        });
}
