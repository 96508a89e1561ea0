use std::time::Duration;

use esp_core::DropReason;
use esp_core::wire::reassembly::{MAX_DATAGRAMS, Reassembler, TIMEOUT};
use proptest::prelude::*;

const NOW: Duration = Duration::from_secs(100);

/// Splits a payload like a host; `size` is a multiple of 8.
fn fragments(v6: bool, id: u8, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(k, part)| {
            let more = k + 1 != count;
            let offset = (k * size) as u16;
            let mut packet = vec![if v6 { 0x60 } else { 0x45 }, 0];
            if v6 {
                packet.extend([0, 0]);
                packet.extend((8 + part.len() as u16).to_be_bytes());
                packet.extend([44, 64]);
                packet.extend([1; 32]);
                packet.extend([17, 0]);
                packet.extend((offset | u16::from(more)).to_be_bytes());
                packet.extend([0, 0, 0, id]);
            } else {
                packet.extend((20 + part.len() as u16).to_be_bytes());
                packet.extend([0, id]);
                packet.extend((offset / 8 | u16::from(more) << 13).to_be_bytes());
                packet.extend([64, 17, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
            }
            packet.extend(part);
            packet
        })
        .collect()
}

fn whole(v6: bool, id: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = fragments(v6, id, payload, 65528).remove(0);
    if v6 {
        packet.drain(40..48);
        packet[6] = 17;
        packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    packet
}

proptest! {
    #[test]
    fn fragments_in_any_order_become_the_datagram(
        v6: bool, size in 1..40_usize, (payload, order) in
            prop::collection::vec(any::<u8>(), 1..2000)
                .prop_flat_map(|p| (Just(p), any::<u64>())),
    ) {
        let mut parts = fragments(v6, 1, &payload, size * 8);
        let turn = order as usize % parts.len();
        parts.rotate_left(turn);
        if order & 1 != 0 {
            parts.reverse();
        }
        let mut reassembler = Reassembler::default();
        let last = parts.pop().unwrap();
        for part in &parts {
            prop_assert_eq!(reassembler.add(part, NOW), Ok(None));
        }
        prop_assert_eq!(reassembler.add(&last, NOW), Ok(Some(whole(v6, 1, &payload))));
        prop_assert_eq!(reassembler.dropped(), 0);
    }
}

#[test]
fn an_overlap_forgets_the_datagram() {
    for v6 in [false, true] {
        let parts = fragments(v6, 1, &[7; 100], 40);
        let mut reassembler = Reassembler::default();
        reassembler.add(&parts[0], NOW).unwrap();
        assert_eq!(reassembler.add(&parts[0], NOW), Ok(None));
        assert_eq!(reassembler.dropped(), 2);
        reassembler.add(&parts[1], NOW).unwrap();
        assert_eq!(reassembler.add(&parts[2], NOW), Ok(None));
    }
}

#[test]
fn a_last_fragment_in_front_of_another_forgets_the_datagram() {
    for v6 in [false, true] {
        let behind = &fragments(v6, 1, &[7; 96], 32)[1];
        let last = &fragments(v6, 1, &[7; 24], 8)[2];
        let mut reassembler = Reassembler::default();
        reassembler.add(behind, NOW).unwrap();
        assert_eq!(reassembler.add(last, NOW), Ok(None));
        assert_eq!(reassembler.dropped(), 2);
    }
}

#[test]
fn unfinished_datagrams_are_given_up_for_age_and_for_new_ones() {
    let mut reassembler = Reassembler::default();
    for id in 0..=MAX_DATAGRAMS as u8 {
        reassembler
            .add(&fragments(false, id, &[7; 100], 40)[0], NOW)
            .unwrap();
    }
    assert_eq!(reassembler.dropped(), 1);
    let later = NOW + TIMEOUT + Duration::from_millis(1);
    reassembler
        .add(&fragments(false, 99, &[7; 100], 40)[0], later)
        .unwrap();
    assert_eq!(reassembler.dropped(), 17);
}

#[test]
fn a_datagram_that_no_ip_packet_can_hold_is_dropped() {
    let mut reassembler = Reassembler::default();
    let mut parts = fragments(false, 1, &vec![7; 65480], 8192);
    let last = parts.last_mut().unwrap();
    last.extend([7; 16]);
    let dropped = parts.len() as u64;
    for part in parts {
        assert_eq!(reassembler.add(&part, NOW), Ok(None));
    }
    assert_eq!(reassembler.dropped(), dropped);
}

#[test]
fn another_extension_header_in_front_is_not_supported() {
    let mut packet = fragments(true, 1, &[7; 16], 8).remove(0);
    packet[6] = 60;
    let added = Reassembler::default().add(&packet, NOW);
    assert_eq!(added, Err(DropReason::UnsupportedHeader));
}
