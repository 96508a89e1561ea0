//! Suites: AEADs of ESP with their sizes.

use std::fmt;

/// Bytes of the salt at the end of the keying material (RFC 4106 4, RFC 7634 2).
pub const SALT_LEN: usize = 4;
/// Bytes of the explicit IV on the wire (RFC 4106 3.1).
pub const IV_LEN: usize = 8;
/// SPI and `seq_lo`, 4 bytes each (RFC 4303 2).
pub const ESP_HEADER_LEN: usize = 8;
/// The offset of the sealed text in an ESP packet.
pub const TEXT_OFFSET: usize = ESP_HEADER_LEN + IV_LEN;
/// `pad_len` and `next_header` (RFC 4303 2).
pub const TRAILER_LEN: usize = 2;
/// Spare bytes that a payload needs behind it: padding, `pad_len`, `next_header`, rounded up.
pub const TRAILER_ROOM: usize = 8;

/// The algorithm of a suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES in Galois/counter mode (RFC 4106).
    AesGcm,
    /// `ChaCha20` with Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// `ENCR_NULL_AUTH_AES_GMAC` (RFC 4543): authenticated, readable by all. For benchmarks.
    AesGmac,
}

/// An AEAD with its sizes in bytes; salt 4 and IV 8 in all of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Suite {
    /// Name in the configuration.
    pub name: &'static str,
    /// The algorithm.
    pub cipher: Cipher,
    /// Bytes of the key, without the salt.
    pub key_len: usize,
    /// Bytes of the ICV.
    pub icv_len: usize,
}

const fn aes(name: &'static str, cipher: Cipher, key_len: usize, icv_len: usize) -> Suite {
    Suite {
        name,
        cipher,
        key_len,
        icv_len,
    }
}

/// Every suite.
pub static SUITES: [Suite; 11] = [
    aes("aes256gcm16", Cipher::AesGcm, 32, 16),
    aes("aes256gcm12", Cipher::AesGcm, 32, 12),
    aes("aes256gcm8", Cipher::AesGcm, 32, 8),
    aes("aes192gcm16", Cipher::AesGcm, 24, 16),
    aes("aes192gcm12", Cipher::AesGcm, 24, 12),
    aes("aes192gcm8", Cipher::AesGcm, 24, 8),
    aes("aes128gcm16", Cipher::AesGcm, 16, 16),
    aes("aes128gcm12", Cipher::AesGcm, 16, 12),
    aes("aes128gcm8", Cipher::AesGcm, 16, 8),
    aes("chacha20poly1305", Cipher::ChaCha20Poly1305, 32, 16),
    aes("aes256gmac", Cipher::AesGmac, 32, 16),
];

impl Suite {
    /// Finds a suite by its name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        SUITES.iter().find(|suite| suite.name == name)
    }

    /// Bytes of key and salt together, as a key file holds them.
    #[must_use]
    pub const fn keymat_len(&self) -> usize {
        self.key_len + SALT_LEN
    }

    /// Bytes that an ESP packet has beside its sealed text: SPI, `seq_lo`, IV, ICV.
    #[must_use]
    pub const fn overhead(&self) -> usize {
        TEXT_OFFSET + self.icv_len
    }

    /// Bytes of an ESP packet, SPI to ICV, with `payload_len` bytes of payload (RFC 4303 2).
    #[must_use]
    pub const fn esp_len(&self, payload_len: usize) -> usize {
        self.overhead() + text_len(payload_len)
    }

    /// Bytes of the largest payload whose ESP packet is not longer than `esp_len`; 0 if there is
    /// none.
    #[must_use]
    pub const fn max_payload(&self, esp_len: usize) -> usize {
        let text_len = esp_len.saturating_sub(self.overhead()) / 4 * 4;
        text_len.saturating_sub(TRAILER_LEN)
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Bytes of a payload with padding, `pad_len` and `next_header`: a multiple of 4 (RFC 4303 2.4).
#[must_use]
pub const fn text_len(payload_len: usize) -> usize {
    (payload_len + TRAILER_LEN).next_multiple_of(4)
}
