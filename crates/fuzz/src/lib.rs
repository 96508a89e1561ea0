//! Shared by the fuzz targets: correct packets with the fuzzer's changes.

#[allow(dead_code, clippy::pedantic)]
#[path = "../../esp-core/tests/it/build.rs"]
pub mod build;

use arbitrary::Arbitrary;
use build::{ACK, CWR, FIN, PSH, Packet, SYN};
use esp_core::offload::segment::Segmenter;
use esp_core::wire::VnetHdr;

/// Changes of single bytes, at places modulo the length.
pub type Changes = Vec<(u16, u8)>;

/// Applies changes; true if a byte differs.
pub fn change(bytes: &mut [u8], changes: &Changes) -> bool {
    let before = bytes.to_vec();
    for &(at, value) in changes {
        let at = usize::from(at) % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= value;
        }
    }
    before != bytes
}

/// Parameters of a TCP or UDP packet.
#[derive(Arbitrary, Clone, Debug)]
pub struct Recipe {
    v6: bool,
    tcp: bool,
    tos: u8,
    ttl: u8,
    id: u16,
    df: bool,
    hosts: (u8, u8),
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    window: u16,
    flags: u8,
    options: u8,
    payload_len: u16,
    payload_first: u8,
}

impl Recipe {
    /// The packet, with 1 to `max` bytes of payload.
    #[must_use]
    pub fn packet(&self, max: u16) -> Packet {
        let flags = [ACK, ACK | PSH, ACK | FIN, ACK | CWR, SYN, ACK | PSH | CWR];
        let payload_len = 1 + self.payload_len % max;
        Packet {
            v6: self.v6,
            tcp: self.tcp,
            tos: self.tos,
            ttl: self.ttl,
            id: self.id,
            df: self.df,
            hosts: (self.hosts.0 & 1, self.hosts.1 & 1),
            ports: self.ports,
            seq: self.seq,
            ack: self.ack,
            flags: flags[usize::from(self.flags) % flags.len()],
            window: self.window,
            options: vec![1; usize::from(self.options % 11) * 4],
            payload: (0..payload_len)
                .map(|i| self.payload_first.wrapping_add(i.to_le_bytes()[0]))
                .collect(),
        }
    }
}

/// Splits like the engine: the trailer overwrites the bytes behind each segment, and the segment
/// itself is not needed any more. None if the segmenter refuses.
#[must_use]
pub fn split(vnet: &VnetHdr, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut buf = [packet, &[0; 8]].concat();
    let mut segmenter = Segmenter::new(vnet, &mut buf, packet.len()).ok()?;
    let mut segments = Vec::new();
    while let Some(range) = segmenter.next(&mut buf) {
        assert!(range.end <= packet.len());
        segments.push(buf[range.clone()].to_vec());
        buf[range.end..range.end + 8].fill(0xEE);
        buf[range].fill(0xDD);
    }
    assert_eq!(segments.len(), segmenter.count());
    Some(segments)
}
