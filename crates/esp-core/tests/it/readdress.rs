//! Transport mode through a NAT: what was right for the sender's addresses is right for ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use esp_core::esp::sa::{InboundSa, KeyMaterial, Mode};
use esp_core::esp::suite::Suite;
use esp_core::wire::AddressChange;
use proptest::prelude::*;

use crate::build::sum;
use crate::spec::tunnel;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A packet whose upper-layer header has its checksum at `at`, as RFC 9293 3.1 and RFC 8200 8.1
/// write it down.
fn packet([src, dst]: [IpAddr; 2], protocol: u8, at: usize, upper: &[u8]) -> Vec<u8> {
    let (src, dst) = (octets(src), octets(dst));
    let length = upper.len() as u32;
    let mut upper = upper.to_vec();
    upper[at..at + 2].copy_from_slice(&[0, 0]);
    let pseudo = [&src[..], &dst, &length.to_be_bytes(), &[0, 0, 0, protocol]].concat();
    let mut checksum = !sum(&[&pseudo, &upper]);
    if protocol == UDP && checksum == 0 {
        checksum = 0xFFFF;
    }
    upper[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    with_header(&src, &dst, protocol, &upper)
}

fn with_header(src: &[u8], dst: &[u8], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u16;
    let head = if src.len() == 4 {
        let [high, low] = (length + 20).to_be_bytes();
        vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0]
    } else {
        let [high, low] = length.to_be_bytes();
        vec![0x60, 0, 0, 0, high, low, protocol, 64]
    };
    let mut packet = [&head, src, dst, payload].concat();
    if src.len() == 4 {
        let checksum = !sum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

fn ends() -> impl Strategy<Value = ([IpAddr; 2], [IpAddr; 2])> {
    let v4 =
        any::<[u32; 4]>().prop_map(|all| all.map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))));
    let v6 =
        any::<[u128; 4]>().prop_map(|all| all.map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))));
    prop_oneof![v4, v6].prop_map(|[a, b, c, d]| ([a, b], [c, d]))
}

/// Sums that differ by a multiple of 0xFFFF are equal (RFC 1071); only UDP tells 0 from 0xFFFF.
fn equal(one: &[u8], other: &[u8], at: usize) -> bool {
    let word = |bytes: &[u8]| u16::from_be_bytes([bytes[at], bytes[at + 1]]) % 0xFFFF;
    let rest = |bytes: &[u8]| [&bytes[..at], &bytes[at + 2..]].concat();
    word(one) == word(other) && rest(one) == rest(other)
}

proptest! {
    #[test]
    fn a_checksum_follows_the_addresses(
        (before, after) in ends(),
        upper in proptest::collection::vec(any::<u8>(), 20..200),
    ) {
        let v6 = before[0].is_ipv6();
        let head = if v6 { 40 } else { 20 };
        for (protocol, at) in [(TCP, 16), (UDP, 6), (33, 6), (136, 6), (ICMPV6, 2)] {
            if protocol == ICMPV6 && !v6 {
                continue;
            }
            let [src, dst] = after.map(octets);
            let sent = packet(before, protocol, at, &upper);
            let right = packet(after, protocol, at, &upper);
            let mut arrived = with_header(&src, &dst, protocol, &sent[head..]);
            let Some(change) = AddressChange::new(before, after) else {
                prop_assert_eq!(sent, right);
                return Ok(());
            };
            change.mend(&mut arrived).unwrap();
            prop_assert!(equal(&arrived, &right, head + at), "{protocol}");
            if protocol == UDP {
                prop_assert_eq!(arrived, right);
            }
        }
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn nat() -> ([IpAddr; 2], [IpAddr; 2], AddressChange) {
    let before = [address("fd00::2"), address("fd00::9")];
    let after = [address("2001:db8::1"), address("2001:db8::2")];
    (before, after, AddressChange::new(before, after).unwrap())
}

#[test]
fn nothing_is_mended_where_no_address_has_changed() {
    let (before, ..) = nat();
    assert_eq!(AddressChange::new(before, before), None);
}

#[test]
fn a_udp_checksum_that_is_left_out_stays_out() {
    let (_, after, change) = nat();
    let [src, dst] = after.map(octets);
    let sent = with_header(&src, &dst, UDP, &[0, 1, 0, 2, 0, 12, 0, 0, 1, 2, 3, 4]);
    let mut arrived = sent.clone();
    change.mend(&mut arrived).unwrap();
    assert_eq!(arrived, sent);
}

#[test]
fn of_fragments_the_first_alone_is_mended() {
    let (_, after, change) = nat();
    let [src, dst] = after.map(octets);
    for (offset, mended) in [(0_u16, true), (8, false), (800, false)] {
        let [high, low] = (offset | 1).to_be_bytes();
        let payload = [&[TCP, 0, high, low, 0, 0, 0, 7][..], &[5; 40]].concat();
        let sent = with_header(&src, &dst, FRAGMENT, &payload);
        let mut arrived = sent.clone();
        change.mend(&mut arrived).unwrap();
        assert_eq!(arrived != sent, mended, "{offset}");
        assert_eq!(arrived.len(), sent.len());
    }
}

#[test]
fn what_ends_before_its_checksum_is_left_alone() {
    let (_, after, change) = nat();
    let [src, dst] = after.map(octets);
    for (protocol, size) in [(TCP, 17), (UDP, 7), (ICMPV6, 3), (47, 40)] {
        let sent = with_header(&src, &dst, protocol, &vec![9; size]);
        let mut arrived = sent.clone();
        change.mend(&mut arrived).unwrap();
        assert_eq!(arrived, sent);
    }
}

#[test]
fn an_sa_mends_by_its_original_addresses_also_after_it_was_replaced() {
    let suite = Suite::by_name("aes256gcm16").unwrap();
    let keymat = KeyMaterial::new(suite, &[1; 36]).unwrap();
    let (before, after, _) = nat();
    let mut spec = tunnel(suite, keymat);
    spec.mode = Mode::Transport;
    [spec.remote, spec.local] = after;
    let plain = InboundSa::new(spec.clone(), 0);
    [spec.remote_original, spec.local_original] = before.map(Some);
    let behind = InboundSa::new(spec.clone(), 0);
    let sent = packet(before, TCP, 16, &[3; 60]);
    let right = packet(after, TCP, 16, &[3; 60]);
    let arrived = |sa: &InboundSa| {
        let mut packet = sent.clone();
        sa.transport_packet(&mut packet, TCP, 0).unwrap();
        packet
    };
    for sa in [&behind, &plain.continued(spec.clone()), &behind.settled()] {
        assert_eq!(arrived(sa), right);
    }
    assert_ne!(arrived(&plain), right);
}
