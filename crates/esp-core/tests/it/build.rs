//! Packets built field by field, as an oracle.

use esp_core::wire::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHdr};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const CWR: u8 = 128;

/// The Internet checksum as RFC 1071 writes it down, two bytes at a time.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xFFFF) + (total >> 16);
        }
    }
    total as u16
}

#[derive(Clone, Debug)]
pub struct Packet {
    pub v6: bool,
    pub tcp: bool,
    pub tos: u8,
    pub ttl: u8,
    pub id: u16,
    pub df: bool,
    pub hosts: (u8, u8),
    pub ports: (u16, u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Default for Packet {
    fn default() -> Self {
        Self {
            v6: false,
            tcp: true,
            tos: 0,
            ttl: 64,
            id: 7,
            df: true,
            hosts: (1, 2),
            ports: (1000, 2000),
            seq: 1,
            ack: 2,
            flags: ACK,
            window: 500,
            options: vec![1; 12],
            payload: vec![0x61; 100],
        }
    }
}

impl Packet {
    pub fn ip_len(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    pub fn headers_len(&self) -> usize {
        self.ip_len() + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    fn addresses(&self) -> (Vec<u8>, Vec<u8>) {
        let address = |last: u8| {
            if self.v6 {
                let mut a = vec![0x20, 0x01, 0xd, 0xb8];
                a.resize(15, 0);
                a.push(last);
                a
            } else {
                vec![192, 0, 2, last]
            }
        };
        (address(self.hosts.0), address(self.hosts.1))
    }

    fn pseudo(&self, length: usize) -> Vec<u8> {
        let (src, dst) = self.addresses();
        let protocol = if self.tcp { 6 } else { 17 };
        [
            &src[..],
            &dst,
            &[0, protocol],
            &(length as u32).to_be_bytes(),
        ]
        .concat()
    }

    /// The packet; with `partial` its upper checksum is the pseudo-header's sum alone.
    pub fn bytes_with(&self, partial: bool) -> Vec<u8> {
        let mut upper = Vec::new();
        upper.extend(self.ports.0.to_be_bytes());
        upper.extend(self.ports.1.to_be_bytes());
        if self.tcp {
            upper.extend(self.seq.to_be_bytes());
            upper.extend(self.ack.to_be_bytes());
            upper.extend([((20 + self.options.len()) / 4 << 4) as u8, self.flags]);
            upper.extend(self.window.to_be_bytes());
            upper.extend([0; 4]);
            upper.extend(&self.options);
        } else {
            upper.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            upper.extend([0; 2]);
        }
        upper.extend(&self.payload);
        let pseudo = self.pseudo(upper.len());
        let checksum = if partial {
            sum(&[&pseudo])
        } else {
            !sum(&[&pseudo, &upper])
        };
        let checksum = if !self.tcp && checksum == 0 {
            0xFFFF
        } else {
            checksum
        };
        let at = if self.tcp { 16 } else { 6 };
        upper[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        [self.ip_header(upper.len()), upper].concat()
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_with(false)
    }

    /// The payload as an ICMP message, its checksum left out.
    pub fn icmp(&self) -> Vec<u8> {
        let mut bytes = [self.ip_header(self.payload.len()), self.payload.clone()].concat();
        bytes[if self.v6 { 6 } else { 9 }] = if self.v6 { 58 } else { 1 };
        bytes
    }

    fn ip_header(&self, upper_len: usize) -> Vec<u8> {
        let (src, dst) = self.addresses();
        let protocol = if self.tcp { 6 } else { 17 };
        if self.v6 {
            let mut header = vec![6 << 4 | self.tos >> 4, self.tos << 4, 0, 0];
            header.extend((upper_len as u16).to_be_bytes());
            header.extend([protocol, self.ttl]);
            return [header, src, dst].concat();
        }
        let mut header = vec![0x45, self.tos];
        header.extend(((20 + upper_len) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend([u8::from(self.df) << 6, 0, self.ttl, protocol, 0, 0]);
        header.extend(src);
        header.extend(dst);
        let checksum = !sum(&[&header]);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    pub fn vnet(&self, gso_size: u16) -> VnetHdr {
        VnetHdr {
            flags: NEEDS_CSUM,
            gso_type: match (self.tcp, self.v6) {
                (true, false) => GSO_TCPV4,
                (true, true) => GSO_TCPV6,
                (false, _) => GSO_UDP_L4,
            },
            hdr_len: self.headers_len() as u16,
            gso_size,
            csum_start: self.ip_len() as u16,
            csum_offset: if self.tcp { 16 } else { 6 },
        }
    }

    /// The expected segments of the packet, each built on its own.
    pub fn segments(&self, gso_size: usize) -> Vec<Packet> {
        let chunks: Vec<&[u8]> = self.payload.chunks(gso_size).collect();
        let count = chunks.len();
        chunks
            .iter()
            .enumerate()
            .map(|(k, chunk)| {
                let mut flags = self.flags;
                if k + 1 != count {
                    flags &= !(FIN | PSH);
                }
                if k != 0 {
                    flags &= !CWR;
                }
                Packet {
                    payload: chunk.to_vec(),
                    seq: self.seq.wrapping_add((k * gso_size) as u32),
                    id: self.id.wrapping_add(k as u16),
                    flags,
                    ..self.clone()
                }
            })
            .collect()
    }
}
