use std::net::IpAddr;

use esp_core::DropReason;
use esp_core::counters::{Counters, Tally};
use esp_core::wire::inner::{
    transport_header, transport_header_len, transport_payload, tunnel_next_header, tunnel_packet,
};
use esp_core::wire::traffic_class;

use crate::build::Packet;

fn with_ecn(v6: bool, ecn: u8) -> Vec<u8> {
    Packet {
        v6,
        tos: 0xB8 | ecn,
        ..Packet::default()
    }
    .bytes()
}

#[test]
fn outer_congestion_comes_in_as_rfc_6040_says() {
    // Figure 4: by inner and outer field, None for a drop.
    let table = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for v6 in [false, true] {
        for (inner, row) in table.iter().enumerate() {
            for (outer, expected) in row.iter().enumerate() {
                let mut packet = with_ecn(v6, inner as u8);
                let next_header = tunnel_next_header(&packet);
                let length = tunnel_packet(&mut packet, next_header, outer as u8);
                match expected {
                    None => assert_eq!(length, Err(DropReason::EcnNotEct)),
                    Some(ecn) => {
                        assert_eq!(length, Ok(packet.len()));
                        assert_eq!(packet, with_ecn(v6, *ecn), "{inner} {outer}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_no_ip_packet_does_not_come_out_of_a_tunnel() {
    let packet = with_ecn(false, 0);
    let tunnel = |payload: &[u8], next| tunnel_packet(&mut payload.to_vec(), next, 0);
    assert_eq!(tunnel(&packet, 6), Err(DropReason::BadNextHeader));
    assert_eq!(tunnel(&packet, 41), Err(DropReason::MalformedInner));
    assert_eq!(tunnel(&[], 4), Err(DropReason::MalformedInner));
    assert_eq!(
        tunnel(&packet[..packet.len() - 1], 4),
        Err(DropReason::MalformedInner)
    );
    let padded = [&packet[..], &[0; 99]].concat();
    assert_eq!(tunnel(&padded, 4), Ok(packet.len()));
}

#[test]
fn transport_mode_gives_back_what_it_took() {
    for v6 in [false, true] {
        let packet = Packet {
            v6,
            id: 0,
            tos: 3,
            ..Packet::default()
        }
        .bytes();
        let (start, next_header) = transport_payload(&packet).unwrap();
        let address = |last: u8| -> IpAddr {
            let net = if v6 { "2001:db8::" } else { "192.0.2." };
            format!("{net}{last}").parse().unwrap()
        };
        assert_eq!(start, transport_header_len(address(1)));
        let mut rebuilt = vec![0; start];
        rebuilt.extend(&packet[start..]);
        let tos = traffic_class(&packet);
        transport_header(&mut rebuilt, address(1), address(2), next_header, tos).unwrap();
        assert_eq!(rebuilt, packet);
        let mut long = vec![0; 65536];
        let dropped = transport_header(&mut long, address(1), address(2), 6, 0);
        assert_eq!(dropped, Err(DropReason::MalformedInner));
    }
}

#[test]
fn headers_that_transport_mode_can_not_carry_are_refused() {
    let unsupported = Err(DropReason::UnsupportedHeader);
    let mut packet = with_ecn(false, 0);
    packet[0] = 0x46;
    assert_eq!(transport_payload(&packet), unsupported);
    let mut packet = with_ecn(true, 0);
    for next_header in [0, 43] {
        packet[6] = next_header;
        assert_eq!(transport_payload(&packet), unsupported);
    }
    packet[6] = 60;
    assert_eq!(transport_payload(&packet), Ok((40, 60)));
}

#[test]
fn reasons_are_those_of_the_python_engine() {
    let model = include_str!("../../../../esp_gw/model.py");
    let (_, reasons) = model.split_once("class DropReason").unwrap();
    let (reasons, _) = reasons.split_once("@dataclass").unwrap();
    let expected: Vec<&str> = reasons
        .lines()
        .filter_map(|line| line.split_once(" = \"")?.1.strip_suffix('"'))
        .collect();
    let ours: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(ours, expected);
    assert!(ours.len() > 20);
}

#[test]
fn counters_add_up() {
    let tally = Tally::default();
    tally.carried(2, 100);
    tally.dropped(DropReason::TunError, 3);
    tally.dropped(DropReason::TunError, 1);
    let mut total = Counters::default();
    total += &tally.snapshot();
    total += &tally.snapshot();
    assert_eq!((total.packets, total.bytes), (4, 200));
    assert_eq!(
        total.drops().collect::<Vec<_>>(),
        [(DropReason::TunError, 8)]
    );
}
