//! `AF_ALG` before a library: the kernel seals and opens, several packets of a run at once; what it
//! does not do, or not right, the library does, and from then on the library alone.
//!
//! Nothing is lost or weaker by that. A sealed packet leaves only after `finish`; until then its text
//! is kept, so that the library can seal the same text with the same nonce, which gives the bytes
//! that the kernel would have given: no nonce ever covers two texts on the wire. And an opened packet
//! is accepted on the word of a key whose first answer was the library's too, and one in `CHECKED` since;
//! a packet that the kernel calls forged is shown to the library before that is believed.

mod ahead;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use esp_core::esp::aead::{Aead, AuthError, NONCE_LEN, SealError};
use esp_core::esp::suite::{Cipher, IV_LEN, SALT_LEN, Suite};

use self::ahead::Ahead;
use crate::ciphers::Kernel;
use esp_linux::Error;
use esp_linux::alg::{AlgKey, Failure, Operation, Request};

/// Bytes of the largest packet that the kernel is given: with its AAD it has at most 16 pages.
pub const MAX_SIZE: usize = 15 * 4096;
/// SPI and a sequence number of 8 bytes.
const MAX_AAD_LEN: usize = 12;
/// Of as many packets of a key one is done by the library too, beginning with the first.
const CHECKED: u32 = 256;
const WRONG_ANSWER: Error = Error::Argument("AF_ALG gave a wrong answer");
const WRONG: Failure = Failure::Lost(WRONG_ANSWER);

/// What the kernel says to a request: its head, then what came of its input.
type Answer<'a> = Result<&'a [u8], Failure>;

/// A key in the kernel: `AlgKey`, or what tests have in its place. There is an answer to everything
/// that was sent, in its order.
pub(crate) trait KernelKey: Send {
    fn has_room(&mut self) -> bool;
    fn send(&mut self, request: &Request<'_>) -> Result<(), Failure>;
    fn receive(&mut self, each: &mut dyn FnMut(Answer<'_>));
}

impl KernelKey for AlgKey {
    fn has_room(&mut self) -> bool {
        Self::has_room(self)
    }

    fn send(&mut self, request: &Request<'_>) -> Result<(), Failure> {
        Self::send(self, request)
    }

    fn receive(&mut self, each: &mut dyn FnMut(Answer<'_>)) {
        Self::receive(self, each);
    }
}

/// What the kernel repeats in front of its answer: the AAD, and with AES-GMAC the IV too.
#[derive(Clone, Copy)]
struct Head {
    bytes: [u8; MAX_AAD_LEN + IV_LEN],
    aad_len: usize,
    len: usize,
}

impl Head {
    fn new(suite: &Suite, nonce: &[u8; NONCE_LEN], aad: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_AAD_LEN + IV_LEN];
        let mut len = aad.len();
        bytes[..MAX_AAD_LEN].get_mut(..len)?.copy_from_slice(aad);
        if suite.cipher == Cipher::AesGmac {
            bytes[len..len + IV_LEN].copy_from_slice(&nonce[SALT_LEN..]);
            len += IV_LEN;
        }
        let aad_len = aad.len();
        Some(Self {
            bytes,
            aad_len,
            len,
        })
    }

    fn aad(&self) -> &[u8] {
        &self.bytes[..self.aad_len]
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// With AES-GMAC the text, too, is authenticated alone (RFC 4543 3.3).
    fn request<'a>(
        &'a self,
        suite: &Suite,
        operation: Operation,
        nonce: &'a [u8; NONCE_LEN],
        input: &'a [u8],
    ) -> Request<'a> {
        let text_len = match operation {
            Operation::Seal => input.len(),
            Operation::Open => input.len().saturating_sub(suite.icv_len),
        };
        let readable = suite.cipher == Cipher::AesGmac;
        Request {
            operation,
            nonce,
            head: self.bytes(),
            input,
            aad_len: self.len + if readable { text_len } else { 0 },
        }
    }

    /// The answer behind its head, where that and the length are as they must be.
    fn behind<'a>(&self, answer: Answer<'a>, length: usize) -> Answer<'a> {
        let bytes = answer?.strip_prefix(self.bytes());
        bytes.filter(|bytes| bytes.len() == length).ok_or(WRONG)
    }
}

