//! Sealed packets between the kernel and their output buffers.

use esp_core::esp::aead::SealError;

/// Sealed packets that wait for `complete_seals`, one behind the other.
#[derive(Default)]
pub(super) struct Answers {
    bytes: Vec<u8>,
    /// Index among the packets submitted since the last `complete_seals`, and the end of its bytes.
    ends: Vec<(usize, usize)>,
}

impl Answers {
    /// Adds a packet of `len` bytes; returns the place for it.
    pub(super) fn push(&mut self, at: usize, len: usize) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        self.ends.push((at, self.bytes.len()));
        &mut self.bytes[start..]
    }

    /// Removes the packet that was added last.
    pub(super) fn pop(&mut self) {
        self.ends.pop();
        let end = self.ends.last().map_or(0, |(_, end)| *end);
        self.bytes.truncate(end);
    }

    /// Copies each packet to its output buffer.
    pub(super) fn place(
        &mut self,
        outs: &mut dyn Iterator<Item = &mut [u8]>,
    ) -> Result<(), SealError> {
        let (mut next, mut start) = (0, 0);
        let mut outs = outs.enumerate();
        while let Some(&(at, end)) = self.ends.get(next) {
            let Some((index, out)) = outs.next() else {
                break;
            };
            if index == at && out.len() == end - start {
                out.copy_from_slice(&self.bytes[start..end]);
                (next, start) = (next + 1, end);
            }
        }
        let all = next == self.ends.len();
        self.bytes.clear();
        self.ends.clear();
        if all { Ok(()) } else { Err(SealError) }
    }
}
