//! The outbound path, in its order: TUN, selectors, numbers, segments, seal, socket.
//!
//!   drain        one turn: read super-packets from the TUN        arriving.rs
//!   forward      one super-packet
//!     reassemble   fragments of transport mode
//!   carry        one whole packet or super-packet
//!     targets      selectors, once a flow                         targets.rs
//!     wait         while the SA's socket is full, unsealed        waiting.rs
//!     protect      numbers; each segment sealed behind the last   sealing.rs
//!   flush        complete and send the batch of one SA            sending.rs, sender.rs, batch.rs
//!
//! Packets that wait for a full socket go on in `full_sockets.rs`; `own_sockets.rs` has the sockets of
//! peers that have met one. This file has the shared state.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use esp_core::DropReason;
use esp_core::esp::suite::TRAILER_ROOM;
use esp_core::wire::VnetHdr;
use esp_core::wire::flow::FlowKey;
use esp_core::wire::reassembly::Reassembler;
use esp_linux::mem::Region;
use esp_linux::tun::MAX_PACKET;
use esp_linux::{Error, Result};

use super::batch::{Batch, MAX_BATCH, OUT_LEN, Packet};
use super::own_sockets::{OwnSockets, SendingSocket};
use super::sender::Sender;
use super::targets::Targets;
use super::waiting::Waiting;
use crate::lanes::CarriedFlow;
use crate::shared::Shared;
use crate::stages::StageClock;
use crate::tables::Tables;

/// One worker's outbound path.
pub struct OutboundPath {
    pub(super) worker: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) targets: Targets,
    pub(super) input: Region,
    pub(super) output: Region,
    pub(super) sender: Sender,
    /// Empty between turns.
    pub(super) batch: Option<Batch>,
    /// Per-packet bookkeeping of the current batch.
    pub(super) packets: Vec<Packet>,
    /// The queues of the sockets that are full.
    pub(super) waiting: HashMap<SendingSocket, Waiting>,
    /// The sockets of peers that have met a full one.
    pub(super) own: OwnSockets,
    /// The error that made a socket unusable, until the worker ends with it.
    pub(super) failed: Option<Error>,
    pub(super) reassembler: Reassembler,
    pub(super) began: Instant,
    /// The load of the turns since it was last asked for.
    pub(super) load: usize,
    pub(super) clock: StageClock,
}

/// A packet or super-packet in the input buffer.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    pub(super) vnet: VnetHdr,
    pub(super) length: usize,
    /// True if it was reassembled from fragments.
    pub(super) whole: bool,
}

impl OutboundPath {
    /// Makes the buffers and the tables of a worker.
    ///
    /// # Errors
    /// The error of the system call, for memory.
    pub fn new(worker: usize, shared: Arc<Shared>) -> Result<Self> {
        Ok(Self {
            worker,
            targets: Targets::new(worker, Arc::clone(&shared)),
            input: Region::new(MAX_PACKET + TRAILER_ROOM)?,
            output: Region::new(OUT_LEN)?,
            sender: Sender::new(worker, Arc::clone(&shared)),
            clock: StageClock::new(worker, Arc::clone(&shared.stages)),
            shared,
            batch: None,
            packets: Vec::with_capacity(MAX_BATCH),
            waiting: HashMap::new(),
            own: OwnSockets::new(),
            failed: None,
            reassembler: Reassembler::default(),
            began: Instant::now(),
            load: 0,
        })
    }

    /// Uses new tables from the next packet on. What waits for a full socket unsealed is looked up
    /// in them; sealed batches are sent if their SA is still installed.
    pub fn use_tables(&mut self, tables: Arc<Tables>) {
        self.close_unused_sockets(&tables);
        let (worker, targets) = (self.worker, &mut self.targets);
        targets.replace(tables);
        for waiting in self.waiting.values_mut() {
            waiting.sealed.retain_mut(|sealed| {
                let index = targets.again(&sealed.entry);
                if let Some(index) = index {
                    sealed.batch.slot = index;
                } else {
                    sealed.dropped(worker, DropReason::SendError);
                }
                index.is_some()
            });
        }
    }

    /// The load of the turns since the last call.
    pub const fn take_load(&mut self) -> usize {
        std::mem::replace(&mut self.load, 0)
    }

    /// Sets the time of the lanes for this turn; the clock isn't read where nothing has lanes.
    pub(super) fn advance_lanes(&mut self) {
        if self.targets.has_lanes() {
            let now = self.shared.began.elapsed().as_millis();
            let now = u64::try_from(now).unwrap_or(u64::MAX);
            self.targets.lanes.advance(now);
        }
    }

    /// Counts bytes of flows that came by a bulk lane.
    pub fn heard(&mut self, flows: &[(FlowKey, usize)]) {
        if flows.is_empty() {
            return;
        }
        self.advance_lanes();
        for (flow, bytes) in flows {
            self.targets.lanes.heard(flow, *bytes);
        }
    }

    /// The flows that SAs with a lane carried lately.
    pub fn recent_flows(&mut self) -> Vec<CarriedFlow> {
        self.advance_lanes();
        self.targets.recent_flows()
    }

    /// True if packets wait for a socket.
    #[inline]
    pub(super) fn is_full(&self, socket: &SendingSocket) -> bool {
        !self.waiting.is_empty() && self.waiting.contains_key(socket)
    }
}
