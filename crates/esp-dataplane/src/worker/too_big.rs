//! Packets that exceed the path MTU: the control plane learns the MTU, and their senders do at once.

use esp_core::DropReason;
use esp_core::esp::sa::{Mode, SaSpec};
use esp_core::wire;
use esp_core::wire::flow::FlowKey;
use esp_core::wire::inner::{transport_header, transport_header_len};
use esp_linux::Result;
use esp_linux::tun::TunQueue;
use esp_linux::udp::path_mtu;

use super::batch::{Batch, Packet};
use super::outbound::OutboundPath;
use super::sealing::{MIN_IPV6_MTU, outer_headers};
use super::sender::Sender;
use super::targets::Slot;
use crate::events::Event;
use crate::tables::OutboundEntry;

/// Most ICMP errors that wait for the TUN.
const MAX_WAITING: usize = 64;

impl Sender {
    /// Sees to a batch of which some packets exceed the path MTU.
    pub(super) fn too_big(
        &mut self,
        slot: &mut Slot,
        batch: &Batch,
        packets: &[Packet],
        sealed: &[u8],
    ) {
        if self.ask_path_mtu(slot, batch) {
            self.sample(&slot.entry, batch, packets, sealed);
        }
        self.answer(slot, batch, packets, sealed);
    }

    /// Asks for the path MTU, if that was not done a moment ago.
    fn ask_path_mtu(&self, slot: &mut Slot, batch: &Batch) -> bool {
        let now = self.began.elapsed();
        if !slot.path_mtu.is_due(now) {
            return false;
        }
        let remote = batch.dst.ip();
        let mtu = path_mtu(remote, self.shared.fwmark).ok();
        if let Some(mtu) = mtu {
            self.shared.events.push(Event::PathMtuChanged(remote, mtu));
        }
        slot.path_mtu.take(mtu, now);
        true
    }

    /// Samples a packet of the batch.
    fn sample(
        &mut self,
        entry: &OutboundEntry,
        batch: &Batch,
        packets: &[Packet],
        sealed: &[u8],
    ) -> Option<()> {
        if !self.sampler.has_room(DropReason::TooBig) {
            return None;
        }
        // The last of the full size: those behind the first refused one are refused, too.
        let mut full_size = sealed.chunks_exact(batch.segment).zip(packets);
        let (esp, _) = full_size.rfind(|(_, packet)| batch.may_fragment || !packet.any_link)?;
        let packet = self.reopen(&entry.sa.spec, esp)?;
        let name = Some(&entry.sa.spec.name);
        self.sampler.packet(DropReason::TooBig, name, &packet);
        Some(())
    }

    /// Makes ICMP errors of the first and the last packet of the batch that have one: its packets are
    /// of one flow, or of few.
    fn answer(&mut self, slot: &mut Slot, batch: &Batch, packets: &[Packet], sealed: &[u8]) {
        let (spec, path) = (&slot.entry.sa.spec, &mut slot.path_mtu);
        let (Some(path_mtu), false) = (path.mtu, batch.may_fragment) else {
            return;
        };
        let path_mtu = path_mtu.max(self.shared.min_mtu);
        let mut refused = sealed.chunks(batch.segment).zip(packets);
        let exceeds = |(_, packet): &(&[u8], &Packet)| {
            !packet.any_link && packet.bytes > inner_mtu(spec, path_mtu) as u64
        };
        let ends = [refused.find(exceeds), refused.rfind(exceeds)];
        let mut answered = None;
        for (esp, _) in ends.into_iter().flatten() {
            if !path.may_answer() || self.answers.len() >= MAX_WAITING {
                return;
            }
            let Some(packet) = self.reopen(spec, esp) else {
                continue;
            };
            let flow = FlowKey::of(&packet);
            if flow.is_some() && flow == answered {
                continue;
            }
            answered = flow;
            let mtu = match wire::version(&packet) {
                6 => inner_mtu(spec, path_mtu).max(MIN_IPV6_MTU),
                _ => inner_mtu(spec, path_mtu),
            };
            let mtu = u32::try_from(mtu).unwrap_or(u32::MAX);
            if let Some(error) = wire::too_big(&packet, mtu) {
                path.answered();
                self.answers.push(error);
            }
        }
    }

    /// Opens a sealed packet again: the inner one is overwritten by now.
    fn reopen(&self, spec: &SaSpec, esp: &[u8]) -> Option<Vec<u8>> {
        let header_len = match spec.mode {
            Mode::Tunnel => 0,
            Mode::Transport => transport_header_len(spec.local),
        };
        let mut opener = spec.opener(&self.shared.aeads).ok()?;
        let mut packet = vec![0; header_len + opener.text_len(esp.len()).ok()?];
        let opened = opener.reopen(esp, &mut packet[header_len..]).ok()?;
        packet.truncate(header_len + opened.payload_len);
        if spec.mode == Mode::Transport {
            let (src, dst) = (spec.local, spec.remote);
            transport_header(&mut packet, src, dst, opened.next_header, 0).ok()?;
        }
        Some(packet)
    }
}

impl OutboundPath {
    /// Writes the ICMP errors to the TUN; what that doesn't take is lost.
    ///
    /// # Errors
    /// The error of the system call, if the TUN is unusable.
    pub fn answer(&mut self, tun: &TunQueue) -> Result<()> {
        for error in self.sender.answers.drain(..) {
            tun.write(&wire::VnetHdr::default(), &error)?;
        }
        Ok(())
    }
}

/// Bytes of the largest inner packet whose outer packet has at most `path_mtu`.
fn inner_mtu(spec: &SaSpec, path_mtu: usize) -> usize {
    let headers = outer_headers(spec.remote.is_ipv4(), spec.encapsulation);
    let payload = spec.suite.max_payload(path_mtu.saturating_sub(headers));
    match spec.mode {
        Mode::Tunnel => payload,
        Mode::Transport => payload + transport_header_len(spec.local),
    }
}
