"""ICMP errors are read as scapy writes them, and nothing else is taken for one."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6ParamProblem, IPv6
from scapy.layers.ipsec import ESP
from scapy.packet import Packet, Raw

from esp_gw.network.icmp import Unreachable, What, parse_error

LOCAL, REMOTE, ROUTER = "192.0.2.1", "192.0.2.2", "192.0.2.254"
LOCAL_6, REMOTE_6, ROUTER_6 = "2001:db8::1", "2001:db8::2", "2001:db8::fe"
IN_UDP = UDP(sport=4500, dport=4501) / Raw(b"\0\0\x10\1" + bytes(40))


def error_4(inner: Packet, kind: int = 3, code: int = 3) -> Unreachable | None:
    message = IP(src=ROUTER, dst=LOCAL) / ICMP(type=kind, code=code) / inner
    return parse_error(4, bytes(message), ip_address(ROUTER))


@pytest.mark.parametrize(
    ("code", "what"),
    [(0, "network"), (1, "host"), (2, "protocol"), (3, "port"), (13, "prohibited"), (4, None)],
)
def test_ipv4_errors_are_classified(code: int, what: str | None) -> None:
    error = error_4(IP(src=LOCAL, dst=REMOTE) / IN_UDP, code=code)
    assert (error and error.what) == what


def test_an_ipv4_error_quotes_our_datagram() -> None:
    error = error_4(IP(src=LOCAL, dst=REMOTE, options=[]) / IN_UDP)
    ends = ip_address(LOCAL), ip_address(REMOTE)
    assert error == Unreachable(ip_address(ROUTER), What.PORT, *ends, 17, 4501, 0x1001)


def test_an_ipv4_error_quotes_esp() -> None:
    error = error_4(IP(src=LOCAL, dst=REMOTE) / ESP(spi=0x1001, seq=1), code=2)
    assert error is not None
    assert (error.what, error.protocol, error.remote_port) == (What.PROTOCOL, 50, 0)
    assert error.spi == 0x1001


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (ICMPv6DestUnreach(code=0), "network"),
        (ICMPv6DestUnreach(code=1), "prohibited"),
        (ICMPv6DestUnreach(code=3), "host"),
        (ICMPv6DestUnreach(code=4), "port"),
        (ICMPv6ParamProblem(code=1), "protocol"),
        (ICMPv6ParamProblem(code=0), None),
    ],
)
def test_ipv6_errors_are_classified(header: Packet, what: str | None) -> None:
    message = header / IPv6(src=LOCAL_6, dst=REMOTE_6) / IN_UDP
    error = parse_error(6, bytes(message), ip_address(ROUTER_6))
    assert (error and error.what) == what
    if error is not None:
        assert (error.local, error.remote) == (ip_address(LOCAL_6), ip_address(REMOTE_6))
        assert error.remote_port == 4501


def test_errors_on_other_protocols_are_none_of_ours() -> None:
    assert error_4(IP(src=LOCAL, dst=REMOTE, proto=6) / Raw(bytes(20))) is None
    assert error_4(IP(src=LOCAL, dst=REMOTE) / IN_UDP, kind=11, code=0) is None


@given(st.sampled_from([4, 6]), st.binary(max_size=120))
def test_any_bytes_are_an_error_or_none(version: int, message: bytes) -> None:
    parse_error(version, message, ip_address(ROUTER))


@given(st.integers(0, 60))
def test_a_cut_error_is_none_or_whole(length: int) -> None:
    message = bytes(IP(src=ROUTER, dst=LOCAL) / ICMP(type=3, code=3))
    message += bytes(IP(src=LOCAL, dst=REMOTE) / IN_UDP)[:length]
    error = parse_error(4, message, ip_address(ROUTER))
    assert (error is not None) == (length >= 24)
