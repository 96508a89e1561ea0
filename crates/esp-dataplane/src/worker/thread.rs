//! One worker's thread: a TUN queue, a socket for each outer address, and both directions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use esp_linux::Result;
use esp_linux::poll::{Events, Interest, Poller};
use esp_linux::tun::{TunFeatures, TunQueue};

use super::inbound::InboundPath;
use super::latency::LowLatency;
use super::mailbox::{Command, Mailbox};
use super::outbound::OutboundPath;
use super::own_sockets::SendingSocket;
use super::preference::Preference;
use crate::shared::Shared;
use crate::socket::Sockets;
use crate::tables::OuterSocket;

// Poll tokens.
const WAKER: u64 = 0;
const TUN: u64 = 1;
const FIRST_SOCKET: u64 = 2;

/// Most events per poll.
const MAX_READY: usize = 64;

/// State of one worker, moved into its thread; `run` is the thread's body.
pub struct Worker {
    index: usize,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    tun: TunQueue,
    poller: Poller,
    sockets: Sockets,
    tokens: HashMap<u64, OuterSocket>,
    next_token: u64,
    outbound: OutboundPath,
    inbound: InboundPath,
    preference: Preference,
    latency: LowLatency,
    /// Generation of the tables in use.
    generation: u64,
    /// The sockets that are polled for writing: those that are full.
    polled_to_write: HashSet<OuterSocket>,
}

