//! One request to the kernel and its answer.

use esp_core::esp::aead::NONCE_LEN;
use esp_core::esp::suite::{Cipher, IV_LEN, SALT_LEN, Suite};
use esp_linux::Error;
use esp_linux::alg::{AlgKey, Failure, Operation, Request};

/// SPI and a sequence number of 8 bytes.
const MAX_AAD_LEN: usize = 12;
pub(super) const WRONG_ANSWER: Error = Error::Argument("AF_ALG gave a wrong answer");
pub(super) const WRONG: Failure = Failure::Lost(WRONG_ANSWER);

/// The kernel's answer to a request: its head, then the sealed or opened input.
pub(super) type Answer<'a> = Result<&'a [u8], Failure>;

/// A key in the kernel: `AlgKey`, or a fake in tests. Every request that was sent has an answer, in
/// the same order.
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

/// The bytes that the kernel repeats in front of its answer: the AAD, and with AES-GMAC the IV too.
#[derive(Clone, Copy)]
pub(super) struct Head {
    bytes: [u8; MAX_AAD_LEN + IV_LEN],
    aad_len: usize,
    len: usize,
}

impl Head {
    pub(super) fn new(suite: &Suite, nonce: &[u8; NONCE_LEN], aad: &[u8]) -> Option<Self> {
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

    pub(super) fn aad(&self) -> &[u8] {
        &self.bytes[..self.aad_len]
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// With AES-GMAC the text is part of the AAD (RFC 4543 3.3).
    pub(super) fn request<'a>(
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

    /// The answer behind its head, if head and length are as expected.
    pub(super) fn behind<'a>(&self, answer: Answer<'a>, length: usize) -> Answer<'a> {
        let bytes = answer?.strip_prefix(self.bytes());
        bytes.filter(|bytes| bytes.len() == length).ok_or(WRONG)
    }
}
