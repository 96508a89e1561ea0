"""AEADs with AF_ALG and a fallback: every key is also in OpenSSL, which takes over on a failure."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from cryptography.exceptions import InvalidTag

from esp_gw.crypto import af_alg, openssl
from esp_gw.crypto.aead import Aead, AfAlgStatus, Buffer
from esp_gw.crypto.probe import unavailable, without
from esp_gw.model import KeyMaterial, Suite

MAX_KEYS = 256
"""Largest number of keys in the kernel, one file descriptor each; further keys use only OpenSSL."""
CHECKED = 256
"""Interval, in packets of a key, at which OpenSSL repeats one; the first packet is included."""


class AeadFactory:
    """Makes the AEADs of an engine: with AF_ALG if chosen and until it fails, else with OpenSSL.

    `statuses` come from crypto.probe; with `required`, a suite without AF_ALG is an error.
    `on_lost` is called once with the reason when AF_ALG fails; every key continues in OpenSSL.
    """

    def __init__(
        self, statuses: Mapping[str, AfAlgStatus], required: bool, on_lost: Callable[[str], None]
    ) -> None:
        self._statuses = dict(statuses)
        self._required = required
        self._on_lost = on_lost
        self._keys: set[_Key] = set()
        self._lost = False

    def make_aead(self, suite: Suite, keymat: KeyMaterial) -> Aead:
        """Make the AEAD of an SA. Raises EngineError if it is unavailable as configured."""
        library = openssl.make_aead(suite, keymat)
        status = self._statuses[suite.name]
        if not status.in_use:
            if self._required and not self._lost:
                raise unavailable(status.why)
            return library
        if len(self._keys) >= MAX_KEYS:
            return library
        try:
            key = _Key(self, af_alg.make_aead(suite, keymat), library)
        except af_alg.AfAlgError as error:
            self.lose(str(error))
            return library
        self._keys.add(key)
        return Aead(key.seal_into, key.open_into, InvalidTag, key.close)

    def lose(self, why: str) -> None:
        """Stop using AF_ALG for all keys: a failure with one ends the trust for the others."""
        if self._lost:
            return
        self._lost = True
        self.close()
        self._statuses = without(self._statuses, why)
        self._on_lost(why)

    def close(self) -> None:
        """Remove every key from the kernel."""
        for key in list(self._keys):
            key.close()

    def forget(self, key: _Key) -> None:
        """Stop counting a key that has left the kernel."""
        self._keys.discard(key)

    def provider(self, suite: str) -> str:
        """Return the provider that seals and opens the packets of a suite, with its version."""
        return (
            f"AF_ALG, Linux {os.uname().release}"
            if self._statuses[suite].in_use
            else openssl.version()
        )

    def status(self, suite: str) -> AfAlgStatus:
        """Return the current use of AF_ALG for a suite, with the reason."""
        status = self._statuses[suite]
        if status.in_use and len(self._keys) >= MAX_KEYS:
            return replace(status, why=f"{status.why}; beyond {MAX_KEYS} keys OpenSSL is used")
        return status


class _Key:
    """One key in the kernel and in OpenSSL; functions as in `Aead`."""

    __slots__ = ("_factory", "_kernel", "_library", "_turn")

    def __init__(self, factory: AeadFactory, kernel: Aead, library: Aead) -> None:
        self._factory = factory
        self._kernel: Aead | None = kernel
        self._library = library
        self._turn = 0

    def close(self) -> None:
        """Remove the key from the kernel; it stays usable in OpenSSL."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
            self._factory.forget(self)

    def seal_into(self, nonce: bytes, plaintext: Buffer, aad: bytes, out: memoryview) -> None:
        """Seal in the kernel, and again in OpenSSL with the same nonce if that fails.

        This never uses one IV for two messages: key, nonce, plaintext and AAD are the same, so the
        result is the same, and anything the kernel left in `out` is overwritten before it is sent.
        """
        if self._kernel is None:
            self._library.seal_into(nonce, plaintext, aad, out)
            return
        try:
            self._kernel.seal_into(nonce, plaintext, aad, out)
        except af_alg.AfAlgError as error:
            self._factory.lose(str(error))
            self._library.seal_into(nonce, plaintext, aad, out)
            return
        if self._is_checked():
            by_kernel = bytes(out)
            self._library.seal_into(nonce, plaintext, aad, out)
            if out != by_kernel:
                self._factory.lose("it sealed a packet wrongly")

    def open_into(
        self, nonce: bytes, ciphertext_and_icv: Buffer, aad: bytes, out: memoryview
    ) -> None:
        """Open in the kernel; if that refuses or fails, OpenSSL decides.

        A forged packet costs both, and an authentic one is never lost to a faulty kernel.
        """
        if self._kernel is None:
            self._library.open_into(nonce, ciphertext_and_icv, aad, out)
            return
        try:
            self._kernel.open_into(nonce, ciphertext_and_icv, aad, out)
        except af_alg.NotAuthenticError:
            self._library.open_into(nonce, ciphertext_and_icv, aad, out)
            self._factory.lose("it refused an authentic packet")
            return
        except af_alg.AfAlgError as error:
            self._factory.lose(str(error))
            self._library.open_into(nonce, ciphertext_and_icv, aad, out)
            return
        if self._is_checked():
            by_kernel = bytes(out)
            try:
                self._library.open_into(nonce, ciphertext_and_icv, aad, out)
            except InvalidTag:
                self._factory.lose("it accepted a forged packet")
                raise
            if out != by_kernel:
                self._factory.lose("it opened a packet wrongly")

    def _is_checked(self) -> bool:
        """Return True if this packet is to be checked with OpenSSL."""
        turn, self._turn = self._turn, (self._turn + 1) % CHECKED
        return turn == 0
