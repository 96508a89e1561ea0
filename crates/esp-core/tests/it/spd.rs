use std::net::IpAddr;

use esp_core::policy::selector::{Prefix, Selector};
use esp_core::policy::spd::{Policy, PolicyAction, Spd};
use esp_core::wire::{Inner, parse};
use proptest::prelude::*;

use crate::build::Packet;
use crate::strategy::packet;

fn prefix(text: &str, bits: u8) -> Prefix {
    Prefix::new(text.parse::<IpAddr>().unwrap(), bits).unwrap()
}

fn any_to_any(v6: bool) -> Selector {
    let all = prefix(if v6 { "::" } else { "0.0.0.0" }, 0);
    Selector {
        local: all,
        remote: all,
        protocol: None,
        local_port: None,
        remote_port: None,
    }
}

fn selector() -> impl Strategy<Value = Selector> {
    let net = |v6: bool| if v6 { "2001:db8::" } else { "192.0.2.0" };
    (
        any::<bool>(),
        (0..=8_u8, 0..4_u8),
        (0..=8_u8, 0..4_u8),
        prop::option::of(prop::sample::select(vec![6_u8, 17])),
        prop::option::of(0..3_u16),
        prop::option::of(0..3_u16),
    )
        .prop_map(
            move |(v6, local, remote, protocol, local_port, remote_port)| {
                let prefix = |(host, last): (u8, u8)| {
                    let width = if v6 { 128 } else { 32 };
                    let address: IpAddr = net(v6).parse().unwrap();
                    let address = match address {
                        IpAddr::V4(a) => IpAddr::V4((u32::from(a) | u32::from(last)).into()),
                        IpAddr::V6(a) => IpAddr::V6((u128::from(a) | u128::from(last)).into()),
                    };
                    Prefix::new(address, width - host * 4).unwrap()
                };
                Selector {
                    local: prefix(local),
                    remote: prefix(remote),
                    protocol,
                    local_port: local_port.map(|port| port..=port + 1),
                    remote_port: remote_port.map(|port| port..=port + 1),
                }
            },
        )
}

fn policy(number: usize, selectors: Vec<Selector>) -> Policy {
    Policy {
        name: number.to_string().into(),
        action: PolicyAction::Protect,
        selectors,
        sas: vec!["sa".into()],
    }
}

proptest! {
    #[test]
    fn the_first_policy_that_matches_is_found(
        selectors in prop::collection::vec(prop::collection::vec(selector(), 0..4), 0..20),
        packet in packet(5), hosts in (0..4_u8, 0..4_u8), ports in (0..4_u16, 0..4_u16),
    ) {
        let policies: Vec<_> =
            selectors.into_iter().enumerate().map(|(n, s)| policy(n, s)).collect();
        let inner = parse(&Packet { hosts, ports, ..packet }.bytes()).unwrap();
        let expected = policies
            .iter()
            .find(|policy| policy.selectors.iter().any(|s| s.matches_outbound(&inner)))
            .cloned();
        let spd = Spd::new(policies);
        prop_assert_eq!(spd.lookup(&inner).cloned(), expected);
    }

    #[test]
    fn a_fragment_has_the_candidates_of_its_packet_whatever_the_ports(
        selectors in prop::collection::vec(selector(), 0..20),
        packet in packet(5), hosts in (0..4_u8, 0..4_u8), ports in (0..4_u16, 0..4_u16),
    ) {
        let policies: Vec<_> =
            selectors.into_iter().enumerate().map(|(n, s)| policy(n, vec![s])).collect();
        let whole = parse(&Packet { hosts, ports, ..packet }.bytes()).unwrap();
        let fragment = Inner { src_port: None, dst_port: None, fragment: true, ..whole };
        let mut expected = Vec::new();
        for policy in &policies {
            let but_ports =
                Selector { local_port: None, remote_port: None, ..policy.selectors[0].clone() };
            if but_ports.matches_outbound(&fragment) {
                expected.push(policy.clone());
                if policy.selectors[0] == but_ports {
                    break;
                }
            }
        }
        let spd = Spd::new(policies);
        let candidates: Vec<_> = spd.candidates(&fragment).cloned().collect();
        prop_assert_eq!(&candidates, &expected);
        prop_assert_eq!(&spd.candidates(&whole).cloned().collect::<Vec<_>>(), &expected);
        prop_assert!(spd.lookup(&whole).is_none_or(|found| candidates.contains(found)));
    }
}

#[test]
fn selectors_are_named_from_this_side() {
    let selector = Selector {
        local: prefix("192.0.2.1", 32),
        remote: prefix("192.0.2.2", 32),
        protocol: Some(6),
        local_port: Some(1000..=1000),
        remote_port: Some(1999..=2000),
    };
    let out = parse(&Packet::default().bytes()).unwrap();
    let back = parse(
        &Packet {
            hosts: (2, 1),
            ports: (2000, 1000),
            ..Packet::default()
        }
        .bytes(),
    )
    .unwrap();
    assert!(selector.matches_outbound(&out) && !selector.matches_inbound(&out));
    assert!(selector.matches_inbound(&back) && !selector.matches_outbound(&back));
    for wrong in [
        Packet {
            tcp: false,
            ..Packet::default()
        },
        Packet {
            ports: (999, 2000),
            ..Packet::default()
        },
        Packet {
            ports: (1000, 2001),
            ..Packet::default()
        },
        Packet {
            hosts: (1, 3),
            ..Packet::default()
        },
        Packet {
            hosts: (3, 2),
            ..Packet::default()
        },
    ] {
        assert!(!selector.matches_outbound(&parse(&wrong.bytes()).unwrap()));
    }
}

#[test]
fn a_port_range_matches_only_packets_with_ports() {
    let mut icmp = Packet::default().bytes();
    icmp[9] = 1;
    let inner = parse(&icmp).unwrap();
    assert!(any_to_any(false).matches_outbound(&inner));
    let ports = Selector {
        local_port: Some(0..=65535),
        ..any_to_any(false)
    };
    assert!(!ports.matches_outbound(&inner));
    assert!(!any_to_any(true).matches_outbound(&inner));
}

#[test]
fn prefixes_have_no_more_bits_than_addresses() {
    assert!(Prefix::new("192.0.2.1".parse().unwrap(), 33).is_none());
    assert!(Prefix::new("::".parse().unwrap(), 129).is_none());
    assert!(prefix("192.0.2.77", 24).contains(0xC000_0201));
    assert!(!prefix("192.0.2.77", 24).contains(0xC000_0301));
    assert!(prefix("::1", 128).contains(1) && !prefix("::1", 128).contains(2));
}
