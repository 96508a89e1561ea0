//! One payload sealed as an ESP packet (RFC 4303 3.3).

use crate::DropReason;
use crate::esp::aead::{Aead, BatchAead, NONCE_LEN, SealError};
use crate::esp::suite::{ESP_HEADER_LEN, SALT_LEN, Suite, TEXT_OFFSET, TRAILER_LEN, text_len};

/// The associated data: SPI, and the sequence number of 4 or, with ESN, 8 bytes (RFC 4106 5).
pub(crate) struct Aad([u8; 12], usize);

impl Aad {
    pub(crate) fn new(spi: [u8; 4], seq: u64, esn: bool) -> Self {
        let mut aad = [0; 12];
        aad[..4].copy_from_slice(&spi);
        let seq = seq.to_be_bytes();
        if esn {
            aad[4..].copy_from_slice(&seq);
            Self(aad, 12)
        } else {
            aad[4..8].copy_from_slice(&seq[4..]);
            Self(aad, 8)
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

pub(crate) fn nonce(salt: [u8; SALT_LEN], iv: [u8; 8]) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[..SALT_LEN].copy_from_slice(&salt);
    nonce[SALT_LEN..].copy_from_slice(&iv);
    nonce
}

/// Seals the packets of one outbound SA for one worker: `Sealer` by a library, [`BatchSealer`] by
/// an AEAD that works in batches.
pub struct Sealer<A: ?Sized = dyn Aead> {
    aead: Box<A>,
    suite: &'static Suite,
    spi: [u8; 4],
    salt: [u8; SALT_LEN],
    esn: bool,
}

/// The sealer of an AEAD that works in batches.
pub type BatchSealer = Sealer<dyn BatchAead>;

/// The sealer of an SA: its kind is decided once, when it is made.
pub enum SaSealer {
    /// By a library.
    Plain(Sealer),
    /// By an accelerator.
    Batched(BatchSealer),
}

impl<A: ?Sized> Sealer<A> {
    /// Makes a sealer of an AEAD whose key is set.
    #[must_use]
    pub fn new(
        aead: Box<A>,
        suite: &'static Suite,
        spi: u32,
        salt: [u8; SALT_LEN],
        esn: bool,
    ) -> Self {
        Self {
            aead,
            suite,
            spi: spi.to_be_bytes(),
            salt,
            esn,
        }
    }

    /// Bytes of an ESP packet, SPI to ICV, with `payload_len` bytes of payload.
    #[must_use]
    pub const fn esp_len(&self, payload_len: usize) -> usize {
        self.suite.esp_len(payload_len)
    }

    /// Writes trailer, header and IV around a payload, and has `seal` write the sealed text.
    #[inline]
    fn encap(
        &mut self,
        seq: u64,
        buf: &mut [u8],
        payload_len: usize,
        next_header: u8,
        out: &mut [u8],
        seal: impl FnOnce(&mut A, &[u8; NONCE_LEN], &[u8], &[u8], &mut [u8]) -> Result<(), SealError>,
    ) -> Result<usize, DropReason> {
        let text_len = text_len(payload_len);
        let length = text_len + self.suite.overhead();
        let (Some(text), Some(esp)) = (buf.get_mut(..text_len), out.get_mut(..length)) else {
            return Err(DropReason::TooBig);
        };
        write_trailer(&mut text[payload_len..], next_header);
        let (head, sealed) = esp.split_at_mut(TEXT_OFFSET);
        let iv = seq.to_be_bytes();
        head[..4].copy_from_slice(&self.spi);
        head[4..ESP_HEADER_LEN].copy_from_slice(&iv[4..]);
        head[ESP_HEADER_LEN..].copy_from_slice(&iv);
        let aad = Aad::new(self.spi, seq, self.esn);
        let nonce = nonce(self.salt, iv);
        match seal(&mut self.aead, &nonce, aad.bytes(), text, sealed) {
            Ok(()) => Ok(length),
            Err(_) => Err(DropReason::SendError),
        }
    }
}

impl Sealer {
    /// Seals the first `payload_len` bytes of `buf` as one ESP packet into `out`; returns its
    /// length.
    ///
    /// The trailer, 2 to 5 bytes, is written into `buf` behind the payload; `out` has `esp_len`
    /// bytes or more. `seq` comes from the SA's `SeqCounter` and is used for this packet alone: it
    /// is the IV. RFC 4303 3.3, RFC 4106 3 to 5, RFC 7634 2.
    ///
    /// # Errors
    /// `TooBig` if `buf` or `out` is too short, `SendError` if the provider fails.
    pub fn seal(
        &mut self,
        seq: u64,
        buf: &mut [u8],
        payload_len: usize,
        next_header: u8,
        out: &mut [u8],
    ) -> Result<usize, DropReason> {
        self.encap(seq, buf, payload_len, next_header, out, <dyn Aead>::seal)
    }
}

impl BatchSealer {
    /// [`Sealer::seal`] as a part of a batch: `out` may be sent after `complete`.
    ///
    /// # Errors
    /// `TooBig` if `buf` or `out` is too short, `SendError` if the provider fails.
    pub fn submit(
        &mut self,
        seq: u64,
        buf: &mut [u8],
        payload_len: usize,
        next_header: u8,
        out: &mut [u8],
    ) -> Result<usize, DropReason> {
        self.encap(
            seq,
            buf,
            payload_len,
            next_header,
            out,
            <dyn BatchAead>::submit_seal,
        )
    }

    /// Completes the batch; `esps` are the packets submitted since the last call, in their order.
    ///
    /// # Errors
    /// `SendError` if the provider fails; none of the packets may be sent.
    pub fn complete<'a>(
        &mut self,
        esps: impl Iterator<Item = &'a mut [u8]>,
    ) -> Result<(), DropReason> {
        let mut outs = esps.filter_map(|esp| esp.get_mut(TEXT_OFFSET..));
        self.aead
            .complete_seals(&mut outs)
            .map_err(|_| DropReason::SendError)
    }
}

/// Padding of 1, 2, 3, ..., its length, and the next header (RFC 4303 2.4).
fn write_trailer(trailer: &mut [u8], next_header: u8) {
    const PADDING: [u8; 3] = [1, 2, 3];
    let pad_len = trailer.len() - TRAILER_LEN;
    let (padding, last) = trailer.split_at_mut(pad_len);
    padding.copy_from_slice(&PADDING[..pad_len]);
    #[allow(clippy::cast_possible_truncation)] // 3 at most
    last.copy_from_slice(&[pad_len as u8, next_header]);
}
