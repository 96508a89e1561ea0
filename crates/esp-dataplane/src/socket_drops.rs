//! Datagrams that the kernel dropped at the outer sockets: no worker sees them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use esp_core::sync::lock;
use esp_linux::received_drops;

use crate::socket::Socket;
use crate::tables::OuterSocket;

/// The drops of all outer sockets, those that were closed included.
#[derive(Debug, Default)]
pub struct SocketDrops(Mutex<Watch>);

#[derive(Debug, Default)]
struct Watch {
    /// By worker and outer socket.
    open: HashMap<(usize, OuterSocket), Watched>,
    closed: u64,
}

#[derive(Debug)]
struct Watched {
    socket: Arc<Socket>,
    /// The kernel's count when it was last read; it wraps.
    seen: u32,
    total: u64,
}

impl Watched {
    fn read(&mut self) -> u64 {
        // A kernel without the option counts nothing.
        if let Ok(now) = received_drops(&*self.socket) {
            self.total += u64::from(now.wrapping_sub(self.seen));
            self.seen = now;
        }
        self.total
    }
}

impl SocketDrops {
    /// Watches a socket that a worker serves from now on.
    pub fn open(&self, worker: usize, outer: OuterSocket, socket: &Arc<Socket>) {
        let watched = Watched {
            socket: Arc::clone(socket),
            seen: 0,
            total: 0,
        };
        lock(&self.0).open.insert((worker, outer), watched);
    }

    /// Reads a socket for the last time; its worker closes it next.
    pub fn close(&self, worker: usize, outer: OuterSocket) {
        let mut watch = lock(&self.0);
        if let Some(mut watched) = watch.open.remove(&(worker, outer)) {
            watch.closed += watched.read();
        }
    }

    /// The drops so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        let mut watch = lock(&self.0);
        let open: u64 = watch.open.values_mut().map(Watched::read).sum();
        watch.closed + open
    }
}
