"""Packets from an attacker reach nobody, get no answer, and are counted by drop reason."""

from __future__ import annotations

import secrets
import struct
import sys
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import add_address
from esp_gw.demo.pair import GatewayPair
from esp_gw.model import Encapsulation
from tests.support.labtools import (
    MakePair,
    StartCapture,
    answers,
    configured_sa,
    drops,
    edit,
    esp_packets,
    forge,
    frames,
    log_without_states,
    ping,
    sas,
    send_frames,
    start_pings,
    tunnel,
    udp_frame,
    until,
)

A, B = (ip_address(address).packed for address in ("192.0.2.1", "192.0.2.2"))
INNER = ("10.1.0.1", "10.2.0.1")
FAR = 2**20 * 5
"""A sequence number far beyond the lab's own traffic."""
REFUSED_AS_OLD = {"replay-duplicate", "replay-old", "auth-failed"}


def echo_request(src: str = INNER[0], dst: str = INNER[1], ident: int = 0x5EC) -> Packet:
    return IP(src=src, dst=dst) / ICMP(type=8, id=ident, seq=1) / Raw(b"forged" * 8)


def test_a_peer_with_a_wrong_key_reaches_nobody_and_gets_no_answer(
    make_pair: MakePair, capture: StartCapture
) -> None:
    pair = make_pair()
    key = pair.a.config.parent / "keys" / "pi-b.out.key"
    key.write_text(secrets.token_hex(36) + "\n")
    pair.start()
    wire = capture(pair.b.namespace)
    assert ping(pair.a.namespace, INNER[1], count=7) == 0
    assert drops(pair.b) == {"auth-failed": 7}
    assert pair.b.ask("stats")["packets_in"] == 0
    senders = {packet.frame[26:30] for packet in esp_packets(wire.stop())}
    assert senders == {A}


def test_a_replayed_capture_is_refused_at_once_after_a_restart_and_after_a_kill(
    pair: GatewayPair, capture: StartCapture
) -> None:
    wire = capture(pair.b.namespace)
    inside = capture(pair.b.namespace, "esp0")
    ledger = pair.b.folder / "ledger.db"
    written = ledger.stat().st_mtime_ns
    assert ping(pair.a.namespace, INNER[1], count=1500, interval=0.002) == 1500
    replay = [packet.frame for packet in esp_packets(wire.stop()) if packet.frame[26:30] == A]
    assert len(replay) == 1500
    until(lambda: ledger.stat().st_mtime_ns != written, "the floor is written", 15)

    others = start_pings(pair.a.namespace, INNER[1], 100)
    _assert_refused(pair, replay, expected_in=1600)
    assert answers(others) == 100
    # 1600 requests and as many replies: no replayed packet came out of the TUN.
    assert len(list(frames(inside.stop()))) == 3200
    pair.b.stop()
    pair.b.start()
    _assert_refused(pair, replay, expected_in=0)
    pair.b.kill()
    pair.b.start()
    _assert_refused(pair, replay, expected_in=0)
    assert ping(pair.a.namespace, INNER[1], count=3) == 3


def _assert_refused(pair: GatewayPair, replay: list[bytes], expected_in: int) -> None:
    send_frames(pair.a.namespace, replay)
    until(lambda: sum(drops(pair.b).values()) >= len(replay), "every replay is counted")
    until(lambda: pair.b.ask("stats")["packets_in"] >= expected_in, "the other traffic arrives")
    assert set(drops(pair.b)) <= REFUSED_AS_OLD
    assert sum(drops(pair.b).values()) == len(replay)
    assert pair.b.ask("stats")["packets_in"] == expected_in


def test_a_packet_with_any_bit_flipped_is_refused_and_accepted_intact(pair: GatewayPair) -> None:
    sender, receiver = pair.a.namespace, pair.b.namespace
    packet = forge(configured_sa(pair.a, "pi-b/out"), FAR, echo_request())
    flipped = []
    for at in range(len(packet)):
        changed = bytearray(packet)
        changed[at] ^= 1 << (at & 7)
        flipped.append(udp_frame(sender, receiver, bytes(changed)))
    send_frames(sender, flipped)
    until(lambda: sum(drops(pair.b).values()) >= len(flipped), "every packet is counted")
    assert drops(pair.b) == {"unknown-spi": 4, "auth-failed": len(packet) - 4}
    assert pair.b.ask("stats")["packets_in"] == 0
    send_frames(sender, [udp_frame(sender, receiver, packet)])
    until(lambda: pair.b.ask("stats")["packets_in"] == 1, "the intact packet is delivered")
    until(lambda: pair.b.ask("stats")["packets_out"] == 1, "it is answered")


