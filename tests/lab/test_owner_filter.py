"""The packet filter follows children one by one, and what others do to it meanwhile is repaired."""

from __future__ import annotations

import contextlib
import json
from ipaddress import collapse_addresses, ip_address, ip_network, summarize_address_range
from typing import Any

from esp_gw.demo.netns import Namespace
from tests.support.labtools import MakePair, until
from tests.support.owner_client import Session
from tests.support.owner_rig import sessions, start


def filtered(host: Namespace, version: int) -> list[str]:
    """Return the protected prefixes of the kernel's set, joined where they are neighbours."""
    command = ("nft", "-j", "list", "set", "inet", "esp_gw", f"remote{version}")
    listed = json.loads(host.run(*command).stdout)["nftables"]
    (found,) = [entry["set"] for entry in listed if "set" in entry]
    prefixes = [each for element in found.get("elem", []) for each in _prefixes(element)]
    return [str(each) for each in collapse_addresses(prefixes)]


def _prefixes(element: Any) -> list[Any]:
    if isinstance(element, str):
        return [ip_network(element)]
    if "prefix" in element:
        return [ip_network(f"{element['prefix']['addr']}/{element['prefix']['len']}")]
    first, last = map(ip_address, element["range"])
    return list(summarize_address_range(first, last))  # type: ignore[type-var]


def put(session: Session, remote: str) -> None:
    local = "::/0" if ":" in remote else "0.0.0.0/0"
    selectors = [{"local": local, "remote": remote}]
    session.call("PutPolicy", id=remote, action="protect", selectors=selectors)


def test_the_filter_has_what_the_policies_protect_after_each_change(
    make_pair_of_one_engine: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair_of_one_engine)
    host = pair.a.namespace
    (session, _) = sessions(pair, stack)
    there: set[str] = set()
    remotes = [f"10.{number}.0.0/24" for number in (20, 40, 30, 41, 39)]
    remotes += ["10.40.1.0/24", "10.40.0.0/16", "fd00:20::/64", "fd00:21::/64", "10.50.0.0/24"]
    for remote in (*remotes, *remotes[1:8]):
        if remote in there:
            there.discard(remote)
            session.call("RemovePolicy", id=remote)
        else:
            there.add(remote)
            put(session, remote)
        for version in (4, 6):
            wanted = [ip_network(each) for each in there]
            nets = collapse_addresses(net for net in wanted if net.version == version)
            assert filtered(host, version) == [str(net) for net in nets], remote


def test_a_change_between_two_flushes_of_other_programs_keeps_no_hole(
    make_pair_of_one_engine: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair_of_one_engine)
    host = pair.a.namespace
    (session, _) = sessions(pair, stack)
    put(session, "10.20.0.0/24")
    put(session, "10.30.0.0/24")

    def rules() -> int:
        return host.run("nft", "list", "chain", "inet", "esp_gw", "egress").stdout.count("drop")

    whole = rules()
    assert whole
    flushes = (
        "flush chain inet esp_gw egress",
        "delete element inet esp_gw remote4 { 10.20.0.0-10.20.0.255 }",
        "flush ruleset",
    )
    for number, flush in enumerate(flushes):
        host.run("nft", flush)
        # At once: the gateway may not have heard of it.
        put(session, f"10.{60 + number}.0.0/24")
        until(
            lambda number=number: (
                rules() == whole
                and {"10.20.0.0/24", f"10.{60 + number}.0.0/24"} <= set(filtered(host, 4))
            ),
            f"the filter is whole after '{flush}'",
        )
