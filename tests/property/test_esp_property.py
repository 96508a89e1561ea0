"""The ESP codec with arbitrary packets, orders and leases."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_gw.crypto.openssl import make_aead
from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.esp import InboundEsp, OutboundEsp
from esp_gw.errors import EngineError
from esp_gw.model import (
    SUITES,
    DropReason,
    Lease,
    Sa,
    Suite,
)
from tests.support.esp import codec_sa, decap, encap

suites = st.sampled_from(list(SUITES.values()))
next_headers = st.integers(0, 255).filter(lambda number: number != 59)


def pair(sa: Sa, lease: Lease) -> tuple[OutboundEsp, InboundEsp]:
    aead = make_aead(sa.suite, sa.keymat)
    return OutboundEsp(sa, lease, aead), InboundEsp(sa, lease.first - 1, aead)


@given(
    suite=suites,
    esn=st.booleans(),
    payload=st.binary(max_size=2000),
    next_header=next_headers,
    first=st.integers(1, 2**32 - 1),
    seq_hi=st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_a_payload_survives_encap_and_decap(
    suite: Suite, esn: bool, payload: bytes, next_header: int, first: int, seq_hi: int
) -> None:
    seq = first + (seq_hi << 32 if esn else 0)
    sender, receiver = pair(codec_sa(suite, esn=esn), Lease(seq, seq + 1))
    packet = encap(sender, payload, next_header)
    assert len(packet) == suite.esp_len(len(payload))
    assert decap(receiver, packet) == (payload, next_header, True)
    assert receiver.window.highest == seq


@given(suite=suites, esn=st.booleans(), packet=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_are_dropped_and_change_nothing(
    suite: Suite, esn: bool, packet: bytes
) -> None:
    receiver = pair(codec_sa(suite, esn=esn), Lease(1000, 2000))[1]
    with pytest.raises(Drop) as caught:
        decap(receiver, packet)
    assert caught.value.reason in {
        DropReason.TOO_SHORT,
        DropReason.REPLAY_OLD,
        DropReason.REPLAY_DUPLICATE,
        DropReason.AUTH_FAILED,
    }
    assert receiver.window.highest == 999


@given(
    esn=st.booleans(),
    window=st.sampled_from([64, 100, 1024]),
    start=st.sampled_from([1, 2**31, 2**32 - 150]) | st.integers(1, 2**32 - 400),
    order=st.lists(st.integers(0, 299), max_size=200),
)
@settings(max_examples=60, deadline=None)
def test_each_packet_arrives_at_most_once_under_reordering_and_duplication(
    esn: bool, window: int, start: int, order: list[int]
) -> None:
    if not esn:
        start = min(start, 2**32 - 300)
    sender, receiver = pair(
        codec_sa(SUITES["aes128gcm16"], esn=esn, window=window), Lease(start, start + 300)
    )
    packets = [encap(sender, bytes([n % 256, n // 256])) for n in range(300)]
    arrived: Counter[int] = Counter()
    newest = -1
    for n in order:
        expected = n > newest - window and not arrived[n]
        try:
            payload, _, advanced = decap(receiver, packets[n])
        except Drop:
            assert not expected
            continue
        assert expected
        assert payload == bytes([n % 256, n // 256])
        assert advanced is (n > newest)
        newest = max(n, newest)
        arrived[n] += 1
    assert receiver.window.highest == start + newest


@given(
    esn=st.booleans(),
    first=st.sampled_from([1, 2**32 - 20]) | st.integers(1, 2**32 - 1),
    actions=st.lists(
        st.integers(1, 12) | st.tuples(st.integers(-5, 20), st.integers(-2, 15)), max_size=40
    ),
)
@settings(max_examples=150, deadline=None)
def test_no_iv_is_used_twice_or_outside_the_leases(
    esn: bool, first: int, actions: list[int | tuple[int, int]]
) -> None:
    sa = codec_sa(SUITES["aes128gcm16"], esn=esn)
    sender = OutboundEsp(sa, Lease(first, first + 5), make_aead(sa.suite, sa.keymat))
    free = list(range(first, first + 5))
    leased_up_to = first + 5
    for action in actions:
        if isinstance(action, tuple):
            lease = Lease(leased_up_to + action[0], leased_up_to + action[0] + action[1])
            if action[0] < 0 or action[1] < 0:
                # Numbers beyond the SA's last one are not kept, so nothing can overlap there.
                if leased_up_to <= sa.last_seq:
                    with pytest.raises(EngineError):
                        sender.extend(lease)
                continue
            sender.extend(lease)
            free += range(lease.first, lease.end)
            leased_up_to = lease.end
            continue
        for _ in range(action):
            usable = [seq for seq in free if seq <= sa.last_seq]
            try:
                packet = encap(sender, b"x")
            except Drop as drop:
                assert not usable
                ended = leased_up_to > sa.last_seq
                assert drop.reason is (
                    DropReason.SEQ_EXHAUSTED if ended else DropReason.LEASE_EXHAUSTED
                )
                continue
            assert int.from_bytes(packet[8:16], "big") == usable[0]
            free.remove(usable[0])
