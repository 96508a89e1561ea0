//! The core alone, without the kernel: the cost of a packet from the TUN's buffer to the socket's
//! (encap) and back (decap), in nanoseconds or in instructions.
//!
//! ```text
//! cargo run --release -p esp-core --example core_bench -- [--rounds N] [--suite NAME]
//! cargo run --release -p esp-core --example core_bench -- --split [--rounds N] [--suite NAME]
//! cargo run --release -p esp-core --example core_bench -- --instructions [--suite NAME]
//! cargo run --release -p esp-core --example core_bench -- --cases [--suite NAME]
//! cargo run --release -p esp-core --example core_bench -- --case N --batches N [--suite NAME]
//! ```
//! It prints a JSON list of `{test, size, threads, sas, metric, provider, suite, path, median, min,
//! max}`. `size` is the inner packet's bytes; 62500 is a super-packet of 45 TCP segments, whose
//! figures are for one segment. `ns_per_packet` is the time of all threads together for one packet,
//! so that it halves if two threads are twice as fast; `speedup` is the throughput of two threads
//! divided by that of one, in the same round. `sas` says whether the threads have one SA, that is
//! one sequence counter and one replay window, or each its own. `instructions_per_packet` is
//! counted by valgrind's callgrind, as the difference of two runs of different length; valgrind
//! knows no AVX-512, so that `path` says what the processor was said to have. `--cases` prints what
//! there is to measure, `--case` carries the packets of one, by its place in that list, and prints
//! how many. `--split` seals the segments of one super-packet by one thread and by two; its `size`
//! is the number of segments, its `sas` says how the second thread waits (split.rs).
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../benches/packets/mod.rs"]
mod packets;
#[path = "core_bench/split.rs"]
mod split;
#[path = "core_bench/ways.rs"]
mod ways;

use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use esp_core::esp::suite::Suite;
use esp_core::provider::Provider;
use serde_json::{Value, json};

use crate::packets::SUPER_LEN;
use crate::ways::{Shared, Way};

const TESTS: [&str; 2] = ["encap", "decap"];
const SIZES: [usize; 4] = [64, 576, 1400, SUPER_LEN];
/// Of one measurement.
const TIME: Duration = Duration::from_millis(20);
/// Batches of the shorter of the two runs under valgrind; the longer one has twice as many.
const COUNTED: usize = 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let name = value("--suite").map_or("aes256gcm16", String::as_str);
    let suite = Suite::by_name(name).expect("no such suite");
    if let Some(number) = value("--case") {
        let batches = value("--batches").and_then(|batches| batches.parse().ok());
        let case = &cases(suite)[number.parse::<usize>().expect("a number")];
        return run_alone(case, batches.expect("--batches"));
    }
    let wants = |name: &str| arguments.iter().any(|argument| argument == name);
    let results = if wants("--cases") {
        cases(suite).iter().map(Case::named).collect()
    } else if wants("--instructions") {
        instructions(suite)
    } else {
        let rounds = value("--rounds").map_or(Ok(21), |rounds| rounds.parse());
        let rounds = rounds.expect("a number of rounds");
        if wants("--split") {
            split::measure(suite, rounds)
        } else {
            nanoseconds(suite, rounds)
        }
    };
    println!("{}", serde_json::to_string_pretty(&results).unwrap());
}

struct Case {
    test: &'static str,
    size: usize,
    provider: Provider,
    suite: &'static Suite,
}

fn cases(suite: &'static Suite) -> Vec<Case> {
    let mut cases = Vec::new();
    for &provider in Provider::ALL {
        if provider.aead(suite, &vec![0; suite.key_len]).is_err() {
            continue;
        }
        for size in SIZES {
            for test in TESTS {
                cases.push(Case {
                    test,
                    size,
                    provider,
                    suite,
                });
            }
        }
    }
    cases
}

impl Case {
    fn way(&self, shared: &Shared) -> Way {
        Way::new(self.test, self.size, self.provider, shared)
    }

    fn named(&self) -> Value {
        json!({"test": self.test, "size": self.size, "provider": self.provider.name()})
    }

