"""The ESP codec against scapy's: each opens packets sealed by the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
import scapy
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, CryptAlgo, IPSecIntegrityError, SecurityAssociation
from scapy.packet import Packet, Raw

from esp_gw.crypto.openssl import make_aead
from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.esp import InboundEsp, OutboundEsp
from esp_gw.model import (
    AES_GCM,
    AES_GMAC,
    CHACHA20_POLY1305,
    SUITES,
    Direction,
    DropReason,
    Encapsulation,
    KeyMaterial,
    Lease,
    Mode,
    Sa,
    Suite,
)
from tests.support.esp import encap
from tests.support.evidence import RecordProperty, record_trial

SPI = 0xDECAF123
KEYMAT = KeyMaterial(bytes(range(100, 132)), b"\xca\xfe\xba\xbe")
SEQS = [1, 2**32 - 1, 2**32, 0x0000_0007_89AB_CDEF, 2**64 - 1]

SCAPY_CIPHERS = {
    AES_GCM: "AES-GCM",
    CHACHA20_POLY1305: "CHACHA20-POLY1305",
    AES_GMAC: "AES-NULL-GMAC",
}
HEADERS: dict[int, Callable[[], Packet]] = {
    4: lambda: IP(src="192.0.2.1", dst="198.51.100.2", id=7, ttl=61, tos=0x48),
    6: lambda: IPv6(src="2001:db8::1", dst="2001:db8:1::2", hlim=61, tc=0x48, fl=5),
}
OUTER_HEADERS: dict[int, Callable[[], Packet]] = {
    4: lambda: IP(src="203.0.113.1", dst="203.0.113.2"),
    6: lambda: IPv6(src="2001:db8:aaaa::1", dst="2001:db8:aaaa::2"),
}
HEADER_LEN = {4: 20, 6: 40}
PAYLOADS = [
    UDP(sport=5000, dport=53) / Raw(b"q"),
    UDP(sport=5000, dport=53) / Raw(b"question"),
    TCP(sport=5000, dport=443, flags="PA", seq=9) / Raw(bytes(range(256)) * 5 + b"odd"),
    UDP(sport=5000, dport=53) / Raw(b"qq"),
]


@dataclass(frozen=True)
class Shape:
    """Headers around ESP: mode, outer IP version, UDP encapsulation."""

    mode: Mode
    version: int
    udp: bool

    def __str__(self) -> str:
        return f"{self.mode}-ipv{self.version}-{'udp' if self.udp else 'esp'}"

    @property
    def inner_versions(self) -> tuple[int, ...]:
        return (4, 6) if self.mode is Mode.TUNNEL else (self.version,)

    @property
    def esp_offset(self) -> int:
        return HEADER_LEN[self.version] + (8 if self.udp else 0)


SHAPES = [Shape(mode, version, udp) for mode in Mode for version in (4, 6) for udp in (True, False)]

every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
esn_on_and_off = pytest.mark.parametrize("esn", [True, False], ids=["esn", "no-esn"])


def our_sa(suite: Suite, esn: bool) -> Sa:
    return Sa(
        name="test",
        direction=Direction.OUTBOUND,
        spi=SPI,
        suite=suite,
        keymat=KeyMaterial(KEYMAT.key[: suite.key_len], KEYMAT.salt),
        mode=Mode.TUNNEL,
        encapsulation=Encapsulation.UDP,
        local=ip_address("203.0.113.1"),
        remote=ip_address("203.0.113.2"),
        selectors=(),
        esn=esn,
    )


def scapy_sa(suite: Suite, shape: Shape, esn: bool, seq: int) -> SecurityAssociation:
    """Return scapy's SA, which seals its next packet with sequence number `seq`."""
    sa = SecurityAssociation(
        ESP,
        spi=SPI,
        seq_num=seq % 2**32,
        crypt_algo=SCAPY_CIPHERS[suite.cipher],
        crypt_key=KEYMAT.key[: suite.key_len] + KEYMAT.salt,
        tunnel_header=OUTER_HEADERS[shape.version]() if shape.mode is Mode.TUNNEL else None,
        nat_t_header=UDP(sport=4500, dport=4500) if shape.udp else None,
        esn_en=esn,
        esn=seq >> 32,
    )
    if suite.icv_len != 16:
        # scapy's own AES-GCM has 16 bytes of ICV; its generic cipher code truncates.
        sa.crypt_algo = CryptAlgo(
            "AES-GCM",
            cipher=algorithms.AES,
            mode=modes.GCM,
            block_size=1,
            iv_size=8,
            icv_size=suite.icv_len,
            salt_size=4,
            format_mode_iv=lambda sa, iv, **_: sa.crypt_salt + iv,
        )
    return sa