/// A packet that the kernel has.
struct Waiting {
    /// Which one it is of those sealed since the last `finish`.
    at: usize,
    nonce: [u8; NONCE_LEN],
    head: Head,
    /// Where its text is in `AfAlg::texts`.
    text: Range<usize>,
}

/// Sealed packets that are not yet where they belong, one behind the other.
#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
    /// Which one of those sealed since the last `finish`, and where its bytes end.
    ends: Vec<(usize, usize)>,
}

/// One worker's AEAD of one SA.
pub(crate) struct AfAlg<K> {
    /// None once it is given up; the key is gone from the kernel then.
    key: Option<K>,
    library: Box<dyn Aead>,
    suite: &'static Suite,
    kernel: Arc<Kernel>,
    /// Packets until one is done by the library too.
    unchecked: u32,
    /// Packets sealed since the last `finish`.
    sealed: usize,
    waiting: Vec<Waiting>,
    texts: Vec<u8>,
    answers: Answers,
    ahead: Ahead,
}

impl<K> AfAlg<K> {
    /// Begin with a key that `kernel` has counted.
    pub(crate) fn new(
        key: K,
        library: Box<dyn Aead>,
        suite: &'static Suite,
        kernel: Arc<Kernel>,
    ) -> Self {
        Self {
            key: Some(key),
            library,
            suite,
            kernel,
            unchecked: 0,
            sealed: 0,
            waiting: Vec::new(),
            texts: Vec::new(),
            answers: Answers::default(),
            ahead: Ahead::default(),
        }
    }

    /// The key, where the kernel is to be asked about a packet of this size.
    fn key(&mut self, size: usize) -> Option<&mut K> {
        if self.kernel.lost().is_some() {
            self.forget_key();
        }
        self.key.as_mut().filter(|_| size <= MAX_SIZE)
    }

    fn give_up(&mut self, failure: Failure) {
        self.kernel.lose(match failure {
            Failure::Lost(why) => why,
            Failure::Forged => WRONG_ANSWER,
        });
        self.forget_key();
    }

    fn forget_key(&mut self) {
        if self.key.take().is_some() {
            self.kernel.forget_key();
        }
    }
}

impl<K> Drop for AfAlg<K> {
    fn drop(&mut self) {
        self.forget_key();
    }
}

impl<K: KernelKey> AfAlg<K> {
    /// Give the kernel a packet to seal; false where the library is to.
    fn submit(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &[u8],
    ) -> Result<bool, SealError> {
        if self.key(text.len()).is_some_and(|key| !key.has_room()) {
            self.collect()?;
        }
        let (suite, head) = (self.suite, Head::new(self.suite, nonce, aad));
        let (Some(key), Some(head)) = (self.key(text.len()), head) else {
            return Ok(false);
        };
        let request = head.request(suite, Operation::Seal, nonce, text);
        if let Err(failure) = key.send(&request) {
            self.give_up(failure);
            return Ok(false);
        }
        let start = self.texts.len();
        self.texts.extend_from_slice(text);
        self.waiting.push(Waiting {
            at: self.sealed,
            nonce: *nonce,
            head,
            text: start..self.texts.len(),
        });
        Ok(true)
    }