STRANGE = {
    "source": (echo_request(src="10.9.0.1"), "selector-mismatch"),
    "destination": (echo_request(dst="10.3.0.1"), "selector-mismatch"),
    "turned around": (echo_request(src=INNER[1], dst=INNER[0]), "selector-mismatch"),
    "the outer addresses": (echo_request("192.0.2.1", "192.0.2.2"), "selector-mismatch"),
    "the other family": (
        IPv6(src="fd00:1::1", dst="fd00:2::1") / UDP(dport=9),
        "selector-mismatch",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_peer_with_the_key_can_send_only_what_the_selectors_allow(
    pair: GatewayPair, capture: StartCapture, name: str
) -> None:
    inner, reason = STRANGE[name]
    inside = capture(pair.b.namespace, "esp0")
    packet = forge(configured_sa(pair.a, "pi-b/out"), FAR, inner)
    send_frames(pair.a.namespace, [udp_frame(pair.a.namespace, pair.b.namespace, packet)])
    until(lambda: drops(pair.b), "the packet is counted")
    assert drops(pair.b) == {reason: 1}
    assert list(frames(inside.stop())) == []


GARBAGE = """
import random, socket, sys
target, spi = sys.argv[1], int(sys.argv[2]).to_bytes(4)
random.seed(4303)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 50)
starts = [b"", spi, spi + bytes(4), spi + bytes(12), bytes(4), b"\\xff", bytes(3)]
for number in range(6000):
    data = random.choice(starts) + random.randbytes(random.choice((0, 1, 7, 8, 40, 1400, 1472)))
    for sock, port in ((udp, 4500), (raw, 0)):
        try:
            sock.sendto(data[:1472], (target, port))
        except OSError:  # the refusal of an earlier one
            pass
"""


@pytest.mark.parametrize("encapsulation", list(Encapsulation))
def test_thousands_of_garbage_datagrams_lose_no_packet(
    make_pair: MakePair, encapsulation: Encapsulation
) -> None:
    pair = make_pair(encapsulation=encapsulation)
    pair.start()
    spi = str(configured_sa(pair.a, "pi-b/out").spi)
    attack = pair.a.namespace.start(sys.executable, "-c", GARBAGE, "192.0.2.2", spi)
    words, count = log_without_states(pair.b), 0
    while attack.poll() is None or count == 0:
        assert ping(pair.a.namespace, INNER[1], count=20) == 20
        count += 20
    assert attack.returncode == 0
    stats = pair.b.ask("stats")
    assert stats["packets_in"] == count
    expected = {"too-short", "unknown-spi", "auth-failed", "replay-old"}
    if encapsulation is Encapsulation.UDP:
        expected.add("ike-datagram")
    # A busy machine may not keep up with the garbage.
    assert set(stats["drops"]) - {"socket-overflow"} == expected
    assert log_without_states(pair.b) == words


def _send_udp(gateway: LabGateway, target: str, *payloads: bytes) -> None:
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for data in sys.argv[2:]: s.sendto(bytes.fromhex(data), (sys.argv[1], 4500))\n"
    )
    gateway.namespace.run(sys.executable, "-c", script, target, *(p.hex() for p in payloads))


def test_ike_and_other_datagrams_on_the_port_are_counted_by_kind(
    pair: GatewayPair, capture: StartCapture
) -> None:
    wire = capture(pair.b.namespace)
    ike = bytes(4) + secrets.token_bytes(8) + bytes(8) + b"\x21\x20\x22\x08" + bytes(40)
    _send_udp(pair.a, "192.0.2.2", ike, b"\xff", b"", b"\x00", bytes(7), b"\xff" * 9)
    until(lambda: sum(drops(pair.b).values()) == 5, "all but the keepalive are counted")
    assert drops(pair.b) == {"ike-datagram": 1, "too-short": 3, "unknown-spi": 1}
    assert pair.b.ask("stats")["keepalives_in"] == 1
    assert [
        frame for frame in frames(wire.stop()) if frame[12:14] == b"\x08\x00" and frame[26:30] == B
    ] == []


def test_a_huge_datagram_in_fragments_is_dropped_and_the_next_packet_passes(
    pair: GatewayPair,
) -> None:
    spi = configured_sa(pair.a, "pi-b/out").spi
    sender = pair.a.namespace
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for n in (4, 2000, 30000, 65500):\n"
        "    data = int(sys.argv[1]).to_bytes(4) + b'\\1' * n\n"
        "    s.sendto(data, ('192.0.2.2', 4500))\n"
    )
    sender.run(sys.executable, "-c", script, str(spi))
    until(lambda: sum(drops(pair.b).values()) == 4, "the datagrams are counted")
    assert drops(pair.b) == {"too-short": 1, "auth-failed": 3}
    assert ping(sender, INNER[1], count=3) == 3


