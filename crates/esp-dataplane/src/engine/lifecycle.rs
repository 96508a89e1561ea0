//! The engine's threads and sockets, which live as long as the engine.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use esp_core::esp::sa::Encapsulation;
use esp_core::sync::lock;
use esp_linux::poll::Waker;
use esp_linux::raw::RawSocket;
use esp_linux::tun::TunFeatures;
use esp_linux::tun_device::TunDevice;
use esp_linux::udp::{UdpFeatures, UdpSocket};
use esp_linux::{Error, Result, SocketOptions, cpu, latency};

use super::settings::{MAX_WORKERS, Offloads, Settings};
use super::steered::Steered;
use crate::aead_factory::AeadFactory;
use crate::af_alg::AfAlgKeys;
use crate::events::Events;
use crate::ike_relay::IkeRelay;
use crate::merge_refusal::MergeRefusal;
use crate::shared::Shared;
use crate::socket::Socket;
use crate::socket_drops::SocketDrops;
use crate::stages::Stages;
use crate::tables::{OuterSocket, Tables};
use crate::tallies::Tallies;
use crate::worker::{Command, LowLatency, Mailbox, Worker, run_supervised};

/// Buffer bytes requested for each outer socket and direction.
const SOCKET_BUFFER: usize = 4 << 20;

/// The data plane: workers, and the tables that they read.
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) shared: Arc<Shared>,
    /// The TUN device, until each worker has its queue.
    device: Option<TunDevice>,
    /// Number of workers, once they are started.
    count: usize,
    pub(super) mailboxes: Vec<Arc<Mailbox>>,
    threads: Vec<JoinHandle<()>>,
    /// The open sockets, with the UDP features in use.
    pub(super) sockets: HashMap<OuterSocket, UdpFeatures>,
    /// The sockets' steering to the workers.
    pub(super) steered: Mutex<Steered>,
    /// The TUN's offloads: supported, enabled.
    pub(super) tun: (TunFeatures, TunFeatures),
}

impl Engine {
    /// Creates the TUN device, with one queue.
    ///
    /// The caller looks at who else has a queue of it ([`TunDevice`]) before [`Self::start`].
    ///
    /// # Errors
    /// The error of the system call; the device is removed again.
    pub fn open(settings: Settings) -> Result<Self> {
        let count = match settings.workers {
            Some(count) => count,
            None => cpu::allowed()?.len(),
        };
        let count = count.clamp(1, MAX_WORKERS);
        let events = Arc::new(Events::new(Waker::new()?));
        let kernel = AfAlgKeys::new(settings.af_alg.clone(), Arc::clone(&events));
        let shared = Arc::new(Shared {
            tables: ArcSwap::default(),
            aeads: AeadFactory::new(settings.provider, kernel),
            events,
            stop: AtomicBool::new(false),
            outbound: Tallies::new(count),
            inbound: Tallies::new(count),
            socket_drops: SocketDrops::default(),
            drawers: (0..count).map(|_| Arc::default()).collect(),
            merge_refusal: MergeRefusal::default(),
            ike: IkeRelay::default(),
            began: Instant::now(),
            bulk_on_lane0: AtomicU64::new(0),
            priority: Mutex::default(),
            latency: Arc::default(),
            stages: Arc::new(Stages::new(count)),
            fwmark: settings.fwmark,
            min_mtu: settings.min_mtu,
        });
        Ok(Self {
            shared,
            device: Some(TunDevice::create(&settings.interface)?),
            count,
            mailboxes: Vec::new(),
            threads: Vec::new(),
            sockets: HashMap::new(),
            steered: Steered::new(count)?,
            tun: (TunFeatures::empty(), TunFeatures::empty()),
            settings,
        })
    }

