//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use super::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};

/// A one's complement sum of 16-bit words that is being added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// An empty sum.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Add bytes that begin at an even place of the summed data; an odd last byte counts as if a
    /// zero followed.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // The sum doesn't depend on the byte order but for a swap at the end (RFC 1071 2 (B)), and
        // wider words give the same sum (2 (C)).
        // Wrapping, for no slice overflows the sum and a check at each addition keeps the loop from
        // being vectorised.
        let words = bytes.chunks_exact(8);
        let rest = words.remainder();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let sum = words.fold(halves(last), |sum, word| {
            let word = [
                word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
            ];
            sum.wrapping_add(halves(word))
        });
        Self(self.0 + u64::from(u16::from_be(fold(sum))))
    }

    /// Add a word.
    #[must_use]
    pub const fn word(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Add a double word.
    #[must_use]
    pub const fn double(self, double: u32) -> Self {
        Self(self.0 + (double >> 16) as u64 + (double & 0xFFFF) as u64)
    }

    /// The sum as it is: what seeds a checksum field that is yet to be completed, and 0xFFFF where
    /// data with its checksum was summed and is right.
    #[must_use]
    pub const fn folded(self) -> u16 {
        fold(self.0)
    }

    /// The checksum: the sum inverted.
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// Both halves of a word, added up: the whole would overflow the sum.
const fn halves(word: [u8; 8]) -> u64 {
    let word = u64::from_ne_bytes(word);
    (word & 0xFFFF_FFFF) + (word >> 32)
}

#[allow(clippy::cast_possible_truncation)] // four folds leave 16 bits
const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum as u16
}

/// The sum of the pseudo-header of a packet whose IP header is `header` (RFC 9293 3.1, RFC 8200
/// 8.1); `length` is of the transport header and what follows it.
#[must_use]
pub fn pseudo_header(header: &[u8], protocol: u8, length: u32) -> Sum {
    let addresses = match header.first().map(|first| first >> 4) {
        Some(4) => header.get(12..IPV4_HEADER_LEN),
        _ => header.get(8..IPV6_HEADER_LEN),
    };
    Sum::new()
        .bytes(addresses.unwrap_or_default())
        .word(u16::from(protocol))
        .double(length)
}

/// A checksum after one summed word was changed (RFC 1624 3, equation 3).
#[must_use]
pub const fn update_checksum(checksum: u16, before: u16, after: u16) -> u16 {
    Sum(0).word(!checksum).word(!before).word(after).checksum()
}
