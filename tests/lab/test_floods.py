"""Floods from outside leave the log short, the memory flat and the control socket at work."""

from __future__ import annotations

import subprocess
import sys
import time

from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from esp_gw.demo.gateways import LabGateway
from tests.support.labtools import MakePair, configured_sa, drops, forge, until

SECONDS = 6
MOVES = 10 * SECONDS
GROWTH = 6 << 20
"""Bytes that a daemon may grow by; keeping what the floods hold would take a hundred times that."""
FLOOD = """
import os, socket, struct, sys, time
spi, seconds = int(sys.argv[1]), float(sys.argv[2])
genuine = [bytes.fromhex(line) for line in sys.stdin.read().split()]
socks = []
for port in range(4500, 4530):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("192.0.2.1", port))
    s.connect(("192.0.2.2", 4500))
    socks.append(s)
print("ready", flush=True)
began, sent, moves = time.monotonic(), 0, 0
def send(s, packet):
    try: s.send(packet)
    except OSError: pass
while time.monotonic() - began < seconds:
    for _ in range(50):
        sent += 1
        junk = os.urandom(60)
        # An unknown SPI, and a wrong ICV with a number that nobody has seen.
        send(socks[sent % 30], junk)
        send(socks[sent % 30], struct.pack("!IIQ", spi, sent + 1000, sent + 1000) + junk)
    due = int((time.monotonic() - began) * 10)
    while moves < min(due, len(genuine)):
        send(socks[moves % 30], genuine[moves])
        moves += 1
print(sent, flush=True)
"""


def _log_lines(gateway: LabGateway) -> list[str]:
    return gateway.log.read_text().splitlines()


def test_unknown_spis_wrong_icvs_and_a_peer_that_flaps_at_full_speed(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.b.start()
    sa = configured_sa(pair.b, "pi-a/in")
    inner = IP(src="10.1.0.1", dst="10.2.0.1") / ICMP() / Raw(b"x" * 40)
    # Far apart, so that the forged numbers are in the window of none.
    genuine = [forge(sa, 2**20 * (number + 1), inner) for number in range(MOVES)]
    process = pair.a.namespace.start(
        *(sys.executable, "-c", FLOOD, str(sa.spi), str(SECONDS)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n".join(packet.hex() for packet in genuine))
    process.stdin.close()
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    lines, memory = len(_log_lines(pair.b)), pair.b.usage().rss
    answers = 0
    while process.poll() is None:
        assert pair.b.call("GetStatus")["sas"] == 2
        answers += 1
        time.sleep(0.05)
    sent = int(process.stdout.readline())
    process.stdout.close()
    assert answers > SECONDS
    until(lambda: drops(pair.b)["unknown-spi"] > sent / 50, "the flood is counted")
    # A line a second, and one for the first second.
    assert len(_log_lines(pair.b)) - lines <= SECONDS + 1, _log_lines(pair.b)[lines:]
    assert pair.b.usage().rss - memory < GROWTH
    ends = {each["remote_port"] for each in pair.b.call("ListSas")["sas"]}
    assert ends <= set(range(4500, 4530))
