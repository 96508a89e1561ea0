//! The batched AEAD of one SA and worker: the kernel's, with a library behind it.

use std::ops::Range;
use std::sync::Arc;

use esp_core::esp::aead::{Aead, AuthError, BatchAead, NONCE_LEN, SealError};
use esp_core::esp::suite::Suite;
use esp_linux::alg::{Failure, Operation};

use super::answers::Answers;
use super::keys::AfAlgKeys;
use super::request::{Answer, Head, KernelKey, WRONG, WRONG_ANSWER};
use super::submitted::SubmittedOpens;

/// Bytes of the largest packet that is given to the kernel: with its AAD it has at most 16 pages.
pub const MAX_SIZE: usize = 15 * 4096;
/// Interval, in packets of a key, at which the library checks one; the first is checked.
pub(super) const CHECKED: u32 = 256;

/// A packet in flight in the kernel.
struct Waiting {
    /// Index among the packets submitted since the last `complete_seals`.
    at: usize,
    nonce: [u8; NONCE_LEN],
    head: Head,
    /// Place of its text in `AfAlgAead::texts`.
    text: Range<usize>,
}

/// One worker's AEAD of one SA.
pub(crate) struct AfAlgAead<K> {
    /// None after a failure; the key is then removed from the kernel.
    key: Option<K>,
    library: Box<dyn Aead>,
    suite: &'static Suite,
    kernel: Arc<AfAlgKeys>,
    /// Packets until the next one that the library checks.
    unchecked: u32,
    /// Packets submitted since the last `complete_seals`.
    sealed: usize,
    waiting: Vec<Waiting>,
    texts: Vec<u8>,
    answers: Answers,
    /// True if a packet submitted since the last `complete_seals` could not be sealed.
    failed: bool,
    submitted: SubmittedOpens,
}

impl<K> AfAlgAead<K> {
    /// Wraps a key that `kernel` has counted.
    pub(crate) fn new(
        key: K,
        library: Box<dyn Aead>,
        suite: &'static Suite,
        kernel: Arc<AfAlgKeys>,
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
            failed: false,
            submitted: SubmittedOpens::default(),
        }
    }

    /// The key, if the kernel takes a packet of this size.
    fn key(&mut self, size: usize) -> Option<&mut K> {
        if self.kernel.failure().is_some() {
            self.forget_key();
        }
        self.key.as_mut().filter(|_| size <= MAX_SIZE)
    }

    fn give_up(&mut self, failure: Failure) {
        self.kernel.disable(match failure {
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

impl<K> Drop for AfAlgAead<K> {
    fn drop(&mut self) {
        self.forget_key();
    }
}

impl<K: KernelKey> AfAlgAead<K> {
    /// Gives the kernel a packet to seal; false if the library has to seal it.
    fn try_kernel(&mut self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &[u8]) -> bool {
        if self.key(text.len()).is_some_and(|key| !key.has_room()) {
            // Reported by complete_seals, for the batch: it is not this packet's failure.
            self.failed |= self.collect().is_err();
        }
        let (suite, head) = (self.suite, Head::new(self.suite, nonce, aad));
        let (Some(key), Some(head)) = (self.key(text.len()), head) else {
            return false;
        };
        let request = head.request(suite, Operation::Seal, nonce, text);
        if let Err(failure) = key.send(&request) {
            self.give_up(failure);
            return false;
        }
        let start = self.texts.len();
        self.texts.extend_from_slice(text);
        self.waiting.push(Waiting {
            at: self.sealed,
            nonce: *nonce,
            head,
            text: start..self.texts.len(),
        });
        true
    }

    /// Collects an answer for every packet in flight: the kernel's until one fails, then the
    /// library's.
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

    /// Opens a packet by the kernel into `out`; None if the library has to.
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
        if let Some(answer) = self.submitted.answer(key, nonce, &head, sealed) {
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

impl<K: KernelKey> BatchAead for AfAlgAead<K> {
    fn submit_seal(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError> {
        if out.len() != text.len() + self.suite.icv_len {
            return Err(SealError);
        }
        if !self.try_kernel(nonce, aad, text) {
            self.library.seal(nonce, aad, text, out)?;
        }
        self.sealed += 1;
        Ok(())
    }

    fn complete_seals(
        &mut self,
        outs: &mut dyn Iterator<Item = &mut [u8]>,
    ) -> Result<(), SealError> {
        self.failed |= self.collect().is_err();
        self.sealed = 0;
        let placed = self.answers.place(outs);
        if std::mem::take(&mut self.failed) {
            return Err(SealError);
        }
        placed
    }

    fn submit_open(&mut self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8]) {
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
        if let Err(failure) = self.submitted.send(key, &request, head, text_len) {
            self.give_up(failure);
        }
    }

    fn complete_open(
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
