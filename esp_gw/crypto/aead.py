"""What a cipher is to the ESP codec: two functions over the caller's buffers; and whose it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Buffer = bytes | bytearray | memoryview


def _nothing_to_close() -> None:
    """What libraries hold of a key goes with the object."""


@dataclass(frozen=True, slots=True)
class Aead:
    """An AEAD that holds one key (RFC 5116), with the ICV length of its suite.

    `seal_into(nonce, plaintext, aad, out)` fills `out`, which is exactly as long as the plaintext
    and the ICV together. `open_into(nonce, ciphertext_and_icv, aad, out)` fills `out`, which is
    exactly as long as the plaintext. The nonce is 12 bytes. Raises ValueError when a length is
    wrong and, from `open_into`, the library's own `authentication_error` where the ICV does not
    belong to these bytes under this key; `out` may then hold plaintext that nobody vouches for, and
    the caller wipes it. `close` gives back what outlives the object: a key in the kernel.
    """

    seal_into: Callable[[bytes, Buffer, bytes, memoryview], object]
    open_into: Callable[[bytes, Buffer, bytes, memoryview], object]
    authentication_error: type[Exception]
    close: Callable[[], None] = _nothing_to_close


@dataclass(frozen=True, slots=True)
class AfAlgStatus:
    """Whether AF_ALG is used for a suite, and why or why not: one line.

    `library` is what it was measured against, `library_ns` and `af_alg_ns` the nanoseconds to seal
    a packet of each of crypto.recommend.SIZES; they are empty where nothing was measured.
    """

    in_use: bool
    why: str
    library: str = ""
    library_ns: tuple[float, ...] = ()
    af_alg_ns: tuple[float, ...] = ()
