//! Spreading of flows over a tunnel's SAs.

use esp_core::wire::flow::FlowKey;
use serde::Deserialize;

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
