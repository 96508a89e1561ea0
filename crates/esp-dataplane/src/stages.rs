//! The workers' time by stage, while a profile runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Number of stages.
pub const STAGES: usize = 8;
/// Reads of the clock by which its cost is measured.
const PROBES: u32 = 64;
const TRIES: u32 = 8;

/// A stage of a packet's way through a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The read of a packet or super-packet from the TUN.
    TunRead,
    /// The SA and lane of an outbound packet.
    LookUp,
    /// Sequence numbers, headers and the AEAD, outbound.
    Seal,
    /// The send by an outer socket.
    Send,
    /// The receive by an outer socket.
    Receive,
    /// SPI, window, AEAD and selectors, inbound.
    Open,
    /// The merge to super-packets, checksums verified.
    Merge,
    /// The write to the TUN.
    TunWrite,
}

impl Stage {
    /// The stages in the order of a packet's way, with their names.
    pub const ALL: [(Self, &'static str); STAGES] = [
        (Self::TunRead, "tun-read"),
        (Self::LookUp, "look-up"),
        (Self::Seal, "seal"),
        (Self::Send, "send"),
        (Self::Receive, "receive"),
        (Self::Open, "open"),
        (Self::Merge, "merge"),
        (Self::TunWrite, "tun-write"),
    ];
}

/// One worker's sums of the profiles so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Nanoseconds of each stage, in the order of [`Stage::ALL`].
    pub ns: [u64; STAGES],
    /// Packets read from the TUN, those of super-packets included.
    pub packets_out: u64,
    /// Datagrams received.
    pub packets_in: u64,
    /// Reads of the clock.
    pub clock_reads: u64,
}

/// A worker's sums, written by it alone, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    ns: [AtomicU64; STAGES],
    packets_out: AtomicU64,
    packets_in: AtomicU64,
    clock_reads: AtomicU64,
}

impl Line {
    fn add(&self, turn: &StageTimes) {
        // The worker is the only writer.
        let add = |sum: &AtomicU64, more: u64| {
            sum.store(sum.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        };
        for (sum, more) in self.ns.iter().zip(turn.ns) {
            add(sum, more);
        }
        add(&self.packets_out, turn.packets_out);
        add(&self.packets_in, turn.packets_in);
        add(&self.clock_reads, turn.clock_reads);
    }

    fn sums(&self) -> StageTimes {
        StageTimes {
            ns: std::array::from_fn(|stage| self.ns[stage].load(Ordering::Relaxed)),
            packets_out: self.packets_out.load(Ordering::Relaxed),
            packets_in: self.packets_in.load(Ordering::Relaxed),
            clock_reads: self.clock_reads.load(Ordering::Relaxed),
        }
    }
}

/// The sums of all workers, and the switch of a profile.
#[derive(Debug)]
pub struct Stages {
    running: AtomicBool,
    lines: Box<[Line]>,
}

impl Stages {
    /// Makes the sums of `workers`, all zero.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self {
            running: AtomicBool::new(false),
            lines: (0..workers.max(1)).map(|_| Line::default()).collect(),
        }
    }

    /// Has the turns that begin from now on measured.
    pub fn begin(&self) {
        self.running.store(true, Ordering::Relaxed);
    }

    /// Has no further turn measured.
    pub fn end(&self) {
        self.running.store(false, Ordering::Relaxed);
    }

    /// The sums of each worker, of turns that have ended.
    #[must_use]
    pub fn times(&self) -> Vec<StageTimes> {
        self.lines.iter().map(Line::sums).collect()
    }
}

/// The cost of one read of the clock: the least of several, the others were interrupted.
#[must_use]
pub fn clock_cost() -> Duration {
    let probe = |_| {
        let began = Instant::now();
        let mut last = began;
        for _ in 0..PROBES {
            last = std::hint::black_box(Instant::now());
        }
        last.duration_since(began) / PROBES
    };
    (0..TRIES).map(probe).min().unwrap_or_default()
}

/// The clock of one direction of a worker. While no profile runs it is looked at once a turn, and
/// not read.
#[derive(Debug)]
pub(crate) struct StageClock {
    stages: Arc<Stages>,
    worker: usize,
    /// The end of the last stage, in a turn that is measured.
    last: Option<Instant>,
    turn: StageTimes,
}

impl StageClock {
    pub(crate) fn new(worker: usize, stages: Arc<Stages>) -> Self {
        Self {
            stages,
            worker,
            last: None,
            turn: StageTimes::default(),
        }
    }

    /// Begins a turn.
    pub(crate) fn begin(&mut self) {
        if self.stages.running.load(Ordering::Relaxed) {
            self.turn.clock_reads = 1;
            self.last = Some(Instant::now());
        }
    }

    /// True in a turn that is measured.
    #[inline]
    pub(crate) const fn is_on(&self) -> bool {
        self.last.is_some()
    }

    /// Counts the time since the last stage for this one.
    #[inline]
    pub(crate) fn lap(&mut self, stage: Stage) {
        if let Some(last) = self.last {
            self.add(stage, last);
        }
    }

    #[cold]
    fn add(&mut self, stage: Stage, last: Instant) {
        let now = Instant::now();
        let spent = now.duration_since(last).as_nanos();
        self.turn.ns[stage as usize] += u64::try_from(spent).unwrap_or(u64::MAX);
        self.turn.clock_reads += 1;
        self.last = Some(now);
    }

    /// Ends a turn of so many packets.
    pub(crate) fn end(&mut self, packets_out: usize, packets_in: usize) {
        if self.last.take().is_some() {
            self.turn.packets_out = packets_out as u64;
            self.turn.packets_in = packets_in as u64;
            self.stages.lines[self.worker % self.stages.lines.len()].add(&self.turn);
            self.turn = StageTimes::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_turns_that_begin_while_a_profile_runs_are_measured() {
        let stages = Arc::new(Stages::new(2));
        let mut clock = StageClock::new(1, Arc::clone(&stages));
        clock.begin();
        stages.begin();
        clock.lap(Stage::Seal);
        clock.end(3, 0);
        assert_eq!(stages.times(), [StageTimes::default(); 2]);

        clock.begin();
        std::thread::sleep(Duration::from_millis(2));
        clock.lap(Stage::Seal);
        stages.end();
        clock.lap(Stage::Send);
        clock.end(3, 4);
        clock.begin();
        assert!(!clock.is_on());
        let [idle, worked] = stages.times()[..] else {
            unreachable!()
        };
        assert_eq!(idle, StageTimes::default());
        assert!(worked.ns[Stage::Seal as usize] >= 2_000_000);
        assert_eq!((worked.packets_out, worked.packets_in), (3, 4));
        assert_eq!(worked.clock_reads, 3);
        let others = [Stage::TunRead, Stage::LookUp, Stage::Receive, Stage::Open];
        assert!(others.iter().all(|stage| worked.ns[*stage as usize] == 0));
    }

    #[test]
    fn stages_have_the_place_of_their_time() {
        for (place, (stage, _)) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, place);
        }
    }
}
