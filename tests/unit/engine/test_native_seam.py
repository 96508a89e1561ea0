"""Values that cross between Python and the native engine: typed, immutable, and never a key."""

from __future__ import annotations

import ast
import gc
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import esp_gw_core as core
import pytest

from esp_gw.desired import EngineSettings
from esp_gw.engine.native import NativeEngine
from esp_gw.errors import EngineError
from esp_gw.model import (
    SUITES,
    Direction,
    Encapsulation,
    KeyMaterial,
    Lease,
    Mode,
    PortRange,
    Sa,
    Selector,
)

STUB = Path(__file__).parents[3] / "crates" / "esp-py" / "esp_gw_core.pyi"
KEYMAT = bytes(range(100, 136))
SELECTOR = Selector(
    ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16"), 17, PortRange(53, 53), PortRange()
)
SA = Sa(
    name="to-b",
    direction=Direction.OUTBOUND,
    spi=0x1000,
    suite=SUITES["aes256gcm16"],
    keymat=KeyMaterial.from_bytes(KEYMAT),
    mode=Mode.TUNNEL,
    encapsulation=Encapsulation.UDP,
    local=ip_address("192.0.2.1"),
    remote=ip_address("2001:db8::2"),
    selectors=(SELECTOR,),
)


def test_no_method_takes_or_returns_a_tuple() -> None:
    """A crossing value has a name: a class, or a type of Python's own."""
    methods = [
        node for node in ast.walk(ast.parse(STUB.read_text())) if isinstance(node, ast.FunctionDef)
    ]
    assert len(methods) > 40
    for method in methods:
        types = [method.returns, *(each.annotation for each in method.args.args)]
        names = {
            node.id
            for each in types
            if each
            for node in ast.walk(each)
            if isinstance(node, ast.Name)
        }
        assert names & {"tuple", "object", "Any"} == set(), method.name


def core_sa(keymat: bytes = KEYMAT) -> core.Sa:
    return core.Sa(
        name="to-b",
        spi=0x1000,
        suite="aes256gcm16",
        keymat=keymat,
        mode=core.Mode.TUNNEL,
        encapsulation=core.Encapsulation.UDP,
        local=ip_address("192.0.2.1"),
        remote=ip_address("192.0.2.2"),
        remote_port=4500,
        local_original=None,
        remote_original=None,
        selectors=[],
        esn=True,
        replay_window=64,
        pair=None,
        tunnel=None,
        lane=None,
    )


def test_an_sa_gives_nothing_back() -> None:
    sa = core_sa()
    outbound = core.OutboundSa(sa, core.Lease(1, 2))
    replaced = core.ReplacedSa("to-b", core.Direction.OUTBOUND, sa)
    for value in (sa, outbound, core.InboundSa(sa, 0, 0, 9), replaced):
        assert {name for name in dir(value) if not name.startswith("__")} == set()
        assert repr(value) == object.__repr__(value)
        assert gc.get_referents(value) in ([], [type(value)])
        with pytest.raises(AttributeError):
            value.keymat = b""  # type: ignore[union-attr]


def test_a_value_that_can_not_be_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="the key does not fit the suite"):
        core_sa(KEYMAT[1:])
    with pytest.raises(ValueError, match="a lease ends between"):
        core.Lease(1, 2**64 + 1)
    with pytest.raises(TypeError):
        core_sa("secret")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        core.OuterSocket(ip_address("192.0.2.1"), "udp")  # type: ignore[arg-type]


def test_the_ways_of_a_thing_are_equal_to_themselves_alone() -> None:
    ways: list[object] = [
        core.Mode.TUNNEL,
        core.Mode.TRANSPORT,
        core.Direction.OUTBOUND,
        core.Direction.INBOUND,
    ]
    assert len(set(ways)) == len(ways)
    assert core.Mode.TUNNEL == core.Mode.TUNNEL


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_events_are_matched_by_class_and_place(address: str) -> None:
    event = core.PeerAddressChanged("to-b", ip_address(address), 4501)
    match event:
        case core.PeerAddressChanged(sa, where, port):
            assert (sa, where, port) == ("to-b", ip_address(address), 4501)
    assert event == core.PeerAddressChanged("to-b", ip_address(address), 4501)
    assert event != core.PeerAddressChanged("to-b", ip_address(address), 4502)
    with pytest.raises(AttributeError):
        event.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (replace(SA, keymat=KeyMaterial.from_bytes(KEYMAT[1:])), "the key does not fit the suite"),
        (replace(SA, suite=replace(SA.suite, name="rot13")), "no such suite"),
    ],
)
async def test_an_sa_that_can_not_be_is_an_error_with_its_name(wrong: Sa, reason: str) -> None:
    engine = NativeEngine()
    with pytest.raises(EngineError) as caught:
        engine.install_outbound(wrong, Lease(1, 100))
    assert (caught.value.where, caught.value.what) == ("to-b", reason)


async def test_an_engine_s_settings_are_refused_as_an_engine_error() -> None:
    engine = NativeEngine()
    with pytest.raises(EngineError, match="this build has no provider rot13"):
        engine.open(EngineSettings("esp0", 4500, 0, provider="rot13"), print)
