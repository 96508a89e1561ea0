use esp_core::offload::coalesce::{Coalescer, MAX_OPEN, Merging, Ready};
use esp_core::wire::flow::FlowKey;
use esp_core::wire::{VnetHdr, update_checksum};
use proptest::prelude::*;

use crate::build::{ACK, FIN, PSH, Packet, SYN};
use crate::segment::split;
use crate::strategy::packet;

const ALL: Merging = Merging {
    vnet_len: 10,
    tcp: true,
    udp: true,
    max_segments: 128,
};

#[derive(Debug, PartialEq)]
struct Written {
    vnet: VnetHdr,
    packet: Vec<u8>,
    packets: u16,
    bytes: u64,
    owner: u64,
}

/// Opens packets one after the other, each with a trailer behind it, and collects the writes.
fn merge(merging: Merging, packets: &[(Vec<u8>, u64)]) -> Vec<Written> {
    let mut coalescer = Coalescer::new(merging);
    let mut written = Vec::new();
    let write = |ready: Ready<'_>| {
        let (vnet, packet) = ready.frame.split_at(merging.vnet_len);
        Written {
            vnet: VnetHdr::read(vnet).unwrap_or_default(),
            packet: packet.to_vec(),
            packets: ready.packets,
            bytes: ready.bytes,
            owner: ready.owner,
        }
    };
    for (packet, owner) in packets {
        // One that isn't authentic comes first: its place is wiped.
        coalescer.place(packet.len() + 5).unwrap().fill(0);
        coalescer.cancel();
        let place = coalescer.place(packet.len() + 5).unwrap();
        place[..packet.len()].copy_from_slice(packet);
        place[packet.len()..].fill(0xEE);
        assert_eq!(&coalescer.placed()[..packet.len()], packet);
        coalescer.accept(packet.len(), *owner);
        written.extend(due(&mut coalescer, write));
    }
    coalescer.flush();
    written.extend(due(&mut coalescer, write));
    coalescer.flush();
    assert_eq!(coalescer.due(), None);
    written
}

fn due(coalescer: &mut Coalescer, write: impl Fn(Ready<'_>) -> Written) -> Vec<Written> {
    let mut written = Vec::new();
    while let Some(ready) = coalescer.due() {
        written.push(write(ready));
    }
    written
}

/// The packets of each flow in their order, whatever their owners, each with those of its addresses
/// that belong to no flow.
fn by_flow(packets: &[(Vec<u8>, u64)]) -> Vec<Vec<&(Vec<u8>, u64)>> {
    let key = |packet: &[u8]| FlowKey::of_any(packet).unwrap();
    let mut flows: Vec<_> = packets.iter().map(|(packet, _)| key(packet)).collect();
    flows.sort_by_key(|flow| format!("{flow:?}"));
    flows.dedup();
    let of = |flow: &FlowKey| -> Vec<_> {
        let is_of = |(packet, _): &&(Vec<u8>, u64)| {
            let alone = FlowKey::of(packet).is_none() && key(packet).has_addresses_of(flow);
            key(packet) == *flow || alone
        };
        packets.iter().filter(is_of).collect()
    };
    flows.iter().map(of).collect()
}

/// Takes the packets of several trains in an order in which each train keeps its own.
fn shuffled(trains: Vec<Vec<(Vec<u8>, u64)>>, mut seed: u64) -> Vec<(Vec<u8>, u64)> {
    let mut trains: Vec<_> = trains.into_iter().map(Vec::into_iter).collect();
    let mut all = Vec::new();
    while !trains.is_empty() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (seed >> 33) as usize % trains.len();
        match trains[at].next() {
            Some(packet) => all.push(packet),
            None => drop(trains.remove(at)),
        }
    }
    all
}

fn merge_all(packets: &[Packet]) -> Vec<Written> {
    let packets: Vec<_> = packets.iter().map(|packet| (packet.bytes(), 0)).collect();
    merge(ALL, &packets)
}

/// Number of packets in each write.
fn sizes(packets: &[Packet]) -> Vec<u16> {
    merge_all(packets)
        .iter()
        .map(|written| written.packets)
        .collect()
}

