//! The lanes' inbound SAs steered to their workers, and the priority of lane 0's worker.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use esp_core::sync::lock;
use esp_core::wire::flow::FlowKey;
use esp_linux::Result;
use esp_linux::bpf::Steering;

use super::lifecycle::Engine;
use super::steered::by_spi;
use crate::lanes::{LANE0_WORKER, worker_of};
use crate::tables::{InboundEntry, Tables};
use crate::worker::Command;

/// Longest wait for the workers' lists of flows.
const PATIENCE: Duration = Duration::from_millis(200);

/// State of the lanes' steering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneStatus {
    /// True if each lane's packets come to its worker.
    pub steered: bool,
    /// SPIs in the kernel's list.
    pub listed: usize,
    /// Inbound SAs that have a lane.
    pub laned: usize,
    /// Most that can be steered.
    pub limit: usize,
    /// The kernel's reason for a list that it refused; else empty.
    pub refused: String,
    /// The nice value of lane 0's worker, if it differs from that of the others.
    pub priority: Option<i32>,
    /// Reason that the kernel refused the priority; empty if it was not.
    pub priority_refused: String,
}

impl Engine {
    /// Steers by the SAs of the present tables. Where the kernel refuses a list of SPIs, all go by
    /// SPI modulo the number of workers.
    pub(super) fn steer(&self) -> Result<()> {
        let tables = self.shared.tables.load();
        let workers = self.workers();
        let listed = listed(&tables, workers);
        let mut steered = lock(&self.steered);
        steered.laned = listed.len();
        let count = u32::try_from(workers).unwrap_or(1);
        steered.refused.clear();
        steered.complete = listed.len() <= Steering::MAX_LISTED;
        if steered.complete {
            let by_list = Steering::by_list(count, listed);
            if let Err(error) = by_list.and_then(|list| steered.set(list)) {
                steered.refused = error.to_string();
                steered.complete = false;
            }
        }
        if !steered.complete {
            steered.set(by_spi(workers)?)?;
        }
        let is_preferred = steered.complete && lane0_is_alone(&tables, workers);
        if is_preferred != steered.is_preferred {
            steered.is_preferred = is_preferred;
            if let Some(mailbox) = self.mailboxes.get(LANE0_WORKER) {
                mailbox.send(Command::Prefer(is_preferred))?;
            }
        }
        Ok(())
    }

    /// The state of the lanes.
    #[must_use]
    pub fn lanes(&self) -> LaneStatus {
        let steered = lock(&self.steered);
        let (priority, priority_refused) = lock(&self.shared.priority).clone();
        let is_steered = steered.complete && self.workers() > 1;
        let listed = if is_steered { steered.laned } else { 0 };
        LaneStatus {
            steered: listed > 0,
            listed,
            laned: steered.laned,
            refused: steered.refused.clone(),
            limit: Steering::MAX_LISTED,
            priority,
            priority_refused,
        }
    }

    /// The outbound bulk packets that lane 0's worker sealed: the TUN gave it their flows.
    #[must_use]
    pub fn bulk_on_lane0(&self) -> u64 {
        self.shared.bulk_on_lane0.load(Ordering::Relaxed)
    }

    /// The outbound SAs of tunnels with lanes, each with the flows that it carried lately.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn lane_flows(&self) -> Result<HashMap<Arc<str>, u64>> {
        let (listed, lists) = mpsc::channel();
        self.tell(|_| Some(Command::RecentFlows(listed.clone())))?;
        drop(listed);
        let deadline = Instant::now() + PATIENCE;
        let mut carriers: HashMap<FlowKey, (u64, Arc<str>)> = HashMap::new();
        for _ in 0..self.workers() {
            let patience = deadline.saturating_duration_since(Instant::now());
            // A worker that has ended lists nothing.
            let Ok(list) = lists.recv_timeout(patience) else {
                break;
            };
            for (flow, seen, sa) in list {
                // A flow that has moved from one worker to another is with the latter.
                let before = carriers.get(&flow);
                if before.is_none_or(|before| before.0 <= seen) {
                    carriers.insert(flow, (seen, sa));
                }
            }
        }
        let mut flows: HashMap<Arc<str>, u64> = HashMap::new();
        for (_, sa) in carriers.into_values() {
            *flows.entry(sa).or_default() += 1;
        }
        Ok(flows)
    }
}

/// SPI and worker of each inbound SA that has a lane.
fn listed(tables: &Tables, workers: usize) -> Vec<(u32, u32)> {
    let place = |entry: &Arc<InboundEntry>| {
        let worker = worker_of(entry.sa.spec.lane?, workers);
        Some((entry.sa.spec.spi, u32::try_from(worker).ok()?))
    };
    tables.inbound.values().filter_map(place).collect()
}

/// True if lane 0's worker receives for no other SA.
fn lane0_is_alone(tables: &Tables, workers: usize) -> bool {
    let comes_here = |entry: &&Arc<InboundEntry>| match entry.sa.spec.lane {
        Some(lane) => worker_of(lane, workers) == LANE0_WORKER,
        None => entry.sa.spec.spi as usize % workers == LANE0_WORKER,
    };
    let here = tables.inbound.values().filter(comes_here);
    let mut lanes = here.map(|entry| entry.sa.spec.lane).peekable();
    workers > 1 && lanes.peek().is_some() && lanes.all(|lane| lane == Some(0))
}
