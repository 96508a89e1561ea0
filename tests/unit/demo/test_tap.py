"""Frames of IKE on the demo's wire, told from cleartext."""

from __future__ import annotations

import struct

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from esp_gw.demo.tap import is_ike

MARKER = bytes(4)
ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


def message(body: int = 200, version: int = 0x20, more: int = 0) -> bytes:
    """Return a message of IKE with this many bytes of body; its length is wrong by `more`."""
    spis = bytes(range(1, 17))
    return spis + struct.pack("!BBBBII", 46, version, 35, 8, 1, 28 + body + more) + bytes(body)


def frame(payload: bytes, port: int, ip: type = IP, source: int = 4500) -> bytes:
    addresses = ("192.0.2.1", "192.0.2.2") if ip is IP else ("2001:db8::1", "2001:db8::2")
    packet = ip(src=addresses[0], dst=addresses[1]) / UDP(sport=source, dport=port) / Raw(payload)
    return bytes(ETHERNET / packet)[:256]


@pytest.mark.parametrize("ip", [IP, IPv6])
@pytest.mark.parametrize("body", [0, 200, 1200])
def test_messages_of_both_ports_are_ike(ip: type, body: int) -> None:
    assert is_ike(frame(message(body), 500, ip, 500), 4500)
    assert is_ike(frame(MARKER + message(body), 4500, ip), 4500)
    assert is_ike(frame(MARKER + message(body), 31000, ip), 4500)


@pytest.mark.parametrize(
    ("payload", "port", "source"),
    [
        (message(), 4500, 4500),  # no marker
        (MARKER + message(), 500, 500),
        (message(), 501, 502),
        (message(version=0x10), 500, 500),
        (message(more=1), 500, 500),
        (MARKER + message(more=4), 4500, 4500),
        (message()[:27], 500, 500),
        (b"", 500, 500),
        (b"GET / HTTP/1.1\r\n", 500, 500),
    ],
)
def test_what_only_looks_like_ike_is_none(payload: bytes, port: int, source: int) -> None:
    assert not is_ike(frame(payload, port, source=source), 4500)


def test_other_frames_are_none() -> None:
    ping = bytes(ETHERNET / IP(src="10.1.0.1", dst="10.2.0.1", proto=1) / Raw(bytes(60)))
    for each in (ping, ping[:14], b"\xff" * 60, bytes(14) + b"\x60" * 46):
        assert not is_ike(each, 4500)
