"""AES-GCM, ChaCha20-Poly1305 and AES-GMAC with OpenSSL, through pyca/cryptography."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from esp_gw.crypto.aead import Aead, Buffer
from esp_gw.errors import EngineError
from esp_gw.model import AES_GCM, AES_GMAC, CHACHA20_POLY1305, KeyMaterial, Suite
from esp_gw.protocol import SALT_LEN

_FULL_ICV_LEN = 16


def version() -> str:
    """The library and its version, for `status`."""
    return " ".join(backend.openssl_version_text().split()[:2])


def make_aead(suite: Suite, keymat: KeyMaterial) -> Aead:
    """Make the AEAD of a suite with the key of `keymat` (RFC 4106, RFC 7634, RFC 4543).

    Raises EngineError if the length of the key or the salt is not that of the suite.
    """
    if len(keymat.key) != suite.key_len or len(keymat.salt) != SALT_LEN:
        raise EngineError(
            f"{suite} takes {suite.key_len} bytes of key and {SALT_LEN} of salt, "
            f"not {len(keymat.key)} and {len(keymat.salt)}"
        )
    if suite.cipher == CHACHA20_POLY1305:
        chacha = ChaCha20Poly1305(keymat.key)
        return Aead(chacha.encrypt_into, chacha.decrypt_into, InvalidTag)
    if suite.cipher == AES_GMAC:
        return _gmac(keymat.key)
    if suite.cipher != AES_GCM:
        raise EngineError(f"{suite} is not supported by OpenSSL")
    if suite.icv_len != _FULL_ICV_LEN:
        return _truncated_gcm(keymat.key, suite.icv_len)
    gcm = AESGCM(keymat.key)
    return Aead(gcm.encrypt_into, gcm.decrypt_into, InvalidTag)


def _truncated_gcm(key: bytes, icv_len: int) -> Aead:
    """Make AES-GCM whose ICV is the first 12 or 8 bytes of the tag (RFC 4106 6)."""
    gcm = AESGCM(key)
    aes = algorithms.AES(key)

    def seal_into(nonce: bytes, plaintext: Buffer, aad: bytes, out: memoryview) -> None:
        sealed = gcm.encrypt(nonce, plaintext, aad)
        out[:] = memoryview(sealed)[: len(plaintext) + icv_len]

    def open_into(nonce: bytes, ciphertext_and_icv: Buffer, aad: bytes, out: memoryview) -> None:
        text_len = len(ciphertext_and_icv) - icv_len
        icv = bytes(ciphertext_and_icv[text_len:])
        decryptor = Cipher(aes, modes.GCM(nonce, icv, min_tag_length=icv_len)).decryptor()
        decryptor.authenticate_additional_data(aad)
        plaintext = decryptor.update(ciphertext_and_icv[:text_len])
        decryptor.finalize()
        out[:] = plaintext

    return Aead(seal_into, open_into, InvalidTag)


def _gmac(key: bytes) -> Aead:
    """Make AES-GMAC: the text stays in clear, authenticated after header and IV (RFC 4543 3.3)."""
    gcm = AESGCM(key)

    def seal_into(nonce: bytes, plaintext: Buffer, aad: bytes, out: memoryview) -> None:
        text = bytes(plaintext)
        out[:] = text + gcm.encrypt(nonce, b"", aad + nonce[SALT_LEN:] + text)

    def open_into(nonce: bytes, ciphertext_and_icv: Buffer, aad: bytes, out: memoryview) -> None:
        text = bytes(ciphertext_and_icv[:-_FULL_ICV_LEN])
        icv = bytes(ciphertext_and_icv[-_FULL_ICV_LEN:])
        gcm.decrypt(nonce, icv, aad + nonce[SALT_LEN:] + text)
        out[:] = text

    return Aead(seal_into, open_into, InvalidTag)
