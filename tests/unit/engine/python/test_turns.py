"""A turn of one direction ends by its bytes, too, so that the other one has its own."""

from __future__ import annotations

from scapy.layers.inet import IP

from esp_gw.engine.python.outbound import BATCH, TURN_BYTES
from tests.support.rig import V4, packet, pair, peer_address

LARGE = 40_000
OF_A_TURN = -(-TURN_BYTES // LARGE)


def large() -> bytes:
    return packet(IP(src="10.1.0.1", dst="10.2.0.1"), bytes(LARGE))


def test_a_turn_of_the_tun_ends_by_its_bytes() -> None:
    with pair(V4) as gateways:
        side = gateways.a
        for _ in range(OF_A_TURN + 2):
            side.tun.send(large())
        side.outbound.drain()
        assert len(side.outer.take()) == OF_A_TURN
        side.outbound.drain()
        assert len(side.outer.take()) == 2


def test_a_turn_of_a_socket_ends_by_its_bytes() -> None:
    with pair(V4) as gateways:
        outer = gateways.b.outer
        for _ in range(OF_A_TURN + 2):
            (sent,) = gateways.a.forward(large())
            outer.sock.waiting.append((sent.packet, 0, 0, peer_address(outer)))
        gateways.b.inbound.drain(outer)  # type: ignore[arg-type]
        assert gateways.b_in.packets == OF_A_TURN
        gateways.b.inbound.drain(outer)  # type: ignore[arg-type]
        assert gateways.b_in.packets == OF_A_TURN + 2


def test_a_turn_of_small_packets_ends_by_their_number() -> None:
    with pair(V4) as gateways:
        for _ in range(BATCH + 2):
            gateways.a.tun.send(packet())
        gateways.a.outbound.drain()
        assert len(gateways.a.outer.take()) == BATCH