fn pair(change: impl Fn(&mut Packet)) -> Vec<u16> {
    let mut packets = Packet {
        payload: vec![7; 200],
        ..Packet::default()
    }
    .segments(100);
    change(&mut packets[1]);
    sizes(&packets)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_segments_of_a_super_packet_become_the_super_packet_again(
        whole in packet(3000), gso_size in 30..1500_u16, push in any::<bool>(),
    ) {
        let flags = if push { ACK | PSH } else { ACK };
        let whole = Packet { flags, ..whole };
        let segments = whole.segments(gso_size.into());
        let written = merge_all(&segments);
        prop_assert_eq!(written.len(), 1);
        if segments.len() == 1 {
            prop_assert_eq!(&written[0].packet, &whole.bytes());
            prop_assert_eq!(written[0].vnet, VnetHdr::default());
        } else {
            prop_assert_eq!(&written[0].packet, &whole.bytes_with(true));
            prop_assert_eq!(written[0].vnet, whole.vnet(gso_size));
        }
        let bytes: usize = segments.iter().map(|segment| segment.bytes().len()).sum();
        prop_assert_eq!(written[0].bytes, bytes as u64);
        prop_assert_eq!(usize::from(written[0].packets), segments.len());
    }

    #[test]
    fn whatever_is_merged_splits_into_what_came(
        flows in prop::collection::vec(
            (packet(400), 1..300_usize, any::<u8>(), 0..3_u64, any::<bool>()), 1..6,
        ),
        interleaved in prop::option::of(any::<u64>()),
        damaged in prop::collection::vec((any::<prop::sample::Index>(), any::<u16>()), 0..3),
    ) {
        let mut trains = Vec::new();
        for (whole, gso_size, twist, owner, small) in flows {
            let mut came = Vec::new();
            let whole = if small { Packet { payload: vec![1; 9], ..whole } } else { whole };
            let flags = if twist & 1 == 0 { ACK } else { whole.flags };
            for (k, segment) in
                (Packet { flags, ..whole }).segments(gso_size).into_iter().enumerate()
            {
                let id = if twist & 2 == 0 { segment.id } else { segment.id.wrapping_add(9) };
                let seq = segment.seq.wrapping_add(u32::from(twist & 4 != 0 && k > 1));
                // A flow may change its SA, and come by two at once.
                let owner = if twist & 8 == 0 { owner } else { owner + k as u64 / 2 % 2 };
                came.push((Packet { id, seq, ..segment }.bytes(), owner));
            }
            trains.push(came);
        }
        let mut came = match interleaved {
            Some(seed) => shuffled(trains, seed),
            None => trains.concat(),
        };
        for (index, bit) in damaged {
            let packet = &mut index.get_mut(&mut came).0;
            // Not the length: that is looked at before.
            let at = 8 + usize::from(bit / 8) % (packet.len() - 8);
            packet[at] ^= 1 << (bit % 8);
        }
        let mut out = Vec::new();
        for written in merge(ALL, &came) {
            let packets = if written.packets == 1 {
                vec![written.packet]
            } else {
                split(&written.vnet, &written.packet).unwrap()
            };
            prop_assert_eq!(packets.len(), usize::from(written.packets));
            out.extend(packets.into_iter().map(|packet| (packet, written.owner)));
        }
        prop_assert_eq!(out.len(), came.len());
        prop_assert_eq!(by_flow(&out), by_flow(&came));
    }
}

#[test]
fn neighbours_are_merged() {
    assert_eq!(pair(|_| ()), [2]);
    assert_eq!(pair(|next| next.flags = ACK | PSH), [2]);
    assert_eq!(pair(|next| next.payload.truncate(40)), [2]);
    // A fixed id says nothing if nothing may be fragmented.
    assert_eq!(pair(|next| next.id -= 1), [2]);
}

#[test]
fn the_last_window_is_the_super_packets() {
    let mut packets = Packet {
        payload: vec![7; 200],
        ..Packet::default()
    }
    .segments(100);
    packets[1].window = 9;
    assert_eq!(merge_all(&packets)[0].packet[34..36], [0, 9]);
}

