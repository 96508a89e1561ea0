//! Factory of the SAs' AEADs: a library's, or `AF_ALG` with a library behind it.

use std::sync::Arc;

use esp_core::esp::aead::{MakeAead, ProviderError, SaAead};
use esp_core::esp::suite::{Cipher, Suite};
use esp_core::provider::Choice;
use esp_linux::Error;
use esp_linux::alg::{AlgKey, release};

use crate::af_alg::{AfAlgAead, AfAlgKeys, MAX_KEYS};

/// The kernel's name of a suite's AEAD, with a nonce of 12 bytes and the AAD as it is in ESP.
const fn algorithm(suite: &Suite) -> &'static str {
    match suite.cipher {
        Cipher::AesGcm | Cipher::AesGmac => "gcm(aes)",
        Cipher::ChaCha20Poly1305 => "rfc7539(chacha20,poly1305)",
    }
}

/// The maker of the AEADs of an engine's SAs.
#[derive(Debug)]
pub struct AeadFactory {
    library: Choice,
    kernel: Arc<AfAlgKeys>,
}

impl AeadFactory {
    /// Uses a library, and the kernel before it for the suites of `kernel`.
    #[must_use]
    pub fn new(library: Choice, kernel: AfAlgKeys) -> Self {
        Self {
            library,
            kernel: Arc::new(kernel),
        }
    }

    /// Checks that the SA's suite and key can be used. The kernel gets no key: it is only asked
    /// whether it has the AEAD, so that a missing module is reported now and not with the first
    /// packet.
    ///
    /// # Errors
    /// `ProviderError` if the library lacks the suite or the key has another size.
    pub fn check(&self, suite: &Suite, key: &[u8]) -> Result<(), ProviderError> {
        self.library.aead(suite, key)?;
        if self.kernel.has(suite) && self.kernel.has_room() {
            if let Err(error) = AlgKey::probe(algorithm(suite), suite.icv_len) {
                self.kernel.disable(error);
            }
        }
        Ok(())
    }

    /// The error that ended the use of `AF_ALG`, if any.
    #[must_use]
    pub fn af_alg_failure(&self) -> Option<Error> {
        self.kernel.failure()
    }

    /// The implementation in use for a suite, for `status`.
    #[must_use]
    pub fn of(&self, suite: &Suite) -> String {
        let library = self.library.of(suite).version();
        if !self.kernel.has(suite) {
            return library;
        }
        let kernel = format!("AF_ALG, {}", release());
        if self.kernel.has_room() {
            kernel
        } else {
            format!("{kernel}; {library} beyond {MAX_KEYS} keys")
        }
    }
}

impl MakeAead for AeadFactory {
    fn make(&self, suite: &'static Suite, key: &[u8]) -> Result<SaAead, ProviderError> {
        let library = self.library.aead(suite, key)?;
        let kernel = &self.kernel;
        if !kernel.has(suite) || !kernel.count_key() {
            return Ok(SaAead::Plain(library));
        }
        Ok(match AlgKey::new(algorithm(suite), key, suite.icv_len) {
            Ok(given) => {
                let aead = AfAlgAead::new(given, library, suite, Arc::clone(kernel));
                SaAead::Batched(Box::new(aead))
            }
            Err(error) => {
                kernel.forget_key();
                kernel.disable(error);
                SaAead::Plain(library)
            }
        })
    }
}
