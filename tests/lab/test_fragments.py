"""Datagrams in fragments through a tunnel whose selectors have ports: only first fragments do."""

from __future__ import annotations

import json
import subprocess
import sys

from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from esp_gw.demo.netns import Namespace, namespaces
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import (
    MakePair,
    configured_sa,
    drops,
    edit,
    forge,
    forwarding,
    keep_multicast_off,
    mac,
    send_frames,
    site_host,
    tunnel,
    udp_frame,
    until,
)

SIZES = (100, 1300, 1500, 3000, 9000)
FAR = ("10.2.0.10", "fd00:2::10")
_SINK = """
import json, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
s.settimeout(float(sys.argv[3]))
print("ready", flush=True)
sizes = set()
try:
    while len(sizes) < 5: sizes.add(len(s.recv(65536)))
except TimeoutError: pass
print(json.dumps(sorted(sizes)))
"""
_SEND = """
import json, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
if family == socket.AF_INET: s.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: never DF
# The first large one over IPv6 may be the one that learns the path MTU.
for size in json.loads(sys.argv[3]) * 2: s.sendto(bytes(size), (sys.argv[1], int(sys.argv[2])))
"""


def arrived(source: Namespace, sink: Namespace, target: str, port: int, patience: float) -> object:
    """Return the sizes of the datagrams that arrive, each of SIZES sent twice."""
    arguments = (target, str(port), str(patience))
    process = sink.start(sys.executable, "-c", _SINK, *arguments, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    source.run(sys.executable, "-c", _SEND, target, str(port), json.dumps(SIZES))
    output, _ = process.communicate(timeout=10)
    return json.loads(output)


def halves(version: int, ident: int) -> list[Packet]:
    """Return the two fragments of a datagram to the port of the tunnel, the first one first."""
    upper = UDP(sport=1, dport=7001, chksum=0 if version == 4 else None) / Raw(bytes(1600))
    if version == 4:
        whole = IP(src="10.1.0.10", dst=FAR[0], id=ident) / upper
        return list(fragment(whole, 1000))
    whole = IPv6(src="fd00:1::10", dst=FAR[1]) / IPv6ExtHdrFragment(id=ident) / upper
    return list(fragment6(whole, 1280))


def of_one_port(pair: GatewayPair) -> None:
    """Give both ends selectors of one port, and no addresses of their own."""
    for gateway, side in ((pair.a, "remote"), (pair.b, "local")):
        edit(
            gateway,
            lambda config, side=side: tunnel(config).update(
                {"protocol": "udp", f"{side}_ts_port": 7001}
            ),
        )
        edit(gateway, lambda config: config["gateway"].pop("address"))


def test_a_later_fragment_before_its_first_is_dropped_and_counted_at_either_end(
    make_pair: MakePair,
) -> None:
    pair = make_pair(inner_versions=(4, 6))
    of_one_port(pair)
    a = pair.a.namespace
    keep_multicast_off(a, "esp0")
    with namespaces("one") as (one,):
        site_host(one, a, 1)
        forwarding(a)
        pair.start()
        ether = Ether(src=mac(one, "eth0"), dst=mac(a, "lan"))
        sent, refused = pair.a.call("GetStats")["packets_out"], drops(pair.a)["no-policy"]
        for version in (4, 6):
            for order, counted in ((reversed, 1), (list, 0)):
                pieces = order(halves(version, 8 + counted))
                frames = [bytes(ether / piece) for piece in pieces]
                send_frames(one, frames, "eth0")
                sent, refused = sent + 2 - counted, refused + counted
                until(
                    lambda sent=sent: pair.a.call("GetStats")["packets_out"] == sent,
                    "what has ports, or follows what has, is carried",
                )
                until(
                    lambda refused=refused: drops(pair.a)["no-policy"] == refused,
                    "what comes before its ports is refused",
                )
        # The other end judges what an authentic peer sends in the wrong order.
        sa = configured_sa(pair.a, "pi-b/out")
        seq, taken = 1000, pair.b.call("GetStats")["packets_in"]
        for version in (4, 6):
            for order, counted in ((reversed, 1), (list, 0)):
                refused = drops(pair.b)["selector-mismatch"] + counted
                taken += 2 - counted
                for piece in order(halves(version, 18 + counted)):
                    seq += 1
                    frame = udp_frame(a, pair.b.namespace, forge(sa, seq, piece))
                    send_frames(a, [frame])
                until(
                    lambda taken=taken: pair.b.call("GetStats")["packets_in"] == taken,
                    "what has ports, or follows what has, is taken",
                )
                assert drops(pair.b)["selector-mismatch"] == refused


def test_large_datagrams_pass_a_tunnel_of_one_port_and_those_of_another_port_do_not(
    make_pair: MakePair,
) -> None:
    pair = make_pair(inner_versions=(4, 6))
    of_one_port(pair)
    with namespaces("one", "two") as (one, two):
        site_host(one, pair.a.namespace, 1)
        site_host(two, pair.b.namespace, 2)
        forwarding(pair.a.namespace, pair.b.namespace)
        pair.start()
        for target in FAR:
            assert arrived(one, two, target, 7001, 3) == list(SIZES)
        assert drops(pair.b)["selector-mismatch"] == 0
        for target in FAR:
            assert arrived(one, two, target, 7002, 0.3) == []
