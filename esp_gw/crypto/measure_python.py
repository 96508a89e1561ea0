"""How long the python engine takes to seal a packet: one call of the library for each."""

from __future__ import annotations

import os
import time

from cryptography.exceptions import UnsupportedAlgorithm

from esp_gw.crypto.openssl import make_aead
from esp_gw.model import IV_LEN, OPENSSL, SALT_LEN, SUITES, KeyMaterial

_AAD = bytes(12)
"""SPI and a 64-bit sequence number (RFC 4106 5)."""


def measure_python(provider: str, suite: str, size: int, packets: int) -> float:
    """Nanoseconds a packet, over `packets` packets of `size` bytes; see `measure.Measure`."""
    if provider != OPENSSL:
        raise ValueError(f"the python engine has no {provider}")
    chosen = SUITES[suite]
    keymat = KeyMaterial(os.urandom(chosen.key_len), os.urandom(SALT_LEN))
    try:
        seal_into = make_aead(chosen, keymat).seal_into
    except UnsupportedAlgorithm:
        raise ValueError(f"this OpenSSL has no {suite}") from None
    plaintext = memoryview(bytearray(size))
    out = memoryview(bytearray(size + chosen.icv_len))
    first, *nonces = (keymat.salt + seq.to_bytes(IV_LEN) for seq in range(packets + 1))
    # Not timed: what the library does once for a key.
    seal_into(first, plaintext, _AAD, out)
    began = time.perf_counter_ns()
    for nonce in nonces:
        seal_into(nonce, plaintext, _AAD, out)
    return (time.perf_counter_ns() - began) / packets
