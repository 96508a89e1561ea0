//! The outer sockets' steering to the workers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use esp_linux::bpf::Steering;
use esp_linux::{Error, Result};

use crate::socket::Socket;
use crate::tables::OuterSocket;

/// The sockets of each outer address, with their steering.
#[derive(Debug)]
pub(super) struct Steered {
    now: Steering,
    groups: HashMap<OuterSocket, Vec<Weak<Socket>>>,
    pub(super) laned: usize,
    /// The kernel's reason for a refused list; else empty.
    pub(super) refused: String,
    /// True if the list took every laned SA.
    pub(super) complete: bool,
    /// The last answer that lane 0's worker was given to the question of its priority.
    pub(super) is_preferred: bool,
}

impl Steered {
    /// Steers by SPI modulo the number of workers.
    pub(super) fn new(workers: usize) -> Result<Mutex<Self>> {
        Ok(Mutex::new(Self {
            now: by_spi(workers)?,
            groups: HashMap::new(),
            laned: 0,
            refused: String::new(),
            complete: false,
            is_preferred: false,
        }))
    }

    pub(super) const fn now(&self) -> &Steering {
        &self.now
    }

    pub(super) fn open(&mut self, outer: OuterSocket, group: &[Arc<Socket>]) {
        let group = group.iter().map(Arc::downgrade).collect();
        self.groups.insert(outer, group);
    }

    pub(super) fn close(&mut self, outer: &OuterSocket) {
        self.groups.remove(outer);
    }

    /// Steers every group anew.
    ///
    /// # Errors
    /// The error of the system call; every group is steered as before.
    pub(super) fn set(&mut self, wanted: Steering) -> Result<()> {
        if wanted == self.now {
            return Ok(());
        }
        if let Err(error) = self.steer_all(&self.now, &wanted) {
            // The kernel takes again a program that it took before.
            let _ = self.steer_all(&wanted, &self.now);
            return Err(error);
        }
        self.now = wanted;
        Ok(())
    }

    fn steer_all(&self, before: &Steering, after: &Steering) -> Result<()> {
        for group in self.groups.values() {
            let group: Vec<Arc<Socket>> = group.iter().filter_map(Weak::upgrade).collect();
            Socket::steer(&group, before, after)?;
        }
        Ok(())
    }
}

/// Steers every SPI to its remainder by the number of workers.
///
/// # Errors
/// `Argument` for more workers than can be counted.
pub(super) fn by_spi(workers: usize) -> Result<Steering> {
    let count = u32::try_from(workers).map_err(|_| Error::Argument("too many workers"))?;
    Steering::by_spi(count.max(1))
}
