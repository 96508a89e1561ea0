//! The SPD finds the policy that a search through all of them, one after the other, finds.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arbitrary::Arbitrary;
use esp_core::policy::selector::{Prefix, Selector};
use esp_core::policy::spd::{Policy, PolicyAction, Spd};
use esp_core::wire::Inner;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    policies: Vec<Vec<Wanted>>,
    packets: Vec<Seen>,
}

#[derive(Arbitrary, Debug)]
struct Wanted {
    v6: bool,
    local: (u8, u8),
    remote: (u8, u8),
    protocol: Option<bool>,
    local_port: Option<(u8, u8)>,
    remote_port: Option<(u8, u8)>,
}

#[derive(Arbitrary, Debug)]
struct Seen {
    v6: bool,
    src: u8,
    dst: u8,
    tcp: bool,
    ports: Option<(u8, u8)>,
}

fuzz_target!(|input: Input| {
    let policies = (0_u32..)
        .zip(input.policies.iter().take(20))
        .map(|(number, wanted)| Policy {
            name: number.to_string().into(),
            action: PolicyAction::Discard,
            selectors: wanted.iter().take(5).map(selector).collect(),
            sas: Vec::new(),
        });
    let spd = Spd::new(policies.collect());
    for seen in &input.packets {
        let inner = inner(seen);
        let expected = input
            .policies
            .iter()
            .take(20)
            .position(|wanted| wanted.iter().take(5).any(|wanted| matches(wanted, seen)));
        let found = spd.lookup(&inner).map(|policy| policy.name.to_string());
        assert_eq!(found, expected.map(|number| number.to_string()));
    }
});

fn address(v6: bool, last: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::from_bits(u128::from(last) << 60 | u128::from(last)).into()
    } else {
        Ipv4Addr::from_bits(u32::from(last) << 20 | u32::from(last)).into()
    }
}

fn bits(v6: bool, bits: u8) -> u8 {
    bits % if v6 { 129 } else { 33 }
}

fn selector(wanted: &Wanted) -> Selector {
    let prefix = |(last, length)| {
        Prefix::new(address(wanted.v6, last), bits(wanted.v6, length)).expect("it is short enough")
    };
    let range = |range: Option<(u8, u8)>| range.map(|(a, b)| a.into()..=b.into());
    Selector {
        local: prefix(wanted.local),
        remote: prefix(wanted.remote),
        protocol: wanted.protocol.map(protocol),
        local_port: range(wanted.local_port),
        remote_port: range(wanted.remote_port),
    }
}

fn protocol(tcp: bool) -> u8 {
    if tcp { 6 } else { 17 }
}

fn inner(seen: &Seen) -> Inner {
    let value = |last| match address(seen.v6, last) {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    Inner {
        version: if seen.v6 { 6 } else { 4 },
        src: value(seen.src),
        dst: value(seen.dst),
        protocol: protocol(seen.tcp),
        src_port: seen.ports.map(|(src, _)| src.into()),
        dst_port: seen.ports.map(|(_, dst)| dst.into()),
        payload: 20,
        upper: 20,
        fragment: false,
    }
}

/// RFC 4301 4.4.1.1, bit by bit.
fn matches(wanted: &Wanted, seen: &Seen) -> bool {
    let text = |last| match address(seen.v6, last) {
        IpAddr::V4(v4) => format!("{:032b}", v4.to_bits()),
        IpAddr::V6(v6) => format!("{:0128b}", v6.to_bits()),
    };
    let within = |(network, length): (u8, u8), host: u8| {
        let length = usize::from(bits(seen.v6, length));
        text(network)[..length] == text(host)[..length]
    };
    let port = |range: Option<(u8, u8)>, port: Option<u8>| match (range, port) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some((first, last)), Some(port)) => first <= port && port <= last,
    };
    wanted.v6 == seen.v6
        && within(wanted.local, seen.src)
        && within(wanted.remote, seen.dst)
        && wanted.protocol.is_none_or(|tcp| tcp == seen.tcp)
        && port(wanted.local_port, seen.ports.map(|(src, _)| src))
        && port(wanted.remote_port, seen.ports.map(|(_, dst)| dst))
}
