use esp_core::DropReason;
use esp_core::offload::segment::{MAX_SEGMENTS, Segmenter};
use esp_core::wire::{GSO_NONE, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHdr};
use proptest::prelude::*;

use crate::build::Packet;
use crate::strategy::packet;

/// Splits like the engine: the trailer overwrites what lies behind each segment.
pub fn split(vnet: &VnetHdr, packet: &[u8]) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut buf = packet.to_vec();
    buf.extend([0; 8]);
    let mut segmenter = Segmenter::new(vnet, &mut buf, packet.len())?;
    let mut segments = Vec::new();
    while let Some(range) = segmenter.next(&mut buf) {
        segments.push(buf[range.clone()].to_vec());
        buf[range.end..range.end + 8].fill(0xEE);
        buf[range].fill(0xDD);
    }
    assert_eq!(segments.len(), segmenter.count());
    assert_eq!(segments[0].len(), segmenter.segment_len());
    Ok(segments)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_segment_is_the_packet_that_would_have_been_sent_alone(
        whole in packet(3000), gso_size in 3..2000_u16,
    ) {
        let expected: Vec<_> =
            whole.segments(gso_size.into()).iter().map(Packet::bytes).collect();
        let segments = split(&whole.vnet(gso_size), &whole.bytes_with(true)).unwrap();
        prop_assert_eq!(segments, expected);
    }

    #[test]
    fn a_checksum_that_is_asked_for_is_completed(whole in packet(300)) {
        let vnet = VnetHdr { gso_type: GSO_NONE, gso_size: 0, ..whole.vnet(0) };
        let segments = split(&vnet, &whole.bytes_with(true)).unwrap();
        let mut expected = whole.bytes();
        // Like the kernel, for every protocol.
        let at = usize::from(vnet.csum_start + vnet.csum_offset);
        if expected[at..at + 2] == [0, 0] {
            expected[at..at + 2].fill(0xFF);
        }
        prop_assert_eq!(segments, [expected]);
    }
}

#[test]
fn a_super_packet_of_64_kib_is_split_to_its_end() {
    let whole = Packet {
        payload: (0..65000_u32).map(|i| i as u8).collect(),
        ..Packet::default()
    };
    let segments = split(&whole.vnet(1388), &whole.bytes_with(true)).unwrap();
    let expected: Vec<_> = whole.segments(1388).iter().map(Packet::bytes).collect();
    assert_eq!(segments, expected);
}

#[test]
fn a_super_packet_of_more_segments_than_any_sender_makes_is_dropped() {
    for tcp in [true, false] {
        let whole = Packet {
            tcp,
            payload: vec![7; 10 * MAX_SEGMENTS],
            ..Packet::default()
        };
        let bytes = whole.bytes_with(true);
        let segments = split(&whole.vnet(10), &bytes).unwrap();
        assert_eq!(segments.len(), MAX_SEGMENTS);
        for gso_size in [9, 1] {
            let dropped = split(&whole.vnet(gso_size), &bytes);
            assert_eq!(dropped, Err(DropReason::TooManySegments));
        }
    }
}

#[test]
fn a_computed_udp_checksum_of_zero_is_sent_as_ffff() {
    let plain = Packet {
        tcp: false,
        payload: vec![0, 0],
        ..Packet::default()
    };
    let bytes = plain.bytes();
    let checksum = u16::from_be_bytes([bytes[26], bytes[27]]);
    let whole = Packet {
        payload: checksum.to_be_bytes().to_vec(),
        ..plain
    };
    let segments = split(&whole.vnet(2), &whole.bytes_with(true)).unwrap();
    assert_eq!(segments[0][26..28], [0xFF, 0xFF]);
}

#[test]
fn a_packet_without_offload_is_left_as_it_is() {
    let bytes = Packet::default().bytes();
    assert_eq!(split(&VnetHdr::default(), &bytes), Ok(vec![bytes]));
}

#[test]
fn headers_that_contradict_each_other_are_malformed() {
    let tcp = Packet::default();
    let bytes = tcp.bytes_with(true);
    let good = tcp.vnet(10);
    for vnet in [
        VnetHdr {
            gso_type: GSO_UDP_L4,
            ..good
        },
        VnetHdr {
            gso_type: GSO_TCPV6,
            ..good
        },
        VnetHdr {
            gso_type: 3,
            ..good
        },
        VnetHdr {
            gso_size: 0,
            ..good
        },
        VnetHdr {
            gso_type: GSO_NONE,
            csum_start: 150,
            csum_offset: 1,
            flags: NEEDS_CSUM,
            ..good
        },
    ] {
        assert_eq!(
            split(&vnet, &bytes),
            Err(DropReason::MalformedInner),
            "{vnet:?}"
        );
    }
    let mut fragment = bytes.clone();
    fragment[6] = 0x20;
    assert_eq!(split(&good, &fragment), Err(DropReason::MalformedInner));
    let mut short_tcp = bytes.clone();
    short_tcp[32] = 0x40;
    assert_eq!(split(&good, &short_tcp), Err(DropReason::MalformedInner));
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(split(&good, &longer), Err(DropReason::MalformedInner));
}
