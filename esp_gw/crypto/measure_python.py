"""Measurement of the python engine: one call of the library for each packet."""

from __future__ import annotations

import os
import time

from cryptography.exceptions import UnsupportedAlgorithm

from esp_gw.crypto import af_alg, openssl
from esp_gw.crypto.aead import Aead
from esp_gw.crypto.af_alg import AfAlgError
from esp_gw.model import AF_ALG, OPENSSL, SUITES, KeyMaterial, Suite
from esp_gw.protocol import IV_LEN, SALT_LEN

_PROVIDERS = {OPENSSL: openssl.make_aead, AF_ALG: af_alg.make_aead}

_AAD = bytes(12)
"""SPI and a 64-bit sequence number (RFC 4106 5)."""


def measure_python(provider: str, suite: str, size: int, packets: int) -> float:
    """Nanoseconds a packet, over `packets` packets of `size` bytes; see `measure.Measure`."""
    if provider not in _PROVIDERS:
        raise ValueError(f"the python engine has no {provider}")
    chosen = SUITES[suite]
    keymat = KeyMaterial(os.urandom(chosen.key_len), os.urandom(SALT_LEN))
    try:
        aead = _PROVIDERS[provider](chosen, keymat)
    except UnsupportedAlgorithm:
        raise ValueError(f"this OpenSSL has no {suite}") from None
    except AfAlgError as error:
        raise OSError(str(error)) from None
    try:
        return _seal(aead, chosen, keymat.salt, size, packets)
    except AfAlgError as error:
        raise OSError(str(error)) from None
    finally:
        aead.close()


def _seal(aead: Aead, suite: Suite, salt: bytes, size: int, packets: int) -> float:
    plaintext = memoryview(bytearray(size))
    out = memoryview(bytearray(size + suite.icv_len))
    first, *nonces = (salt + seq.to_bytes(IV_LEN) for seq in range(packets + 1))
    seal_into = aead.seal_into
    # Not timed: the library's work once per key.
    seal_into(first, plaintext, _AAD, out)
    began = time.perf_counter_ns()
    for nonce in nonces:
        seal_into(nonce, plaintext, _AAD, out)
    return (time.perf_counter_ns() - began) / packets
