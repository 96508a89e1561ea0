//! The SAs and policies, as the control plane changes them.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use esp_core::esp::aead::ProviderError;
use esp_core::esp::sa::{InboundSa, OutboundSa, SaSpec};
use esp_core::esp::seq::Lease;
use esp_core::policy::spd::{Policy, Spd};
use esp_linux::{Error, Result};

use super::counters::{SaCounters, inbound_counters, outbound_counters};
use super::lifecycle::Engine;
use crate::peers::{Heard, Peers};
use crate::tables::{InboundEntry, OutboundEntry, OuterSocket};
use crate::tallies::Tallies;
use crate::worker::Command;

/// An SA that can't be installed, with the reason.
#[derive(Debug)]
pub struct Refused {
    /// The SA's name.
    pub sa: Arc<str>,
    /// The reason.
    pub why: Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.sa, self.why)
    }
}

impl std::error::Error for Refused {}

impl Engine {
    /// Adds SAs in one step, all or none. An outbound SA begins at its lease's first number; the
    /// window of an inbound SA treats every number up to the given one as seen.
    ///
    /// # Errors
    /// `Refused` with the SA whose lease or SPI is unusable, or whose suite the provider lacks.
    pub fn install(
        &self,
        outbound: Vec<(SaSpec, Lease)>,
        inbound: Vec<(SaSpec, u64)>,
    ) -> std::result::Result<(), Refused> {
        let tables = self.shared.tables.load_full();
        let mut peers = Peers::of(tables.peers());
        let mut arriving = HashMap::new();
        for (spec, highest_seq) in inbound {
            let spi = spec.spi;
            let name = Arc::clone(&spec.name);
            if tables.inbound.contains_key(&spi) || arriving.contains_key(&spi) {
                return Err(refused(name, "another inbound SA has this SPI"));
            }
            let entry = self.inbound(spec, highest_seq, &mut peers);
            arriving.insert(spi, entry.map_err(|why| refused(name, why))?);
        }
        let mut leaving = Vec::new();
        for (spec, lease) in outbound {
            let name = Arc::clone(&spec.name);
            let entry = self.outbound(spec, lease, &mut peers);
            leaving.push(entry.map_err(|why| refused(name, why))?);
        }
        self.change(|tables| {
            tables.inbound.extend(arriving);
            let named = leaving
                .into_iter()
                .map(|entry| (Arc::clone(&entry.sa.spec.name), entry));
            tables.outbound.extend(named);
        })
        .map_err(|why| Refused {
            sa: Arc::from(""),
            why,
        })
    }

    fn outbound(
        &self,
        spec: SaSpec,
        lease: Lease,
        peers: &mut Peers,
    ) -> std::result::Result<Arc<OutboundEntry>, &'static str> {
        let peer = peers.place(&spec);
        let sa = OutboundSa::new(spec, lease).map_err(|_| "the lease is of no use")?;
        self.check_aead(&sa.spec)
            .map_err(|_| "the provider does not have this suite")?;
        Ok(Arc::new(OutboundEntry {
            sa,
            peer,
            gso_refused: OnceLock::new(),
            tallies: Tallies::new(self.workers()),
        }))
    }

    fn inbound(
        &self,
        spec: SaSpec,
        highest_seq: u64,
        peers: &mut Peers,
    ) -> std::result::Result<Arc<InboundEntry>, &'static str> {
        let peer = peers.place(&spec);
        let sa = InboundSa::new(spec, highest_seq);
        self.check_aead(&sa.spec)
            .map_err(|_| "the provider does not have this suite")?;
        Ok(Arc::new(InboundEntry {
            sa,
            peer,
            heard: Heard::default(),
            reported_floor: AtomicU64::new(highest_seq),
            tallies: Tallies::new(self.workers()),
        }))
    }

    /// Checks that the workers will get an AEAD for the SA.
    fn check_aead(&self, spec: &SaSpec) -> std::result::Result<(), ProviderError> {
        self.shared.aeads.check(spec.suite, spec.keymat.key())
    }

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
        let peer = entry.peer.address();
        // One worker is enough: the sockets of all have the same address and port.
        let first = self
            .mailboxes
            .first()
            .ok_or(Error::Argument("there is no worker"))?;
        first.send(Command::Keepalive(outer, peer))
    }
}

/// An SA to be removed.
enum Removal<'a> {
    Outbound(&'a Arc<OutboundEntry>),
    Inbound(&'a Arc<InboundEntry>),
}

fn refused(sa: Arc<str>, why: &'static str) -> Refused {
    let why = Error::Argument(why);
    Refused { sa, why }
}
