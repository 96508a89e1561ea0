//! AWS-LC, for the suites whose ICV has 16 bytes.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce,
    UnboundKey,
};

use super::layout::{split_out, split_sealed, verdict};
use crate::esp::aead::{Aead, AuthError, NONCE_LEN, ProviderError, SealError};
use crate::esp::suite::{Cipher, Suite};

const ICV_LEN: usize = 16;

pub(super) fn version() -> String {
    let number = aws_lc_sys::AWSLC_VERSION_NUMBER_STRING;
    let number = String::from_utf8_lossy(number);
    format!("AWS-LC {}", number.trim_end_matches('\0'))
}

fn algorithm(suite: &Suite) -> Option<&'static Algorithm> {
    match (suite.cipher, suite.key_len, suite.icv_len) {
        (Cipher::ChaCha20Poly1305, _, ICV_LEN) => Some(&CHACHA20_POLY1305),
        (Cipher::AesGcm, 16, ICV_LEN) => Some(&AES_128_GCM),
        (Cipher::AesGcm, 24, ICV_LEN) => Some(&AES_192_GCM),
        (Cipher::AesGcm, 32, ICV_LEN) => Some(&AES_256_GCM),
        _ => None,
    }
}

pub(super) fn has(suite: &Suite) -> bool {
    algorithm(suite).is_some()
}

pub(super) fn aead(suite: &Suite, key: &[u8]) -> Result<Box<dyn Aead>, ProviderError> {
    let algorithm =
        algorithm(suite).ok_or_else(|| ProviderError(format!("AWS-LC has no {suite}")))?;
    let key = UnboundKey::new(algorithm, key)
        .map_err(|_| ProviderError(format!("{suite}: AWS-LC doesn't take the key")))?;
    Ok(Box::new(AwsLc(LessSafeKey::new(key))))
}

struct AwsLc(LessSafeKey);

impl Aead for AwsLc {
    fn seal(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError> {
        let (sealed, icv) = split_out(text, out, ICV_LEN).ok_or(SealError)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.0
            .seal_out_of_place_scatter(nonce, Aad::from(aad), text, sealed, &[], icv)
            .map_err(|_| SealError)
    }

    fn open(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), AuthError> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = split_sealed(sealed, out, ICV_LEN).is_some_and(|(text, icv)| {
            self.0
                .open_separate_gather(nonce, Aad::from(aad), text, icv, out)
                .is_ok()
        });
        verdict(opened, out)
    }
}
