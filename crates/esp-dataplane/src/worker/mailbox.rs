//! Mailbox of a worker: commands, and the wait until it uses new tables.

use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use esp_core::sync::lock;
use esp_linux::Result;
use esp_linux::poll::Waker;

use crate::lanes::CarriedFlow;
use crate::socket::Socket;
use crate::tables::OuterSocket;

/// A request of the control plane to a worker.
pub enum Command {
    /// Serve another outer socket.
    Open(OuterSocket, Arc<Socket>),
    /// Close an outer socket.
    Close(OuterSocket),
    /// Send a keepalive through the socket of this outer address.
    Keepalive(OuterSocket, SocketAddr),
    /// Send an IKE datagram through the socket of this outer address.
    Ike(OuterSocket, SocketAddr, Vec<u8>),
    /// Send a dummy packet by the SA of this name.
    Dummy(Arc<str>),
    /// Treat every inbound flow as new.
    ForgetFlows,
    /// Run before the other workers while there is little to carry, or no longer.
    Prefer(bool),
    /// List the flows that outbound SAs with a lane carried lately.
    RecentFlows(Sender<Vec<CarriedFlow>>),
}

/// The queued commands of a worker, and the generation of its tables.
pub struct Mailbox {
    commands: Mutex<Vec<Command>>,
    pub(super) waker: Waker,
    /// The generation of the tables in use; the highest value after the worker has ended.
    pub(super) generation_in_use: Mutex<u64>,
    generation_changed: Condvar,
}

impl Mailbox {
    /// Makes an empty mailbox.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn new() -> Result<Self> {
        Ok(Self {
            commands: Mutex::default(),
            waker: Waker::new()?,
            generation_in_use: Mutex::new(0),
            generation_changed: Condvar::new(),
        })
    }

    /// Queues a command and wakes the worker.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn send(&self, command: Command) -> Result<()> {
        lock(&self.commands).push(command);
        self.waker.wake()
    }

    /// Wakes the worker to check for new tables and for the stop flag.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn wake(&self) -> Result<()> {
        self.waker.wake()
    }

    /// Waits until the worker uses these tables, or has ended.
    pub fn wait_for_generation(&self, generation: u64) {
        let mut in_use = lock(&self.generation_in_use);
        while *in_use < generation {
            in_use = self
                .generation_changed
                .wait(in_use)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Announces that the worker has ended: it uses no tables any more.
    pub fn announce_end(&self) {
        self.announce(u64::MAX);
    }

    pub(super) fn announce(&self, generation: u64) {
        *lock(&self.generation_in_use) = generation;
        self.generation_changed.notify_all();
    }

    pub(super) fn take(&self) -> Result<Vec<Command>> {
        self.waker.clear()?;
        Ok(std::mem::take(&mut *lock(&self.commands)))
    }
}
