//! The lane of a flow: by its rate, the hash of its key, and the SAs that work.

use std::collections::BTreeSet;

use esp_core::policy::lanes::{
    BULK, HOLD, INTERVAL, LANE_FLOWS, Lanes, QUIET, STAY, bulk_lane, in_turn,
};
use esp_core::policy::spd::{Policy, PolicyAction};
use esp_core::wire::flow::FlowKey;
use serde::Deserialize;

use crate::build::Packet;

const LANES: &str = include_str!("../../../../tests/vectors/lanes.json");
const SPARSE: usize = 0;
const ON_BULK: usize = 7;

#[derive(Deserialize)]
struct Vectors {
    interval: u64,
    bulk: usize,
    stay: usize,
    quiet: u64,
    hold: u64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    steps: Vec<(u64, String, usize, bool)>,
}

fn flow(number: u32) -> FlowKey {
    let port = number as u16;
    let packet = Packet {
        ports: (port, 443 + (number >> 16) as u16),
        ..Packet::default()
    };
    FlowKey::of(&packet.bytes()).unwrap()
}

fn policy(count: usize) -> Policy {
    Policy {
        name: "p".into(),
        action: PolicyAction::Protect,
        selectors: Vec::new(),
        sas: (0..count).map(|n| n.to_string().into()).collect(),
    }
}

fn is_bulk(lanes: &mut Lanes, flow: &FlowKey, bytes: usize) -> bool {
    lanes.carrier_of(flow, bytes, SPARSE, ON_BULK) == ON_BULK
}

fn carriers(lanes: &Lanes, span: u64) -> impl Iterator<Item = usize> {
    lanes.recent(span).map(|(.., carrier)| carrier)
}

#[test]
fn the_limits_are_those_of_the_python_engine() {
    let vectors = serde_json::from_str::<Vectors>(LANES).unwrap();
    let Vectors {
        interval,
        bulk,
        stay,
        quiet,
        hold,
        ..
    } = vectors;
    let limits = (interval, bulk, stay, quiet, hold);
    assert_eq!(limits, (INTERVAL, BULK, STAY, QUIET, HOLD));
}

#[test]
fn a_flow_moves_as_the_cases_say() {
    let cases = serde_json::from_str::<Vectors>(LANES).unwrap().cases;
    assert!(cases.len() >= 12);
    for case in cases {
        let (mut lanes, flow) = (Lanes::default(), flow(1));
        for (step, (now, kind, bytes, expected)) in case.steps.iter().enumerate() {
            lanes.advance(*now);
            if kind == "heard" {
                lanes.heard(&flow, *bytes);
            }
            let sent = if kind == "sent" { *bytes } else { 0 };
            let bulk = is_bulk(&mut lanes, &flow, sent);
            assert_eq!(bulk, *expected, "{}, step {step}", case.name);
        }
    }
}

#[test]
fn both_directions_are_one_flow() {
    let there = Packet::default().bytes();
    let mut back = there.clone();
    // Addresses and ports of IPv4.
    back[12..16].copy_from_slice(&there[16..20]);
    back[16..20].copy_from_slice(&there[12..16]);
    back[20..22].copy_from_slice(&there[22..24]);
    back[22..24].copy_from_slice(&there[20..22]);
    let [there, back] = [there, back].map(|packet| FlowKey::of(&packet).unwrap());
    assert_ne!(there, back);
    let mut lanes = Lanes::default();
    lanes.heard(&back, 1400);
    assert!(is_bulk(&mut lanes, &there, 52));
}

#[test]
fn time_never_goes_back() {
    let (mut lanes, flow) = (Lanes::default(), flow(1));
    lanes.advance(10_000);
    assert!(is_bulk(&mut lanes, &flow, BULK));
    lanes.advance(1);
    assert!(is_bulk(&mut lanes, &flow, 1));
}

#[test]
fn flows_are_bounded_and_the_one_that_was_silent_longest_gives_way() {
    let (mut lanes, kept) = (Lanes::default(), flow(0));
    lanes.advance(1);
    assert!(is_bulk(&mut lanes, &kept, BULK));
    for number in 1..300_000 {
        lanes.advance(u64::from(number));
        assert!(!is_bulk(&mut lanes, &flow(number), 84));
        // One that goes on sending keeps its place.
        assert!(is_bulk(&mut lanes, &kept, STAY), "{number}");
    }
    assert!(lanes.recent(u64::MAX).count() <= LANE_FLOWS);
    assert_eq!(
        carriers(&lanes, u64::MAX)
            .filter(|&on| on == ON_BULK)
            .count(),
        1
    );
}

#[test]
fn only_recent_flows_are_counted_and_none_after_their_carriers_are_forgotten() {
    let mut lanes = Lanes::default();
    assert_eq!(carriers(&lanes, 10_000).count(), 0);
    lanes.advance(1000);
    assert!(is_bulk(&mut lanes, &flow(1), BULK));
    lanes.advance(9000);
    assert!(!is_bulk(&mut lanes, &flow(2), 84));
    assert_eq!(
        carriers(&lanes, 10_000).collect::<BTreeSet<_>>(),
        BTreeSet::from([SPARSE, ON_BULK])
    );
    lanes.advance(12_000);
    assert!(carriers(&lanes, 10_000).eq([SPARSE]));
    lanes.forget_carriers();
    assert_eq!(carriers(&lanes, 10_000).count(), 0);
    // The rate is not forgotten.
    assert!(is_bulk(&mut lanes, &flow(3), BULK));
    lanes.forget_carriers();
    assert!(is_bulk(&mut lanes, &flow(3), 1));
}

#[test]
fn a_sparse_flow_tries_lane_0_first_and_a_bulk_flow_last() {
    let order = |count, spread, bulk| -> Vec<usize> {
        let mut seen = BTreeSet::new();
        let policy = policy(count);
        let lanes = in_turn(&policy, spread, bulk);
        lanes.filter(|&lane| seen.insert(lane)).collect()
    };
    assert_eq!(order(0, 5, false), [] as [usize; 0]);
    assert_eq!(order(1, 5, true), [0]);
    assert_eq!(order(2, 5, false), [0, 1]);
    assert_eq!(order(2, 5, true), [1, 0]);
    // 7 % 3 is 1: lane 2.
    assert_eq!(order(4, 7, false), [0, 2, 3, 1]);
    assert_eq!(order(4, 7, true), [2, 3, 1, 0]);
}

#[test]
fn every_bulk_lane_gets_its_share_of_the_flows_and_lane_0_none() {
    for count in [2, 3, 4, 8, 64] {
        let mut found = vec![0_usize; count];
        for number in 0..100 * count as u32 {
            found[bulk_lane(flow(33_000 + number).spread(), count)] += 1;
        }
        assert_eq!(found[0], 0);
        let fair = 100 * count / (count - 1);
        let is_fair = |share: &usize| (fair / 2..=fair * 3 / 2).contains(share);
        assert!(found[1..].iter().all(is_fair), "{found:?}");
    }
    assert_eq!((bulk_lane(7, 0), bulk_lane(7, 1)), (0, 0));
}