    /// Have an answer to every packet that waits: the kernel's until one fails, then the library's.
    fn collect(&mut self) -> Result<(), SealError> {
        let (icv_len, waiting, texts) = (self.suite.icv_len, &self.waiting, &self.texts);
        let (answers, unchecked) = (&mut self.answers, &mut self.unchecked);
        let library = &mut self.library;
        let mut seal = |packet: &Waiting, out: &mut [u8]| {
            let text = &texts[packet.text.clone()];
            library.seal(&packet.nonce, packet.head.aad(), text, out)
        };
        let mut accept = |packet: &Waiting, answer: Answer<'_>| {
            let sealed = packet.head.behind(answer, packet.text.len() + icv_len)?;
            let place = answers.push(packet.at, sealed.len());
            if *unchecked == 0 {
                let expected = seal(packet, place);
                *unchecked = CHECKED;
                if expected.is_err() || place != sealed {
                    answers.pop();
                    return Err(WRONG);
                }
            }
            *unchecked -= 1;
            place.copy_from_slice(sealed);
            Ok(())
        };
        let (mut accepted, mut failure) = (0, None);
        if let Some(key) = &mut self.key {
            key.receive(&mut |answer| {
                if let Some(packet) = waiting.get(accepted).filter(|_| failure.is_none()) {
                    failure = accept(packet, answer).err();
                    accepted += usize::from(failure.is_none());
                }
            });
        }
        let mut sealed = Ok(());
        for packet in &waiting[accepted..] {
            let out = self.answers.push(packet.at, packet.text.len() + icv_len);
            sealed = sealed.and(seal(packet, out));
        }
        self.waiting.clear();
        self.texts.clear();
        if let Some(failure) = failure {
            self.give_up(failure);
        }
        sealed
    }

    /// Have the kernel open a packet into `out`; None where the library is to.
    fn ask(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Option<Result<(), Failure>> {
        let suite = self.suite;
        let head = Head::new(suite, nonce, aad)?;
        let fits = sealed.len() == out.len() + suite.icv_len;
        self.key(sealed.len()).filter(|_| fits)?;
        let key = self.key.as_mut()?;
        if let Some(answer) = self.ahead.answer(key, nonce, &head, sealed) {
            return Some(answer.map(|text| out.copy_from_slice(text)));
        }
        let request = head.request(suite, Operation::Open, nonce, sealed);
        if let Err(failure) = key.send(&request) {
            return Some(Err(failure));
        }
        let mut verdict = Err(WRONG);
        key.receive(&mut |answer| {
            let text = head.behind(answer, out.len());
            verdict = text.map(|text| out.copy_from_slice(text));
        });
        Some(verdict)
    }
}

impl<K: KernelKey> Aead for AfAlg<K> {
    fn seal(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError> {
        if out.len() != text.len() + self.suite.icv_len {
            return Err(SealError);
        }
        if !self.submit(nonce, aad, text)? {
            self.library.seal(nonce, aad, text, out)?;
        }
        self.sealed += 1;
        Ok(())
    }

    fn finish(&mut self, outs: &mut dyn Iterator<Item = &mut [u8]>) -> Result<(), SealError> {
        let collected = self.collect();
        self.sealed = 0;
        let placed = self.answers.place(outs);
        collected.and(placed)
    }

    fn expect(&mut self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8]) {
        let suite = self.suite;
        let Some(text_len) = sealed.len().checked_sub(suite.icv_len) else {
            return;
        };
        if self.key(sealed.len()).is_none() {
            return;
        }
        let (Some(key), Some(head)) = (&mut self.key, Head::new(suite, nonce, aad)) else {
            return;
        };
        let request = head.request(suite, Operation::Open, nonce, sealed);
        if let Err(failure) = self.ahead.send(key, &request, head, text_len) {
            self.give_up(failure);
        }
    }

    fn open(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), AuthError> {
        let Some(said) = self.ask(nonce, aad, sealed, out) else {
            return self.library.open(nonce, aad, sealed, out);
        };
        if said.is_ok() && self.unchecked > 0 {
            self.unchecked -= 1;
            return Ok(());
        }
        let said = said.map(|()| out.to_vec());
        let verdict = self.library.open(nonce, aad, sealed, out);
        match said {
            Ok(text) if verdict.is_ok() && text == *out => self.unchecked = CHECKED - 1,
            Err(Failure::Forged) if verdict.is_err() => {}
            Ok(_) => self.give_up(WRONG),
            Err(failure) => self.give_up(failure),
        }
        verdict
    }
}

impl Answers {
    /// Room for one more.
    fn push(&mut self, at: usize, len: usize) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        self.ends.push((at, self.bytes.len()));
        &mut self.bytes[start..]
    }

    /// As if the last one had not been pushed.
    fn pop(&mut self) {
        self.ends.pop();
        let end = self.ends.last().map_or(0, |(_, end)| *end);
        self.bytes.truncate(end);
    }

    /// Put each where it belongs.
    fn place(&mut self, outs: &mut dyn Iterator<Item = &mut [u8]>) -> Result<(), SealError> {
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
