//! One ESP packet opened (RFC 4303 3.4).

use crate::DropReason;
use crate::esp::aead::{Aead, BatchAead, NONCE_LEN};
use crate::esp::encap::{Aad, nonce};
use crate::esp::replay::ReplayWindow;
use crate::esp::suite::{ESP_HEADER_LEN, SALT_LEN, Suite, TEXT_OFFSET};
use crate::wire::protocol::NO_NEXT_HEADER;
use crate::wire::u32_at;

const KEEPALIVE: u8 = 0xFF;
const NON_ESP_MARKER: u32 = 0;

/// The kinds of received datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram {
    /// ESP, with its SPI.
    Esp(u32),
    /// A NAT keepalive (RFC 3948 2.3).
    Keepalive,
}

/// Demultiplexes a datagram; for protocol 50, `esp` begins behind the outer IP header.
///
/// # Errors
/// `TooShort`, `IkeDatagram` (in UDP only).
pub fn classify(esp: &[u8], in_udp: bool) -> Result<Datagram, DropReason> {
    if in_udp && esp == [KEEPALIVE] {
        return Ok(Datagram::Keepalive);
    }
    if esp.len() < ESP_HEADER_LEN {
        return Err(DropReason::TooShort);
    }
    match u32_at(esp, 0) {
        Some(NON_ESP_MARKER) if in_udp => Err(DropReason::IkeDatagram),
        Some(spi) => Ok(Datagram::Esp(spi)),
        None => Err(DropReason::TooShort),
    }
}

/// The payload of an ESP packet that was authentic and new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the payload, from the beginning of the text.
    pub payload_len: usize,
    /// The protocol number of the payload.
    pub next_header: u8,
}

/// Opens the packets of one inbound SA for one worker: `Opener` by a library, [`BatchOpener`] by an
/// AEAD that works in batches.
pub struct Opener<A: ?Sized = dyn Aead> {
    aead: Box<A>,
    suite: &'static Suite,
    salt: [u8; SALT_LEN],
    esn: bool,
}

/// The opener of an AEAD that works in batches.
pub type BatchOpener = Opener<dyn BatchAead>;

/// The opener of an SA: its kind is decided once, when it is made.
pub enum SaOpener {
    /// By a library.
    Plain(Opener),
    /// By an accelerator.
    Batched(BatchOpener),
}

impl SaOpener {
    /// Opens a packet that this end has sealed: its IV is its sequence number. `text` is as for
    /// [`Opener::open`].
    ///
    /// # Errors
    /// As [`Opener::open`] and [`read_trailer`].
    pub fn reopen(&mut self, esp: &[u8], text: &mut [u8]) -> Result<Opened, DropReason> {
        let iv = esp.get(ESP_HEADER_LEN..).and_then(<[u8]>::first_chunk);
        let seq = u64::from_be_bytes(*iv.ok_or(DropReason::TooShort)?);
        match self {
            Self::Plain(opener) => opener.open(seq, esp, text)?,
            Self::Batched(opener) => opener.complete(seq, esp, text)?,
        }
        read_trailer(text)
    }

    /// The length of the text of an ESP packet, as [`Opener::text_len`].
    ///
    /// # Errors
    /// `TooShort` if no ESP packet has this length.
    pub const fn text_len(&self, esp_len: usize) -> Result<usize, DropReason> {
        match self {
            Self::Plain(opener) => opener.text_len(esp_len),
            Self::Batched(opener) => opener.text_len(esp_len),
        }
    }
}

impl<A: ?Sized> Opener<A> {
    /// Makes an opener of an AEAD whose key is set.
    #[must_use]
    pub fn new(aead: Box<A>, suite: &'static Suite, salt: [u8; SALT_LEN], esn: bool) -> Self {
        Self {
            aead,
            suite,
            salt,
            esn,
        }
    }

    /// Bytes of the text, payload and trailer, of an ESP packet of `esp_len` bytes.
    ///
    /// # Errors
    /// `TooShort` if no ESP packet has this length.
    pub const fn text_len(&self, esp_len: usize) -> Result<usize, DropReason> {
        if esp_len < self.suite.esp_len(0) || esp_len % 4 != 0 {
            return Err(DropReason::TooShort);
        }
        Ok(esp_len - self.suite.overhead())
    }

    /// Infers a packet's sequence number and checks it against the window, before it is opened.
    ///
    /// # Errors
    /// `TooShort`, `ReplayOld`, `ReplayDuplicate`.
    pub fn check(&self, window: &ReplayWindow, esp: &[u8]) -> Result<u64, DropReason> {
        self.text_len(esp.len())?;
        let seq_lo = u32_at(esp, 4).ok_or(DropReason::TooShort)?;
        let seq = if self.esn {
            window.infer(seq_lo)
        } else {
            seq_lo.into()
        };
        window.check(seq)?;
        Ok(seq)
    }

