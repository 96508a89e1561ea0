//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use super::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};

/// Accumulator of a one's complement sum of 16-bit words.
///
/// Wider words give the same sum (RFC 1071 2 (C)), and so does the machine's byte order but for a
/// swap at the end (2 (B)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// An empty sum.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds bytes that start at an even offset of the checksummed data; an odd last byte is padded
    /// with a zero.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // Wrapping, for no slice overflows the sum and a check at each addition keeps the loop from
        // being vectorised.
        let words = bytes.chunks_exact(8);
        let last = last_word(words.remainder());
        let sum = words.fold(last, |sum, word| {
            let word = [
                word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
            ];
            sum.wrapping_add(halves(u64::from_ne_bytes(word)))
        });
        Self(self.0 + halves(sum))
    }

    /// Adds a 16-bit word.
    #[must_use]
    pub const fn word(self, word: u16) -> Self {
        Self(self.0 + word.to_be() as u64)
    }

    /// Adds a 32-bit word.
    #[must_use]
    pub const fn double(self, double: u32) -> Self {
        Self(self.0 + double.to_be() as u64)
    }

    /// The folded sum: the seed of a partial checksum. It is 0xFFFF for data that includes its
    /// right checksum.
    #[must_use]
    pub const fn folded(self) -> u16 {
        u16::from_be(fold(self.0))
    }

    /// The checksum: the one's complement of the folded sum.
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// Adds the 32-bit halves of a word; summing whole 64-bit words would overflow.
const fn halves(word: u64) -> u64 {
    (word & 0xFFFF_FFFF) + (word >> 32)
}

/// The sum of the last 0 to 7 bytes, zero-padded.
fn last_word(rest: &[u8]) -> u64 {
    let (four, rest) = match rest.split_first_chunk::<4>() {
        Some((four, rest)) => (u32::from_ne_bytes(*four), rest),
        None => (0, rest),
    };
    let behind = match *rest {
        [a, b, c] => [a, b, c, 0],
        [a, b] => [a, b, 0, 0],
        [a] => [a, 0, 0, 0],
        _ => [0; 4],
    };
    u64::from(four) + u64::from(u32::from_ne_bytes(behind))
}

/// Folds a sum to 16 bits, where 0xFFFF stands for every multiple of it but 0.
///
/// The largest values after each line: 2^33 - 2, 2^32 - 1, 2^17 - 2, 2^16 - 1.
#[allow(clippy::cast_possible_truncation)] // at most 2^16 - 1
const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum as u16
}

/// The sum of the pseudo-header of a packet whose IP header is `header` (RFC 9293 3.1, RFC 8200
/// 8.1); `length` is the upper-layer length: transport header and payload.
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

/// Updates a checksum after one 16-bit word changed (RFC 1624 3, equation 3).
#[must_use]
pub const fn update_checksum(checksum: u16, before: u16, after: u16) -> u16 {
    Sum(0).word(!checksum).word(!before).word(after).checksum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_carry_of_a_sum_is_folded() {
        let limbs = [0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF];
        for number in 0..limbs.len().pow(4) {
            let limb = |place: u32| limbs[number / limbs.len().pow(place) % limbs.len()];
            let sum = (0..4).fold(0_u64, |sum, place| sum << 16 | limb(place));
            let remainder = match sum % 0xFFFF {
                0 if sum > 0 => 0xFFFF,
                remainder => remainder,
            };
            assert_eq!(u64::from(fold(sum)), remainder, "{sum:#x}");
        }
    }
}
