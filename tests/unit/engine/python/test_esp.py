"""The ESP codec: published test vectors, the wire format, every drop reason, leases."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from esp_gw.crypto.aead import Aead
from esp_gw.crypto.openssl import make_aead
from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.esp import InboundEsp, OutboundEsp
from esp_gw.errors import EngineError
from esp_gw.model import (
    SUITES,
    DropReason,
    KeyMaterial,
    Lease,
    Sa,
    Suite,
)
from esp_gw.protocol import ESP_HEADER_LEN
from tests.support.esp import SALT, SPI, codec_sa, decap
from tests.support.esp import seal as seal_with_iv

VECTORS = Path(__file__).parents[3] / "vectors"
CASES = [
    case
    for name in ("esp_gcm.json", "esp_chacha20poly1305.json")
    for case in json.loads((VECTORS / name).read_text())["cases"]
]
IPV4 = 4
seal = partial(seal_with_iv, iv=b"\xf0random\x0f")
"""Seals with an IV unrelated to the sequence number, as a peer may."""

every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=str)
esn_on_and_off = pytest.mark.parametrize("esn", [True, False], ids=["esn", "no-esn"])


def outbound(sa: Sa, first: int = 1, end: int = 2**31) -> OutboundEsp:
    return OutboundEsp(sa, Lease(first, end), make_aead(sa.suite, sa.keymat))


def inbound(sa: Sa, highest_seq: int = 0) -> InboundEsp:
    return InboundEsp(sa, highest_seq, make_aead(sa.suite, sa.keymat))


def encap(esp: OutboundEsp, payload: bytes = b"payload", next_header: int = IPV4) -> bytes:
    """Encap from the middle of a buffer that has the documented 8 spare bytes."""
    buf = memoryview(bytearray(b"\xee" * 5 + payload + b"\xee" * 8))
    out = bytearray(b"\xdd" * (len(payload) + 64))
    length = esp.encap(buf, 5, 5 + len(payload), next_header, memoryview(out))
    assert out[length:] == b"\xdd" * (len(out) - length), "wrote behind the packet"
    return bytes(out[:length])


def reason_of(action: Callable[[], object]) -> DropReason:
    with pytest.raises(Drop) as caught:
        action()
    return caught.value.reason


# Test vectors


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_published_packets_are_opened(case: dict[str, str]) -> None:
    key, salt, plaintext, packet = (
        bytes.fromhex(case[name]) for name in ("key", "salt", "plaintext", "packet")
    )
    seq = int(case["seq"], 16)
    sa = dataclasses.replace(
        codec_sa(SUITES[case["suite"]], esn=len(case["seq"]) == 16, spi=int(case["spi"], 16)),
        keymat=KeyMaterial(key, salt),
    )
    pad_len, next_header = plaintext[-2:]
    payload = plaintext[: len(plaintext) - 2 - pad_len]
    esp = inbound(sa, seq - 1)
    assert decap(esp, packet) == (payload, next_header, True)
    assert reason_of(lambda: decap(esp, packet)) is DropReason.REPLAY_DUPLICATE


# Wire format


@every_suite
@esn_on_and_off
def test_every_payload_length_arrives_with_its_next_header(suite: Suite, esn: bool) -> None:
    sa = codec_sa(suite, esn=esn)
    sender, receiver = outbound(sa), inbound(sa)
    for length in (*range(70), 1399, 1400, 1401, 1402, 9000, 65535):
        payload = bytes(i * 31 & 0xFF for i in range(length))
        next_header = length % 59
        packet = encap(sender, payload, next_header)
        assert len(packet) == suite.esp_len(length)
        assert decap(receiver, packet) == (payload, next_header, True)


@every_suite
def test_a_packet_is_spi_seq_lo_and_the_whole_number_as_iv(suite: Suite) -> None:
    seq = 0x0123_4567_89AB_CDEF
    packet = encap(outbound(codec_sa(suite), seq, seq + 1))
    assert packet[:16] == bytes.fromhex("c0ffee01 89abcdef 0123456789abcdef")
    assert ESP_HEADER_LEN == 8


@every_suite
@pytest.mark.parametrize("length", range(8))
def test_the_padding_counts_from_one_and_is_the_shortest_that_aligns(
    suite: Suite, length: int
) -> None:
    sa = codec_sa(suite)
    packet = memoryview(encap(outbound(sa), b"x" * length, 41))
    pad_len = -(length + 2) % 4
    text = bytearray(length + pad_len + 2)
    make_aead(suite, sa.keymat).open_into(
        SALT + bytes(packet[8:16]), packet[16:], struct.pack("!IQ", SPI, 1), memoryview(text)
    )
    assert bytes(text) == b"x" * length + bytes(range(1, pad_len + 1)) + bytes((pad_len, 41))


@every_suite
def test_the_esn_bit_is_authenticated_though_it_is_not_sent(suite: Suite) -> None:
    packet = encap(outbound(codec_sa(suite, esn=True)))
    receiver = inbound(codec_sa(suite, esn=False))
    assert reason_of(lambda: decap(receiver, packet)) is DropReason.AUTH_FAILED


def test_only_the_payload_and_its_trailer_are_touched_in_the_input() -> None:
    buf = bytearray(b"\xee" * 5 + b"payload" + b"\xee" * 8)
    out = memoryview(bytearray(100))
    outbound(codec_sa(SUITES["aes256gcm16"])).encap(memoryview(buf), 5, 12, IPV4, out)
    assert buf == b"\xee" * 5 + b"payload" + b"\x01\x02\x03\x03\x04" + b"\xee" * 3


@every_suite
def test_max_payload_is_the_largest_that_fits(suite: Suite) -> None:
    smallest = suite.esp_len(0)
    for limit in range(smallest, smallest + 200):
        payload_len = suite.max_payload(limit)
        assert suite.esp_len(payload_len) <= limit < suite.esp_len(payload_len + 1)
    assert suite.max_payload(smallest - 1) < 0
    assert suite.max_payload(0) < 0


@every_suite
@esn_on_and_off
def test_a_peer_may_use_any_iv(suite: Suite, esn: bool) -> None:
    sa = codec_sa(suite, esn=esn)
    receiver = inbound(sa)
    for seq, iv in enumerate((bytes(8), b"\xff" * 8, b"whatever"), start=1):
        packet = seal(sa, seq, b"payload." + b"\x01\x02\x02\x04", iv=iv)
        assert decap(receiver, packet) == (b"payload.", 4, True)


# Inbound drops


@every_suite
@esn_on_and_off
def test_a_changed_byte_anywhere_fails_and_leaves_no_plaintext(suite: Suite, esn: bool) -> None:
    sa = codec_sa(suite, esn=esn)
    good = encap(outbound(sa, 5, 6), b"secret" * 5)
    receiver = inbound(sa)
    for place in range(len(good)):
        packet = bytearray(good)
        packet[place] ^= 0x40
        out = bytearray(len(packet))
        reason = reason_of(lambda p=packet, o=out: receiver.decap(memoryview(p), memoryview(o)))
        assert reason is DropReason.AUTH_FAILED
        assert out == bytes(len(out))
    assert receiver.window.highest == 0, "an unauthenticated packet moved the window"
    assert decap(receiver, good)[0] == b"secret" * 5


@every_suite
@esn_on_and_off
def test_a_packet_cut_anywhere_is_dropped(suite: Suite, esn: bool) -> None:
    sa = codec_sa(suite, esn=esn)
    good = encap(outbound(sa), b"x" * 50)
    receiver = inbound(sa)
    for length in range(len(good)):
        could_be_esp = length % 4 == 0 and length >= suite.esp_len(0)
        expected = DropReason.AUTH_FAILED if could_be_esp else DropReason.TOO_SHORT
        assert reason_of(lambda n=length: decap(receiver, good[:n])) is expected
        assert reason_of(lambda n=length: decap(receiver, good[-n:] if n else b"")) is not None
    assert decap(receiver, good)[0] == b"x" * 50


@esn_on_and_off
def test_replays_and_old_packets_are_distinguished_before_anything_is_opened(esn: bool) -> None:
    sa = codec_sa(SUITES["aes256gcm16"], esn=esn)
    packets = [encap(outbound(sa, seq, seq + 1)) for seq in range(1, 101)]

    def never_open(*_: object) -> None:
        raise AssertionError("opened a packet that the window refuses")

    receiver = inbound(sa)
    assert decap(receiver, packets[99])[2] is True
    assert decap(receiver, packets[98])[2] is False
    refusing = InboundEsp(sa, 0, Aead(never_open, never_open, ValueError))
    refusing.window = receiver.window
    assert reason_of(lambda: decap(refusing, packets[98])) is DropReason.REPLAY_DUPLICATE
    assert reason_of(lambda: decap(refusing, packets[99])) is DropReason.REPLAY_DUPLICATE
    if not esn:  # with ESN, such a number is inferred to be in the next subspace of 2**32
        assert reason_of(lambda: decap(refusing, packets[35])) is DropReason.REPLAY_OLD
    assert decap(receiver, packets[36])[2] is False


@pytest.mark.parametrize("newest", [100, 7 * 2**32 + 10, 7 * 2**32 + 9000])
def test_a_genuine_packet_left_of_the_window_is_old_under_esn_and_a_forged_one_not_authentic(
    newest: int,
) -> None:
    sa = codec_sa(SUITES["aes256gcm16"])
    receiver = inbound(sa, newest)
    packet = bytearray(encap(outbound(sa, newest - 64, newest - 63), b"secret"))
    out = bytearray(len(packet))
    late = reason_of(lambda: receiver.decap(memoryview(packet), memoryview(out)))
    assert late is DropReason.REPLAY_OLD
    packet[-1] ^= 1
    forged = reason_of(lambda: receiver.decap(memoryview(packet), memoryview(out)))
    assert forged is DropReason.AUTH_FAILED
    assert out == bytes(len(out))
    assert receiver.window.highest == newest


def test_a_packet_of_the_next_subspace_is_accepted_over_any_number_of_lost_ones() -> None:
    sa = codec_sa(SUITES["aes256gcm16"])
    packet = encap(outbound(sa, 2**32 + 9, 2**32 + 10), b"far")
    assert decap(inbound(sa, 5000), packet)[0] == b"far"


def test_a_number_below_the_first_subspace_is_old() -> None:
    sa = codec_sa(SUITES["aes256gcm16"])
    packet = seal(sa, 2**32 - 1, b"\x01\x02\x02\x04")
    assert reason_of(lambda: decap(inbound(sa), packet)) is DropReason.REPLAY_OLD


@esn_on_and_off
def test_number_zero_is_dropped(esn: bool) -> None:
    sa = codec_sa(SUITES["aes256gcm16"], esn=esn)
    packet = seal(sa, 0, b"\x01\x02\x02\x04")
    assert reason_of(lambda: decap(inbound(sa), packet)) is DropReason.REPLAY_OLD


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"data\x01\x02\x03\x00\x04\x04", id="last byte of padding"),
        pytest.param(b"dat\x00\x02\x03\x03\x04", id="first byte of padding"),
        pytest.param(b"da\x00\x01\x02\x03\x04\x04", id="padding from zero"),
        pytest.param(b"\x01\x02\x03\x04", id="pad_len beyond the payload"),
        pytest.param(b"\x00\x00\xff\x04", id="pad_len 255"),
        pytest.param(b"\x01\x02\x03\x04\x05\x06\x07\x04", id="pad_len one beyond"),
    ],
)
def test_bad_padding_is_dropped_and_its_number_is_spent(text: bytes) -> None:
    text = bytes(-len(text) % 4) + text
    sa = codec_sa(SUITES["aes256gcm16"])
    receiver = inbound(sa)
    packet = seal(sa, 7, text)
    assert reason_of(lambda: decap(receiver, packet)) is DropReason.BAD_PADDING
    assert receiver.window.highest == 7
    assert reason_of(lambda: decap(receiver, packet)) is DropReason.REPLAY_DUPLICATE


@pytest.mark.parametrize("pad_len", [0, 4, 254, 255])
def test_padding_of_any_length_up_to_255_is_taken_off(pad_len: int) -> None:
    sa = codec_sa(SUITES["aes256gcm16"])
    payload = b"p" * (40 + -(pad_len + 2) % 4)
    packet = seal(sa, 1, payload + bytes(range(1, pad_len + 1)) + bytes((pad_len, 41)))
    assert decap(inbound(sa), packet) == (payload, 41, True)


def test_a_packet_of_nothing_but_padding_has_an_empty_payload() -> None:
    sa = codec_sa(SUITES["aes256gcm16"])
    assert decap(inbound(sa), seal(sa, 1, b"\x01\x02\x02\x04")) == (b"", 4, True)


def test_a_dummy_packet_is_dropped_after_it_is_authenticated() -> None:
    sa = codec_sa(SUITES["aes256gcm16"])
    receiver = inbound(sa)
    packet = encap(outbound(sa), b"noise", next_header=59)
    assert reason_of(lambda: decap(receiver, packet)) is DropReason.DUMMY
    assert reason_of(lambda: decap(receiver, packet)) is DropReason.REPLAY_DUPLICATE


# Leases


def seqs_until_drop(esp: OutboundEsp) -> tuple[list[int], DropReason]:
    """Return the IVs of the packets that the SA sends until its first drop, and the reason."""
    seqs: list[int] = []
    with pytest.raises(Drop) as caught:
        while True:
            seqs.append(int.from_bytes(encap(esp)[8:16], "big"))
    return seqs, caught.value.reason


SA = codec_sa(SUITES["aes256gcm16"])
SA_32 = codec_sa(SUITES["aes256gcm16"], esn=False)


def test_a_lease_is_used_from_its_first_number_to_the_last_before_its_end() -> None:
    esp = outbound(SA, 10, 14)
    assert (esp.next_seq, esp.lease_end) == (10, 14)
    assert seqs_until_drop(esp) == ([10, 11, 12, 13], DropReason.LEASE_EXHAUSTED)
    assert (esp.next_seq, esp.lease_end) == (14, 14)


def test_an_exhausted_lease_can_be_extended() -> None:
    esp = outbound(SA, 10, 12)
    seqs_until_drop(esp)
    esp.extend(Lease(12, 14))
    assert seqs_until_drop(esp) == ([12, 13], DropReason.LEASE_EXHAUSTED)


def test_leases_are_used_in_order_and_gaps_between_them_are_left_out() -> None:
    esp = outbound(SA, 1, 3)
    esp.extend(Lease(3, 5))
    assert esp.lease_end == 5
    esp.extend(Lease(100, 102))
    esp.extend(Lease(102, 103))
    esp.extend(Lease(200, 200))
    esp.extend(Lease(2**40, 2**40 + 1))
    assert seqs_until_drop(esp) == (
        [1, 2, 3, 4, 100, 101, 102, 2**40],
        DropReason.LEASE_EXHAUSTED,
    )


def test_an_empty_lease_in_between_does_not_bring_numbers_back() -> None:
    esp = outbound(SA, 1, 2)
    esp.extend(Lease(100, 102))
    esp.extend(Lease(102, 102))
    seqs = [int.from_bytes(encap(esp)[8:16], "big") for _ in range(2)]
    esp.extend(Lease(102, 104))
    assert seqs + seqs_until_drop(esp)[0] == [1, 100, 101, 102, 103]
    assert esp.next_seq == 104
    with pytest.raises(EngineError):
        esp.extend(Lease(103, 110))


@pytest.mark.parametrize(
    "lease",
    [Lease(13, 20), Lease(1, 5), Lease(12, 14), Lease(20, 30), Lease(29, 35), Lease(40, 39)],
)
def test_a_lease_that_overlaps_or_goes_back_is_refused_and_changes_nothing(lease: Lease) -> None:
    esp = outbound(SA, 10, 14)
    esp.extend(Lease(20, 30))
    with pytest.raises(EngineError):
        esp.extend(lease)
    assert seqs_until_drop(esp)[0] == [*range(10, 14), *range(20, 30)]


@pytest.mark.parametrize("lease", [Lease(0, 10), Lease(-5, 10), Lease(10, 9)])
def test_an_impossible_first_lease_is_refused(lease: Lease) -> None:
    with pytest.raises(EngineError):
        outbound(SA, lease.first, lease.end)


@pytest.mark.parametrize("sa", [SA, SA_32], ids=["esn", "no-esn"])
def test_the_last_number_of_an_sa_is_used_and_none_after_it(sa: Sa) -> None:
    last = sa.last_seq
    esp = outbound(sa, last - 1, last + 100)
    assert seqs_until_drop(esp) == ([last - 1, last], DropReason.SEQ_EXHAUSTED)
    esp.extend(Lease(last + 100, last + 200))
    assert seqs_until_drop(esp) == ([], DropReason.SEQ_EXHAUSTED)


def test_a_lease_that_begins_behind_the_last_number_ends_the_sa() -> None:
    assert seqs_until_drop(outbound(SA_32, 2**32 + 5, 2**32 + 9)) == ([], DropReason.SEQ_EXHAUSTED)
    esp = outbound(SA_32, 1, 2)
    esp.extend(Lease(2**32 + 5, 2**32 + 9))
    assert seqs_until_drop(esp) == ([1], DropReason.SEQ_EXHAUSTED)


def test_a_sequence_number_is_spent_even_if_its_packet_fails() -> None:
    def fail(*_: object) -> None:
        raise ValueError("no")

    esp = OutboundEsp(SA, Lease(1, 10), Aead(fail, fail, ValueError))
    buf, out = memoryview(bytearray(20)), memoryview(bytearray(100))
    for arguments in (
        (buf, 0, 10, IPV4, out),
        (buf, 0, 10, IPV4, out[:12]),
        (buf, 0, 20, IPV4, out),
        (buf, 0, 10, 256, out),
    ):
        before = esp.next_seq
        with pytest.raises((ValueError, IndexError, struct.error)):
            esp.encap(*arguments)
        assert esp.next_seq == before + 1


@pytest.mark.parametrize(
    ("leases", "low"),
    [
        ([Lease(1, 101)], 51),
        ([Lease(1, 2)], 1),
        ([Lease(1, 1)], 1),
        ([Lease(1, 11), Lease(11, 31)], 16),
        ([Lease(1, 11), Lease(1001, 1031)], 1011),
        ([Lease(1, 31), Lease(1001, 1011)], 21),
        ([Lease(1, 11), Lease(1001, 1011)], 1001),
        ([Lease(1, 11), Lease(101, 111), Lease(1001, 1031)], 1006),
    ],
)
def test_low_is_where_half_of_the_numbers_are_used(leases: list[Lease], low: int) -> None:
    esp = outbound(SA, leases[0].first, leases[0].end)
    for lease in leases[1:]:
        esp.extend(lease)
    assert esp.low == low


def test_low_counts_from_the_next_number_at_the_time_of_the_extension() -> None:
    esp = outbound(SA, 1, 11)
    for _ in range(6):
        encap(esp)
    assert esp.next_seq >= esp.low
    esp.extend(Lease(11, 21))
    assert (esp.next_seq, esp.low) == (7, 14)


@every_suite
def test_no_key_is_in_a_drop_an_error_or_the_repr_of_a_codec(suite: Suite) -> None:
    sa = dataclasses.replace(codec_sa(suite), keymat=KeyMaterial(b"K" * suite.key_len, b"SALT"))
    texts = [repr(outbound(sa)), repr(inbound(sa))]
    with pytest.raises(Drop) as dropped:
        decap(inbound(sa), bytes(suite.esp_len(0)))
    texts += [repr(dropped.value), str(dropped.value)]
    with pytest.raises(EngineError) as refused:
        outbound(sa, 5, 6).extend(Lease(1, 2))
    texts += [repr(refused.value), str(refused.value)]
    assert not [text for text in texts if "KKK" in text or "SALT" in text]
