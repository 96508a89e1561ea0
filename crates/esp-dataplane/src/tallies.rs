//! Counters of each worker, summed when they are read.

use std::sync::OnceLock;

use esp_core::counters::{Counters, Tally};

/// Tallies of one SA or direction: one for each worker, the only writer, allocated with its first
/// packet.
#[derive(Debug)]
pub struct Tallies(Box<[OnceLock<Box<Line>>]>);

/// A tally on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(Tally);

impl Tallies {
    /// Makes a tally for each of `workers`.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| OnceLock::new()).collect())
    }

    /// The tally of a worker.
    #[must_use]
    pub fn of(&self, worker: usize) -> &Tally {
        &self.0[worker % self.0.len()].get_or_init(Box::default).0
    }

    /// The sum over all workers.
    #[must_use]
    pub fn sum(&self) -> Counters {
        let mut sum = Counters::default();
        for line in self.0.iter().filter_map(OnceLock::get) {
            sum += &line.0.snapshot();
        }
        sum
    }
}
