"""ESP packets for tests: through the codec, or from an arbitrary plaintext."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from esp_gw.crypto.openssl import make_aead
from esp_gw.engine.python.esp import InboundEsp, OutboundEsp
from esp_gw.model import Direction, Encapsulation, KeyMaterial, Mode, Sa, Suite

KEY = bytes(range(32))
SALT = b"salt"
SPI = 0xC0FFEE01


def codec_sa(suite: Suite, *, esn: bool = True, window: int = 64, spi: int = SPI) -> Sa:
    """Return an SA for either half of the codec, which uses no address or selector of it."""
    return Sa(
        name="test",
        direction=Direction.OUTBOUND,
        spi=spi,
        suite=suite,
        keymat=KeyMaterial(KEY[: suite.key_len], SALT),
        mode=Mode.TUNNEL,
        encapsulation=Encapsulation.UDP,
        local=ip_address("192.0.2.1"),
        remote=ip_address("192.0.2.2"),
        selectors=(),
        esn=esn,
        replay_window=window,
    )


def encap(esp: OutboundEsp, payload: bytes, next_header: int = 4) -> bytes:
    """Return the ESP packet that `esp` makes of a payload, SPI to ICV."""
    buf = memoryview(bytearray(payload + bytes(8)))
    out = memoryview(bytearray(len(payload) + 128))
    return bytes(out[: esp.encap(buf, 0, len(payload), next_header, out)])


def decap(esp: InboundEsp, packet: bytes) -> tuple[bytes, int, bool]:
    """Return payload, next header, and whether the window advanced."""
    out = memoryview(bytearray(len(packet)))
    length, next_header, advanced = esp.decap(memoryview(packet), out)
    return bytes(out[:length]), next_header, advanced


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
