//! The engine: makes the workers and tells them what to do. Packets never come here.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use esp_core::counters::Counters;
use esp_core::esp::sa::{Encapsulation, InboundSa, OutboundSa, SaSpec};
use esp_core::esp::seq::Lease;
use esp_core::policy::spd::{Policy, Spd};

use crate::ciphers::{Ciphers, Kernel};
use crate::peers::{Heard, Peers};
use crate::settings::{MAX_WORKERS, Offloads, Settings};
use crate::shared::{Events, Inbound, Outbound, Outer, Shared, Tables, Tallies};
use crate::socket::Socket;
use crate::worker::{Command, Mailbox, Worker, live};
use esp_linux::poll::Waker;
use esp_linux::raw::RawSocket;
use esp_linux::tun::{TunOffloads, TunQueue};
use esp_linux::udp::{UdpOffloads, UdpSocket};
use esp_linux::{Error, Result, SocketOptions, cpu};

/// Bytes asked of the kernel for each outer socket, each way.
const SOCKET_BUFFER: usize = 4 << 20;

/// What one SA has done.
#[derive(Clone, Debug)]
pub struct SaCounters {
    /// Packets, bytes, drops.
    pub counters: Counters,
    /// The next number of an outbound SA, which is behind the last one when that is used; the
    /// highest accepted one of an inbound SA.
    pub seq: u128,
    /// The first number behind the lease; 0 for an inbound SA.
    pub lease_end: u128,
    /// Where the peer is.
    pub peer: SocketAddr,
}

/// An SA that can't be installed, and why.
#[derive(Debug)]
pub struct Refused {
    /// The SA's name.
    pub sa: Arc<str>,
    /// Why.
    pub why: Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.sa, self.why)
    }
}

impl std::error::Error for Refused {}

/// The data plane: workers, and the tables that they read.
pub struct Engine {
    pub(crate) settings: Settings,
    pub(crate) shared: Arc<Shared>,
    mailboxes: Vec<Arc<Mailbox>>,
    threads: Vec<JoinHandle<()>>,
    /// What is open, with the offloads that the kernel gave.
    pub(crate) sockets: HashMap<Outer, UdpOffloads>,
    /// The TUN's offloads: those that the kernel has, those that are on.
    pub(crate) tun: (TunOffloads, TunOffloads),
}

