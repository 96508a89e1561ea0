"""What a cipher is to the ESP codec: two functions over the caller's buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Aead:
    """An AEAD that holds one key (RFC 5116), with the ICV length of its suite.

    `seal_into(nonce, plaintext, aad, out)` fills `out`, which is exactly as long as the plaintext
    and the ICV together. `open_into(nonce, ciphertext_and_icv, aad, out)` fills `out`, which is
    exactly as long as the plaintext. The nonce is 12 bytes. Raises ValueError when a length is
    wrong and, from `open_into`, the library's own `authentication_error` where the ICV does not
    belong to these bytes under this key; `out` may then hold plaintext that nobody vouches for, and
    the caller wipes it.
    """

    seal_into: Callable[[bytes, Buffer, bytes, memoryview], object]
    open_into: Callable[[bytes, Buffer, bytes, memoryview], object]
    authentication_error: type[Exception]
