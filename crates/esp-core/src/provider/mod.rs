//! The libraries that seal and open.

#[cfg(feature = "aws-lc")]
mod aws_lc;
mod layout;
#[cfg(feature = "null-cipher")]
mod null;
mod openssl;
mod processor;

use crate::esp::aead::{Aead, MakeAead, ProviderError, SaAead};
use crate::esp::suite::Suite;

pub use processor::aes_path;

/// A cryptographic library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// OpenSSL's libcrypto: every suite.
    OpenSsl,
    /// AWS-LC: the suites with an ICV of 16 bytes.
    #[cfg(feature = "aws-lc")]
    AwsLc,
    /// Nothing is protected: for benchmarks.
    #[cfg(feature = "null-cipher")]
    Null,
}

impl Provider {
    /// Every provider of this build, the fastest last.
    pub const ALL: &'static [Self] = &[
        Self::OpenSsl,
        #[cfg(feature = "aws-lc")]
        Self::AwsLc,
        #[cfg(feature = "null-cipher")]
        Self::Null,
    ];

    /// The provider's name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenSsl => "openssl",
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => "aws-lc",
            #[cfg(feature = "null-cipher")]
            Self::Null => "null",
        }
    }

    /// Finds a provider of this build by its name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|provider| provider.name() == name)
    }

    /// The library and its version, for `status`.
    #[must_use]
    pub fn version(self) -> String {
        match self {
            Self::OpenSsl => self::openssl::version(),
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => self::aws_lc::version(),
            #[cfg(feature = "null-cipher")]
            Self::Null => "NO CIPHER: NOTHING IS PROTECTED".to_string(),
        }
    }

    fn has(self, suite: &Suite) -> bool {
        match self {
            Self::OpenSsl => self::openssl::has(suite),
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => self::aws_lc::has(suite),
            #[cfg(feature = "null-cipher")]
            Self::Null => self::null::has(suite),
        }
    }

    /// Makes the AEAD of a suite with this key, for one worker.
    ///
    /// # Errors
    /// `ProviderError` if the provider lacks the suite or the key has another size.
    pub fn aead(self, suite: &Suite, key: &[u8]) -> Result<Box<dyn Aead>, ProviderError> {
        if key.len() != suite.key_len {
            return Err(ProviderError(format!(
                "{suite}: the key has {} bytes, not {}",
                key.len(),
                suite.key_len
            )));
        }
        match self {
            Self::OpenSsl => self::openssl::aead(suite, key),
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => self::aws_lc::aead(suite, key),
            #[cfg(feature = "null-cipher")]
            Self::Null => Ok(self::null::aead(suite)),
        }
    }
}

/// Provider of an SA's AEAD, by configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The faster one of those that have the suite: AWS-LC, then OpenSSL.
    Auto,
    /// One provider for every suite.
    Only(Provider),
}

impl Choice {
    /// Finds a choice by its name: `auto`, or that of a provider of this build.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            _ => Provider::by_name(name).map(Self::Only),
        }
    }

    /// The provider of a suite.
    #[must_use]
    pub fn of(self, suite: &Suite) -> Provider {
        match self {
            Self::Only(provider) => provider,
            Self::Auto => Provider::ALL
                .iter()
                .rfind(|provider| provider.has(suite))
                .copied()
                .unwrap_or(Provider::OpenSsl),
        }
    }

    /// Makes the AEAD of a suite with this key, for one worker.
    ///
    /// # Errors
    /// `ProviderError` if the provider lacks the suite or the key has another size.
    pub fn aead(self, suite: &Suite, key: &[u8]) -> Result<Box<dyn Aead>, ProviderError> {
        self.of(suite).aead(suite, key)
    }
}

impl MakeAead for Choice {
    fn make(&self, suite: &'static Suite, key: &[u8]) -> Result<SaAead, ProviderError> {
        self.aead(suite, key).map(SaAead::Plain)
    }
}
