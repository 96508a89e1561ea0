"""Datagrams in fragments through a tunnel whose selectors have ports: only first fragments do."""

from __future__ import annotations

import json
import subprocess
import sys

from esp_gw.demo.netns import Namespace, namespaces
from tests.support.labtools import MakePair, drops, edit, forwarding, site_host, tunnel

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


def test_large_datagrams_pass_a_tunnel_of_one_port_and_those_of_another_port_do_not(
    make_pair: MakePair,
) -> None:
    pair = make_pair(inner_versions=(4, 6))
    for gateway, side in ((pair.a, "remote"), (pair.b, "local")):
        edit(
            gateway,
            lambda config, side=side: tunnel(config).update(
                {"protocol": "udp", f"{side}_ts_port": 7001}
            ),
        )
        edit(gateway, lambda config: config["gateway"].pop("address"))
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