def test_keepalives_are_sent_while_idle_and_consumed_by_the_peer(
    make_pair: MakePair, capture: StartCapture
) -> None:
    pair = make_pair()
    for gateway in (pair.a, pair.b):
        edit(gateway, lambda config: tunnel(config).update(keepalive=1))
    pair.start()
    inside = capture(pair.b.namespace, "esp0")
    until(lambda: pair.b.ask("stats")["keepalives_in"] >= 2, "keepalives arrive")
    assert pair.a.ask("stats")["keepalives_out"] >= 2
    assert drops(pair.b) == {}
    assert list(frames(inside.stop())) == []
    assert pair.b.ask("stats")["packets_in"] == 0


def _move_b(pair: GatewayPair) -> None:
    add_address(pair.b.namespace, "192.0.2.3/24")
    edit(pair.b, lambda config: tunnel(config).update(local="192.0.2.3"))
    pair.b.cli("reload")


def test_a_moving_peer_is_followed_and_an_old_packet_redirects_nothing(
    pair: GatewayPair, capture: StartCapture
) -> None:
    a, b = pair.a.namespace, pair.b.namespace
    wire = capture(a)
    assert ping(a, INNER[1], count=20) == 20
    old = [packet.frame for packet in esp_packets(wire.stop()) if packet.frame[26:30] == B]
    _move_b(pair)
    assert ping(b, INNER[0], count=3) == 3
    assert sas(pair.a)["pi-b/out"]["remote"] == "192.0.2.3"

    # The same ESP packets from elsewhere, and garbage with a valid SPI and a high number.
    spi = configured_sa(pair.a, "pi-b/in").spi
    junk = struct.pack("!II", spi, 2**31) + secrets.token_bytes(80)
    fake = {"src": "192.0.2.99", "dst": "192.0.2.1"}
    frames_from_elsewhere = [udp_frame(b, a, frame[42:], **fake) for frame in old]
    send_frames(b, [*frames_from_elsewhere, udp_frame(b, a, junk, **fake)])
    until(lambda: sum(drops(pair.a).values()) >= len(old) + 1, "the old packets are counted")
    assert sas(pair.a)["pi-b/out"]["remote"] == "192.0.2.3"
    assert ping(a, INNER[1], count=3) == 3


def test_a_late_packet_is_accepted_and_redirects_nothing(pair: GatewayPair) -> None:
    a, b = pair.a.namespace, pair.b.namespace
    sa = configured_sa(pair.b, "pi-a/out")
    reply = IP(src=INNER[1], dst=INNER[0]) / ICMP(type=0) / Raw(b"late")
    newer, older = (forge(sa, seq, reply) for seq in (FAR + 1, FAR))
    send_frames(b, [udp_frame(b, a, newer, src="192.0.2.3", dst="192.0.2.1", sport=4777)])
    until(lambda: sas(pair.a)["pi-b/out"]["remote_port"] == 4777, "the newest is followed")
    send_frames(b, [udp_frame(b, a, older, src="192.0.2.4", dst="192.0.2.1")])
    until(lambda: sas(pair.a)["pi-b/in"]["packets"] == 2, "the older one is accepted as well")
    ours = sas(pair.a)["pi-b/out"]
    assert (ours["remote"], ours["remote_port"]) == ("192.0.2.3", 4777)


def test_a_reload_of_the_outbound_sa_keeps_the_address_of_a_peer_that_moved(
    pair: GatewayPair,
) -> None:
    _move_b(pair)
    assert ping(pair.b.namespace, INNER[0], count=1) == 1
    edit(pair.a, lambda config: tunnel(config).update(keepalive=7))
    assert pair.a.ask("reload")["changes"]
    assert sas(pair.a)["pi-b/out"]["remote"] == "192.0.2.3"
    assert ping(pair.a.namespace, INNER[1], count=3) == 3
