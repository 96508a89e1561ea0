//! Each segment of a super-packet is the packet that would have been sent alone, and the segments
//! merge into the super-packet again; a contradiction is refused or stays within the packet.
#![no_main]

use arbitrary::Arbitrary;
use esp_core::offload::coalesce::{Coalescer, Merging};
use esp_core::offload::segment::MAX_SEGMENTS;
use esp_core::wire::{GSO_NONE, VnetHdr, packet_length};
use esp_fuzz::build::{ACK, PSH, Packet};
use esp_fuzz::{Changes, Recipe, change, split};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    recipe: Recipe,
    gso_size: u16,
    wrong: Option<Wrong>,
}

/// Metadata that the kernel would never give.
#[derive(Arbitrary, Debug)]
struct Wrong {
    changes: Changes,
    vnet: (u8, u8, u16, u16, u16),
    keep_vnet: bool,
    cut: u8,
}

fuzz_target!(|input: Input| {
    let whole = input.recipe.packet(4000);
    let gso_size = 1 + input.gso_size % 2000;
    match &input.wrong {
        None => right(&whole, gso_size),
        Some(wrong) => contradicting(&whole, gso_size, wrong),
    }
});

fn right(whole: &Packet, gso_size: u16) {
    let expected: Vec<_> = whole
        .segments(gso_size.into())
        .iter()
        .map(Packet::bytes)
        .collect();
    let segments = split(&whole.vnet(gso_size), &whole.bytes_with(true));
    if expected.len() > MAX_SEGMENTS {
        assert_eq!(segments, None);
        return;
    }
    assert_eq!(segments.as_ref(), Some(&expected));

    let plain = Packet {
        flags: whole.flags & PSH | ACK,
        ..whole.clone()
    };
    let count = plain.segments(gso_size.into()).len();
    if count > 1 && count <= 64 {
        merges_back(&plain, gso_size);
    }
}

fn merges_back(whole: &Packet, gso_size: u16) {
    let mut coalescer = Coalescer::new(Merging {
        vnet_len: VnetHdr::LEN,
        tcp: true,
        udp: true,
        max_segments: 64,
    });
    for segment in whole.segments(gso_size.into()) {
        let bytes = segment.bytes();
        let place = coalescer
            .place(bytes.len() + 4)
            .expect("it is no jumbogram");
        place[..bytes.len()].copy_from_slice(&bytes);
        assert_eq!(coalescer.due(), None);
        coalescer.accept(bytes.len(), 0);
    }
    coalescer.flush();
    let ready = coalescer.due().expect("something was merged");
    let (vnet, packet) = ready.frame.split_at(VnetHdr::LEN);
    assert_eq!(VnetHdr::read(vnet), Some(whole.vnet(gso_size)));
    assert_eq!(packet, whole.bytes_with(true));
}

fn contradicting(whole: &Packet, gso_size: u16, wrong: &Wrong) {
    let mut bytes = whole.bytes_with(true);
    bytes.truncate(bytes.len() - usize::from(wrong.cut) % bytes.len());
    change(&mut bytes, &wrong.changes);
    let (flags, gso_type, gso, csum_start, csum_offset) = wrong.vnet;
    let vnet = if wrong.keep_vnet {
        whole.vnet(gso_size)
    } else {
        VnetHdr {
            flags,
            gso_type,
            hdr_len: 0,
            gso_size: gso,
            csum_start,
            csum_offset,
        }
    };
    let Some(segments) = split(&vnet, &bytes) else {
        return;
    };
    if vnet.gso_type == GSO_NONE {
        // Nothing but the checksum is written, wherever it is said to be.
        let changed = segments[0].iter().zip(&bytes).filter(|(a, b)| a != b);
        assert!(segments.len() == 1 && segments[0].len() == bytes.len() && changed.count() <= 2);
        return;
    }
    for segment in segments {
        assert_eq!(packet_length(&segment), Ok(segment.len()));
    }
}
