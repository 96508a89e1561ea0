//! Spreading of flows over a tunnel's SAs.

use esp_core::policy::spd::{Policy, PolicyAction};
use esp_core::wire::flow::FlowKey;
use serde::Deserialize;

use crate::build::Packet;

const SPREAD: &str = include_str!("../../../../tests/vectors/flow_spread.json");

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    packet: String,
    spread: String,
}

fn spread(packet: &[u8]) -> u64 {
    FlowKey::of(packet)
        .or_else(|| FlowKey::of_addresses(packet))
        .unwrap()
        .spread()
}

fn policy(count: usize) -> Policy {
    Policy {
        name: "p".into(),
        action: PolicyAction::Protect,
        selectors: Vec::new(),
        sas: (0..count).map(|n| n.to_string().into()).collect(),
    }
}

#[test]
fn the_spread_is_the_one_of_the_python_engine() {
    let cases = serde_json::from_str::<Vectors>(SPREAD).unwrap().cases;
    assert!(cases.len() >= 14);
    for case in cases {
        let packet: Vec<u8> = (0..case.packet.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&case.packet[i..i + 2], 16).unwrap())
            .collect();
        let expected = u64::from_str_radix(&case.spread, 16).unwrap();
        assert_eq!(spread(&packet), expected, "{}", case.name);
    }
}

#[test]
fn every_sa_of_a_policy_gets_its_share_of_the_flows() {
    for count in [1, 2, 3, 4, 8, 64] {
        let policy = policy(count);
        let mut found = vec![0; count];
        for flow in 0..100 * count as u16 {
            let packet = Packet {
                ports: (33_000 + flow, 443),
                ..Packet::default()
            };
            let name = policy.sa_of(spread(&packet.bytes())).unwrap();
            found[name.parse::<usize>().unwrap()] += 1;
        }
        assert!(
            found.iter().all(|share| (50..150).contains(share)),
            "{found:?}"
        );
    }
}

#[test]
fn the_sa_is_the_spread_modulo_their_number() {
    let policy = policy(3);
    for (spread, name) in [(0, "0"), (1, "1"), (5, "2"), (u64::MAX, "0")] {
        assert_eq!(policy.sa_of(spread).map(|sa| &**sa), Some(name));
    }
}

#[test]
fn a_policy_without_sas_has_none_for_any_flow() {
    assert_eq!(policy(0).sa_of(7), None);
}
