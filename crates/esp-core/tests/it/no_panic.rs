//! No input panics; only the verdict is checked.

use std::time::Duration;

use esp_core::esp::decap::{classify, read_trailer};
use esp_core::offload::coalesce::{Coalescer, Merging};
use esp_core::offload::segment::Segmenter;
use esp_core::wire::flow::FlowKey;
use esp_core::wire::inner::{transport_payload, tunnel_next_header, tunnel_packet};
use esp_core::wire::reassembly::Reassembler;
use esp_core::wire::{VnetHdr, answered, packet_length, parse, set_ecn, traffic_class};
use proptest::prelude::*;

use crate::strategy::packet;

#[test]
#[should_panic(expected = "attempt to add with overflow")]
fn arithmetic_is_checked_in_this_build_too() {
    std::hint::black_box(std::hint::black_box(u8::MAX) + 1);
}

/// Arbitrary bytes, and packets with some of their bytes changed.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let changed = (
        packet(60),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(packet, changes, cut)| {
            let mut bytes = packet.bytes();
            for (at, byte) in changes {
                let at = at.index(bytes.len().min(40));
                bytes[at] = byte;
            }
            let end = bytes.len() - cut.index(25);
            bytes.truncate(end);
            bytes
        });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..120), changed]
}

fn vnet() -> impl Strategy<Value = VnetHdr> {
    let small = || prop_oneof![0..100_u16, any::<u16>()];
    (
        0..2_u8,
        prop::sample::select(vec![0_u8, 1, 3, 4, 5, 0x81]),
        small(),
        small(),
        small(),
    )
        .prop_map(
            |(flags, gso_type, gso_size, csum_start, csum_offset)| VnetHdr {
                flags,
                gso_type,
                hdr_len: 0,
                gso_size,
                csum_start,
                csum_offset,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn readers_take_anything(bytes in bytes(), tos: u8) {
        let _ = (packet_length(&bytes), parse(&bytes), FlowKey::of(&bytes));
        let _ = FlowKey::of_addresses(&bytes);
        let _ = parse(&bytes).map(|inner| answered(&bytes, &inner));
        let _ = (traffic_class(&bytes), transport_payload(&bytes), tunnel_next_header(&bytes));
        let _ = (classify(&bytes, true), classify(&bytes, false), read_trailer(&bytes));
        let mut bytes = bytes;
        set_ecn(&mut bytes, tos);
        for next_header in [4, 41] {
            let _ = tunnel_packet(&mut bytes, next_header, tos);
        }
    }

    #[test]
    fn segmentation_takes_anything(bytes in bytes(), vnet in vnet(), room in 0..9_usize) {
        let length = bytes.len();
        let mut buf = bytes;
        buf.resize(length + room, 0);
        if let Ok(mut segmenter) = Segmenter::new(&vnet, &mut buf, length) {
            let mut count = 0;
            while let Some(range) = segmenter.next(&mut buf) {
                prop_assert!(range.end <= length);
                count += 1;
            }
            prop_assert_eq!(count, segmenter.count());
        }
        let _ = Segmenter::new(&vnet, &mut [], 1);
    }

    #[test]
    fn merging_takes_anything_and_loses_nothing(
        packets in prop::collection::vec((bytes(), any::<bool>()), 1..6),
    ) {
        let mut coalescer =
            Coalescer::new(Merging { vnet_len: 12, tcp: true, udp: true, max_segments: 64 });
        let (mut placed, mut written) = (0, 0);
        for (bytes, dropped) in &packets {
            let Ok(place) = coalescer.place(bytes.len()) else { continue };
            place.copy_from_slice(bytes);
            if *dropped {
                coalescer.cancel();
                continue;
            }
            placed += 1;
            coalescer.accept(bytes.len(), 0);
            while let Some(ready) = coalescer.due() {
                written += ready.packets;
            }
        }
        coalescer.flush();
        while let Some(ready) = coalescer.due() {
            written += ready.packets;
        }
        prop_assert_eq!(placed, written);
        prop_assert!(coalescer.place(70_000).is_err());
        coalescer.accept(5, 0);
        prop_assert_eq!(coalescer.due(), None);
    }

    #[test]
    fn reassembly_takes_anything(packets in prop::collection::vec(bytes(), 1..20)) {
        let mut reassembler = Reassembler::default();
        for packet in packets {
            let _ = reassembler.add(&packet, Duration::ZERO);
        }
    }
}