#[test]
fn packets_that_differ_are_not_merged() {
    let changes: [fn(&mut Packet); 13] = [
        |next| next.seq += 1,
        |next| next.ack += 1,
        |next| next.tos = 1,
        |next| next.ttl = 63,
        |next| next.df = false,
        |next| next.id += 1,
        |next| next.hosts.0 = 9,
        |next| next.ports.1 = 9,
        |next| next.options[3] = 0,
        |next| next.options.truncate(8),
        |next| next.flags = ACK | FIN,
        |next| next.flags = SYN,
        |next| next.payload.push(1),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        assert_eq!(pair(change), [1, 1], "{number}");
    }
    assert_eq!(pair(|next| next.payload.clear()), [1, 1]);
}

#[test]
fn a_reserved_bit_of_tcp_is_not_lost() {
    let packets = Packet {
        payload: vec![7; 200],
        ..Packet::default()
    }
    .segments(100);
    let mut bytes: Vec<_> = packets.iter().map(|packet| (packet.bytes(), 0)).collect();
    let word = |at: usize, bytes: &[u8]| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let next = &mut bytes[1].0;
    let checksum = update_checksum(word(36, next), word(32, next), word(32, next) | 0x100);
    next[32] |= 1;
    next[36..38].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(merge(ALL, &bytes).len(), 2);
}

#[test]
fn nothing_follows_a_short_packet_or_a_push() {
    let whole = Packet {
        payload: vec![7; 300],
        ..Packet::default()
    };
    let mut packets = whole.segments(100);
    packets[1].flags |= PSH;
    assert_eq!(sizes(&packets), [2, 1]);
    let mut packets = whole.segments(100);
    packets[1].payload.truncate(50);
    packets[2].seq -= 50;
    assert_eq!(sizes(&packets), [2, 1]);
    let mut packets = whole.segments(100);
    packets[0].flags |= PSH;
    assert_eq!(sizes(&packets), [1, 2]);
}

#[test]
fn fixed_and_counting_ids_are_not_mixed() {
    let mut packets = Packet {
        payload: vec![7; 300],
        ..Packet::default()
    }
    .segments(100);
    packets[1].id = packets[0].id;
    assert_eq!(sizes(&packets), [2, 1]);
}

#[test]
fn a_damaged_packet_is_never_merged_and_never_repaired() {
    let packets = Packet {
        payload: vec![7; 300],
        ..Packet::default()
    }
    .segments(100);
    for broken in 0..3 {
        // Payload; upper checksum; IPv4 checksum.
        for at in [60, 36, 10] {
            let mut bytes: Vec<_> = packets.iter().map(|packet| (packet.bytes(), 0)).collect();
            bytes[broken].0[at] ^= 0x40;
            let written = merge(ALL, &bytes);
            let alone: Vec<_> = written
                .iter()
                .filter(|written| written.packets == 1)
                .collect();
            assert!(
                alone
                    .iter()
                    .any(|written| written.packet == bytes[broken].0),
                "{broken} {at}"
            );
        }
    }
}

#[test]
fn a_udp_datagram_without_a_checksum_is_not_merged() {
    let packets = Packet {
        tcp: false,
        payload: vec![7; 200],
        ..Packet::default()
    }
    .segments(100);
    let mut bytes: Vec<_> = packets.iter().map(|packet| (packet.bytes(), 0)).collect();
    assert_eq!(merge(ALL, &bytes).len(), 1);
    for (packet, _) in &mut bytes {
        packet[26..28].fill(0);
    }
    assert_eq!(merge(ALL, &bytes).len(), 2);
}

#[test]
fn what_is_switched_off_is_not_merged() {
    let tcp = Packet {
        payload: vec![7; 400],
        ..Packet::default()
    };
    let udp = Packet {
        tcp: false,
        ..tcp.clone()
    };
    let packets = |whole: &Packet| -> Vec<_> {
        whole
            .segments(100)
            .iter()
            .map(|packet| (packet.bytes(), 0))
            .collect()
    };
    let (tcp, udp) = (packets(&tcp), packets(&udp));
    assert_eq!(merge(Merging { tcp: false, ..ALL }, &tcp).len(), 4);
    assert_eq!(merge(Merging { tcp: false, ..ALL }, &udp).len(), 1);
    assert_eq!(merge(Merging { udp: false, ..ALL }, &udp).len(), 4);
    assert_eq!(merge(Merging { udp: false, ..ALL }, &tcp).len(), 1);
    assert_eq!(merge(Merging { vnet_len: 0, ..ALL }, &tcp).len(), 4);
    assert_eq!(
        merge(
            Merging {
                max_segments: 2,
                ..ALL
            },
            &tcp
        )
        .len(),
        2
    );
    let owners: Vec<_> = (0..)
        .zip(&tcp)
        .map(|(k, (packet, _))| (packet.clone(), k / 2))
        .collect();
    assert_eq!(merge(ALL, &owners).len(), 2);
}

