//! Fragments of a datagram, in any order, become the datagram; what comes out is never anything
//! else.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use esp_core::wire::packet_length;
use esp_core::wire::reassembly::{MAX_FRAGMENTS, Reassembler};
use esp_fuzz::{Changes, change};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    datagrams: Vec<Datagram>,
    /// Places that are exchanged.
    swaps: Vec<(u8, u8)>,
    repeated: Vec<u8>,
    lost: Vec<u8>,
    damage: Option<(u8, Changes)>,
}

#[derive(Arbitrary, Debug)]
struct Datagram {
    v6: bool,
    payload_len: u16,
    /// Bytes of each fragment's payload, in units of 8.
    units: u8,
}

fuzz_target!(|input: Input| {
    let mut wholes = Vec::new();
    let mut fragments = Vec::new();
    for (id, datagram) in (0_u8..).zip(input.datagrams.iter().take(4)) {
        let payload: Vec<u8> = (0..datagram.payload_len % 3000)
            .map(|i| id.wrapping_add(i.to_le_bytes()[0]))
            .collect();
        let size = (1 + usize::from(datagram.units % 64)) * 8;
        if payload.len() <= size || payload.len().div_ceil(size) > MAX_FRAGMENTS {
            continue;
        }
        wholes.push(if datagram.v6 {
            ipv6(id, &payload, None)
        } else {
            ipv4(id, &payload, 0, false)
        });
        for (k, part) in payload.chunks(size).enumerate() {
            let (offset, more) = (k * size, (k + 1) * size < payload.len());
            fragments.push(if datagram.v6 {
                ipv6(id, part, Some((offset, more)))
            } else {
                ipv4(id, part, offset, more)
            });
        }
    }
    if fragments.is_empty() {
        return;
    }
    let count = fragments.len();
    for (a, b) in &input.swaps {
        fragments.swap(usize::from(*a) % count, usize::from(*b) % count);
    }
    for at in &input.repeated {
        fragments.push(fragments[usize::from(*at) % count].clone());
    }
    for at in &input.lost {
        let at = usize::from(*at) % fragments.len();
        if fragments.len() > 1 {
            fragments.remove(at);
        }
    }
    let mut damaged = false;
    if let Some((at, changes)) = &input.damage {
        let at = usize::from(*at) % fragments.len();
        damaged = change(&mut fragments[at], changes);
    }

    let mut reassembler = Reassembler::default();
    let (mut out, mut taken) = (Vec::new(), 0);
    for fragment in &fragments {
        // The engine gives it packets whose length is right.
        if packet_length(fragment) != Ok(fragment.len()) {
            continue;
        }
        if let Ok(whole) = reassembler.add(fragment, Duration::ZERO) {
            taken += 1;
            out.extend(whole);
        }
    }
    assert!(reassembler.dropped() <= taken);
    if damaged {
        assert!(
            out.iter()
                .all(|whole| packet_length(whole) == Ok(whole.len()))
        );
        return;
    }
    let same = |a: &[u8], b: &[u8]| without_checksum(a) == without_checksum(b);
    assert!(
        out.iter()
            .all(|whole| wholes.iter().any(|w| same(w, whole)))
    );
    if input.repeated.is_empty() && input.lost.is_empty() {
        assert_eq!(out.len(), wholes.len());
        assert_eq!(reassembler.dropped(), 0);
    }
});

fn ipv4(id: u8, payload: &[u8], offset: usize, more: bool) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len())
        .expect("it is short")
        .to_be_bytes();
    let field = u16::try_from(offset / 8).expect("it is short") | u16::from(more) << 13;
    let [f0, f1] = field.to_be_bytes();
    let header = [0x45, 0, length[0], length[1], 0, id, f0, f1, 64, 17, 0, 0];
    [&header[..], &[192, 0, 2, 1, 192, 0, 2, 2], payload].concat()
}

fn ipv6(id: u8, payload: &[u8], fragment: Option<(usize, bool)>) -> Vec<u8> {
    let (next_header, extension) = match fragment {
        None => (17, vec![]),
        Some((offset, more)) => {
            let field = u16::try_from(offset).expect("it is short") | u16::from(more);
            let [f0, f1] = field.to_be_bytes();
            (44, vec![17, 0, f0, f1, 0, 0, 0, id])
        }
    };
    let length = u16::try_from(extension.len() + payload.len())
        .expect("it is short")
        .to_be_bytes();
    let header = [0x60, 0, 0, 0, length[0], length[1], next_header, 64];
    [&header[..], &[0x20; 32], &extension, payload].concat()
}

/// The kernel computes it where the packet is sent.
fn without_checksum(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
    }
    packet
}