impl Engine {
    /// Create the TUN device with a queue for each worker, and start the workers.
    ///
    /// # Errors
    /// The kernel's; the device is gone again then.
    pub fn start(settings: Settings) -> Result<Self> {
        let processors = cpu::allowed()?;
        let count = settings.workers.unwrap_or(processors.len());
        let count = count.clamp(1, MAX_WORKERS);
        let events = Arc::new(Events::new(Waker::new()?));
        let kernel = Kernel::new(settings.af_alg.clone(), Arc::clone(&events));
        let shared = Arc::new(Shared {
            tables: ArcSwap::default(),
            ciphers: Ciphers::new(settings.provider, kernel),
            events,
            stop: AtomicBool::new(false),
            outbound: Tallies::new(count),
            inbound: Tallies::new(count),
            fwmark: settings.fwmark,
        });
        let mut engine = Self {
            shared,
            mailboxes: Vec::new(),
            threads: Vec::new(),
            sockets: HashMap::new(),
            tun: (TunOffloads::empty(), TunOffloads::empty()),
            settings,
        };
        let mut workers = Vec::new();
        for index in 0..count {
            let wanted = engine.settings.offloads.of_tun();
            let tun = TunQueue::open(&engine.settings.interface, wanted)?;
            engine.tun = (tun.supported(), tun.offloads());
            let mailbox = Arc::new(Mailbox::new()?);
            engine.mailboxes.push(Arc::clone(&mailbox));
            let shared = Arc::clone(&engine.shared);
            workers.push(Worker::new(index, &engine.settings, shared, mailbox, tun)?);
        }
        for (index, worker) in workers.into_iter().enumerate() {
            let shared = Arc::clone(&engine.shared);
            let processor = processors.get(index % processors.len().max(1));
            let processor = processor.filter(|_| engine.settings.pin_workers).copied();
            let name = format!("{}: worker {index}", engine.settings.interface);
            let thread = std::thread::Builder::new()
                .name(format!("esp-worker-{index}"))
                .spawn(move || {
                    if let Some(processor) = processor {
                        // A worker that can't be pinned works all the same.
                        let _ = cpu::pin_current_thread(processor);
                    }
                    let mailbox = worker.mailbox();
                    live(&name, &mailbox, &shared.events, || worker.run());
                })
                .map_err(|_| Error::Argument("a worker thread can't be started"))?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// The events, to be waited for and taken.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    /// Have these outer sockets open and no others.
    ///
    /// # Errors
    /// The kernel's: those that were open stay so.
    pub fn set_sockets(&mut self, wanted: &[Outer]) -> Result<()> {
        for &outer in wanted {
            if !self.sockets.contains_key(&outer) {
                self.open(outer)?;
            }
        }
        let gone: Vec<Outer> = self
            .sockets
            .keys()
            .filter(|o| !wanted.contains(o))
            .copied()
            .collect();
        for outer in gone {
            self.sockets.remove(&outer);
            self.tell(|_| Some(Command::Close(outer)))?;
        }
        Ok(())
    }

    fn open(&mut self, outer: Outer) -> Result<()> {
        let options = SocketOptions {
            local: SocketAddr::new(outer.address, self.settings.port),
            mark: self.settings.fwmark,
            buffer: SOCKET_BUFFER,
            busy_poll_us: u32::try_from(self.settings.busy_poll.as_micros()).unwrap_or(u32::MAX),
        };
        let count = u32::try_from(self.workers()).unwrap_or(1);
        let mut got = UdpOffloads {
            gso: false,
            gro: false,
        };
        let sockets: Vec<Socket> = match outer.encapsulation {
            Encapsulation::Udp => {
                let wanted = UdpOffloads {
                    gso: self.settings.offloads.contains(Offloads::UDP_GSO),
                    gro: self.settings.offloads.contains(Offloads::UDP_GRO),
                };
                let group = UdpSocket::bind_group(&options, wanted, count)?;
                got.gso = group.iter().all(|socket| socket.max_segments() > 1);
                got.gro = group.iter().all(UdpSocket::gro);
                group.into_iter().map(Socket::Udp).collect()
            }
            Encapsulation::None => {
                let group = RawSocket::bind_group(&options, count)?;
                group.into_iter().map(Socket::Raw).collect()
            }
        };
        let mut sockets = sockets.into_iter();
        self.tell(|_| sockets.next().map(|socket| Command::Open(outer, socket)))?;
        self.sockets.insert(outer, got);
        Ok(())
    }

    fn tell(&self, mut command: impl FnMut(usize) -> Option<Command>) -> Result<()> {
        for (index, mailbox) in self.mailboxes.iter().enumerate() {
            if let Some(command) = command(index) {
                mailbox.send(command)?;
            }
        }
        Ok(())
    }

    /// Add SAs in one step, all or none: an outbound one begins at its lease's first number, the
    /// window of an inbound one treats every number up to the given one as seen.
    ///
    /// # Errors
    /// `Refused` with the SA whose lease or SPI can't be, or whose suite the provider lacks.
    pub fn install(
        &self,
        outbound: Vec<(SaSpec, Lease)>,
        inbound: Vec<(SaSpec, u64)>,
    ) -> std::result::Result<(), Refused> {
        let tables = self.shared.tables.load_full();
        let mut peers = Peers::of(&tables);
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
    ) -> std::result::Result<Arc<Outbound>, &'static str> {
        let peer = peers.place(&spec);
        let sa = OutboundSa::new(spec, lease).map_err(|_| "the lease is of no use")?;
        sa.sealer(&self.shared.ciphers)
            .map_err(|_| "the provider does not have this suite")?;
        Ok(Arc::new(Outbound {
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
    ) -> std::result::Result<Arc<Inbound>, &'static str> {
        let peer = peers.place(&spec);
        let sa = InboundSa::new(spec, highest_seq);
        sa.opener(&self.shared.ciphers)
            .map_err(|_| "the provider does not have this suite")?;
        Ok(Arc::new(Inbound {
            sa,
            peer,
            heard: Heard::default(),
            told_highest: AtomicU64::new(highest_seq),
            tallies: Tallies::new(self.workers()),
        }))
    }
}

impl Engine {
    /// Forget SAs: when this returns no worker seals or opens with them any more. For each, whether
    /// it was outbound, and its last counters.
    ///
    /// # Errors
    /// `Argument` where there is none of a name; all are there still then.
    pub fn remove(&self, names: &[&str]) -> Result<Vec<(bool, SaCounters)>> {
        let tables = self.shared.tables.load_full();
        let by_name: HashMap<&str, &Arc<Inbound>> = tables
            .inbound
            .values()
            .map(|entry| (&*entry.sa.spec.name, entry))
            .collect();
        let found = names
            .iter()
            .map(|name| {
                let outbound = tables.outbound.get(*name).map(Going::Outbound);
                outbound
                    .or_else(|| by_name.get(name).copied().map(Going::Inbound))
                    .ok_or(Error::Argument("there is no SA of this name"))
            })
            .collect::<Result<Vec<_>>>()?;
        self.change(|tables| {
            for going in &found {
                match going {
                    Going::Outbound(entry) => drop(tables.outbound.remove(&entry.sa.spec.name)),
                    Going::Inbound(entry) => drop(tables.inbound.remove(&entry.sa.spec.spi)),
                }
            }
        })?;
        Ok(found
            .into_iter()
            .map(|going| match going {
                Going::Outbound(entry) => (true, outbound_counters(entry)),
                Going::Inbound(entry) => (false, inbound_counters(entry)),
            })
            .collect())
    }

    /// Put a new SPD in place in one step.
    ///
    /// # Errors
    /// The kernel's.
    pub fn replace_policies(&self, policies: Vec<Policy>) -> Result<()> {
        let spd = Arc::new(Spd::new(policies));
        self.change(|tables| tables.spd = spd)
    }

    /// Give an outbound SA more sequence numbers.
    ///
    /// # Errors
    /// `Argument` where there is no such SA, or the lease goes back.
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

    /// Send a NAT keepalive for an outbound SA.
    ///
    /// # Errors
    /// The kernel's; `Argument` where there is no such SA.
    pub fn keepalive(&self, name: &str) -> Result<()> {
        let tables = self.shared.tables.load();
        let entry = tables
            .outbound
            .get(name)
            .ok_or(Error::Argument("there is no SA of this name"))?;
        let spec = &entry.sa.spec;
        let outer = Outer {
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

    /// The packets that an outbound SA has sent.
    ///
    /// # Errors
    /// `Argument` where there is no such SA.
    pub fn sent(&self, name: &str) -> Result<u64> {
        let tables = self.shared.tables.load();
        let entry = tables.outbound.get(name);
        let entry = entry.ok_or(Error::Argument("there is no SA of this name"))?;
        Ok(entry.tallies.sum().packets)
    }

    /// The counters of every SA by name, true for outbound ones.
    #[must_use]
    pub fn sas(&self) -> Vec<(Arc<str>, bool, SaCounters)> {
        let tables = self.shared.tables.load();
        let name = |spec: &SaSpec| Arc::clone(&spec.name);
        let outbound = tables.outbound.values();
        let outbound = outbound.map(|entry| (name(&entry.sa.spec), true, outbound_counters(entry)));
        let inbound = tables.inbound.values();
        let inbound = inbound.map(|entry| (name(&entry.sa.spec), false, inbound_counters(entry)));
        outbound.chain(inbound).collect()
    }

    /// What belongs to no SA: outbound and inbound; their packets are keepalives.
    #[must_use]
    pub fn rest(&self) -> (Counters, Counters) {
        (self.shared.outbound.sum(), self.shared.inbound.sum())
    }

    /// Publish changed tables, and wait until every worker uses them.
    fn change(&self, change: impl FnOnce(&mut Tables)) -> Result<()> {
        let now = self.shared.tables.load_full();
        let mut next = Tables {
            generation: now.generation + 1,
            outbound: now.outbound.clone(),
            inbound: now.inbound.clone(),
            spd: Arc::clone(&now.spd),
        };
        change(&mut next);
        let generation = next.generation;
        self.shared.tables.store(Arc::new(next));
        for mailbox in &self.mailboxes {
            mailbox.wake()?;
        }
        for mailbox in &self.mailboxes {
            mailbox.wait_for(generation);
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for mailbox in &self.mailboxes {
            let _ = mailbox.wake();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// An SA that is to be forgotten.
enum Going<'a> {
    Outbound(&'a Arc<Outbound>),
    Inbound(&'a Arc<Inbound>),
}

fn refused(sa: Arc<str>, why: &'static str) -> Refused {
    let why = Error::Argument(why);
    Refused { sa, why }
}

fn outbound_counters(entry: &Outbound) -> SaCounters {
    SaCounters {
        counters: entry.tallies.sum(),
        seq: u128::from(entry.sa.seq.used()) + 1,
        lease_end: u128::from(entry.sa.seq.limit()) + 1,
        peer: entry.peer.address(),
    }
}

fn inbound_counters(entry: &Inbound) -> SaCounters {
    SaCounters {
        counters: entry.tallies.sum(),
        seq: entry.sa.window.highest().into(),
        lease_end: 0,
        peer: entry.peer.address(),
    }
}
