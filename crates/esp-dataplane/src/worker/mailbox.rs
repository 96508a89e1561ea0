//! How a worker is reached: commands, and the wait until it uses new tables.

use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, PoisonError};

use esp_linux::Result;
use esp_linux::poll::Waker;

use crate::socket::Socket;
use crate::sync::lock;
use crate::tables::Outer;

/// What the control plane asks of a worker.
pub enum Command {
    /// Serve one more outer socket.
    Open(Outer, Socket),
    /// Close one.
    Close(Outer),
    /// Send a keepalive through the socket of this outer address.
    Keepalive(Outer, SocketAddr),
}

/// What a worker is reached by.
pub struct Mailbox {
    commands: Mutex<Vec<Command>>,
    pub(super) waker: Waker,
    /// The generation of the tables that the worker uses; all of them once it has ended.
    pub(super) uses: Mutex<u64>,
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

    pub(super) fn uses(&self, generation: u64) {
        *lock(&self.uses) = generation;
        self.moved.notify_all();
    }

    pub(super) fn take(&self) -> Result<Vec<Command>> {
        self.waker.clear()?;
        Ok(std::mem::take(&mut *lock(&self.commands)))
    }
}
