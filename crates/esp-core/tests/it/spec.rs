//! The wanted SA of tests; other test programs take this file in by its path.

use std::net::{IpAddr, Ipv4Addr};

use esp_core::esp::sa::{Encapsulation, KeyMaterial, Mode, SaSpec};
use esp_core::esp::suite::Suite;

/// Tunnel mode over IPv4 in UDP, with ESN.
pub fn tunnel(suite: &'static Suite, keymat: KeyMaterial) -> SaSpec {
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    SaSpec {
        name: "sa".into(),
        spi: 0x1234_5678,
        suite,
        keymat,
        mode: Mode::Tunnel,
        encapsulation: Encapsulation::Udp,
        local: address,
        remote: address,
        remote_port: 4500,
        local_original: None,
        remote_original: None,
        selectors: Vec::new(),
        esn: true,
        replay_window: 64,
        pair: None,
        tunnel: None,
        lane: None,
    }
}
