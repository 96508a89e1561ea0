//! SAs installed and replaced, several in one step.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use esp_core::esp::sa::{InboundSa, OutboundSa, SaSpec};
use esp_core::esp::seq::Lease;
use esp_linux::{Error, Result};

use super::lifecycle::Engine;
use crate::events::Event;
use crate::peers::Peers;
use crate::tables::{InboundEntry, OutboundEntry, Tables};
use crate::tallies::Tallies;
use crate::watched::Watched;

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

/// The SAs that a step installs and replaces.
#[derive(Debug, Default)]
pub struct SadChange {
    /// New outbound SAs, which begin at the first number of their lease.
    pub outbound: Vec<(SaSpec, Lease)>,
    /// New inbound SAs, each with the numbers that it begins with.
    pub inbound: Vec<(SaSpec, Numbers)>,
    /// Outbound SAs by their present names, and what they become.
    pub replaced_outbound: Vec<(Arc<str>, SaSpec)>,
    /// Inbound SAs by their present names, and what they become.
    pub replaced_inbound: Vec<(Arc<str>, SaSpec)>,
}

/// The numbers that an inbound SA begins with.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// The window treats every number up to this one as seen.
    pub highest_seq: u64,
    /// Numbers up to this one don't tell where a peer is that may be anywhere.
    pub fence: u64,
    /// The first number above this one is reported.
    pub notice_at: u64,
}

type Verdict<T> = std::result::Result<T, Refused>;

impl Engine {
    /// Installs and replaces SAs in one step, all or none.
    ///
    /// Workers use a replaced SA until they have the new tables, and so both share the sequence
    /// counter, the window, the tallies, and the peer where it is the same.
    ///
    /// # Errors
    /// `Refused` with an SA whose lease is unusable, whose suite the provider lacks, whose name or
    /// SPI another one has, or which replaces none of its key and direction.
    pub fn change_sas(&self, wanted: SadChange) -> Verdict<()> {
        let tables = self.shared.tables.load_full();
        let mut peers = Peers::of(tables.peers());
        let mut next = Next::of(&tables);
        let leaving = wanted.replaced_outbound.iter();
        let leaving = leaving
            .map(|(name, spec)| next.take_outbound(name, spec))
            .collect::<Verdict<Vec<_>>>()?;
        let arriving = wanted.replaced_inbound.iter();
        let arriving = arriving
            .map(|(name, spec)| next.take_inbound(name, spec))
            .collect::<Verdict<Vec<_>>>()?;
        let renamed = wanted.replaced_outbound.iter();
        let renamed: Vec<_> = renamed.map(|(_, spec)| Arc::clone(&spec.name)).collect();
        for (former, (_, spec)) in leaving.iter().zip(wanted.replaced_outbound) {
            next.add_outbound(continued_outbound(former, spec, &mut peers))?;
        }
        for (former, (_, spec)) in arriving.iter().zip(wanted.replaced_inbound) {
            next.add_inbound(continued_inbound(former, spec, &mut peers))?;
        }
        for (spec, lease) in wanted.outbound {
            next.add_outbound(self.outbound(spec, lease, &mut peers)?)?;
        }
        for (spec, numbers) in wanted.inbound {
            next.add_inbound(self.inbound(spec, numbers, &mut peers)?)?;
        }
        self.publish(next).map_err(|why| Refused {
            sa: Arc::from(""),
            why,
        })?;
        self.report_again(leaving.iter().zip(&renamed));
        Ok(())
    }

    fn publish(&self, next: Next) -> Result<()> {
        let Next {
            outbound, inbound, ..
        } = next;
        let unsettled: Vec<_> = inbound
            .values()
            .filter(|entry| !entry.sa.window.is_settled())
            .map(Arc::clone)
            .collect();
        self.change(|tables| {
            tables.outbound = outbound;
            tables.inbound = inbound;
        })?;
        self.steer()?;
        if unsettled.is_empty() {
            return Ok(());
        }
        // No worker has only the former ring of a window any more.
        self.change(|tables| {
            let settled = unsettled
                .iter()
                .map(|entry| (entry.sa.spec.spi, settled(entry)));
            tables.inbound.extend(settled);
        })
    }

