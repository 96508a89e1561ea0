//! OpenSSL's EVP: one context for an SA and worker, keyed once; each packet sets the IV only.

use openssl::cipher::Cipher as EvpCipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;

use super::layout::{split_out, split_sealed, verdict};
use crate::esp::aead::{Aead, AuthError, NONCE_LEN, ProviderError, SealError};
use crate::esp::suite::{Cipher, SALT_LEN, Suite};

pub(super) fn version() -> String {
    // "OpenSSL 3.6.0 1 Oct 2025" without the date, like AWS-LC's.
    let words = openssl::version::version().split(' ').take(2);
    words.collect::<Vec<_>>().join(" ")
}

pub(super) const fn has(_suite: &Suite) -> bool {
    true
}

pub(super) fn aead(suite: &Suite, key: &[u8]) -> Result<Box<dyn Aead>, ProviderError> {
    let cipher = match (suite.cipher, suite.key_len) {
        (Cipher::ChaCha20Poly1305, _) => EvpCipher::chacha20_poly1305(),
        (Cipher::AesGcm | Cipher::AesGmac, 16) => EvpCipher::aes_128_gcm(),
        (Cipher::AesGcm | Cipher::AesGmac, 24) => EvpCipher::aes_192_gcm(),
        (Cipher::AesGcm | Cipher::AesGmac, _) => EvpCipher::aes_256_gcm(),
    };
    let made = CipherCtx::new().and_then(|mut ctx| {
        ctx.encrypt_init(Some(cipher), Some(key), Some(&[0; NONCE_LEN]))?;
        Ok(ctx)
    });
    let ctx = made.map_err(|error| ProviderError(format!("{suite}: OpenSSL: {error}")))?;
    let codec = Evp {
        ctx,
        icv_len: suite.icv_len,
    };
    Ok(match suite.cipher {
        Cipher::AesGmac => Box::new(Gmac(codec)),
        Cipher::AesGcm | Cipher::ChaCha20Poly1305 => Box::new(codec),
    })
}

/// The context holds the key schedule; OpenSSL clears it when it frees it.
struct Evp {
    ctx: CipherCtx,
    icv_len: usize,
}

impl Evp {
    fn encrypt(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[&[u8]],
        text: &[u8],
        out: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), ErrorStack> {
        self.ctx.encrypt_init(None, None, Some(nonce))?;
        for part in aad {
            self.ctx.cipher_update(part, None)?;
        }
        if !text.is_empty() {
            self.ctx.cipher_update(text, Some(out))?;
        }
        self.ctx.cipher_final(&mut [])?;
        self.ctx.tag(icv)
    }

    fn decrypt(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[&[u8]],
        sealed: &[u8],
        icv: &[u8],
        out: &mut [u8],
    ) -> Result<(), ErrorStack> {
        self.ctx.decrypt_init(None, None, Some(nonce))?;
        self.ctx.set_tag(icv)?;
        for part in aad {
            self.ctx.cipher_update(part, None)?;
        }
        if !sealed.is_empty() {
            self.ctx.cipher_update(sealed, Some(out))?;
        }
        self.ctx.cipher_final(&mut []).map(|_| ())
    }
}

impl Aead for Evp {
    fn seal(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError> {
        let (sealed, icv) = split_out(text, out, self.icv_len).ok_or(SealError)?;
        self.encrypt(nonce, &[aad], text, sealed, icv)
            .map_err(|_| SealError)
    }

    fn open(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), AuthError> {
        let opened = split_sealed(sealed, out, self.icv_len)
            .is_some_and(|(text, icv)| self.decrypt(nonce, &[aad], text, icv, out).is_ok());
        verdict(opened, out)
    }
}

/// AES-GMAC: the text is authenticated behind the IV, and not encrypted (RFC 4543 3).
struct Gmac(Evp);

impl Aead for Gmac {
    fn seal(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError> {
        let (copy, icv) = split_out(text, out, self.0.icv_len).ok_or(SealError)?;
        copy.copy_from_slice(text);
        let aad = [aad, &nonce[SALT_LEN..], text];
        self.0
            .encrypt(nonce, &aad, &[], &mut [], icv)
            .map_err(|_| SealError)
    }

    fn open(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), AuthError> {
        let opened = split_sealed(sealed, out, self.0.icv_len).is_some_and(|(text, icv)| {
            let aad = [aad, &nonce[SALT_LEN..], text];
            let opened = self.0.decrypt(nonce, &aad, &[], icv, &mut []).is_ok();
            if opened {
                out.copy_from_slice(text);
            }
            opened
        });
        verdict(opened, out)
    }
}
