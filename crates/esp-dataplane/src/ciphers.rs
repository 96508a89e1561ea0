//! What seals and opens the packets of SAs: a library, with `AF_ALG` before it where that is wanted.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use esp_core::esp::aead::Aead;
use esp_core::esp::suite::{Cipher, Suite};
use esp_core::provider::{Choice, MakeAead, ProviderError};

use crate::af_alg::AfAlg;
use crate::shared::{Event, Events};
use esp_linux::Error;
use esp_linux::alg::{AlgKey, release};

/// Keys in the kernel: each takes up to ten file descriptors, of 1024 that a process often has. All
/// further ones are in the library alone.
const MAX_KEYS: usize = 64;

/// The kernel's name of a suite's AEAD, with a nonce of 12 bytes and the AAD as it is in ESP.
const fn algorithm(suite: &Suite) -> &'static str {
    match suite.cipher {
        Cipher::AesGcm | Cipher::AesGmac => "gcm(aes)",
        Cipher::ChaCha20Poly1305 => "rfc7539(chacha20,poly1305)",
    }
}

/// `AF_ALG` as an engine uses it, until it fails.
#[derive(Debug)]
pub struct Kernel {
    suites: Vec<&'static Suite>,
    keys: AtomicUsize,
    lost: OnceLock<Error>,
    events: Arc<Events>,
}

impl Kernel {
    /// Use it for these suites; the control plane is told when that ends.
    #[must_use]
    pub fn new(suites: Vec<&'static Suite>, events: Arc<Events>) -> Self {
        Self {
            suites,
            keys: AtomicUsize::new(0),
            lost: OnceLock::new(),
            events,
        }
    }

    /// Why it is not used any more, where it is not.
    #[must_use]
    pub fn lost(&self) -> Option<Error> {
        self.lost.get().copied()
    }

    /// Use it no more, for no key: what failed for one is not trusted with another.
    pub(crate) fn lose(&self, why: Error) {
        if self.lost.set(why).is_ok() {
            self.events.push(Event::AfAlgLost(why));
        }
    }

    /// Count a key in the kernel; false where there are enough.
    pub(crate) fn count_key(&self) -> bool {
        let count = |keys| (keys < MAX_KEYS).then_some(keys + 1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        self.keys.fetch_update(set, get, count).is_ok()
    }

    /// Count a key that is not in the kernel any more.
    pub(crate) fn forget_key(&self) {
        self.keys.fetch_sub(1, Ordering::Relaxed);
    }

    fn has(&self, suite: &Suite) -> bool {
        self.lost().is_none() && self.suites.contains(&suite)
    }

    /// Have the kernel seal and open before a library does, if it takes the key.
    pub(crate) fn before(
        self: &Arc<Self>,
        library: Box<dyn Aead>,
        suite: &'static Suite,
        key: &[u8],
    ) -> Box<dyn Aead> {
        if !self.has(suite) || !self.count_key() {
            return library;
        }
        match AlgKey::new(algorithm(suite), key, suite.icv_len) {
            Ok(given) => Box::new(AfAlg::new(given, library, suite, Arc::clone(self))),
            Err(error) => {
                self.forget_key();
                self.lose(error);
                library
            }
        }
    }
}

/// What makes the AEADs of an engine's SAs.
#[derive(Debug)]
pub struct Ciphers {
    library: Choice,
    kernel: Arc<Kernel>,
}

impl Ciphers {
    /// Make them by a library, and by the kernel before it where that is used for the suite.
    #[must_use]
    pub fn new(library: Choice, kernel: Kernel) -> Self {
        Self {
            library,
            kernel: Arc::new(kernel),
        }
    }

    /// Whether there may be an AEAD that is to be told of packets before they are opened.
    #[must_use]
    pub fn expect_packets(&self) -> bool {
        !self.kernel.suites.is_empty()
    }

    /// What seals and opens a suite now, for `status`.
    #[must_use]
    pub fn of(&self, suite: &Suite) -> String {
        let library = self.library.of(suite).version();
        if !self.kernel.has(suite) {
            return library;
        }
        let kernel = format!("AF_ALG, {}", release());
        if self.kernel.keys.load(Ordering::Relaxed) < MAX_KEYS {
            kernel
        } else {
            format!("{kernel}; {library} beyond {MAX_KEYS} keys")
        }
    }
}

impl MakeAead for Ciphers {
    fn aead(&self, suite: &'static Suite, key: &[u8]) -> Result<Box<dyn Aead>, ProviderError> {
        let library = self.library.aead(suite, key)?;
        Ok(self.kernel.before(library, suite, key))
    }
}
