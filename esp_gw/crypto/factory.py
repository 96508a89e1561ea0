"""Keys in the kernel while AF_ALG is worth it, and in OpenSSL all the same: what fails, goes on."""

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
"""Keys in the kernel, each of which is a file descriptor; all further ones are in OpenSSL alone."""
CHECKED = 256
"""Of as many packets of a key one is sealed or opened by OpenSSL, too, beginning with the first."""


class AeadFactory:
    """The AEADs of an engine: by AF_ALG where that was chosen, until it fails; else by OpenSSL.

    `statuses` are those of crypto.probe; `required` says that a suite without AF_ALG is an error.
    `on_lost` is told the reason, once, when AF_ALG fails: every key goes on in OpenSSL then.
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
        """Make the AEAD of an SA. Raises EngineError where it can't be had as it is asked for."""
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
        """Use AF_ALG no more, for no key: what failed for one isn't trusted with another."""
        if self._lost:
            return
        self._lost = True
        self.close()
        self._statuses = without(self._statuses, why)
        self._on_lost(why)

    def close(self) -> None:
        """Take every key out of the kernel."""
        for key in list(self._keys):
            key.close()

    def forget(self, key: _Key) -> None:
        """Count a key no more that is not in the kernel any more."""
        self._keys.discard(key)

    def provider(self, suite: str) -> str:
        """Return who seals and opens the packets of a suite, with its version."""
        return (
            f"AF_ALG, Linux {os.uname().release}"
            if self._statuses[suite].in_use
            else openssl.version()
        )

    def status(self, suite: str) -> AfAlgStatus:
        """Return whether AF_ALG is used for a suite now, and why or why not."""
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
        """Take the key out of the kernel; it goes on in OpenSSL."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
            self._factory.forget(self)

    def seal_into(self, nonce: bytes, plaintext: Buffer, aad: bytes, out: memoryview) -> None:
        """Seal in the kernel, and where that fails again in OpenSSL, with the same nonce.

        No IV serves two messages by that: key, nonce, plaintext and AAD are the same, so the bytes
        are the same, and what the kernel may have left in `out` is overwritten before it is sent.
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
        """Open in the kernel; what that refuses or fails at, OpenSSL decides.

        So a forged packet costs both, and an authentic one is never lost to a kernel that is wrong.
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
        """Whether it is this packet's turn to be looked at twice."""
        turn, self._turn = self._turn, (self._turn + 1) % CHECKED
        return turn == 0