    /// Reports a low lease again under an SA's new name, and where the SA has more numbers than
    /// before.
    fn report_again<'a>(
        &self,
        replaced: impl Iterator<Item = (&'a Arc<OutboundEntry>, &'a Arc<str>)>,
    ) {
        let tables = self.shared.tables.load();
        for (former, name) in replaced {
            let Some(entry) = tables.outbound.get(name) else {
                continue;
            };
            if former.sa.spec.name != *name {
                entry.sa.seq.report_low_again();
            }
            if entry.sa.spec.last_seq() > former.sa.spec.last_seq() {
                self.shared.events.push(Event::LeaseLow(Arc::clone(name)));
            }
        }
    }

    fn outbound(&self, spec: SaSpec, lease: Lease, peers: &mut Peers) -> Verdict<OutboundEntry> {
        self.check_aead(&spec)?;
        let peer = peers.place(&spec);
        let name = Arc::clone(&spec.name);
        let sa = OutboundSa::new(spec, lease);
        Ok(OutboundEntry {
            sa: sa.map_err(|_| refused(name, "the lease is of no use"))?,
            peer,
            gso_refused: Arc::default(),
            tallies: Arc::new(Tallies::new(self.workers())),
        })
    }

    fn inbound(&self, spec: SaSpec, numbers: Numbers, peers: &mut Peers) -> Verdict<InboundEntry> {
        self.check_aead(&spec)?;
        let peer = peers.place(&spec);
        Ok(InboundEntry {
            follows: spec.follows_peer(),
            watched: Arc::new(Watched::new(numbers.fence, numbers.notice_at)),
            sa: InboundSa::new(spec, numbers.highest_seq),
            peer,
            heard: Arc::default(),
            reported_floor: AtomicU64::new(numbers.highest_seq),
            tallies: Arc::new(Tallies::new(self.workers())),
        })
    }

    /// Checks that the workers will get an AEAD for the SA.
    fn check_aead(&self, spec: &SaSpec) -> Verdict<()> {
        let checked = self.shared.aeads.check(spec.suite, spec.keymat.key());
        checked.map_err(|_| {
            refused(
                Arc::clone(&spec.name),
                "the provider does not have this suite",
            )
        })
    }
}

fn continued_outbound(
    former: &Arc<OutboundEntry>,
    spec: SaSpec,
    peers: &mut Peers,
) -> OutboundEntry {
    let before = &former.sa.spec;
    let peer = peers.moved(&former.peer, before, &spec);
    let same_way = Arc::ptr_eq(&peer, &former.peer) && before.local == spec.local;
    OutboundEntry {
        gso_refused: if same_way {
            Arc::clone(&former.gso_refused)
        } else {
            Arc::default()
        },
        peer,
        sa: former.sa.continued(spec),
        tallies: Arc::clone(&former.tallies),
    }
}

fn continued_inbound(former: &Arc<InboundEntry>, spec: SaSpec, peers: &mut Peers) -> InboundEntry {
    let peer = peers.moved(&former.peer, &former.sa.spec, &spec);
    InboundEntry {
        heard: if Arc::ptr_eq(&peer, &former.peer) {
            Arc::clone(&former.heard)
        } else {
            Arc::default()
        },
        peer,
        follows: spec.follows_peer(),
        watched: Arc::clone(&former.watched),
        sa: former.sa.continued(spec),
        reported_floor: AtomicU64::new(former.reported_floor.load(Ordering::Relaxed)),
        tallies: Arc::clone(&former.tallies),
    }
}

