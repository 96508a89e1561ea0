//! Inbound, beside the path: the newest packet of an SA tells where its peer is, and how far its
//! numbers have come.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::events::Event;
use crate::shared::Shared;
use crate::tables::InboundEntry;

/// Takes note of an authentic packet whose number is the highest so far.
#[inline]
pub(super) fn take_newest(entry: &InboundEntry, seq: u64, src: SocketAddr, shared: &Shared) {
    if entry.watched.is_passed(seq) {
        report(entry, seq, shared);
    }
    if entry.follows && !entry.peer.is_at(src, &entry.heard) {
        follow(entry, seq, src, shared);
    }
}

#[cold]
fn report(entry: &InboundEntry, seq: u64, shared: &Shared) {
    if entry.watched.take(seq) {
        let name = Arc::clone(&entry.sa.spec.name);
        shared.events.push(Event::CeilingNear(name, seq));
    }
}

/// Follows the peer, unless no answer can reach the packet's source. A peer without an address of its
/// own isn't followed by what may be a replay from before a crash.
fn follow(entry: &InboundEntry, seq: u64, src: SocketAddr, shared: &Shared) {
    let may_be_replayed = entry.sa.spec.learns_peer() && !entry.watched.is_new(seq);
    if may_be_replayed || src.ip().is_unspecified() {
        return;
    }
    if entry.peer.follow(src, &entry.heard, Instant::now()) {
        let name = Arc::clone(&entry.sa.spec.name);
        let src = entry.sa.spec.shown(src);
        shared.events.push(Event::PeerAddressChanged(name, src));
    }
}
