//! Writes packets and super-packets to the TUN, and counts the outcome.

use std::io::IoSlice;
use std::sync::Arc;

use esp_core::DropReason;
use esp_core::counters::Tally;
use esp_core::offload::coalesce::{MergeKind, Ready};
use esp_core::offload::segment::Segmenter;
use esp_core::wire::{GSO_UDP_L4, VnetHdr};
use esp_linux::Result;
use esp_linux::tun::{TunQueue, TunWrite};

use crate::tables::InboundEntry;

/// Writes a packet or super-packet; returns the kind of a super-packet that the kernel refuses,
/// while it takes the same packets one by one.
///
/// # Errors
/// The error of the system call, if the TUN is unusable.
pub(super) fn write(
    ready: &mut Ready<'_>,
    entries: &[Arc<InboundEntry>],
    worker: usize,
    tun: &TunQueue,
) -> Result<Option<MergeKind>> {
    let written = tun.write_parts(&[IoSlice::new(ready.frame)])?;
    let entry = usize::try_from(ready.owner)
        .ok()
        .and_then(|index| entries.get(index));
    let Some(tally) = entry.map(|entry| entry.tallies.of(worker)) else {
        return Ok(None);
    };
    if written == TunWrite::Invalid && ready.packets > 1 {
        return write_each(ready.frame, ready.packets, tally, tun);
    }
    count(written, tally, ready.packets.into(), ready.bytes);
    Ok(None)
}

#[cold]
fn write_each(
    frame: &mut [u8],
    packets: u16,
    tally: &Tally,
    tun: &TunQueue,
) -> Result<Option<MergeKind>> {
    let (header, packet) = frame.split_at_mut(VnetHdr::LEN.min(frame.len()));
    let vnet = VnetHdr::read(header).unwrap_or_default();
    let length = packet.len();
    let Ok(mut segments) = Segmenter::new(&vnet, packet, length) else {
        tally.dropped(DropReason::TunError, packets.into());
        return Ok(None);
    };
    let mut taken = false;
    while let Some(range) = segments.next(packet) {
        let bytes = range.len() as u64;
        let written = tun.write(&VnetHdr::default(), &packet[range])?;
        taken |= written == TunWrite::Written;
        count(written, tally, 1, bytes);
    }
    let kind = if vnet.gso_type == GSO_UDP_L4 {
        MergeKind::Udp
    } else {
        MergeKind::Tcp
    };
    // Merging is to blame only if the same bytes pass without it.
    Ok(taken.then_some(kind))
}

fn count(written: TunWrite, tally: &Tally, packets: u64, bytes: u64) {
    match written {
        TunWrite::Written => tally.carried(packets, bytes),
        TunWrite::WouldBlock => tally.dropped(DropReason::TunQueueFull, packets),
        TunWrite::Down | TunWrite::Gone | TunWrite::Invalid | TunWrite::Rejected => {
            tally.dropped(DropReason::TunError, packets);
        }
    }
}
