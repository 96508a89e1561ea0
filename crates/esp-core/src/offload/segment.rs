//! In-place segmentation of a super-packet, one segment at a time (GSO).
//!
//! Nothing is copied: the headers of a segment are written directly in front of its payload, over
//! bytes of the segment before it, which is sealed by then. The bytes of the next segment that the
//! ESP trailer overwrites are restored before its turn.

use std::ops::Range;

use crate::DropReason;
use crate::esp::suite::TRAILER_ROOM;
use crate::wire::protocol::{TCP, UDP};
use crate::wire::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, IPV6_HEADER_LEN, Inner, Sum, VnetHdr,
    complete_checksum, ihl, packet_length, parse, pseudo_header, put_u16, u16_at, u32_at,
};

/// Bytes of all headers of a super-packet; more than any real one has.
pub const MAX_HEADERS: usize = 256;
/// Most segments of a super-packet: 64 KiB in segments of 64 bytes.
///
/// Linux's TCP sends no less than 76 bytes a segment to a peer of its own smallest MSS (88, less 12
/// of timestamps), and UDP at most 128 datagrams a call. Only who writes a `virtio_net_hdr` of his
/// own, such as a guest, makes more; a `gso_size` of 1 turns one read into 65,495 packets.
pub const MAX_SEGMENTS: usize = 1024;
const UDP_HEADER_LEN: usize = 8;
const TCP_MIN_HEADER_LEN: usize = 20;
const FIN_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    Tcp,
    Udp,
}

/// Iterator over the segments of one TUN read; a packet that is not a super-packet is one segment.
#[derive(Debug)]
pub struct Segmenter {
    kind: Kind,
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
    /// The offset of the TCP or UDP header.
    upper: usize,
    gso_size: usize,
    end: usize,
    next: usize,
    count: usize,
    saved: [u8; TRAILER_ROOM],
    saved_at: Option<usize>,
}

impl Segmenter {
    /// Parses a packet of `length` bytes at the beginning of `buf`. A partial checksum of a packet
    /// that is no super-packet is completed.
    ///
    /// # Errors
    /// `MalformedInner` if `vnet` and the packet's headers don't agree, `TooManySegments` for more
    /// than [`MAX_SEGMENTS`].
    pub fn new(vnet: &VnetHdr, buf: &mut [u8], length: usize) -> Result<Self, DropReason> {
        let packet = buf.get_mut(..length).ok_or(DropReason::MalformedInner)?;
        if packet_length(packet)? != length {
            return Err(DropReason::MalformedInner);
        }
        let mut segmenter = Self::whole(length);
        if vnet.gso_type == GSO_NONE {
            complete_checksum(vnet, packet)?;
        } else {
            segmenter
                .split(vnet, packet)
                .ok_or(DropReason::MalformedInner)?;
            if segmenter.count > MAX_SEGMENTS {
                return Err(DropReason::TooManySegments);
            }
        }
        Ok(segmenter)
    }

    /// One segment: the first `length` bytes of the buffer, whatever they are.
    #[must_use]
    pub const fn whole(length: usize) -> Self {
        Self {
            kind: Kind::Whole,
            headers: [0; MAX_HEADERS],
            headers_len: 0,
            upper: 0,
            gso_size: length,
            end: length,
            next: 0,
            count: 1,
            saved: [0; TRAILER_ROOM],
            saved_at: None,
        }
    }

    fn split(&mut self, vnet: &VnetHdr, packet: &[u8]) -> Option<()> {
        let inner = parse(packet).ok().filter(|inner| !inner.fragment)?;
        let upper_len = self.upper_header(vnet, packet, &inner)?;
        let headers = packet.get(..inner.upper + upper_len)?;
        self.headers
            .get_mut(..headers.len())?
            .copy_from_slice(headers);
        self.headers_len = headers.len();
        self.upper = inner.upper;
        self.gso_size = usize::from(vnet.gso_size);
        if self.gso_size == 0 {
            return None;
        }
        self.count = (packet.len() - headers.len())
            .div_ceil(self.gso_size)
            .max(1);
        Some(())
    }

