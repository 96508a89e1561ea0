"""The files of `esp-gw init --ike` in real charons, with the gateways that belong to them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from esp_gw.config import offer
from esp_gw.config.ike import Authentication, IkeTerms, make_ike_pair
from esp_gw.config.provision import DEFAULT_NAMES
from esp_gw.demo.netns import add_address
from esp_gw.demo.pair import OUTER, GatewayPair, PairPlan, Provision
from esp_gw.model import SUITES, Encapsulation, IPAddress, Mode
from tests.support.charon import Installation
from tests.support.init_ike import End, add_settings, by_command, make_ends, start, target
from tests.support.labtools import StartCapture, frames, ping, sas, until

Make = Callable[..., tuple[GatewayPair, list[End]]]


@pytest.fixture
def make(tmp_path: Path, installed: Installation, stack: contextlib.ExitStack) -> Make:
    """Build a pair from what writes its files, and fields of its plan."""
    return partial(make_ends, tmp_path, installed, stack)


CASES: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    ((), {}),
    (("--certificates",), {}),
    ((), {"encapsulation": Encapsulation.NONE}),
    (("--certificates",), {"encapsulation": Encapsulation.NONE, "outer_version": 6}),
    ((), {"inner_versions": (4, 6), "suite": SUITES["chacha20poly1305"]}),
    ((), {"mode": Mode.TRANSPORT, "encapsulation": Encapsulation.NONE}),
    (("--certificates",), {"mode": Mode.TRANSPORT}),
]


@pytest.mark.parametrize(("options", "fields"), CASES)
def test_the_first_packet_brings_the_tunnel_that_was_written(
    make: Make, options: tuple[str, ...], fields: dict[str, Any]
) -> None:
    pair, ends = make(by_command(*options), **fields)
    start(pair, ends)
    assert [end.children() for end in ends] == [[], []]
    until(lambda: ends[0].reaches(target(pair)), "the tunnel carries", 20)
    assert ping(ends[0].gateway.namespace, target(pair), count=20) == 20
    for end, peer in zip(ends, reversed(DEFAULT_NAMES), strict=True):
        (child,) = end.children()
        assert (child["peer"], child["connection"]) == (peer, peer)
        assert child["encapsulation"] == pair.plan.encapsulation
        listed = sas(end.gateway).values()
        assert {sa["suite"] for sa in listed} == {pair.plan.suite.name}
        assert {sa["mode"] for sa in listed} == {pair.plan.mode}
        assert all(sa["esn"] for sa in listed)


def test_either_end_begins_and_stays_closed_at_the_end(make: Make, capture: StartCapture) -> None:
    pair, ends = make(by_command())
    start(pair, ends)
    far = ends[1].gateway.namespace
    # The way that a protected packet would take by mistake.
    for end, router in zip(ends, reversed(pair.plan.outer), strict=True):
        end.gateway.namespace.ip("route", "add", "default", "via", str(router))
    until(lambda: ends[1].reaches(target(pair, 0)), "the tunnel carries", 20)
    wire = capture(far)
    ends[0].charon.stop()
    until(lambda: not ends[1].children(), "the tunnel has ended")
    assert ping(far, target(pair, 0), count=3) == 0
    seen = list(frames(wire.stop()))
    assert seen
    assert not [frame for frame in seen if frame[30:34] == ip_address(target(pair, 0)).packed]


def test_another_secret_opens_nothing(make: Make) -> None:
    pair, ends = make(by_command())
    secrets = ends[1].swanctl / "conf.d/pi-a.secrets.conf"
    secrets.write_text(secrets.read_text().replace("0x", "0x00"))
    start(pair, ends)
    assert not ends[0].reaches(target(pair))
    until(lambda: "AUTHENTICATION_FAILED" in ends[0].charon.log.read_text(), "the refusal", 20)
    assert not ends[0].reaches(target(pair))
    assert ends[0].children() == ends[1].children() == []


def test_a_certificate_of_another_authority_opens_nothing(make: Make, tmp_path: Path) -> None:
    pair, ends = make(by_command("--certificates"))
    other = tmp_path / "other"
    by_command("--certificates")(other, pair.plan, ({}, {}))
    # The other end has its name from another CA.
    theirs = ends[1].swanctl
    for name in ("x509", "private"):
        shutil.copytree(other / "pi-b/swanctl" / name, theirs / name, dirs_exist_ok=True)
    start(pair, ends)
    assert not ends[0].reaches(target(pair))
    until(lambda: "no trusted" in ends[0].charon.log.read_text(), "the refusal", 20)
    assert ends[0].children() == ends[1].children() == []


def automatic(at_first: IPAddress) -> Provision:
    """Return what writes the files of an end a whose address changes, and is `at_first` one."""

    def provision(output: Path, plan: PairPlan, settings: Any) -> None:
        a, b = (
            offer.End(name, plan.outer[side], plan.nets(side))
            for side, name in enumerate(DEFAULT_NAMES)
        )
        make_ike_pair(output, offer.End(a.name, at_first, a.nets, written="auto"), b, IkeTerms())
        add_settings(output, settings)

    return provision


def test_an_end_whose_address_changes_is_reached_where_it_is_at_first(make: Make) -> None:
    pair, ends = make(automatic(OUTER[4][0]))
    start(pair, ends)
    until(lambda: ends[1].reaches(target(pair, 0)), "the tunnel carries", 20)


def test_an_end_whose_address_changes_is_known_by_its_name(make: Make) -> None:
    pair, ends = make(automatic(ip_address("192.0.2.77")))
    start(pair, ends)
    until(lambda: ends[0].reaches(target(pair)), "the tunnel carries", 20)
    host = ends[0].gateway.namespace
    add_address(host, "192.0.2.11/24")
    host.ip("address", "delete", "192.0.2.1/24", "dev", "wan")
    add_address(host, "192.0.2.12/24")
    until(lambda: ends[0].reaches(target(pair)), "the tunnel carries again", 30)
    (child,) = ends[1].children()
    assert child["remote"] != "192.0.2.1"


@pytest.mark.parametrize("authentication", list(Authentication))
def test_a_name_with_dots_is_no_hindrance(make: Make, authentication: Authentication) -> None:
    def dotted(output: Path, plan: PairPlan, settings: Any) -> None:
        a, b = (
            offer.End(name, plan.outer[side], plan.nets(side))
            for side, name in enumerate(("gw.example.org", "10.0.0.9"))
        )
        make_ike_pair(output, a, b, IkeTerms(authentication=authentication))
        for side, name in zip((a, b), DEFAULT_NAMES, strict=True):
            (output / side.name).rename(output / name)
        add_settings(output, settings)

    pair, ends = make(dotted)
    start(pair, ends)
    until(lambda: ends[0].reaches(target(pair)), "the tunnel carries", 20)
    assert [end.children()[0]["peer"] for end in ends] == ["10.0.0.9", "gw.example.org"]