/// The entry of an SA whose window has one ring.
fn settled(entry: &InboundEntry) -> Arc<InboundEntry> {
    Arc::new(InboundEntry {
        sa: entry.sa.settled(),
        peer: Arc::clone(&entry.peer),
        heard: Arc::clone(&entry.heard),
        follows: entry.follows,
        watched: Arc::clone(&entry.watched),
        reported_floor: AtomicU64::new(entry.reported_floor.load(Ordering::Relaxed)),
        tallies: Arc::clone(&entry.tallies),
    })
}

/// The SAs of the next tables, while they are put together.
struct Next {
    outbound: HashMap<Arc<str>, Arc<OutboundEntry>>,
    inbound: HashMap<u32, Arc<InboundEntry>>,
    /// The SPI of each inbound SA of the present tables.
    spis: HashMap<Arc<str>, u32>,
    /// The names of all SAs.
    names: HashSet<Arc<str>>,
}

impl Next {
    fn of(tables: &Tables) -> Self {
        let inbound = tables.inbound.values();
        let spis: HashMap<_, _> = inbound
            .map(|entry| (Arc::clone(&entry.sa.spec.name), entry.sa.spec.spi))
            .collect();
        Self {
            outbound: tables.outbound.clone(),
            inbound: tables.inbound.clone(),
            names: tables
                .outbound
                .keys()
                .chain(spis.keys())
                .map(Arc::clone)
                .collect(),
            spis,
        }
    }

    /// Takes out an outbound SA that becomes `spec`.
    fn take_outbound(&mut self, name: &Arc<str>, spec: &SaSpec) -> Verdict<Arc<OutboundEntry>> {
        let entry = self.outbound.remove(name);
        let entry = entry.ok_or_else(|| self.not_there(name))?;
        self.names.remove(name);
        same_key(&entry.sa.spec, spec)?;
        Ok(entry)
    }

    /// Takes out an inbound SA that becomes `spec`.
    fn take_inbound(&mut self, name: &Arc<str>, spec: &SaSpec) -> Verdict<Arc<InboundEntry>> {
        let spi = self.spis.get(name);
        let entry = spi.and_then(|spi| self.inbound.remove(spi));
        let entry = entry.ok_or_else(|| self.not_there(name))?;
        self.names.remove(name);
        same_key(&entry.sa.spec, spec)?;
        Ok(entry)
    }

    fn not_there(&self, name: &Arc<str>) -> Refused {
        let why = if self.names.contains(name) {
            "an SA can't change its direction"
        } else {
            "no such SA"
        };
        refused(Arc::clone(name), why)
    }

    fn add_outbound(&mut self, entry: OutboundEntry) -> Verdict<()> {
        let name = Arc::clone(&entry.sa.spec.name);
        self.claim(&name)?;
        self.outbound.insert(name, Arc::new(entry));
        Ok(())
    }

    fn add_inbound(&mut self, entry: InboundEntry) -> Verdict<()> {
        let spec = &entry.sa.spec;
        self.claim(&spec.name)?;
        if self.inbound.contains_key(&spec.spi) {
            let name = Arc::clone(&spec.name);
            return Err(refused(name, "another inbound SA has this SPI"));
        }
        self.inbound.insert(spec.spi, Arc::new(entry));
        Ok(())
    }

    fn claim(&mut self, name: &Arc<str>) -> Verdict<()> {
        if self.names.insert(Arc::clone(name)) {
            return Ok(());
        }
        Err(refused(Arc::clone(name), "another SA has this name"))
    }
}

fn same_key(before: &SaSpec, spec: &SaSpec) -> Verdict<()> {
    if spec.has_key_of(before) {
        return Ok(());
    }
    let name = Arc::clone(&before.name);
    Err(refused(
        name,
        "an SA can't be replaced by one with another key",
    ))
}

fn refused(sa: Arc<str>, why: &'static str) -> Refused {
    let why = Error::Argument(why);
    Refused { sa, why }
}
