//! Headers are read as etherparse reads them; the key of a flow says all that selectors look at.
#![no_main]

use arbitrary::Arbitrary;
use esp_core::esp::decap::{classify, read_trailer};
use esp_core::wire::flow::FlowKey;
use esp_core::wire::inner::{transport_payload, tunnel_next_header, tunnel_packet};
use esp_core::wire::{
    Inner, Sum, has_ports, packet_length, parse, set_ecn, traffic_class, version,
};
use esp_fuzz::{Changes, Recipe, change};
use etherparse::{IpFragOffset, NetSlice, SlicedPacket};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Bytes(&'a [u8], u8),
    Packet {
        recipe: Recipe,
        /// Extension headers of IPv6: type, and bytes.
        extensions: Vec<(Extension, [u8; 6])>,
        changes: Changes,
        cut: u8,
        tos: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Extension {
    HopByHop = 0,
    Routing = 43,
    Fragment = 44,
    DestinationOptions = 60,
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Bytes(bytes, tos) => read(bytes, tos),
        Input::Packet {
            recipe,
            extensions,
            changes,
            cut,
            tos,
        } => {
            let packet = recipe.packet(60);
            let mut bytes = packet.bytes();
            if packet.v6 {
                for (kind, rest) in extensions.iter().take(10) {
                    let header = [&[bytes[6], 0], &rest[..]].concat();
                    bytes[6] = *kind as u8;
                    bytes.splice(40..40, header);
                }
                let payload_len = u16::try_from(bytes.len() - 40).expect("it is short");
                bytes[4..6].copy_from_slice(&payload_len.to_be_bytes());
            }
            change(&mut bytes, &changes);
            bytes.truncate(bytes.len() - usize::from(cut) % bytes.len());
            read(&bytes, tos);
        }
    }
});

fn read(bytes: &[u8], tos: u8) {
    let _ = (
        classify(bytes, true),
        classify(bytes, false),
        read_trailer(bytes),
    );
    let _ = (
        transport_payload(bytes),
        tunnel_next_header(bytes),
        parse(bytes),
    );
    let _ = FlowKey::of(bytes);
    set_ecn(&mut bytes.to_vec(), tos);
    for next_header in [4, 41, tos] {
        let _ = tunnel_packet(&mut bytes.to_vec(), next_header, tos);
    }
    let Ok(length) = packet_length(bytes) else {
        return;
    };
    let packet = &bytes[..length];
    let inner = parse(packet);
    if let Ok(inner) = &inner {
        assert!(inner.payload <= inner.upper && inner.upper <= length);
    }
    as_etherparse_reads_it(packet, inner.ok());
    if let (Some(key), Ok(inner)) = (FlowKey::of(packet), inner) {
        the_key_says_it_all(packet, key, &inner);
    } else {
        assert!(
            inner.is_ok() || FlowKey::of(packet).is_none(),
            "a flow that can't be parsed"
        );
    }
    ecn(packet, tos);
}

fn as_etherparse_reads_it(packet: &[u8], inner: Option<Inner>) {
    let Ok(sliced) = SlicedPacket::from_ip(packet) else {
        return;
    };
    let (src, dst, fragment, payload) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) if ip.extensions().auth.is_none() => (
            u32::from(ip.header().source_addr()).into(),
            u32::from(ip.header().destination_addr()).into(),
            ip.header().more_fragments() || ip.header().fragments_offset() != IpFragOffset::ZERO,
            ip.payload(),
        ),
        // A payload of 0 bytes says that it is a jumbogram, which no TUN gives.
        Some(NetSlice::Ipv6(ip)) if ip.header().payload_length() != 0 => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
            ip.payload().fragmented,
            ip.payload(),
        ),
        _ => return,
    };
    // To etherparse these, too, are extensions of IPv6; AH, mobility, HIP, shim6.
    let others = [51, 135, 139, 140];
    let Some(inner) = inner else {
        let mut walked = packet.get(6).copied().unwrap_or_default();
        let mut at = 40;
        let mut count = 0;
        while matches!(walked, 0 | 43 | 44 | 60) && count < 9 {
            let header = packet.get(at..at + 2).unwrap_or(&[59, 0]);
            at += if walked == 44 {
                8
            } else {
                (usize::from(header[1]) + 1) * 8
            };
            walked = header[0];
            count += 1;
        }
        let upper = packet.len().saturating_sub(at);
        let excused = version(packet) == 6 && (count > 8 || others.contains(&walked))
            || has_ports(walked) && upper < 4
            || has_ports(payload.ip_number.0) && payload.payload.len() < 4;
        assert!(excused, "etherparse reads it");
        return;
    };
    assert_eq!((inner.src, inner.dst), (src, dst));
    assert!(inner.fragment || !fragment);
    // Of two fragment headers etherparse uses the first.
    if inner.fragment || others.contains(&inner.protocol) {
        return;
    }
    assert_eq!(inner.protocol, payload.ip_number.0);
    let port = |at: usize| {
        let bytes = payload.payload.get(at..at + 2)?.try_into().ok()?;
        has_ports(inner.protocol).then(|| u16::from_be_bytes(bytes))
    };
    assert_eq!((inner.src_port, inner.dst_port), (port(0), port(2)));
}

fn the_key_says_it_all(packet: &[u8], key: FlowKey, inner: &Inner) {
    assert!(!inner.fragment);
    let selected = |inner: &Inner| {
        (
            inner.version,
            inner.src,
            inner.dst,
            inner.protocol,
            inner.src_port,
            inner.dst_port,
        )
    };
    for at in 0..packet.len().min(48) {
        let mut other = packet.to_vec();
        other[at] ^= 0x11;
        if let (Some(other_key), Ok(parsed)) = (FlowKey::of(&other), parse(&other)) {
            assert_eq!(
                key == other_key,
                selected(inner) == selected(&parsed),
                "byte {at}"
            );
        }
    }
}

fn ecn(packet: &[u8], tos: u8) {
    let holds = |packet: &[u8]| {
        let header = packet
            .get(..usize::from(packet[0] & 15) * 4)
            .unwrap_or_default();
        version(packet) == 6 || Sum::new().bytes(header).folded() == 0xFFFF
    };
    let mut changed = packet.to_vec();
    set_ecn(&mut changed, tos);
    assert_eq!(
        traffic_class(&changed),
        traffic_class(packet) & 0xFC | tos & 3
    );
    assert!(
        holds(&changed) || !holds(packet),
        "the checksum held before"
    );
}
