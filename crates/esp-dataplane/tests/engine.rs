//! The engine with its threads, on a real TUN device and real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

#[path = "../../esp-linux/tests/common/mod.rs"]
mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;

use common::{Netns, PATIENCE, eventually, ip, ip_says, readable};
use esp_core::DropReason;
use esp_core::esp::sa::{Encapsulation, KeyMaterial, Mode, SaSpec};
use esp_core::esp::seq::Lease;
use esp_core::esp::suite::SUITES;
use esp_core::policy::selector::{Prefix, Selector};
use esp_core::policy::spd::{Policy, PolicyAction};
use esp_core::provider::Choice;
use esp_dataplane::engine::{Engine, Offloads, SadChange, Settings};
use esp_dataplane::events::Event;
use esp_dataplane::tables::OuterSocket;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn settings() -> Settings {
    Settings {
        interface: "esp0".into(),
        port: 4500,
        fwmark: 0,
        min_mtu: 1280,
        workers: Some(2),
        pin_workers: false,
        low_latency: None,
        provider: Choice::Auto,
        af_alg: Vec::new(),
        offloads: Offloads::all(),
    }
}

fn everything_from_the_tun() -> Selector {
    let net = |host| Prefix::new(IpAddr::V4(Ipv4Addr::new(10, 0, host, 0)), 24).unwrap();
    Selector {
        local: net(1),
        remote: net(2),
        protocol: None,
        local_port: None,
        remote_port: None,
    }
}

/// An SA whose peer no socket of its local address can reach, which no configuration may hold.
fn impossible() -> SaSpec {
    let suite = &SUITES[0];
    SaSpec {
        name: "sa".into(),
        spi: 0x1001,
        suite,
        keymat: KeyMaterial::new(suite, &vec![1; suite.keymat_len()]).unwrap(),
        mode: Mode::Tunnel,
        encapsulation: Encapsulation::Udp,
        local: LOCAL,
        remote: IpAddr::V6(Ipv6Addr::LOCALHOST),
        remote_port: 4500,
        local_original: None,
        remote_original: None,
        selectors: vec![everything_from_the_tun()],
        esn: true,
        replay_window: 64,
        pair: None,
        tunnel: None,
        lane: None,
    }
}

/// Dropped packets of the SA that could not be sent.
fn unsent(engine: &Engine) -> u64 {
    let sas = engine.sas();
    sas[0].2.counters.dropped(DropReason::SendError)
}

#[test]
fn a_packet_that_no_socket_takes_is_lost_alone_and_workers_without_a_device_are_told_of() {
    let _netns = Netns::enter_new();
    let mut engine = Engine::open(settings()).unwrap();
    engine.start().unwrap();
    ip("address add 10.0.1.1/24 dev esp0");
    ip("link set esp0 up");
    ip("route add 10.0.2.0/24 dev esp0");
    let outer = OuterSocket {
        address: LOCAL,
        encapsulation: Encapsulation::Udp,
    };
    engine.set_sockets(&[outer]).unwrap();
    let lease = Lease { first: 1, last: 99 };
    engine
        .change_sas(SadChange {
            outbound: vec![(impossible(), lease)],
            ..SadChange::default()
        })
        .unwrap();
    let protect = Policy {
        name: "p".into(),
        action: PolicyAction::Protect,
        selectors: vec![everything_from_the_tun()],
        sas: vec![Arc::from("sa")],
    };
    engine.replace_policies(vec![protect]).unwrap();

    let host = UdpSocket::bind("10.0.1.1:0").unwrap();
    for lost in 1..=3 {
        host.send_to(b"to a worker", "10.0.2.1:9").unwrap();
        eventually("a lost packet is counted", || unsent(&engine) == lost);
    }
    assert_eq!(engine.events().take(), []);

    ip("link delete esp0");
    assert!(
        readable(engine.events().waker(), PATIENCE),
        "nothing is told"
    );
    for event in engine.events().take() {
        let Event::EngineFailed(reason) = event else {
            panic!("something else than a failure")
        };
        assert!(reason.starts_with("esp0: worker "), "{reason}");
    }

    // Workers have ended: nobody waits for them.
    engine.replace_policies(Vec::new()).unwrap();
    let (outbound, last) = &engine.remove(&["sa"]).unwrap()[0];
    assert!(outbound);
    assert_eq!((last.seq, last.counters.packets), (4, 0));
    drop(engine);
    assert!(!ip_says("link show").contains("esp0"));
}
