"""Requests of an owner that are wrong: each is refused in one line, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esp_gw.errors import ControlError, EspGwError
from tests.support.service_rig import ENDS, NETS, Rig, child, install, restarted, start_rig


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    rig = await start_rig(tmp_path, monkeypatch)
    await rig.ask("OpenSession", owner="ike")
    yield rig
    if rig.engine.is_open:
        await rig.gateway.stop()


BAD: list[tuple[str, dict[str, object], str]] = [
    ("OpenSession", {"owner": "me"}, "owner: expected ike"),
    ("OpenSession", {"owner": "ike", "take_over": 1}, "take_over: expected true or false"),
    ("OpenSession", {"owner": "ike", "more": 1}, "more: unknown field"),
    ("InstallChild", {"sas": {}}, "sas: expected a list of objects"),
    ("InstallChild", {"sas": [1]}, "sas: expected a list of objects"),
    ("InstallChild", {"sas": [{}] * 257}, "at most 256"),
    ("InstallChild", {"sas": [{}]}, r"sas\[0\]\.direction: is missing"),
    ("InstallChild", {"children": []}, "children: unknown field"),
    ("PutPolicy", {}, "id: is missing"),
    ("RemovePolicy", {"id": 1}, "id: expected at most 64 printable characters"),
    ("RemovePolicy", {"id": ""}, "id: is empty"),
    ("RemovePolicy", {"id": "x"}, "there is no policy x"),
    ("RemoveSas", {"sas": [{"direction": "inbound", "spi": 1 << 32}]}, r"sas\[0\]\.spi"),
    ("RemoveSas", {"sas": [{"direction": "inbound", "spi": 700}]}, "there is no inbound SA"),
    ("QuerySas", {"sas": [{"direction": "up", "spi": 700}]}, r"sas\[0\]\.direction"),
    ("QuerySas", {"sas": [{"direction": "inbound", "spi": 700}]}, "there is no inbound SA"),
    ("UpdateSa", {"direction": "inbound", "spi": 700}, "local: is missing"),
    ("ReserveSpi", {"count": 1}, "count: unknown field"),
    ("ReleaseSpi", {}, "spi: is missing"),
    ("ReleaseSpi", {"spi": 255}, "spi: "),
    ("ReleaseSpi", {"spi": 700, "count": 1}, "count: unknown field"),
    ("FlushOwner", {"all": True}, "all: unknown field"),
]


@pytest.mark.parametrize(("method", "parameters", "message"), BAD)
async def test_a_wrong_request_is_refused_in_one_line(
    rig: Rig, method: str, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(ControlError, match=message) as refusal:
        await rig.ask(method, **parameters)
    assert "\n" not in str(refusal.value)


BAD_SAS: list[tuple[dict[str, object], str]] = [
    ({"suite": "aes256cbc"}, "suite: expected one of"),
    ({"key": "00"}, "key"),
    ({"replay_window": 8193}, "replay_window: expected a number from 0 to 8192"),
    ({"local": "0.0.0.0"}, "local: 0.0.0.0 is not the address of a host"),
    ({"remote": ENDS[0]}, "remote: is the same address as local"),
    ({"remote": "2001:db8::1"}, "remote: is an IPv6 address, local is IPv4"),
    ({"local_port": 4501}, "local_port 4501 is not the gateway's, which is 4500"),
    ({"child": "a\nb"}, "child: expected at most 64 printable characters"),
    ({"child": "x" * 65}, "child: expected at most 64 printable characters"),
    ({"peer": "x" * 256}, "peer: expected at most 255 printable characters"),
    ({"connection": "a\x07"}, "connection: expected at most 64 printable characters"),
    ({"soft_seconds": "soon"}, "soft_seconds: expected a number"),
    ({"since": -1}, "since: expected seconds of the monotonic clock"),
    ({"since": float("nan")}, "since: expected seconds of the monotonic clock"),
    ({"since": True}, "since: expected seconds of the monotonic clock"),
    ({"mark": 5}, "mark: unknown field"),
    ({"soft_bytes": -1}, "soft_bytes: expected a number"),
    ({"local_original": "10.0.0.1"}, "valid only with mode: transport"),
    ({"selectors": []}, "selectors: expected 1 to 1024 pairs"),
    ({"selectors": [{"local": NETS[0], "remote": []}]}, "expected 1 to 64 prefixes, not 0"),
    ({"selectors": [{"local": [], "remote": NETS[1]}]}, "expected 1 to 64 prefixes, not 0"),
    ({"selectors": [{"local": ["10.0.0.0/8", "fd00::/8"], "remote": NETS[1]}]}, "one IP version"),
    ({"selectors": [{"local": NETS[0]}]}, r"selectors\[0\]\.remote: is missing"),
    ({"selectors": [{"local": NETS[0], "remote": "fd00::/64"}]}, "is IPv6, local is IPv4"),
    ({"selectors": [{"local": NETS[0], "remote": "10.0.0.9-10.0.0.1"}]}, "expected a prefix, or"),
    ({"selectors": [{"local": NETS[0], "remote": "10.0.0.9-fd00::1"}]}, "expected a prefix, or"),
    ({"selectors": [{"local": NETS[0], "remote": "10.0.0.1-2-3"}]}, "expected a prefix, or"),
    ({"selectors": [{"local": NETS[0], "remote": "fd00::1-fd00:ffff::2"}]}, "at most 64"),
    (
        {"selectors": [{"local": NETS[0], "remote": NETS[1], "protocol": 1, "local_port": "2048"}]},
        "types and codes of ICMP can't be selected",
    ),
    (
        {"selectors": [{"local": NETS[0], "remote": NETS[1], "protocol": 50, "remote_port": 1}]},
        "protocol 50 has no ports",
    ),
    ({"mode": "transport"}, "transport mode carries only 192.0.2.1/32 to 192.0.2.7/32"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_SAS)
async def test_a_wrong_sa_is_refused_in_one_line_and_changes_nothing(
    rig: Rig, wrong: dict[str, object], message: str
) -> None:
    each = child()
    before = dict(rig.engine.sas)
    with pytest.raises(EspGwError, match=message) as refusal:
        await rig.ask("InstallChild", sas=[each.sas(0)[0] | wrong])
    assert "\n" not in str(refusal.value)
    assert not any(key in str(refusal.value) for key in each.keys)
    assert rig.engine.sas == before
    assert await rig.ask("QuerySas") == {"sas": []}
    # And the next one works.
    await install(rig, each)


async def test_a_refused_key_that_is_in_use_keeps_its_numbers(rig: Rig) -> None:
    each = child()
    await install(rig, each)
    name = f"ike:{each.spis[0]:08x}/in"
    rig.engine.used[name] = 5000
    again = each.sas(0)[0] | {"spi": 0xC0000999}
    with pytest.raises(ControlError, match="has the same key"):
        await rig.ask("InstallChild", sas=[again])
    new = await restarted(rig)
    # Packets that were received must not be received again.
    assert new.engine.floors[name] == 5000
    await new.gateway.stop()
