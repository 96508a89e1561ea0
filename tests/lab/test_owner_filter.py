"""Filter and routes follow children one by one; what others do to them meanwhile is repaired."""

from __future__ import annotations

import contextlib
import json
from ipaddress import collapse_addresses, ip_address, ip_network, summarize_address_range
from typing import Any

import pytest

from esp_gw.demo.netns import Namespace
from esp_gw.errors import ControlError
from tests.support.labtools import MakePair, ping, until
from tests.support.owner_client import Session
from tests.support.owner_rig import child, sessions, start, target


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


def test_routes_that_others_remove_while_children_come_are_put_back(
    make_pair_of_one_engine: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair_of_one_engine)
    host = pair.a.namespace
    (session, _) = sessions(pair, stack)
    for number in range(20, 30):
        put(session, f"10.{number}.0.0/24")
        for kind in ((), ("unreachable",)):
            # At once: the gateway looks at the kernel's network no more for each request.
            host.ip("route", "del", *kind, f"10.{number}.0.0/24", "table", "4500")
    put(session, "10.30.0.0/24")

    def are_back() -> bool:
        there = host.ip("route", "show", "table", "4500").splitlines()
        return sum("dev esp0" in line for line in there) == 11 and len(there) == 22

    until(are_back, "all routes are back")


def test_a_tun_that_has_just_gone_down_takes_no_child_and_loses_none(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    host = pair.a.namespace
    both = sessions(pair, stack)
    first, second = child(1), child(2, inner=6)
    first.install(both)
    host.ip("link", "set", "esp0", "down")
    # At once: the gateway may not have heard of it.
    with pytest.raises(ControlError, match="down"):
        both[0].call("InstallChild", sas=second.sas(0), policies=[second.policy(0, "second")])
    assert {sa["spi"] for sa in both[0].call("QuerySas")["sas"]} == set(first.spis)
    host.ip("link", "set", "esp0", "up")
    until(lambda: not pair.a.call("GetStatus")["warnings"], "it is up again")
    until(lambda: ping(host, target(4), count=1), "the child carries again")
    again = child(3, inner=6)
    for side, session in enumerate(both):
        session.call("InstallChild", sas=again.sas(side), policies=[again.policy(side, "second")])
    until(lambda: ping(host, target(6), count=1), "so does the next one")
