"""A peer that has a name: both ends find each other again after the address has changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address
from esp_gw.demo.pair import NETS, OUTER
from tests.support.labtools import MakePair, edit, ping, sas, tunnel, until, write_key

pytestmark = pytest.mark.either_engine

NETNS_ETC = Path("/etc/netns")
"""Folders whose files `ip netns exec` puts over those of /etc (ip-netns(8))."""


@pytest.fixture
def hosts() -> Iterator[dict[str, Path]]:
    """Files that take the place of /etc/hosts in the namespaces of their names."""
    made: dict[str, Path] = {}
    yield made
    for path in made.values():
        path.unlink()
        path.parent.rmdir()
    with contextlib.suppress(OSError):
        NETNS_ETC.rmdir()


def hosts_of(namespace: Namespace, made: dict[str, Path], text: str) -> Path:
    folder = NETNS_ETC / namespace.name
    folder.mkdir(parents=True)
    path = folder / "hosts"
    path.write_text(text)
    made[namespace.name] = path
    return path


def test_a_peer_is_found_by_its_name_and_again_at_its_new_address(
    make_pair: MakePair, hosts: dict[str, Path]
) -> None:
    pair = make_pair(liveness=1)
    path = hosts_of(pair.a.namespace, hosts, "127.0.0.1 localhost\n192.0.2.2 gw.example\n")
    edit(pair.a, lambda config: tunnel(config).update(remote="gw.example"))
    edit(pair.b, lambda config: tunnel(config).update(local="auto"))
    pair.start()
    until(lambda: ping(pair.a.namespace, "10.2.0.1", count=1) == 1, "an answer", 20)
    # Both ends at once: neither knows where the other is.
    pair.b.stop()
    add_address(pair.b.namespace, "192.0.2.22/24")
    for gateway, old, new in ((pair.b, "192.0.2.2", ""), (pair.a, "192.0.2.1", "192.0.2.11")):
        if new:
            edit(pair.a, lambda config: tunnel(config).update(local="auto"))
            pair.a.cli("reload")
            add_address(gateway.namespace, f"{new}/24")
        gateway.namespace.ip("address", "del", f"{old}/24", "dev", "wan")
        kept = new or "192.0.2.22"
        gateway.namespace.run("ip", "address", "replace", f"{kept}/24", "dev", "wan")
    path.write_text("127.0.0.1 localhost\n192.0.2.22 gw.example\n")
    pair.b.start()
    until(lambda: ping(pair.a.namespace, "10.2.0.1", count=1) == 1, "an answer", 40)
    assert pair.a.call("ListTunnels")["tunnels"][0]["remote"] == "192.0.2.22"


def test_a_name_that_nobody_knows_keeps_its_tunnel_closed_and_listed(
    make_pair: MakePair, hosts: dict[str, Path]
) -> None:
    pair = make_pair()
    hosts_of(pair.a.namespace, hosts, "127.0.0.1 localhost\n")
    edit(pair.a, lambda config: tunnel(config).update(remote="nobody.invalid"))
    pair.a.start()
    until(lambda: "nobody.invalid has no address" in str(pair.a.call("GetStatus")), "a warning", 30)
    (entry,) = pair.a.call("ListTunnels")["tunnels"]
    assert (entry["state"], entry["remote"]) == ("down", "nobody.invalid")
    assert "nobody.invalid" in pair.a.cli("tunnel", "list").stdout
    assert ping(pair.a.namespace, "10.2.0.1", count=1) == 0


def test_a_name_of_our_own_address_or_of_the_other_family_is_named_until_it_has_the_peers(
    make_pair: MakePair, hosts: dict[str, Path]
) -> None:
    pair = make_pair(liveness=1)
    path = hosts_of(pair.a.namespace, hosts, "192.0.2.1 gw.example\n")
    edit(pair.a, lambda config: tunnel(config).update(remote="gw.example"))
    pair.start()

    def says(text: str) -> bool:
        return text in str(pair.a.call("GetStatus")["warnings"])

    until(lambda: says("gw.example has no address (192.0.2.1 is an address of this host)"), "own")
    path.write_text("2001:db8::2 gw.example\n")
    until(lambda: says("gw.example has no address (no IPv4 address, as 'local' is)"), "IPv6", 30)
    assert ping(pair.a.namespace, "10.2.0.1", count=1) == 0
    addresses = [f"192.0.2.{last}" for last in (1, 2)] + ["2001:db8::2", "224.0.0.1"]
    path.write_text("".join(f"{address} gw.example\n" for address in addresses))
    until(lambda: ping(pair.a.namespace, "10.2.0.1", count=1) == 1, "an answer", 30)
    assert not says("gw.example")


def test_the_peer_is_found_at_the_other_of_two_addresses_of_its_name(
    make_pair: MakePair, hosts: dict[str, Path]
) -> None:
    pair = make_pair(liveness=1)
    # The resolver prefers the address that has more in common with ours, and nobody is there.
    text = "192.0.2.3 gw.example\n192.0.2.2 gw.example\n"
    hosts_of(pair.a.namespace, hosts, text)
    edit(pair.a, lambda config: tunnel(config).update(remote="gw.example"))
    # The peer can't lead the way: it looks for us where we are not.
    edit(pair.b, lambda config: tunnel(config).update(remote="192.0.2.99"))
    pair.start()
    until(lambda: ping(pair.a.namespace, "10.2.0.1", count=1) == 1, "an answer", 90)
    assert pair.a.call("ListTunnels")["tunnels"][0]["remote"] == "192.0.2.2"


def test_tunnels_of_both_families_find_their_peer_by_one_name(
    make_pair: MakePair, hosts: dict[str, Path]
) -> None:
    pair = make_pair(liveness=1)
    hosts_of(pair.a.namespace, hosts, "2001:db8::2 gw.example\n192.0.2.2 gw.example\n")
    names = {pair.a: "gw.example", pair.b: "2001:db8::1"}
    keys = {half: write_key(pair.a.folder / f"{half}.key") for half in ("one", "two")}

    def add_another(gateway: LabGateway) -> None:
        side = int(gateway is pair.b)
        halves = [{"spi": 0x7001 + n, "key": {"file": str(keys[k])}} for n, k in enumerate(keys)]
        document = yaml.safe_load(gateway.config.read_text())
        first = tunnel(document)
        document["tunnels"]["six"] = first | {
            "local": str(OUTER[6][side]),
            "remote": names[gateway],
            "local_ts": [str(NETS[6][side])],
            "remote_ts": [str(NETS[6][1 - side])],
            "outbound": halves[side],
            "inbound": halves[1 - side],
        }
        document["gateway"]["address"] = [str(NETS[version][side][1]) for version in (4, 6)]
        if gateway is pair.a:
            first["remote"] = "gw.example"
        gateway.config.write_text(yaml.safe_dump(document))

    for gateway in names:
        add_another(gateway)
    pair.start()
    for address in ("10.2.0.1", "fd00:2::1"):
        until(lambda at=address: ping(pair.a.namespace, at, count=1) == 1, f"{address} answers", 20)
    there = {entry["name"]: entry["remote"] for entry in pair.a.call("ListTunnels")["tunnels"]}
    assert there == {"pi-b": "192.0.2.2", "six": "2001:db8::2"}


def test_a_peer_that_moved_is_followed_to_the_other_family_of_its_name(
    make_pair: MakePair, hosts: dict[str, Path]
) -> None:
    pair = make_pair(liveness=1)
    path = hosts_of(pair.a.namespace, hosts, "192.0.2.99 gw.example\n")
    edit(pair.a, lambda config: tunnel(config).update(remote="gw.example", local="auto"))
    pair.start()
    # The peer's packets say that it is elsewhere.
    until(lambda: ping(pair.a.namespace, "10.2.0.1", count=1) == 1, "an answer", 20)
    pair.b.stop()
    path.write_text("2001:db8::2 gw.example\n")
    ends = {"local": "2001:db8::2", "remote": "2001:db8::1"}
    edit(pair.b, lambda config: tunnel(config).update(ends))
    pair.b.start()
    until(lambda: ping(pair.a.namespace, "10.2.0.1", count=1) == 1, "an answer", 40)
    (entry,) = pair.a.call("ListTunnels")["tunnels"]
    assert entry["remote"] == "2001:db8::2"


def test_an_sa_of_the_command_line_waits_for_its_name_and_is_listed(
    make_pair: MakePair, hosts: dict[str, Path]
) -> None:
    pair = make_pair()
    path = hosts_of(pair.a.namespace, hosts, "127.0.0.1 localhost\n")
    pair.a.start()
    added = pair.a.cli(
        *("sa", "add", "x", "--direction", "inbound", "--spi", "0x9009", "--local", "auto"),
        *("--remote", "gw.example", "--local-ts", "10.1.0.0/24", "--remote-ts", "10.9.0.0/24"),
        *("--key-file", str(write_key(pair.a.folder / "x.key"))),
    )
    assert "remote: gw.example" in added.stdout
    waiting = sas(pair.a)["x"]
    assert (waiting["local"], waiting["remote"]) == ("auto", "gw.example")
    assert (waiting["state"], len(waiting["causes"])) == ("down", 1)
    assert pair.a.call("GetSa", name="x")["sa"] == waiting
    path.write_text("192.0.2.2 gw.example\n")
    until(lambda: sas(pair.a)["x"]["remote"] == "192.0.2.2", "it has an address", 30)
    assert sas(pair.a)["x"]["local"] == "192.0.2.1"
