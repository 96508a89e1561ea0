"""ESP packets for tests: from a payload through the codec, or from an arbitrary plaintext."""

from __future__ import annotations

import struct

from esp_gw.crypto.openssl import make_aead
from esp_gw.engine.python.esp import OutboundEsp
from esp_gw.model import Sa


def encap(esp: OutboundEsp, payload: bytes, next_header: int = 4) -> bytes:
    """Return the ESP packet that `esp` makes of a payload, SPI to ICV."""
    buf = memoryview(bytearray(payload + bytes(8)))
    out = memoryview(bytearray(len(payload) + 128))
    return bytes(out[: esp.encap(buf, 0, len(payload), next_header, out)])


def seal(sa: Sa, seq: int, text: bytes, iv: bytes | None = None) -> bytes:
    """Return an ESP packet whose plaintext is `text`, valid payload and trailer or anything else.

    `iv` is `seq` unless given. RFC 4303 2, RFC 4106 3 to 5.
    """
    header = struct.pack("!II", sa.spi, seq & 0xFFFFFFFF)
    aad = struct.pack("!IQ", sa.spi, seq) if sa.esn else header
    iv = seq.to_bytes(8) if iv is None else iv
    out = bytearray(len(text) + sa.suite.icv_len)
    make_aead(sa.suite, sa.keymat).seal_into(sa.keymat.salt + iv, text, aad, memoryview(out))
    return header + iv + bytes(out)


def padded(payload: bytes, next_header: int, pad_len: int) -> bytes:
    """Return a payload with an ESP trailer of `pad_len` padding bytes 1, 2, 3, ..."""
    return payload + bytes(range(1, pad_len + 1)) + bytes([pad_len, next_header])