    fn upper_header(&mut self, vnet: &VnetHdr, packet: &[u8], inner: &Inner) -> Option<usize> {
        match (vnet.gso_type & !GSO_ECN, inner.version, inner.protocol) {
            (GSO_TCPV4, 4, TCP) | (GSO_TCPV6, 6, TCP) => {
                self.kind = Kind::Tcp;
                let length = usize::from(packet.get(inner.upper + 12)? >> 4) * 4;
                (length >= TCP_MIN_HEADER_LEN).then_some(length)
            }
            (GSO_UDP_L4, _, UDP) => {
                self.kind = Kind::Udp;
                Some(UDP_HEADER_LEN)
            }
            _ => None,
        }
    }

    /// Number of segments.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Bytes of every segment but the last.
    #[must_use]
    pub const fn segment_len(&self) -> usize {
        match self.kind {
            Kind::Whole => self.end,
            Kind::Tcp | Kind::Udp => {
                let longest = self.headers_len + self.gso_size;
                if longest < self.end {
                    longest
                } else {
                    self.end
                }
            }
        }
    }

    /// Builds the next segment in `buf`, the buffer that `new` was given; returns its place, None
    /// after the last one.
    ///
    /// Until the next call the segment is a whole IP packet, its checksums right, with 8 bytes
    /// behind it that may be overwritten (as far as `buf` goes).
    pub fn next(&mut self, buf: &mut [u8]) -> Option<Range<usize>> {
        if let Some(at) = self.saved_at.take() {
            let saved = &self.saved;
            buf.get_mut(at..)?
                .iter_mut()
                .zip(saved)
                .for_each(|(byte, saved)| *byte = *saved);
        }
        if self.next >= self.count {
            return None;
        }
        let k = self.next;
        self.next += 1;
        if self.kind == Kind::Whole {
            return Some(0..self.end);
        }
        let start = k * self.gso_size;
        let end = (start + self.headers_len + self.gso_size).min(self.end);
        if end < self.end {
            let behind = buf.get(end..)?;
            self.saved
                .iter_mut()
                .zip(behind)
                .for_each(|(saved, byte)| *saved = *byte);
            self.saved_at = Some(end);
        }
        self.write_headers(buf.get_mut(start..end)?, k);
        Some(start..end)
    }

    fn write_headers(&self, segment: &mut [u8], k: usize) {
        let length = segment.len();
        segment[..self.headers_len].copy_from_slice(&self.headers[..self.headers_len]);
        #[allow(clippy::cast_possible_truncation)] // 65535 at most: packet_length took it
        let [length, upper_len, k16] = [length as u16, (length - self.upper) as u16, k as u16];
        if segment[0] >> 4 == 4 {
            let header_len = ihl(segment);
            let id = u16_at(segment, 4).unwrap_or_default();
            put_u16(segment, 2, length);
            put_u16(segment, 4, id.wrapping_add(k16));
            put_u16(segment, 10, 0);
            let checksum = Sum::new().bytes(&segment[..header_len]).checksum();
            put_u16(segment, 10, checksum);
        } else {
            #[allow(clippy::cast_possible_truncation)] // 40
            put_u16(segment, 4, length - IPV6_HEADER_LEN as u16);
        }
        let (protocol, checksum_at) = match self.kind {
            Kind::Tcp => (TCP, 16),
            Kind::Udp | Kind::Whole => (UDP, 6),
        };
        let pseudo = pseudo_header(segment, protocol, upper_len.into());
        let upper = &mut segment[self.upper..];
        if self.kind == Kind::Tcp {
            self.write_tcp(upper, k);
        } else {
            put_u16(upper, 4, upper_len);
        }
        put_u16(upper, checksum_at, 0);
        let checksum = pseudo.bytes(upper).checksum();
        // In UDP, 0 means no checksum (RFC 768).
        let none = self.kind == Kind::Udp && checksum == 0;
        put_u16(upper, checksum_at, if none { 0xFFFF } else { checksum });
    }

    fn write_tcp(&self, tcp: &mut [u8], k: usize) {
        #[allow(clippy::cast_possible_truncation)] // less than 65536
        let offset = (k * self.gso_size) as u32;
        let seq = u32_at(tcp, 4).unwrap_or_default().wrapping_add(offset);
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        if k + 1 < self.count {
            tcp[13] &= !FIN_PSH;
        }
        if k > 0 {
            tcp[13] &= !CWR;
        }
    }
}