impl Worker {
    /// Makes a worker with its TUN queue and no outer sockets; with `merge`, neighbours are merged
    /// before the TUN write.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn new(
        index: usize,
        merge: bool,
        latency: LowLatency,
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
        tun: TunQueue,
    ) -> Result<Self> {
        let poller = Poller::new()?;
        poller.add(&mailbox.waker, WAKER, Interest::READ)?;
        poller.add(&tun, TUN, Interest::READ)?;
        let mergeable = if merge {
            tun.supported()
        } else {
            TunFeatures::empty()
        };
        Ok(Self {
            index,
            outbound: OutboundPath::new(index, Arc::clone(&shared))?,
            inbound: InboundPath::new(index, Arc::clone(&shared), mergeable)?,
            preference: Preference::default(),
            latency,
            generation: shared.tables.load().generation,
            shared,
            mailbox,
            tun,
            poller,
            sockets: HashMap::new(),
            tokens: HashMap::new(),
            next_token: FIRST_SOCKET,
            polled_to_write: HashSet::new(),
        })
    }

    /// The worker's mailbox.
    #[must_use]
    pub fn mailbox(&self) -> Arc<Mailbox> {
        Arc::clone(&self.mailbox)
    }

    /// Carries packets until the stop flag is set.
    ///
    /// # Errors
    /// The error of the system call, if the TUN or a socket is unusable.
    pub fn run(mut self) -> Result<()> {
        let mut ready = Events::new(MAX_READY);
        let mut worked = false;
        while !self.shared.stopping() {
            let timeout = self.timeout(worked);
            self.poller.wait(&mut ready, timeout)?;
            worked = false;
            self.tend_full_sockets()?;
            for event in ready.iter() {
                worked |= event.token != WAKER;
                match event.token {
                    WAKER => self.handle_commands()?,
                    TUN => self.drain_tun()?,
                    token => self.serve(token, event.readable, event.writable)?,
                }
            }
            self.outbound.answer(&self.tun)?;
            self.poll_full_sockets()?;
            if self.preference.is_allowed() {
                let load = self.outbound.take_load() + self.inbound.take_load();
                self.preference.after(load, Instant::now(), &self.shared);
            }
        }
        Ok(())
    }

    /// The next wait's timeout: None to sleep until there is work.
    fn timeout(&mut self, worked: bool) -> Option<Duration> {
        let held = self.latency.after(worked, Instant::now);
        let deadline = self.outbound.deadline();
        let due = deadline.map(|due| due.saturating_duration_since(Instant::now()));
        held.into_iter().chain(due).min()
    }

    fn drain_tun(&mut self) -> Result<()> {
        self.follow_tables();
        self.outbound.drain(&self.tun, &self.sockets)
    }

    fn serve(&mut self, token: u64, readable: bool, writable: bool) -> Result<()> {
        self.follow_tables();
        let Some(outer) = self.tokens.get(&token) else {
            return match self.outbound.own_socket(token) {
                Some(own) if writable => {
                    let now = Instant::now();
                    self.outbound.writable(&own, now, &self.sockets)
                }
                _ => Ok(()),
            };
        };
        if writable {
            let shared = SendingSocket::shared(*outer);
            let now = Instant::now();
            self.outbound.writable(&shared, now, &self.sockets)?;
        }
        match self.sockets.get(outer) {
            Some(socket) if readable => {
                self.inbound.drain(socket, &self.tun)?;
                self.outbound.heard(self.inbound.bulk_flows());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Lets the outbound path see to its full sockets, if there are any.
    fn tend_full_sockets(&mut self) -> Result<()> {
        if !self.outbound.has_full_sockets() {
            return Ok(());
        }
        self.follow_tables();
        self.outbound.tend(Instant::now(), &self.sockets)
    }

    /// Polls each socket for writing while it is full, and only then.
    fn poll_full_sockets(&mut self) -> Result<()> {
        self.outbound.poll_own_sockets(&self.poller)?;
        let mut full = self.outbound.full_outer_sockets().peekable();
        if full.peek().is_none() && self.polled_to_write.is_empty() {
            return Ok(());
        }
        let full: HashSet<OuterSocket> = full.collect();
        for (token, outer) in &self.tokens {
            let interest = match (full.contains(outer), self.polled_to_write.contains(outer)) {
                (true, false) => Interest::READ | Interest::WRITE,
                (false, true) => Interest::READ,
                _ => continue,
            };
            if let Some(socket) = self.sockets.get(outer) {
                self.poller.modify(socket, *token, interest)?;
            }
        }
        self.polled_to_write = full;
        Ok(())
    }

    fn follow_tables(&mut self) {
        let tables = self.shared.tables.load();
        if tables.generation == self.generation {
            return;
        }
        self.generation = tables.generation;
        let tables = Arc::clone(&tables);
        self.outbound.use_tables(Arc::clone(&tables));
        self.inbound.use_tables(tables);
        self.mailbox.announce(self.generation);
    }

    fn handle_commands(&mut self) -> Result<()> {
        for command in self.mailbox.take()? {
            match command {
                Command::Open(outer, socket) => {
                    self.poller.add(&socket, self.next_token, Interest::READ)?;
                    self.tokens.insert(self.next_token, outer);
                    self.shared.socket_drops.open(self.index, outer, &socket);
                    self.sockets.insert(outer, socket);
                    self.next_token += 1;
                }
                Command::Close(outer) => {
                    self.tokens.retain(|_, name| *name != outer);
                    self.outbound.close(&outer);
                    self.polled_to_write.remove(&outer);
                    self.shared.socket_drops.close(self.index, outer);
                    // Closing the file removes it from the poller.
                    self.sockets.remove(&outer);
                }
                Command::Keepalive(outer, peer) => {
                    self.outbound.keepalive(outer, peer, &self.sockets);
                }
                Command::Ike(outer, peer, datagram) => {
                    self.outbound.ike(outer, peer, &datagram, &self.sockets);
                }
                Command::Dummy(sa) => {
                    // It may have been installed or removed since.
                    self.follow_tables();
                    self.outbound.dummy(&sa, &self.sockets)?;
                }
                Command::ForgetFlows => self.inbound.forget_flows(),
                Command::Prefer(is_allowed) => self.preference.allow(is_allowed, &self.shared),
                // The engine may wait no longer.
                Command::RecentFlows(listed) => drop(listed.send(self.outbound.recent_flows())),
            }
        }
        self.follow_tables();
        Ok(())
    }
}
