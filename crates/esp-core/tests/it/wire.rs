use esp_core::DropReason;
use esp_core::wire::flow::{FlowCache, FlowKey};
use esp_core::wire::{
    Inner, Sum, VnetHdr, answered, packet_length, parse, set_ecn, traffic_class, update_checksum,
    write_ipv4_header, write_ipv6_header,
};
use proptest::prelude::*;

use crate::build::{Packet, sum};
use crate::strategy::packet;

proptest! {
    #[test]
    fn the_sum_is_rfc_1071s(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..4),
    ) {
        let mut parts = parts;
        let last = parts.len() - 1;
        for part in &mut parts[..last] {
            part.truncate(part.len() / 2 * 2);
        }
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let fast = slices.iter().fold(Sum::new(), |sum, part| sum.bytes(part));
        prop_assert_eq!(fast.folded() % 0xFFFF, sum(&slices) % 0xFFFF);
        prop_assert_eq!(fast.folded() == 0, sum(&slices) == 0);
        prop_assert_eq!(fast.checksum(), !fast.folded());
    }

    #[test]
    fn an_updated_checksum_holds(mut words in prop::array::uniform10(any::<u16>()), new: u16) {
        words[5] = 0;
        let total = |words: &[u16]| words.iter().fold(Sum::new(), |sum, word| sum.word(*word));
        let before = total(&words).checksum();
        let updated = update_checksum(before, words[0], new);
        words[0] = new;
        words[5] = updated;
        prop_assert_eq!(total(&words).folded(), 0xFFFF);
    }

    #[test]
    fn headers_are_read_as_they_were_written(packet in packet(50)) {
        let bytes = packet.bytes();
        prop_assert_eq!(packet_length(&[&bytes[..], &[1, 2]].concat()), Ok(bytes.len()));
        let inner = parse(&bytes).unwrap();
        prop_assert_eq!(inner.version, if packet.v6 { 6 } else { 4 });
        prop_assert_eq!(inner.protocol, if packet.tcp { 6 } else { 17 });
        prop_assert_eq!((inner.src & 0xFF, inner.dst & 0xFF), (1, 2));
        prop_assert_eq!((inner.src_port, inner.dst_port),
            (Some(packet.ports.0), Some(packet.ports.1)));
        prop_assert_eq!((inner.payload, inner.upper), (packet.ip_len(), packet.ip_len()));
        prop_assert!(!inner.fragment);
        prop_assert_eq!(traffic_class(&bytes), packet.tos);
    }

    #[test]
    fn setting_ecn_changes_nothing_else(packet in packet(50), ecn in 0..4_u8) {
        let mut bytes = packet.bytes();
        set_ecn(&mut bytes, ecn);
        let expected = Packet { tos: packet.tos & 0xFC | ecn, ..packet };
        prop_assert_eq!(bytes, expected.bytes());
    }

    #[test]
    fn a_flow_has_one_key_and_no_other_flow_has_it(a in packet(50), b in packet(50)) {
        let key = |packet: &Packet| FlowKey::of(&packet.bytes()).unwrap();
        let same = Packet { payload: vec![1], seq: 9, id: 9, ttl: 9, tos: 9, ..a.clone() };
        prop_assert_eq!(key(&a), key(&same));
        let of = |p: &Packet| (p.v6, p.tcp, p.ports, p.hosts);
        prop_assert_eq!(key(&a) == key(&b), of(&a) == of(&b));
        let mut cache = FlowCache::new(8);
        cache.insert(key(&a), 1);
        cache.insert(key(&b), 2);
        prop_assert_eq!(cache.get(&key(&b)), Some(&2));
        prop_assert!(matches!(cache.get(&key(&a)), Some(1 | 2)));
        cache.clear();
        prop_assert_eq!(cache.get(&key(&a)), None);
    }
}

proptest! {
    #[test]
    fn an_icmp_error_answers_the_flow_that_it_quotes(
        sent in packet(50), kind: u8, kept in 0..90_usize, to_another: bool,
    ) {
        let (quoted, back) = (sent.bytes(), Packet {
            hosts: (sent.hosts.1, sent.hosts.0),
            ports: (sent.ports.1, sent.ports.0),
            ..sent.clone()
        });
        let kept = kept.min(quoted.len());
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &quoted[..kept]].concat();
        let target = if to_another { 9 } else { sent.hosts.0 };
        let error = Packet { hosts: (77, target), payload: message, ..sent.clone() }.icmp();
        let errors: &[u8] = if sent.v6 { &[1, 2, 3, 4] } else { &[3, 4, 11, 12] };
        let whole = kept >= sent.ip_len() + 4;
        let expected = (errors.contains(&kind) && whole && !to_another)
            .then(|| parse(&back.bytes()).unwrap());
        prop_assert_eq!(answered(&error, &parse(&error).unwrap()), expected);
    }
}

fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, rest.len() as u8, next, 64];
    packet.extend([1; 16]);
    packet.extend([2; 16]);
    packet.extend(rest);
    packet
}

#[test]
fn extension_headers_are_walked() {
    let rest = [&[60, 1][..], &[0; 14], &[6, 0], &[0; 6], &[0, 80, 1, 187]].concat();
    let packet = v6(0, &rest);
    let Inner {
        protocol,
        src_port,
        dst_port,
        payload,
        upper,
        ..
    } = parse(&packet).unwrap();
    assert_eq!((protocol, payload, upper), (6, 40, 64));
    assert_eq!((src_port, dst_port), (Some(80), Some(443)));
    assert_eq!(FlowKey::of(&packet), None);
    assert_eq!(parse(&packet[..66]), Err(DropReason::MalformedInner));
    assert_eq!(parse(&packet[..60]), Err(DropReason::MalformedInner));
    let endless = v6(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(9));
    assert_eq!(parse(&endless), Err(DropReason::MalformedInner));
    let mut eight = [60, 0, 0, 0, 0, 0, 0, 0].repeat(8);
    eight[56] = 58;
    assert_eq!(parse(&v6(60, &eight)).unwrap().protocol, 58);
}

#[test]
fn only_first_fragments_have_ports() {
    let first = v6(44, &[17, 0, 0, 1, 0, 0, 0, 1, 0, 53, 0, 54]);
    let inner = parse(&first).unwrap();
    assert_eq!(
        (inner.fragment, inner.protocol, inner.src_port),
        (true, 17, Some(53))
    );
    let later = v6(44, &[17, 0, 0, 9, 0, 0, 0, 1, 0, 53]);
    let inner = parse(&later).unwrap();
    assert_eq!(
        (inner.fragment, inner.protocol, inner.src_port),
        (true, 17, None)
    );
    let mut v4 = Packet::default().bytes();
    v4[6] = 0x20;
    assert!(parse(&v4).unwrap().fragment);
    assert_eq!(parse(&v4).unwrap().src_port, Some(1000));
    v4[7] = 1;
    assert_eq!(parse(&v4).unwrap().src_port, None);
    assert_eq!(FlowKey::of(&v4), None);
}

#[test]
fn lengths_that_contradict_the_packet_are_malformed() {
    let good = Packet::default().bytes();
    for (at, byte) in [(0, 0x35), (0, 0x44), (0, 0x4F), (2, 0xFF), (3, 19)] {
        let mut bad = good.clone();
        bad[at] = byte;
        if at == 3 {
            bad[2] = 0;
        }
        let bad = if byte == 0x4F { &bad[..59] } else { &bad };
        assert_eq!(
            packet_length(bad),
            Err(DropReason::MalformedInner),
            "{at} {byte}"
        );
    }
    assert_eq!(packet_length(&good[..19]), Err(DropReason::MalformedInner));
    assert_eq!(
        packet_length(&v6(6, &[0; 8])[..47]),
        Err(DropReason::MalformedInner)
    );
}

#[test]
fn rebuilt_headers_are_whole() {
    let plain = Packet {
        id: 0,
        tos: 0x2E,
        ..Packet::default()
    };
    let expected = plain.bytes();
    let mut out = [0xEE; 20];
    let (src, dst) = (0xC000_0201, 0xC000_0202);
    write_ipv4_header(&mut out, src, dst, 6, expected.len() as u16, 0x2E);
    assert_eq!(out, expected[..20]);
    let plain = Packet { v6: true, ..plain };
    let expected = plain.bytes();
    let mut out = [0xEE; 40];
    let net = 0x2001_0db8_u128 << 96;
    write_ipv6_header(
        &mut out,
        net | 1,
        net | 2,
        6,
        expected.len() as u16 - 40,
        0x2E,
    );
    assert_eq!(out, expected[..40]);
}

#[test]
fn vnet_headers_survive_the_way_out_and_back() {
    let vnet = Packet::default().vnet(1400);
    let mut out = [0xEE; 12];
    vnet.write(&mut out);
    assert_eq!(VnetHdr::read(&out), Some(vnet));
    assert_eq!(out[10..], [0, 0]);
    assert_eq!(VnetHdr::read(&out[..9]), None);
}