def inner_packets(shape: Shape) -> list[Packet]:
    return [
        type(packet)(bytes(packet))  # with lengths and checksums filled in
        for version in shape.inner_versions
        for packet in (HEADERS[version]() / payload for payload in PAYLOADS)
    ]


def protected_part(shape: Shape, inner: Packet) -> tuple[bytes, int]:
    """The bytes that ESP carries for this packet, and their next header."""
    if shape.mode is Mode.TUNNEL:
        return bytes(inner), 4 if inner.version == 4 else 41
    return bytes(inner)[HEADER_LEN[inner.version] :], (
        inner.proto if inner.version == 4 else inner.nh
    )


def seqs_for(esn: bool) -> list[int]:
    return [seq for seq in SEQS if esn or seq < 2**32]


def outer_packet(shape: Shape, esp: bytes) -> Packet:
    """Prepend to our ESP packet the headers that it would have on the wire."""
    headers = OUTER_HEADERS if shape.mode is Mode.TUNNEL else HEADERS
    ip = headers[shape.version]()
    if shape.udp:
        wire = ip / UDP(sport=4500, dport=4500, chksum=0) / Raw(esp)
    else:
        ip.setfieldval("proto" if shape.version == 4 else "nh", 50)
        wire = ip / Raw(esp)
    return type(ip)(bytes(wire))


@pytest.fixture
def tried(request: pytest.FixtureRequest, record_property: RecordProperty, suite: Suite) -> None:
    """Record the trial for docs/interop.md."""
    ways = {"test_we_open_what_scapy_sealed": "scapy seals, esp_gw opens"}
    way = ways.get(request.node.originalname, "esp_gw seals, scapy opens")
    shapes = "both modes, IPv4 and IPv6, ESP and ESP in UDP, with and without ESN"
    record_trial(
        record_property,
        peer=f"scapy {scapy.__version__}",
        configuration=str(suite),
        tried=f"{way}: UDP and TCP, {shapes}, sequence numbers up to the last",
        engine="python",
    )


@every_suite
@every_shape
@esn_on_and_off
@pytest.mark.usefixtures("tried")
def test_we_open_what_scapy_sealed(suite: Suite, shape: Shape, esn: bool) -> None:
    sa = our_sa(suite, esn)
    aead = make_aead(suite, sa.keymat)
    for seq in seqs_for(esn):
        for inner in inner_packets(shape):
            wire = bytes(scapy_sa(suite, shape, esn, seq).encrypt(inner))
            esp = memoryview(wire)[shape.esp_offset :]
            out = memoryview(bytearray(len(esp)))
            length, next_header, advanced = InboundEsp(sa, seq - 1, aead).decap(esp, out)
            assert (bytes(out[:length]), next_header) == protected_part(shape, inner)
            assert advanced


@every_suite
@every_shape
@esn_on_and_off
@pytest.mark.usefixtures("tried")
def test_scapy_opens_what_we_sealed(suite: Suite, shape: Shape, esn: bool) -> None:
    sa = our_sa(suite, esn)
    aead = make_aead(suite, sa.keymat)
    for seq in seqs_for(esn):
        for inner in inner_packets(shape):
            part, next_header = protected_part(shape, inner)
            esp = encap(OutboundEsp(sa, Lease(seq, seq + 1), aead), part, next_header)
            opened = scapy_sa(suite, shape, esn, seq).decrypt(outer_packet(shape, esp))
            assert bytes(opened) == bytes(inner)


@every_suite
def test_neither_opens_a_packet_with_another_high_half(suite: Suite) -> None:
    shape = Shape(Mode.TUNNEL, 4, udp=True)
    inner = inner_packets(shape)[0]
    sa = our_sa(suite, esn=True)
    aead = make_aead(suite, sa.keymat)
    other = 2**32 + 10

    ours = outer_packet(shape, encap(OutboundEsp(sa, Lease(10, 11), aead), bytes(inner), 4))
    with pytest.raises(IPSecIntegrityError):
        scapy_sa(suite, shape, True, other).decrypt(ours)

    wire = bytes(scapy_sa(suite, shape, True, other).encrypt(inner))
    esp = memoryview(wire)[shape.esp_offset :]
    with pytest.raises(Drop) as caught:
        InboundEsp(sa, 0, aead).decap(esp, memoryview(bytearray(len(esp))))
    assert caught.value.reason is DropReason.AUTH_FAILED
