"""Interface between an AEAD and the ESP codec: functions on the caller's buffers, and a status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Buffer = bytes | bytearray | memoryview


def _nothing_to_close() -> None:
    """Do nothing: the key of a library is freed with the object."""


@dataclass(frozen=True, slots=True)
class Aead:
    """An AEAD that holds one key (RFC 5116), with the ICV length of its suite.

    `seal_into(nonce, plaintext, aad, out)` fills `out`, which is exactly as long as the plaintext
    and the ICV together. `open_into(nonce, ciphertext_and_icv, aad, out)` fills `out`, which is
    exactly as long as the plaintext. The nonce is 12 bytes. Both raise ValueError for a wrong
    length. `open_into` raises the library's own `authentication_error` if the ICV is not valid for
    these bytes under this key; `out` may hold unauthenticated plaintext in this case, and the
    caller wipes it. `close` releases anything that outlives the object: a key in the kernel.
    """

    seal_into: Callable[[bytes, Buffer, bytes, memoryview], object]
    open_into: Callable[[bytes, Buffer, bytes, memoryview], object]
    authentication_error: type[Exception]
    close: Callable[[], None] = _nothing_to_close


@dataclass(frozen=True, slots=True)
class AfAlgStatus:
    """Use of AF_ALG for a suite, with the reason on one line.

    `library` is the provider that it was measured against; `library_ns` and `af_alg_ns` are the
    nanoseconds to seal a packet of each of crypto.recommend.SIZES, empty if nothing was measured.
    """

    in_use: bool
    why: str
    library: str = ""
    library_ns: tuple[float, ...] = ()
    af_alg_ns: tuple[float, ...] = ()
