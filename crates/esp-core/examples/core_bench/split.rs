//! One super-packet of one flow, sealed by one thread and by two that share out its segments.
//!
//! The second thread has its half at hand: what is measured is the hand-over and the sealing, from
//! the moment at which the super-packet is there until both halves are sealed. Neither a copy of the
//! half nor its sending is part of it. Between two super-packets the first thread is busy with
//! something else for a while, as a worker is with reads and sends; it isn't measured, but long
//! enough for a thread without work to fall asleep.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{Thread, park};
use std::time::{Duration, Instant};

use esp_core::esp::suite::Suite;
use esp_core::provider::Provider;
use serde_json::Value;

use crate::packets::SEGMENTS;
use crate::ways::{Outbound, Shared};
use crate::{Case, TIME};

const COUNTS: [usize; 4] = [2, 8, 24, SEGMENTS];
/// Between two super-packets.
const PAUSE: Duration = Duration::from_micros(30);
const END: u32 = u32::MAX;

/// How the second thread waits for its half.
#[derive(Clone, Copy)]
enum Waiting {
    /// It takes a core also while there is nothing to do.
    Spinning,
    /// It is woken by a system call (futex).
    Parked,
}

impl Waiting {
    const ALL: [Self; 2] = [Self::Spinning, Self::Parked];

    fn name(self) -> &'static str {
        match self {
            Self::Spinning => "spinning",
            Self::Parked => "parked",
        }
    }

    fn wait(self) {
        match self {
            Self::Spinning => spin_loop(),
            Self::Parked => park(),
        }
    }

    fn wake(self, thread: &Thread) {
        match self {
            Self::Spinning => {}
            Self::Parked => thread.unpark(),
        }
    }
}

/// Numbers of the super-packet whose second half was handed over, and was sealed.
#[derive(Default)]
struct HandOver {
    asked: AtomicU32,
    done: AtomicU32,
}

/// Results for every provider and number of segments, `rounds` interleaved measurements of each.
pub fn measure(suite: &'static Suite, rounds: usize) -> Vec<Value> {
    let mut splits: Vec<_> = Provider::ALL
        .iter()
        .filter(|provider| provider.aead(suite, &vec![0; suite.key_len]).is_ok())
        .flat_map(|&provider| COUNTS.map(|segments| Split::new(suite, provider, segments)))
        .collect();
    for _ in 0..rounds {
        for split in &mut splits {
            split.round();
        }
    }
    splits.iter_mut().flat_map(Split::results).collect()
}

struct Split {
    case: Case,
    whole: Outbound,
    halves: (Outbound, Outbound),
    one: Vec<f64>,
    two: [Vec<f64>; 2],
    speedups: [Vec<f64>; 2],
}

impl Split {
    fn new(suite: &'static Suite, provider: Provider, segments: usize) -> Self {
        let shared = Shared::new(suite);
        let of = |segments| Outbound::of_segments(segments, provider, &shared);
        let second = segments / 2;
        Self {
            case: Case {
                test: "split",
                size: segments,
                provider,
                suite,
            },
            whole: of(segments),
            halves: (of(segments - second), of(second)),
            one: Vec::new(),
            two: Default::default(),
            speedups: Default::default(),
        }
    }

    fn round(&mut self) {
        let alone = nanoseconds(self.case.size, || {
            self.whole.batch();
        });
        self.one.push(alone);
        for waiting in Waiting::ALL {
            let together = self.together(waiting);
            self.two[waiting as usize].push(together);
            self.speedups[waiting as usize].push(alone / together);
        }
    }

    /// Nanoseconds of a segment with two threads.
    fn together(&mut self, waiting: Waiting) -> f64 {
        let hand_over = HandOver::default();
        let (first, second) = (&mut self.halves.0, &mut self.halves.1);
        std::thread::scope(|scope| {
            let helper = scope.spawn(|| help(second, &hand_over, waiting));
            let mut number = 0;
            let ask = |number| {
                hand_over.asked.store(number, Ordering::Release);
                waiting.wake(helper.thread());
            };
            let value = nanoseconds(self.case.size, || {
                number += 1;
                ask(number);
                first.batch();
                while hand_over.done.load(Ordering::Acquire) != number {
                    spin_loop();
                }
            });
            ask(END);
            value
        })
    }

    fn results(&mut self) -> Vec<Value> {
        let case = &self.case;
        let mut results = vec![case.result(1, "own", "ns_per_packet", &mut self.one)];
        for waiting in Waiting::ALL {
            let (name, place) = (waiting.name(), waiting as usize);
            results.extend([
                case.result(2, name, "ns_per_packet", &mut self.two[place]),
                case.result(2, name, "speedup", &mut self.speedups[place]),
            ]);
        }
        results
    }
}

/// The second thread: seals its half whenever it is asked to.
fn help(half: &mut Outbound, hand_over: &HandOver, waiting: Waiting) {
    let mut sealed = 0;
    loop {
        match hand_over.asked.load(Ordering::Acquire) {
            END => return,
            asked if asked == sealed => waiting.wait(),
            asked => {
                half.batch();
                sealed = asked;
                hand_over.done.store(asked, Ordering::Release);
            }
        }
    }
}

/// Nanoseconds of a segment, by the median of super-packets of `segments` with a pause after each.
///
/// A second thread that the machine has no core for costs milliseconds, whatever it does.
fn nanoseconds(segments: usize, mut seal: impl FnMut()) -> f64 {
    seal();
    let began = Instant::now();
    let mut spent = Vec::new();
    while began.elapsed() < TIME {
        let rested = Instant::now();
        while rested.elapsed() < PAUSE {
            spin_loop();
        }
        let started = Instant::now();
        seal();
        spent.push(started.elapsed());
    }
    spent.sort();
    let segments = u32::try_from(segments).unwrap();
    spent[spent.len() / 2].as_secs_f64() * 1e9 / f64::from(segments)
}
