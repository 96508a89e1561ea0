//! The offloads and providers in use, with reasons for unused ones.

use std::collections::BTreeMap;
use std::net::IpAddr;

use esp_core::esp::sa::Encapsulation;
use esp_core::offload::coalesce::MergeKind;
use esp_linux::tun::TunFeatures;

use super::lifecycle::Engine;
use super::settings::Offloads;
use crate::latency::LatencyRequests;
use crate::stages::Stages;

/// Most peers named in the reason for a refused GSO.
const MAX_NAMED: usize = 4;
const NOT_IN_KERNEL: &str = "the kernel lacks it";

/// State of one offload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffloadStatus {
    /// Its name in the configuration.
    pub name: &'static str,
    /// True if it is in use.
    pub in_use: bool,
    /// Reason that it is unused or used in part; else empty.
    pub why: String,
}

impl Engine {
    /// The offloads, in the order of the configuration.
    #[must_use]
    pub fn offloads(&self) -> Vec<OffloadStatus> {
        let status = |(offload, name)| {
            let (in_use, why) = if self.settings.offloads.contains(offload) {
                self.wanted(offload)
            } else {
                (false, "switched off".to_string())
            };
            OffloadStatus { name, in_use, why }
        };
        Offloads::NAMES.map(status).into()
    }

    /// The workers' requests for a short wake-up latency.
    #[must_use]
    pub fn latency(&self) -> &LatencyRequests {
        &self.shared.latency
    }

    /// The workers' time by stage, while a profile runs.
    #[must_use]
    pub fn stages(&self) -> &Stages {
        &self.shared.stages
    }

    /// Each suite in use, with its provider.
    #[must_use]
    pub fn providers(&self) -> BTreeMap<&'static str, String> {
        let tables = self.shared.tables.load();
        let outbound = tables.outbound.values().map(|entry| entry.sa.spec.suite);
        let inbound = tables.inbound.values().map(|entry| entry.sa.spec.suite);
        let mut providers = BTreeMap::new();
        for suite in outbound.chain(inbound) {
            providers
                .entry(suite.name)
                .or_insert_with(|| self.shared.aeads.of(suite));
        }
        providers
    }

    fn wanted(&self, offload: Offloads) -> (bool, String) {
        let (supported, on) = self.tun;
        let mut udp = self
            .sockets
            .iter()
            .filter(|(outer, _)| outer.encapsulation == Encapsulation::Udp)
            .map(|(_, given)| given)
            .peekable();
        let in_kernel = |has: bool| (has, if has { "" } else { NOT_IN_KERNEL }.to_string());
        match offload {
            Offloads::TSO => in_kernel(on.contains(TunFeatures::TSO4 | TunFeatures::TSO6)),
            Offloads::USO => in_kernel(on.contains(TunFeatures::USO)),
            Offloads::MERGE if self.merge_refused().is_some() => {
                self.merge_refused().unwrap_or_default()
            }
            Offloads::MERGE if supported.contains(TunFeatures::USO) => (true, String::new()),
            Offloads::MERGE => (true, "TCP only: the kernel lacks USO".to_string()),
            _ if udp.peek().is_none() => (false, "no tunnel is in UDP".to_string()),
            Offloads::UDP_GRO => in_kernel(udp.all(|given| given.gro)),
            _ if !udp.all(|given| given.gso) => in_kernel(false),
            _ => self.gso_to_peers(),
        }
    }

    /// The state of merging if the TUN has refused super-packets.
    fn merge_refused(&self) -> Option<(bool, String)> {
        let refusal = &self.shared.merge_refusal;
        let (in_use, refused) = match (refusal.has(MergeKind::Tcp), refusal.has(MergeKind::Udp)) {
            (false, false) => return None,
            (true, false) => (true, "TCP"),
            (false, true) => (true, "UDP"),
            (true, true) => (false, "TCP and UDP"),
        };
        let why = format!("the TUN refuses super-packets of {refused} (EINVAL)");
        Some((in_use, why))
    }

    fn gso_to_peers(&self) -> (bool, String) {
        let tables = self.shared.tables.load();
        let mut refused: BTreeMap<IpAddr, &'static str> = BTreeMap::new();
        let mut taken = false;
        let all = tables.outbound.values();
        for entry in all.filter(|entry| entry.sa.spec.encapsulation == Encapsulation::Udp) {
            let peer = entry.peer.address().ip();
            match entry.gso_refused.at(peer) {
                Some(errno) => {
                    refused.insert(peer, errno);
                }
                None => taken = true,
            }
        }
        if refused.is_empty() {
            return (true, String::new());
        }
        let mut named: Vec<String> = refused
            .iter()
            .take(MAX_NAMED)
            .map(|(peer, errno)| format!("{peer} ({errno})"))
            .collect();
        if refused.len() > MAX_NAMED {
            named.push(format!("{} more", refused.len() - MAX_NAMED));
        }
        (taken, format!("refused for {}", named.join(", ")))
    }
}
