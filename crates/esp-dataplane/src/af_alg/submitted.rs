//! Announced packets, which the kernel opens ahead of their turn.

use std::collections::VecDeque;
use std::ops::Range;

use esp_core::esp::aead::NONCE_LEN;
use esp_linux::alg::{Failure, Request};

use super::request::{Answer, Head, KernelKey};

/// An announced packet and its result.
struct Packet {
    nonce: [u8; NONCE_LEN],
    head: Head,
    sealed: Range<usize>,
    text_len: usize,
    /// None while the kernel has it.
    text: Option<Result<Range<usize>, Failure>>,
}

/// The announced packets, in their order. `answer` compares nonce, head and sealed bytes, so that a
/// result counts only for the very bytes that it was computed from.
#[derive(Default)]
pub(super) struct SubmittedOpens {
    packets: VecDeque<Packet>,
    /// Sealed packets, then their texts.
    bytes: Vec<u8>,
}

impl SubmittedOpens {
    /// Gives the kernel a packet, if it has room.
    pub(super) fn send<K: KernelKey>(
        &mut self,
        key: &mut K,
        request: &Request<'_>,
        head: Head,
        text_len: usize,
    ) -> Result<(), Failure> {
        if self.packets.back().is_none_or(|last| last.text.is_some()) {
            // The rest of the previous batch was never opened.
            self.packets.clear();
            self.bytes.clear();
        }
        if !key.has_room() {
            return Ok(());
        }
        key.send(request)?;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(request.input);
        self.packets.push_back(Packet {
            nonce: *request.nonce,
            head,
            sealed: start..self.bytes.len(),
            text_len,
            text: None,
        });
        Ok(())
    }

    /// The kernel's answer to a packet; None if it was not announced.
    pub(super) fn answer<K: KernelKey>(
        &mut self,
        key: &mut K,
        nonce: &[u8; NONCE_LEN],
        head: &Head,
        sealed: &[u8],
    ) -> Option<Answer<'_>> {
        if self.packets.back()?.text.is_none() {
            self.receive(key);
        }
        while let Some(packet) = self.packets.pop_front() {
            let same = (&packet.nonce, packet.head.bytes()) == (nonce, head.bytes())
                && &self.bytes[packet.sealed] == sealed;
            if same {
                let text = packet.text?;
                return Some(text.map(|text| &self.bytes[text]));
            }
        }
        None
    }

    fn receive<K: KernelKey>(&mut self, key: &mut K) {
        let bytes = &mut self.bytes;
        let mut packets = self.packets.iter_mut();
        key.receive(&mut |answer| {
            let Some(packet) = packets.next() else { return };
            let text = packet.head.behind(answer, packet.text_len);
            packet.text = Some(text.map(|text| {
                let start = bytes.len();
                bytes.extend_from_slice(text);
                start..bytes.len()
            }));
        });
    }
}
