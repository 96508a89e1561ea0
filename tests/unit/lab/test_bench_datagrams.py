"""The generator's packets and its rate, against plain models."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP

from lab.bench.datagrams import PORT, checksum, packet
from lab.bench.pacer import LATE_S, MAX_BURST, Pacer, common_length

RATES = st.floats(200, 2_000_000)


@pytest.mark.parametrize("size", [0, 1, 64, 1360])
@pytest.mark.parametrize("port", [20000, 20063])
def test_a_packet_has_the_checksums_that_scapy_computes(size: int, port: int) -> None:
    made = packet("10.1.0.1", "10.2.0.1", port, size)
    ip = IP(src="10.1.0.1", dst="10.2.0.1", flags="DF", ttl=64, id=0)
    assert made == bytes(ip / UDP(sport=port, dport=PORT) / bytes(size))


def test_the_checksum_of_data_with_its_checksum_is_zero() -> None:
    data = b"\x12\x34\xab\xcd\x00\x01"
    assert checksum(data + checksum(data).to_bytes(2, "big")) == 0
    assert checksum(b"\x12") == checksum(b"\x12\x00")


@given(flows=st.integers(1, 1000), at_least=st.integers(1, 500))
def test_the_messages_hold_each_flow_equally_often(flows: int, at_least: int) -> None:
    length = common_length(flows, at_least)
    assert length % flows == 0
    assert at_least <= length < at_least + flows


def sent(pacer: Pacer, times: Iterator[float]) -> list[tuple[float, int]]:
    """Each burst of a sender that looks at the clock at these times, with its time."""
    return [(now, count) for now in times if (count := pacer.take(now))]


@given(rate=RATES, steps=st.lists(st.floats(1e-6, LATE_S / 2), min_size=1, max_size=300))
def test_a_punctual_sender_keeps_its_rate(rate: float, steps: list[float]) -> None:
    """At any time all but one burst of what a perfect clock would have sent, and never more."""
    pacer, now, total = Pacer(rate, 50.0), 50.0, 0
    for step in steps:
        now += step
        while count := pacer.take(now):
            total += count
        perfect = rate * (now - 50.0)
        assert perfect - pacer.burst - 1 < total <= perfect + 1


@given(rate=RATES, pause=st.floats(0.05, 100))
def test_a_sender_that_was_held_up_makes_up_for_a_little(rate: float, pause: float) -> None:
    pacer = Pacer(rate, 0.0)
    total = 0
    while count := pacer.take(pause):
        total += count
    assert total <= rate * LATE_S + pacer.burst + 1
    # And goes on at its rate from there.
    before = total
    while count := pacer.take(pause + 0.004):
        total += count
    assert total - before <= rate * 0.004 + pacer.burst + 1


@given(rate=RATES)
def test_after_its_wait_a_burst_is_due(rate: float) -> None:
    pacer, now = Pacer(rate, 7.0), 7.0
    for _ in range(20):
        assert pacer.take(now + 0.9 * pacer.wait(now)) == 0 or pacer.wait(now) == 0
        now += pacer.wait(now) + 1e-9
        assert pacer.take(now) == pacer.burst


def test_full_speed_never_waits() -> None:
    pacer = Pacer(0, 1.0)
    assert pacer.wait(0.5) == 0
    assert {count for _, count in sent(pacer, iter([0.5, 1.0, 1.0, 9.0]))} == {MAX_BURST}


@pytest.mark.parametrize(("rate", "burst"), [(1000, 1), (100_000, 20), (1_000_000, 64)])
def test_a_burst_is_what_is_due_in_a_moment(rate: float, burst: int) -> None:
    assert Pacer(rate, 0.0).burst == burst


def test_the_addresses_of_a_packet_are_those_given() -> None:
    made = packet("192.0.2.1", "198.51.100.7", 20001, 4)
    assert made[12:20] == socket.inet_aton("192.0.2.1") + socket.inet_aton("198.51.100.7")
