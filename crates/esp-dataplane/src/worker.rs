//! One worker: a thread with a TUN queue, a socket for each outer address, and both directions.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::inbound::InboundPath;
use crate::outbound::{Drained, OutboundPath};
use crate::patience::Patience;
use crate::settings::{Offloads, Settings};
use crate::shared::{self, Event, Outer, Shared, lock};
use crate::socket::Socket;
use esp_linux::poll::{Events, Interest, Poller, Waker};
use esp_linux::tun::{TunOffloads, TunQueue};
use esp_linux::{Error, RecvArena, Result};

const WAKER: u64 = 0;
const TUN: u64 = 1;
const FIRST_SOCKET: u64 = 2;
const MAX_READY: usize = 64;
const RECV_BATCH: usize = 16;

/// What the control plane asks of a worker.
pub enum Command {
    /// Serve one more outer socket.
    Open(Outer, Socket),
    /// Close one.
    Close(Outer),
    /// Send a keepalive through the socket of this outer address.
    Keepalive(Outer, std::net::SocketAddr),
}

/// What a worker is reached by.
pub struct Mailbox {
    commands: Mutex<Vec<Command>>,
    waker: Waker,
    /// The generation of the tables that the worker uses; all of them once it has ended.
    uses: Mutex<u64>,
    moved: Condvar,
}

impl Mailbox {
    /// Make an empty one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> Result<Self> {
        Ok(Self {
            commands: Mutex::default(),
            waker: Waker::new()?,
            uses: Mutex::new(0),
            moved: Condvar::new(),
        })
    }

    /// Give the worker a command.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, command: Command) -> Result<()> {
        lock(&self.commands).push(command);
        self.waker.wake()
    }

    /// Wake the worker, to see that the tables changed or that it is to end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wake(&self) -> Result<()> {
        self.waker.wake()
    }

    /// Wait until the worker uses these tables, or has ended.
    pub fn wait_for(&self, generation: u64) {
        let mut uses = lock(&self.uses);
        while *uses < generation {
            uses = self
                .moved
                .wait(uses)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Say that the worker has ended: it uses no tables any more.
    pub fn ended(&self) {
        self.uses(u64::MAX);
    }

    fn uses(&self, generation: u64) {
        *lock(&self.uses) = generation;
        self.moved.notify_all();
    }

    fn take(&self) -> Result<Vec<Command>> {
        self.waker.clear()?;
        Ok(std::mem::take(&mut *lock(&self.commands)))
    }
}

/// Be the thread that does a worker's `work`: when that ends before it was to, the control plane
/// hears why, in a line that begins with `name`.
pub(crate) fn live(
    name: &str,
    mailbox: &Mailbox,
    events: &shared::Events,
    work: impl FnOnce() -> Result<()>,
) {
    let ended = catch_unwind(AssertUnwindSafe(work));
    // It has no tables any more: who waits for that must not wait for ever.
    mailbox.ended();
    let reason = match ended {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        // Where, the panic hook has written to stderr.
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            format!("panicked: {}", text.unwrap_or("for no reason"))
        }
    };
    events.push(Event::Failed(format!("{name}: {reason}")));
}

/// One worker's state; `run` is its thread.
pub struct Worker {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    tun: TunQueue,
    poller: Poller,
    sockets: HashMap<Outer, Socket>,
    tokens: HashMap<u64, Outer>,
    next_token: u64,
    outbound: OutboundPath,
    inbound: InboundPath,
    arena: RecvArena,
    patience: Patience,
    generation: u64,
    blocked: bool,
}

impl Worker {
    /// Make a worker with its TUN queue and no outer sockets.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(
        index: usize,
        settings: &Settings,
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
        tun: TunQueue,
    ) -> Result<Self> {
        let poller = Poller::new()?;
        poller.add(&mailbox.waker, WAKER, Interest::READ)?;
        poller.add(&tun, TUN, Interest::READ)?;
        let mergeable = if settings.offloads.contains(Offloads::MERGE) {
            tun.supported()
        } else {
            TunOffloads::empty()
        };
        Ok(Self {
            outbound: OutboundPath::new(index, Arc::clone(&shared))?,
            inbound: InboundPath::new(index, Arc::clone(&shared), mergeable)?,
            patience: Patience::new(settings.busy_poll),
            generation: shared.tables.load().generation,
            shared,
            mailbox,
            tun,
            poller,
            sockets: HashMap::new(),
            tokens: HashMap::new(),
            next_token: FIRST_SOCKET,
            arena: RecvArena::new(RECV_BATCH),
            blocked: false,
        })
    }

    /// What the worker is reached by.
    #[must_use]
    pub fn mailbox(&self) -> Arc<Mailbox> {
        Arc::clone(&self.mailbox)
    }

    /// Carry packets until the workers are to end.
    ///
    /// # Errors
    /// The kernel's, where the TUN or a socket is unusable.
    pub fn run(mut self) -> Result<()> {
        let mut ready = Events::new(MAX_READY);
        let mut worked = false;
        while !self.shared.stopping() {
            let timeout = self.patience.timeout(worked, Instant::now);
            self.poller.wait(&mut ready, timeout)?;
            worked = false;
            for event in ready.iter() {
                worked |= event.token != WAKER;
                match event.token {
                    WAKER => self.obey()?,
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
            self.inbound.drain(socket, &mut self.arena, &self.tun)?;
        }
        Ok(())
    }

    /// While a socket is full the TUN is not read: its packets wait in the kernel's queue.
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
        self.mailbox.uses(self.generation);
    }

    fn obey(&mut self) -> Result<()> {
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
                    // Its file leaves the poller when it is closed.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told_of(work: impl FnOnce() -> Result<()>) -> Vec<Event> {
        let mailbox = Mailbox::new().unwrap();
        let events = shared::Events::new(Waker::new().unwrap());
        live("esp0: worker 1", &mailbox, &events, work);
        assert_eq!(*lock(&mailbox.uses), u64::MAX);
        events.take()
    }

    #[test]
    fn a_worker_that_panics_or_fails_is_told_of_and_waited_for_no_longer() {
        let numbers = [1, 2, 3];
        let beyond = std::hint::black_box(7);
        let panicked = told_of(|| {
            assert_eq!(numbers[beyond], 1);
            Ok(())
        });
        let reason =
            "esp0: worker 1: panicked: index out of bounds: the len is 3 but the index is 7";
        assert_eq!(panicked, [Event::Failed(reason.into())]);
        let failed = told_of(|| Err(Error::Argument("the TUN device is gone")));
        let reason = "esp0: worker 1: the TUN device is gone";
        assert_eq!(failed, [Event::Failed(reason.into())]);
        assert_eq!(told_of(|| Ok(())), []);
    }
}