#[test]
fn a_super_packet_ends_before_64_kib() {
    for v6 in [false, true] {
        let whole = Packet {
            v6,
            payload: vec![7; 65000],
            ..Packet::default()
        };
        let mut packets = whole.segments(1000);
        let end = whole.segments(1000).len() * 1000;
        packets.extend(
            Packet {
                seq: whole.seq + end as u32,
                id: whole.id + packets.len() as u16,
                payload: vec![8; 3000],
                ..whole
            }
            .segments(1000),
        );
        let written = merge_all(&packets);
        assert_eq!(
            written.iter().map(|w| w.packets).collect::<Vec<_>>(),
            [65, 3]
        );
        assert!(written[0].packet.len() <= 65535);
    }
}

/// The segments of as many flows, one of each in turn.
fn in_turn(flows: usize, tcp: bool) -> Vec<Packet> {
    let trains: Vec<_> = (0..flows)
        .map(|flow| {
            Packet {
                tcp,
                ports: (1000 + flow as u16, 80),
                payload: vec![7; 500],
                ..Packet::default()
            }
            .segments(100)
        })
        .collect();
    (0..5)
        .flat_map(|k| trains.iter().map(move |train| train[k].clone()))
        .collect()
}

#[test]
fn interleaved_flows_are_merged_each_with_its_own() {
    for tcp in [true, false] {
        assert_eq!(sizes(&in_turn(MAX_OPEN, tcp)), [5; MAX_OPEN]);
    }
}

#[test]
fn with_more_flows_than_places_the_one_that_began_first_is_written() {
    let mut packets = in_turn(MAX_OPEN, true);
    packets.truncate(MAX_OPEN);
    let more = Packet {
        ports: (9, 9),
        payload: vec![7; 200],
        ..Packet::default()
    };
    packets.extend(more.segments(100));
    let written = merge_all(&packets);
    assert_eq!(written.len(), MAX_OPEN + 1);
    assert_eq!(written[0].packet, packets[0].bytes());
    assert_eq!(written.iter().filter(|one| one.packets == 2).count(), 1);
}

#[test]
fn a_packet_that_ends_a_super_packet_is_not_kept_until_the_end() {
    let mut packets = in_turn(2, true);
    packets[2].flags |= PSH;
    packets.truncate(4);
    let written = merge_all(&packets);
    let ports: Vec<_> = written.iter().map(|one| one.packet[21]).collect();
    assert_eq!(ports, [232, 233]);
    let mut coalescer = Coalescer::new(ALL);
    for packet in packets.iter().take(3) {
        let bytes = packet.bytes();
        coalescer
            .place(bytes.len())
            .unwrap()
            .copy_from_slice(&bytes);
        coalescer.accept(bytes.len(), 0);
    }
    assert_eq!(coalescer.due().map(|ready| ready.packets), Some(2));
    assert_eq!(coalescer.due(), None);
}

#[test]
fn a_fragment_leaves_behind_the_flows_of_its_addresses_alone() {
    let [one, other] = [(1, 2), (3, 4)].map(|hosts| Packet {
        hosts,
        payload: vec![7; 200],
        ..Packet::default()
    });
    let mut bytes: Vec<_> = one
        .segments(100)
        .iter()
        .chain(&other.segments(100))
        .map(|packet| (packet.bytes(), 0))
        .collect();
    let mut fragment = other.segments(100)[0].bytes();
    fragment[7] = 9;
    bytes.insert(3, (fragment.clone(), 0));
    let written = merge(ALL, &bytes);
    let packets: Vec<_> = written.iter().map(|one| one.packets).collect();
    assert_eq!(packets, [1, 1, 2, 1]);
    assert_eq!(written[0].packet, bytes[2].0);
    assert_eq!(written[1].packet, fragment);
}
