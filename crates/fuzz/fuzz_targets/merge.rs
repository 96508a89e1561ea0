//! Merged packets split into the received ones: none is lost, repaired, reordered or mixed.
#![no_main]

use arbitrary::Arbitrary;
use esp_core::offload::coalesce::{Coalescer, Merging, Ready};
use esp_core::wire::flow::FlowKey;
use esp_core::wire::{VnetHdr, packet_length};
use esp_fuzz::build::{Packet, sum};
use esp_fuzz::{Changes, Recipe, change, split};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    vnet_len: u8,
    tcp: bool,
    udp: bool,
    max_segments: u8,
    flows: Vec<Flow>,
    /// True if the flows come in turn, a packet of each.
    in_turn: bool,
}

#[derive(Arbitrary, Debug)]
struct Flow {
    recipe: Recipe,
    gso_size: u16,
    id_step: u8,
    seq_gap: u8,
    differs: Differs,
    step: u32,
    owner: u8,
    /// Index of the changed segment, and the change.
    damaged: u8,
    changes: Changes,
    not_authentic: bool,
}

/// Changes from one segment to the next, with correct checksums.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Differs {
    Nothing,
    Ack,
    Tos,
    Ttl,
    Host,
    Port,
    Option,
    Flags,
}

fuzz_target!(|input: Input| {
    let merging = Merging {
        vnet_len: [0, VnetHdr::LEN, VnetHdr::LEN_MRG][usize::from(input.vnet_len) % 3],
        tcp: input.tcp,
        udp: input.udp,
        max_segments: u16::from(input.max_segments).max(1),
    };
    let mut coalescer = Coalescer::new(merging);
    let (mut came, mut written) = (Vec::new(), Vec::new());
    let flows = input.flows.iter().take(12);
    let mut all: Vec<_> = flows
        .flat_map(|flow| {
            (0..)
                .zip(packets(flow))
                .map(move |(k, packet)| (k, flow, packet))
        })
        .collect();
    if input.in_turn {
        all.sort_by_key(|(k, ..)| *k);
    }
    for (k, flow, packet) in all {
        // A flow may change its SA, and come by two at once.
        let owner = u64::from(flow.owner) ^ (k & u64::from(flow.owner >> 7));
        let place = coalescer.place(packet.len() + 6).expect("no jumbogram");
        if flow.not_authentic {
            place.fill(0);
            coalescer.cancel();
            continue;
        }
        place[..packet.len()].copy_from_slice(&packet);
        place[packet.len()..].fill(0xEE);
        assert_eq!(coalescer.placed()[..packet.len()], packet);
        coalescer.accept(packet.len(), owner);
        while let Some(ready) = coalescer.due() {
            written.extend(taken_apart(merging, &ready));
        }
        came.push((packet, owner));
    }
    coalescer.flush();
    while let Some(ready) = coalescer.due() {
        written.extend(taken_apart(merging, &ready));
    }
    let comparable = |packets: Vec<(Vec<u8>, u64)>| -> Vec<_> {
        packets
            .into_iter()
            .map(|(packet, owner)| (without_id(packet), owner))
            .collect()
    };
    let (written, came) = (comparable(written), comparable(came));
    assert_eq!(written.len(), came.len());
    for (packet, _) in &came {
        let with = |(other, _): &&(Vec<u8>, u64)| are_ordered(packet, other);
        let order =
            |all: &[(Vec<u8>, u64)]| -> Vec<_> { all.iter().filter(with).cloned().collect() };
        assert_eq!(order(&written), order(&came));
    }
});

/// True for packets of one flow, and for one that belongs to no flow beside a flow of its addresses.
fn are_ordered(flow: &[u8], other: &[u8]) -> bool {
    let key = |packet| FlowKey::of(packet).or_else(|| FlowKey::of_addresses(packet));
    match (key(flow), key(other)) {
        (Some(flow), Some(key)) if FlowKey::of(other).is_none() => key.has_addresses_of(&flow),
        (flow, other) => flow == other,
    }
}

/// With DF the id has no meaning (RFC 6864 4.1), and a fixed one counts up when the super-packet is
/// split again. A checksum that doesn't hold is kept, for it must not be repaired.
fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
    let atomic = packet[0] == 0x45 && packet[6] == 0x40 && packet[7] == 0;
    if atomic && sum(&[&packet[..20]]) == 0xFFFF {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn packets(flow: &Flow) -> Vec<Vec<u8>> {
    let whole = flow.recipe.packet(800);
    let gso_size = 1 + usize::from(flow.gso_size) % 300;
    let segments = whole.segments(gso_size).into_iter().take(32).enumerate();
    segments
        .map(|(k, segment)| {
            let n = u8::try_from(k).unwrap_or(u8::MAX);
            let step = flow.step.wrapping_mul(n.into());
            let mut packet = Packet {
                id: segment
                    .id
                    .wrapping_add((flow.id_step.wrapping_mul(n)).into()),
                seq: segment
                    .seq
                    .wrapping_add((flow.seq_gap.wrapping_mul(n)).into()),
                ..segment
            };
            let byte = step.to_be_bytes()[3];
            match flow.differs {
                Differs::Nothing => {}
                Differs::Ack => packet.ack = packet.ack.wrapping_add(step),
                Differs::Tos => packet.tos ^= byte,
                Differs::Ttl => packet.ttl ^= byte,
                Differs::Host => packet.hosts.0 ^= byte,
                Differs::Port => packet.ports.1 = packet.ports.1.wrapping_add(byte.into()),
                Differs::Option => packet.options.iter_mut().for_each(|option| *option ^= byte),
                Differs::Flags => packet.flags ^= byte,
            }
            let mut bytes = packet.bytes();
            if n == flow.damaged {
                change(&mut bytes, &flow.changes);
            }
            bytes
        })
        // The inbound path checks the length first.
        .filter(|bytes| packet_length(bytes) == Ok(bytes.len()))
        .collect()
}

fn taken_apart(merging: Merging, ready: &Ready<'_>) -> Vec<(Vec<u8>, u64)> {
    let (vnet, packet) = ready.frame.split_at(merging.vnet_len);
    assert!(ready.packets <= merging.max_segments);
    let packets = if ready.packets == 1 {
        assert!(vnet.iter().all(|byte| *byte == 0));
        vec![packet.to_vec()]
    } else {
        let vnet = VnetHdr::read(vnet).expect("merged without a header");
        split(&vnet, packet).expect("merged into something that can't be split")
    };
    assert_eq!(packets.len(), usize::from(ready.packets));
    assert_eq!(
        packets.iter().map(Vec::len).sum::<usize>() as u64,
        ready.bytes
    );
    packets
        .into_iter()
        .map(|packet| (packet, ready.owner))
        .collect()
}