    /// Opens a queue for each worker, and starts the workers.
    ///
    /// # Errors
    /// The kernel's, or an engine that was started already. After an error it carries nothing.
    pub fn start(&mut self) -> Result<()> {
        let device = self.device.take();
        let mut device = device.ok_or(Error::Argument("the engine was started already"))?;
        while device.queues() < self.count {
            device.add_queue()?;
        }
        let processors = cpu::allowed()?;
        let merge = self.settings.offloads.contains(Offloads::MERGE);
        let mut workers = Vec::new();
        let queues = device.set_up(self.settings.offloads.tun_features())?;
        for (index, tun) in queues.into_iter().enumerate() {
            self.tun = (tun.supported(), tun.features());
            let mailbox = Arc::new(Mailbox::new()?);
            self.mailboxes.push(Arc::clone(&mailbox));
            let shared = Arc::clone(&self.shared);
            let rest = self.settings.low_latency;
            let latency = LowLatency::new(rest, Path::new(latency::DEVICE), &shared.latency);
            let worker = Worker::new(index, merge, latency, shared, mailbox, tun)?;
            workers.push(worker);
        }
        for (index, worker) in workers.into_iter().enumerate() {
            let shared = Arc::clone(&self.shared);
            let processor = processors.get(index % processors.len().max(1));
            let processor = processor.filter(|_| self.settings.pin_workers).copied();
            let name = format!("{}: worker {index}", self.settings.interface);
            let thread = std::thread::Builder::new()
                .name(format!("esp-worker-{index}"))
                .spawn(move || {
                    if let Some(processor) = processor {
                        // Pinning is an optimization; its failure is ignored.
                        let _ = cpu::pin_current_thread(processor);
                    }
                    let mailbox = worker.mailbox();
                    run_supervised(&name, &mailbox, &shared.events, || worker.run());
                })
                .map_err(|_| Error::Argument("a worker thread can't be started"))?;
            self.threads.push(thread);
        }
        Ok(())
    }

    /// Number of open queues of the TUN device.
    #[must_use]
    pub fn queues(&self) -> usize {
        let device = self.device.as_ref();
        device.map_or(self.workers(), TunDevice::queues)
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// The queue of events.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    /// Opens and closes outer sockets until exactly these are open.
    ///
    /// # Errors
    /// The error of the system call; sockets that were open stay open.
    pub fn set_sockets(&mut self, wanted: &[OuterSocket]) -> Result<()> {
        for &outer in wanted {
            if !self.sockets.contains_key(&outer) {
                self.open_sockets(outer)?;
            }
        }
        let gone: Vec<OuterSocket> = self
            .sockets
            .keys()
            .filter(|o| !wanted.contains(o))
            .copied()
            .collect();
        for outer in gone {
            self.sockets.remove(&outer);
            lock(&self.steered).close(&outer);
            self.tell(|_| Some(Command::Close(outer)))?;
        }
        Ok(())
    }

    fn open_sockets(&mut self, outer: OuterSocket) -> Result<()> {
        let options = SocketOptions {
            local: SocketAddr::new(outer.address, self.settings.port),
            mark: self.settings.fwmark,
            buffer: SOCKET_BUFFER,
        };
        let mut got = UdpFeatures {
            gso: false,
            gro: false,
        };
        let mut steered = lock(&self.steered);
        let sockets: Vec<Socket> = match outer.encapsulation {
            Encapsulation::Udp => {
                let wanted = UdpFeatures {
                    gso: self.settings.offloads.contains(Offloads::UDP_GSO),
                    gro: self.settings.offloads.contains(Offloads::UDP_GRO),
                };
                let group = UdpSocket::bind_group(&options, wanted, steered.now())?;
                got.gso = group.iter().all(|socket| socket.max_segments() > 1);
                got.gro = group.iter().all(UdpSocket::gro);
                group.into_iter().map(Socket::Udp).collect()
            }
            Encapsulation::None => {
                let group = RawSocket::bind_group(&options, steered.now())?;
                group.into_iter().map(Socket::Raw).collect()
            }
        };
        let sockets: Vec<Arc<Socket>> = sockets.into_iter().map(Arc::new).collect();
        steered.open(outer, &sockets);
        drop(steered);
        let mut sockets = sockets.into_iter();
        self.tell(|_| sockets.next().map(|socket| Command::Open(outer, socket)))?;
        self.sockets.insert(outer, got);
        Ok(())
    }

    pub(super) fn tell(&self, mut command: impl FnMut(usize) -> Option<Command>) -> Result<()> {
        for (index, mailbox) in self.mailboxes.iter().enumerate() {
            if let Some(command) = command(index) {
                mailbox.send(command)?;
            }
        }
        Ok(())
    }

    /// Publishes changed tables, and waits until every worker uses them or has ended.
    pub(super) fn change(&self, change: impl FnOnce(&mut Tables)) -> Result<()> {
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
            mailbox.wait_for_generation(generation);
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
