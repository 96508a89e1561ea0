"""Addresses and routes that come and go ten times a second: nothing spins, nothing is held up."""

from __future__ import annotations

import json
from pathlib import Path

from esp_gw.demo.gateways import LabGateway, Usage
from esp_gw.demo.netns import Namespace, wire
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import MakePair, answers, edit, ping, start_pings, tunnel, until, write

ROUNDS = 50
"""Each takes two tenths of a second."""
MAX_LINES = 12
MIB = 1 << 20
OTHER = "10.2.77.0/24"
"""A network inside the protected prefix, which is near while an interface is connected to it."""

THERE = "address add 10.2.77.1/24 dev other; address add 192.0.2.66/24 dev wan; "
THERE += "route add 172.20.0.0/16 via 192.0.2.2; address add 2001:db8:66::1/64 dev wan nodad"
GONE = "address del 10.2.77.1/24 dev other; address del 192.0.2.66/24 dev wan; "
GONE += "route del 172.20.0.0/16 via 192.0.2.2; address del 2001:db8:66::1/64 dev wan"


def batch(host: Namespace, commands: str) -> None:
    for command in commands.split("; "):
        host.ip(*command.split())


def flap(host: Namespace, folder: Path, there: str, gone: str) -> None:
    """Carry out `there` and `gone` in turn, by one program for each."""
    files = []
    for name, commands in (("there", there), ("gone", gone)):
        file = folder / name
        file.write_text("\n".join(commands.split("; ")) + "\n")
        files.append(file)
    turn = "; ".join(f"ip -batch {file}; sleep 0.1" for file in files)
    loop = f"i=0; while [ $i -lt {ROUNDS} ]; do {turn}; i=$((i+1)); done"
    host.run("sh", "-ec", loop, timeout=120)


def lines(gateway: LabGateway) -> int:
    return len(gateway.log.read_text().splitlines())


def hold(gateway: LabGateway, before: Usage, lines_before: int, names: int = MAX_LINES) -> None:
    """Assert that a gateway has neither spun, nor told everything, nor kept everything."""
    after = gateway.usage()
    assert after.cpu_s - before.cpu_s < 5
    assert after.rss - before.rss < 8 * MIB
    assert lines(gateway) - lines_before <= names, gateway.log.read_text()


def near_rules(host: Namespace) -> list[str]:
    return [line for line in host.ip("rule").splitlines() if f" to {OTHER} " in line]


def wide(pair: GatewayPair) -> None:
    edit(pair.a, lambda config: tunnel(config).update(remote_ts=["10.2.0.0/16"]))
    edit(pair.b, lambda config: tunnel(config).update(local_ts=["10.2.0.0/16"]))


def test_a_tunnel_carries_on_beside_addresses_and_routes_that_flap(
    make_pair: MakePair, tmp_path: Path
) -> None:
    pair = make_pair()
    wide(pair)
    wire(pair.a.namespace, pair.b.namespace, name="other")
    pair.start()
    host = pair.a.namespace
    assert ping(host, "10.2.0.1", count=3) == 3
    before, lines_before = pair.a.usage(), lines(pair.a)
    pings = start_pings(host, "10.2.0.1", 1000, interval=0.012)
    flap(host, tmp_path, THERE, GONE)
    assert answers(pings) == 1000
    hold(pair.a, before, lines_before)
    # At rest it is right, either way.
    batch(host, THERE)
    until(lambda: near_rules(host), "what is connected is near", 30)
    batch(host, GONE)
    until(lambda: not near_rules(host), "what is not connected any more is protected", 30)
    assert ping(host, "10.2.0.1", count=3) == 3
    assert not pair.a.call("GetStatus")["warnings"][1:]


def test_an_automatic_address_that_flaps_is_followed_to_where_it_rests(
    make_pair: MakePair, tmp_path: Path
) -> None:
    pair = make_pair(liveness=1)
    edit(pair.a, lambda config: tunnel(config).update(local="auto"))
    host = pair.a.namespace
    write(host, {"ipv4/conf/all/promote_secondaries": 1, "ipv4/conf/wan/promote_secondaries": 1})
    pair.start()
    assert ping(host, "10.2.0.1", count=3) == 3
    before, lines_before = pair.a.usage(), lines(pair.a)
    new = "address add 192.0.2.77/24 dev wan; address del 192.0.2.1/24 dev wan"
    old = "address add 192.0.2.1/24 dev wan; address del 192.0.2.77/24 dev wan"
    flap(host, tmp_path, new, old)
    # Both the tunnel's state and where it sends from have lines.
    hold(pair.a, before, lines_before, 3 * MAX_LINES)
    batch(host, new)

    def local() -> str:
        (entry,) = json.loads(pair.a.cli("tunnel", "list", "--json").stdout)["tunnels"]
        return str(entry["local"])

    until(lambda: local() == "192.0.2.77", "the address at rest", 30)
    until(lambda: ping(host, "10.2.0.1", count=1) == 1, "an answer", 30)
    assert ping(pair.b.namespace, "10.1.0.1", count=3) == 3
