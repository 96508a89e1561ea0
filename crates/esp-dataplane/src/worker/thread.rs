//! One worker's thread: a TUN queue, a socket for each outer address, and both directions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use esp_linux::poll::{Events, Interest, Poller};
use esp_linux::tun::{TunFeatures, TunQueue};
use esp_linux::{Error, Result};

use super::busy_poll::BusyPoll;
use super::inbound::InboundPath;
use super::mailbox::{Command, Mailbox};
use super::outbound::{Drained, OutboundPath};
use crate::shared::Shared;
use crate::socket::Socket;
use crate::tables::OuterSocket;

// Poll tokens.
const WAKER: u64 = 0;
const TUN: u64 = 1;
const FIRST_SOCKET: u64 = 2;

/// Most events per poll.
const MAX_READY: usize = 64;

/// State of one worker, moved into its thread; `run` is the thread's body.
pub struct Worker {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    tun: TunQueue,
    poller: Poller,
    sockets: HashMap<OuterSocket, Socket>,
    tokens: HashMap<u64, OuterSocket>,
    next_token: u64,
    outbound: OutboundPath,
    inbound: InboundPath,
    busy_poll: BusyPoll,
    /// Generation of the tables in use.
    generation: u64,
    /// True while a socket is full and the TUN is not polled.
    blocked: bool,
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
        busy_poll: Duration,
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
            outbound: OutboundPath::new(index, Arc::clone(&shared))?,
            inbound: InboundPath::new(index, Arc::clone(&shared), mergeable)?,
            busy_poll: BusyPoll::new(busy_poll),
            generation: shared.tables.load().generation,
            shared,
            mailbox,
            tun,
            poller,
            sockets: HashMap::new(),
            tokens: HashMap::new(),
            next_token: FIRST_SOCKET,
            blocked: false,
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
            let timeout = self.busy_poll.timeout(worked, Instant::now);
            self.poller.wait(&mut ready, timeout)?;
            worked = false;
            for event in ready.iter() {
                worked |= event.token != WAKER;
                match event.token {
                    WAKER => self.handle_commands()?,
                    TUN => self.drain_tun()?,
                    token => self.serve(token, event.readable, event.writable)?,
                }
            }
        }
        Ok(())
    }

    fn drain_tun(&mut self) -> Result<()> {
        self.follow_tables();
        match self.outbound.drain(&self.tun, &self.sockets)? {
            Drained::Empty | Drained::Budget => self.set_blocked(false),
            Drained::Blocked => self.set_blocked(true),
            Drained::Gone => Err(Error::Argument("the TUN device is gone")),
        }
    }

    fn serve(&mut self, token: u64, readable: bool, writable: bool) -> Result<()> {
        self.follow_tables();
        if writable && self.blocked {
            self.drain_tun()?;
        }
        let socket = self
            .tokens
            .get(&token)
            .and_then(|outer| self.sockets.get(outer));
        if let Some(socket) = socket.filter(|_| readable) {
            self.inbound.drain(socket, &self.tun)?;
        }
        Ok(())
    }

    /// Switches back-pressure on or off: while a socket of this worker is full, its TUN queue is
    /// not polled, and packets wait in the kernel.
    fn set_blocked(&mut self, blocked: bool) -> Result<()> {
        if blocked == self.blocked {
            return Ok(());
        }
        self.blocked = blocked;
        let (tun, outer) = if blocked {
            (Interest::empty(), Interest::READ | Interest::WRITE)
        } else {
            (Interest::READ, Interest::READ)
        };
        self.poller.modify(&self.tun, TUN, tun)?;
        for (token, name) in &self.tokens {
            if let Some(socket) = self.sockets.get(name) {
                self.poller.modify(socket, *token, outer)?;
            }
        }
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
                    let interest = if self.blocked {
                        Interest::READ | Interest::WRITE
                    } else {
                        Interest::READ
                    };
                    self.poller.add(&socket, self.next_token, interest)?;
                    self.tokens.insert(self.next_token, outer);
                    self.sockets.insert(outer, socket);
                    self.next_token += 1;
                }
                Command::Close(outer) => {
                    self.tokens.retain(|_, name| *name != outer);
                    // Closing the file removes it from the poller.
                    self.sockets.remove(&outer);
                }
                Command::Keepalive(outer, peer) => {
                    if let Some(socket) = self.sockets.get(&outer) {
                        self.outbound.keepalive(socket, peer);
                    }
                }
            }
        }
        self.follow_tables();
        Ok(())
    }
}
