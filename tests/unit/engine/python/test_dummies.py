"""Authentic keepalives of the python engine: dummy packets (RFC 4303 2.6)."""

from __future__ import annotations

import pytest

from esp_gw.crypto.openssl import make_aead
from esp_gw.engine.base import HardExpired, LeaseLow
from esp_gw.engine.python.esp import InboundEsp
from esp_gw.model import SUITES, DropReason, Encapsulation, Lease, Mode
from tests.support.rig import HOSTS, V4, pair

Q = DropReason.QUEUE_FULL


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("encapsulation", list(Encapsulation))
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("suite", ["aes128gcm16", "chacha20poly1305", "aes256gmac"])
def test_a_dummy_is_an_authentic_packet_with_a_number_of_its_own(
    version: int, encapsulation: Encapsulation, mode: Mode, suite: str
) -> None:
    selector = HOSTS[version] if mode is Mode.TRANSPORT else V4
    with pair(
        selector, mode=mode, version=version, encapsulation=encapsulation, suite=SUITES[suite]
    ) as gateways:
        state, peer = gateways.a_out, gateways.b_in
        for number in (1, 2):
            assert gateways.a.outbound.send_dummy(state)
            (sent,) = gateways.a.outer.take()
            assert sent.packet[8:16] == number.to_bytes(8)
            assert (sent.tos, sent.address) == (0, state.peer.address)
            assert (state.packets, state.bytes, state.drops) == (0, 0, {})
            esp = InboundEsp(peer.sa, number - 1, make_aead(peer.sa.suite, peer.sa.keymat))
            text = memoryview(bytearray(len(sent.packet)))
            with pytest.raises(Exception, match="dummy"):
                esp.decap(memoryview(sent.packet), text)
            # Four bytes, padding 1 2, its length, no next header.
            assert bytes(text[:8]) == bytes(4) + bytes([1, 2, 2, 59])


def test_a_dummy_for_a_full_socket_is_a_drop_that_uses_no_number() -> None:
    with pair(V4) as gateways:
        gateways.a.outer.full = True
        assert not gateways.a.outbound.send_dummy(gateways.a_out)
        assert gateways.a_out.esp.next_seq == 1
        assert (gateways.a_out.drops, gateways.a.outer.take()) == ({Q: 1}, [])


@pytest.mark.parametrize("reason", [Q, DropReason.SEND_ERROR, DropReason.TOO_BIG])
def test_a_dummy_that_the_socket_refuses_is_a_drop_of_its_sa(reason: DropReason) -> None:
    with pair(V4) as gateways:
        gateways.a.outer.verdicts.append(reason)
        assert not gateways.a.outbound.send_dummy(gateways.a_out)
        assert gateways.a.outbound.send_dummy(gateways.a_out)
        assert gateways.a_out.drops == {reason: 1}
        assert gateways.a_out.esp.next_seq == 3


def test_dummies_use_up_the_lease_and_ask_for_more() -> None:
    with pair(V4) as gateways:
        state = gateways.a.install_outbound(gateways.a_out.sa, Lease(1, 5))
        sent = [gateways.a.outbound.send_dummy(state) for _ in range(6)]
        assert sent == [True] * 4 + [False] * 2
        assert gateways.a.events == [LeaseLow("ab")]
        assert state.drops == {DropReason.LEASE_EXHAUSTED: 2}


def test_the_last_number_expires_the_sa_for_dummies_too() -> None:
    with pair(V4, esn=False) as gateways:
        last = 2**32 - 1
        state = gateways.a.install_outbound(gateways.a_out.sa, Lease(last, last + 1))
        sent = [gateways.a.outbound.send_dummy(state) for _ in range(3)]
        assert sent == [True, False, False]
        assert gateways.a.events.count(HardExpired("ab")) == 1
        assert state.drops == {DropReason.SEQ_EXHAUSTED: 2}