    fn result(&self, threads: usize, sas: &str, metric: &str, values: &mut [f64]) -> Value {
        values.sort_by(f64::total_cmp);
        json!({
            "test": self.test, "size": self.size, "threads": threads, "sas": sas, "metric": metric,
            "provider": self.provider.name(), "suite": self.suite.name, "path": path(),
            "median": rounded(values[values.len() / 2]), "min": rounded(values[0]),
            "max": rounded(values[values.len() - 1]),
        })
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The instructions that the processor has, or that valgrind says it has.
fn path() -> String {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("aes", std::is_x86_feature_detected!("aes")),
        ("pclmulqdq", std::is_x86_feature_detected!("pclmulqdq")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("vaes", std::is_x86_feature_detected!("vaes")),
        ("avx512", std::is_x86_feature_detected!("avx512bw")),
    ];
    #[cfg(target_arch = "aarch64")]
    let found = [
        ("aes", std::arch::is_aarch64_feature_detected!("aes")),
        ("pmull", std::arch::is_aarch64_feature_detected!("pmull")),
        ("sha3", std::arch::is_aarch64_feature_detected!("sha3")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found: [(&str, bool); 0] = [];
    let names: Vec<_> = found
        .iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| *name)
        .collect();
    names.join(" ")
}

/// The threads of one measurement, made once and used in every round.
struct Team {
    ways: Vec<Way>,
    values: Vec<f64>,
}

impl Team {
    fn own(case: &Case, threads: usize) -> Self {
        let way = || case.way(&Shared::new(case.suite));
        Self {
            ways: (0..threads).map(|_| way()).collect(),
            values: Vec::new(),
        }
    }

    fn sharing(case: &Case, threads: usize) -> Self {
        let shared = Shared::new(case.suite);
        Self {
            ways: (0..threads).map(|_| case.way(&shared)).collect(),
            values: Vec::new(),
        }
    }

    /// Nanoseconds of one packet, all threads together.
    fn measure(&mut self) -> f64 {
        let barrier = Barrier::new(self.ways.len());
        let rates: Vec<f64> = std::thread::scope(|scope| {
            let threads = self
                .ways
                .iter_mut()
                .map(|way| scope.spawn(|| packets_a_nanosecond(way, &barrier)));
            let threads: Vec<_> = threads.collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let value = 1.0 / rates.iter().sum::<f64>();
        self.values.push(value);
        value
    }
}

fn packets_a_nanosecond(way: &mut Way, barrier: &Barrier) -> f64 {
    way.batch();
    barrier.wait();
    let began = Instant::now();
    let mut packets = 0_u32;
    loop {
        packets += way.batch();
        let elapsed = began.elapsed();
        if elapsed >= TIME {
            return f64::from(packets) / (elapsed.as_secs_f64() * 1e9);
        }
    }
}

fn nanoseconds(suite: &'static Suite, rounds: usize) -> Vec<Value> {
    let cases = cases(suite);
    let mut teams: Vec<_> = cases
        .iter()
        .map(|case| {
            (
                Team::own(case, 1),
                Team::own(case, 2),
                Team::sharing(case, 2),
            )
        })
        .collect();
    let mut speedups = vec![(Vec::new(), Vec::new()); cases.len()];
    for _ in 0..rounds {
        for ((one, own, sharing), (own_up, sharing_up)) in teams.iter_mut().zip(&mut speedups) {
            let alone = one.measure();
            own_up.push(alone / own.measure());
            sharing_up.push(alone / sharing.measure());
        }
    }
    let mut results = Vec::new();
    for ((case, teams), speedups) in cases.iter().zip(&mut teams).zip(&mut speedups) {
        results.extend([
            case.result(1, "own", "ns_per_packet", &mut teams.0.values),
            case.result(2, "own", "ns_per_packet", &mut teams.1.values),
            case.result(2, "shared", "ns_per_packet", &mut teams.2.values),
            case.result(2, "own", "speedup", &mut speedups.0),
            case.result(2, "shared", "speedup", &mut speedups.1),
        ]);
    }
    results
}

/// Runs one case under valgrind: one thread, a fixed number of batches; prints the packets.
fn run_alone(case: &Case, batches: usize) {
    let mut way = case.way(&Shared::new(case.suite));
    let packets: u32 = (0..batches).map(|_| way.batch()).sum();
    println!("{packets} {}", path());
}

fn instructions(suite: &'static Suite) -> Vec<Value> {
    let mut results = Vec::new();
    for (number, case) in cases(suite).iter().enumerate() {
        let (few, few_packets, path) = counted(number, suite, COUNTED);
        let (many, many_packets, _) = counted(number, suite, 2 * COUNTED);
        let value = (many - few) / (many_packets - few_packets);
        let mut result = case.result(1, "own", "instructions_per_packet", &mut [value]);
        result["path"] = path.into();
        results.push(result);
    }
    results
}

/// Instructions, packets and path of a run under valgrind.
fn counted(case: usize, suite: &Suite, batches: usize) -> (f64, f64, String) {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--suite", suite.name, "--case", &case.to_string()])
        .args(["--batches", &batches.to_string()])
        .output()
        .expect("valgrind is missing: apt-get install valgrind");
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let printed = String::from_utf8_lossy(&output.stdout);
    match (collected, printed.trim().split_once(' ')) {
        (Some((_, count)), Some((packets, path))) if output.status.success() => (
            count.trim().parse().unwrap(),
            packets.parse().unwrap(),
            path.to_string(),
        ),
        _ => panic!("valgrind: {}\n{said}", output.status),
    }
}
