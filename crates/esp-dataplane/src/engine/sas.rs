//! The policies and the installed SAs, as the control plane changes them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;

use esp_core::esp::sa::Encapsulation;
use esp_core::esp::seq::Lease;
use esp_core::policy::spd::{Policy, Spd};
use esp_linux::adopted::unix_datagram;
use esp_linux::{Error, Result};

use super::counters::{SaCounters, inbound_counters, outbound_counters};
use super::lifecycle::Engine;
use crate::tables::{InboundEntry, OutboundEntry, OuterSocket};
use crate::worker::Command;

impl Engine {
    /// Removes SAs: on return no worker seals or opens with them any more. Returns, for each, true
    /// if it was outbound, and its final counters.
    ///
    /// # Errors
    /// `Argument` if a name is unknown; nothing is removed in that case.
    pub fn remove(&self, names: &[&str]) -> Result<Vec<(bool, SaCounters)>> {
        let tables = self.shared.tables.load_full();
        let by_name: HashMap<&str, &Arc<InboundEntry>> = tables
            .inbound
            .values()
            .map(|entry| (&*entry.sa.spec.name, entry))
            .collect();
        let found = names
            .iter()
            .map(|name| {
                let outbound = tables.outbound.get(*name).map(Removal::Outbound);
                outbound
                    .or_else(|| by_name.get(name).copied().map(Removal::Inbound))
                    .ok_or(Error::Argument("there is no SA of this name"))
            })
            .collect::<Result<Vec<_>>>()?;
        self.change(|tables| {
            for removal in &found {
                match removal {
                    Removal::Outbound(entry) => drop(tables.outbound.remove(&entry.sa.spec.name)),
                    Removal::Inbound(entry) => drop(tables.inbound.remove(&entry.sa.spec.spi)),
                }
            }
        })?;
        self.steer()?;
        Ok(found
            .into_iter()
            .map(|removal| match removal {
                Removal::Outbound(entry) => (true, outbound_counters(entry)),
                Removal::Inbound(entry) => (false, inbound_counters(entry)),
            })
            .collect())
    }

    /// Puts a new SPD in place in one step.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn replace_policies(&self, policies: Vec<Policy>) -> Result<()> {
        let spd = Arc::new(Spd::new(policies));
        self.change(|tables| tables.spd = spd)
    }

    /// Gives an outbound SA more sequence numbers.
    ///
    /// # Errors
    /// `Argument` if there is no such SA, or the lease goes back.
    pub fn extend_lease(&self, name: &str, lease: Lease) -> Result<()> {
        let tables = self.shared.tables.load();
        let entry = tables
            .outbound
            .get(name)
            .ok_or(Error::Argument("there is no SA of this name"))?;
        entry
            .sa
            .seq
            .extend(lease)
            .map_err(|_| Error::Argument("the lease goes back"))
    }

    /// Reports the next number of each of these inbound SAs above the given one; nothing without
    /// the SA.
    pub fn watch_numbers(&self, notices: &HashMap<String, u64>) {
        for entry in self.shared.tables.load().inbound.values() {
            if let Some(&notice_at) = notices.get(&*entry.sa.spec.name) {
                entry.watched.watch(notice_at);
            }
        }
    }

    /// Sends to this address until the peer of an SA is heard, unless its address is known; nothing
    /// without the SA. The port is that of ESP in UDP.
    pub fn place_peer(&self, name: &str, address: SocketAddr) {
        let tables = self.shared.tables.load();
        for (spec, peer) in tables.peers().filter(|(spec, _)| &*spec.name == name) {
            let port = match spec.encapsulation {
                Encapsulation::Udp => address.port(),
                Encapsulation::None => 0,
            };
            peer.place(SocketAddr::new(address.ip(), port));
        }
    }

    /// Sends a NAT keepalive for an outbound SA.
    ///
    /// # Errors
    /// The error of the system call; `Argument` if there is no such SA.
    pub fn keepalive(&self, name: &str) -> Result<()> {
        let tables = self.shared.tables.load();
        let entry = tables
            .outbound
            .get(name)
            .ok_or(Error::Argument("there is no SA of this name"))?;
        let spec = &entry.sa.spec;
        let outer = OuterSocket {
            address: spec.local,
            encapsulation: spec.encapsulation,
        };
        self.tell_first(Command::Keepalive(outer, entry.peer.address()))
    }

    /// Sends a dummy packet (RFC 4303 2.6), an authentic keepalive, by an outbound SA.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn dummy(&self, name: &str) -> Result<()> {
        self.tell_first(Command::Dummy(Arc::from(name)))
    }

    /// Passes IKE datagrams that come to the port of ESP in UDP to a connected unix datagram socket,
    /// of which the caller keeps its own copy, or drops them again.
    ///
    /// # Errors
    /// The error of the system call; `Argument` for a file of another kind.
    pub fn relay_ike(&self, socket: Option<RawFd>) -> Result<()> {
        let socket = socket.map(unix_datagram).transpose()?;
        self.shared.ike.replace(socket);
        Ok(())
    }

    /// The IKE datagrams that were passed on.
    #[must_use]
    pub fn ike_passed(&self) -> u64 {
        self.shared.ike.passed()
    }

    /// Treats every inbound flow as new: its next packet is checked as the first one is, and may be
    /// an opening.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn forget_flows(&self) -> Result<()> {
        self.tell(|_| Some(Command::ForgetFlows))
    }

    /// Sends a keepalive's command to one worker: the sockets of all have the same address and port.
    fn tell_first(&self, command: Command) -> Result<()> {
        let first = self.mailboxes.first();
        let first = first.ok_or(Error::Argument("there is no worker"))?;
        first.send(command)
    }
}

/// An SA to be removed.
enum Removal<'a> {
    Outbound(&'a Arc<OutboundEntry>),
    Inbound(&'a Arc<InboundEntry>),
}
