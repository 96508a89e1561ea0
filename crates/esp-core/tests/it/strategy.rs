//! Packets for property tests.

use proptest::prelude::*;

use crate::build::{ACK, CWR, FIN, PSH, Packet, SYN};

/// Any TCP or UDP packet with a payload of up to `max` bytes.
pub fn packet(max: usize) -> impl Strategy<Value = Packet> {
    (
        (
            any::<bool>(),
            any::<bool>(),
            any::<u8>(),
            1..=255_u8,
            any::<u16>(),
            any::<bool>(),
        ),
        (
            any::<u16>(),
            any::<u16>(),
            any::<u32>(),
            any::<u32>(),
            any::<u16>(),
        ),
        0..=10_usize,
        prop::collection::vec(any::<u8>(), 1..=max),
        prop::sample::select(vec![
            ACK,
            ACK | PSH,
            ACK | FIN,
            ACK | CWR,
            SYN,
            ACK | PSH | CWR,
        ]),
    )
        .prop_map(|(ip, upper, options, payload, flags)| Packet {
            v6: ip.0,
            tcp: ip.1,
            tos: ip.2,
            ttl: ip.3,
            id: ip.4,
            df: ip.5,
            hosts: (1, 2),
            ports: (upper.0, upper.1),
            seq: upper.2,
            ack: upper.3,
            window: upper.4,
            options: vec![1; options * 4],
            payload,
            flags,
        })
}