    /// The reason to drop a packet that `open` has refused: `ReplayOld` if it is genuine and the
    /// window has passed it. `text` is all zeros afterwards.
    ///
    /// Only a packet left of the window, by its low half, is opened twice.
    #[cold]
    pub fn refusal(
        &mut self,
        window: &ReplayWindow,
        seq: u64,
        esp: &[u8],
        text: &mut [u8],
        open: impl FnOnce(&mut Self, u64, &[u8], &mut [u8]) -> Result<(), DropReason>,
    ) -> DropReason {
        let passed = self.esn.then(|| window.passed(seq)).flatten();
        if passed.is_some_and(|passed| open(self, passed, esp, text).is_ok()) {
            text.fill(0);
            return DropReason::ReplayOld;
        }
        DropReason::AuthFailed
    }

    #[inline]
    fn nonce_and_aad(&self, seq: u64, head: [u8; TEXT_OFFSET]) -> ([u8; NONCE_LEN], Aad) {
        let [s0, s1, s2, s3, _, _, _, _, iv @ ..] = head;
        let aad = Aad::new([s0, s1, s2, s3], seq, self.esn);
        (nonce(self.salt, iv), aad)
    }
}

impl Opener {
    /// Opens a packet, SPI to ICV, whose number `check` has found. `text` has `text_len` bytes; on
    /// an error it is all zeros. RFC 4106 3 to 5, RFC 7634 2.
    ///
    /// # Errors
    /// `TooShort`, `AuthFailed`.
    pub fn open(&mut self, seq: u64, esp: &[u8], text: &mut [u8]) -> Result<(), DropReason> {
        let Some((head, sealed)) = esp.split_first_chunk::<TEXT_OFFSET>() else {
            return Err(DropReason::TooShort);
        };
        let (nonce, aad) = self.nonce_and_aad(seq, *head);
        self.aead
            .open(&nonce, aad.bytes(), sealed, text)
            .map_err(|_| DropReason::AuthFailed)
    }

    /// Checks, opens, commits and reads the trailer of one packet, in the order of RFC 4303 3.4;
    /// its payload is at the beginning of `text`, which has `text_len` bytes.
    ///
    /// Returns the payload, and true if the packet's number is the highest so far.
    ///
    /// # Errors
    /// `TooShort`, `ReplayOld`, `ReplayDuplicate`, `AuthFailed`, and for an authenticated packet
    /// `BadPadding`, `Dummy`.
    pub fn decap(
        &mut self,
        window: &ReplayWindow,
        esp: &[u8],
        text: &mut [u8],
    ) -> Result<(Opened, bool), DropReason> {
        let seq = self.check(window, esp)?;
        if self.open(seq, esp, text).is_err() {
            return Err(self.refusal(window, seq, esp, text, Self::open));
        }
        let newest = window.commit(seq)?;
        Ok((read_trailer(text)?, newest))
    }
}

impl BatchOpener {
    /// Announces a packet that is likely to be opened soon. Nothing is decided about it: `check`
    /// and `complete` do that, in its turn.
    pub fn submit(&mut self, window: &ReplayWindow, esp: &[u8]) {
        if let (Ok(seq), Some((head, sealed))) = (self.check(window, esp), esp.split_first_chunk())
        {
            let (nonce, aad) = self.nonce_and_aad(seq, *head);
            self.aead.submit_open(&nonce, aad.bytes(), sealed);
        }
    }

    /// [`Opener::open`] of a packet, announced or not.
    ///
    /// # Errors
    /// `TooShort`, `AuthFailed`.
    pub fn complete(&mut self, seq: u64, esp: &[u8], text: &mut [u8]) -> Result<(), DropReason> {
        let Some((head, sealed)) = esp.split_first_chunk::<TEXT_OFFSET>() else {
            return Err(DropReason::TooShort);
        };
        let (nonce, aad) = self.nonce_and_aad(seq, *head);
        self.aead
            .complete_open(&nonce, aad.bytes(), sealed, text)
            .map_err(|_| DropReason::AuthFailed)
    }
}

/// Reads the trailer of an opened text (RFC 4303 2.4 to 2.6).
///
/// # Errors
/// `BadPadding`, `Dummy`.
pub fn read_trailer(text: &[u8]) -> Result<Opened, DropReason> {
    let (payload, pad_len, next_header) = match text {
        [rest @ .., pad_len, next_header] => (rest, usize::from(*pad_len), *next_header),
        _ => return Err(DropReason::BadPadding),
    };
    let payload_len = payload
        .len()
        .checked_sub(pad_len)
        .ok_or(DropReason::BadPadding)?;
    let padding = payload.get(payload_len..).unwrap_or_default();
    if !padding
        .iter()
        .zip(1..=u8::MAX)
        .all(|(byte, expected)| *byte == expected)
    {
        return Err(DropReason::BadPadding);
    }
    if next_header == NO_NEXT_HEADER {
        return Err(DropReason::Dummy);
    }
    Ok(Opened {
        payload_len,
        next_header,
    })
}
