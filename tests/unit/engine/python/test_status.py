"""Status of the python engine, and the configurations that it refuses."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from unittest.mock import Mock

import pytest

from esp_gw.desired import EngineSettings
from esp_gw.engine.base import AfAlgLost, Event, LaneStatus
from esp_gw.engine.python import engine as python_module
from esp_gw.engine.python.engine import PythonEngine
from esp_gw.errors import EngineError
from esp_gw.model import SUITES, Direction, Encapsulation, Lease
from tests.support.builders import make_sa
from tests.support.fake_af_alg import install

SETTINGS = EngineSettings("esp0", 4500, 1, workers=4, pin_workers=True)


async def test_the_python_engine_reports_the_offloads_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tun, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        monkeypatch.setattr(python_module, "open_tun", lambda _: tun.detach())
        engine = PythonEngine()
        engine.open(SETTINGS, lambda _: None)
        assert engine.status().provider == {}
        out = make_sa(encapsulation=Encapsulation.UDP)
        monkeypatch.setattr(engine, "_outer_of", lambda _: None)
        engine.install_outbound(out, Lease(1, 9))
        inbound = make_sa("t/in", Direction.INBOUND, 0x1002, suite=SUITES["chacha20poly1305"])
        engine.install_inbound(replace(inbound, lane=0), 0)
        status = engine.status()
        engine.close()
    assert (status.workers, status.pinned) == (1, False)
    assert status.lanes == LaneStatus(laned=1)
    assert set(status.provider) == {out.suite.name, "chacha20poly1305"}
    assert all(version.startswith("OpenSSL ") for version in status.provider.values())
    assert set(status.offload) == {"tso", "uso", "udp_gso", "udp_gro", "merge"}
    for offload in status.offload.values():
        assert not offload.in_use
        assert "python engine" in offload.why


async def test_the_python_engine_has_no_aws_lc() -> None:
    with pytest.raises(EngineError, match="aws-lc needs the native engine"):
        PythonEngine().open(EngineSettings("esp0", 4500, 1, provider="aws-lc"), lambda _: None)


async def test_af_alg_on_is_refused_where_it_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch).refuses["socket"] = errno.EAFNOSUPPORT
    with pytest.raises(EngineError, match=r"AF_ALG is unavailable: .*EAFNOSUPPORT"):
        PythonEngine().open(replace(SETTINGS, af_alg="on"), lambda _: None)


async def test_af_alg_holds_the_keys_of_installed_sas_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = install(monkeypatch)
    tun, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    events: list[Event] = []
    with other:
        monkeypatch.setattr(python_module, "open_tun", lambda _: tun.detach())
        engine = PythonEngine()
        engine.open(replace(SETTINGS, af_alg="on"), events.append)
        monkeypatch.setattr(engine, "_outer_of", lambda _: Mock())
        for number in (1, 2):
            engine.install_outbound(make_sa(f"{number}/out", spi=0x1000 + number), Lease(1, 9))
            inbound = make_sa(f"{number}/in", Direction.INBOUND, 0x2000 + number)
            engine.install_inbound(inbound, 0)
        assert kernel.open == 4
        status = engine.status()
        assert all(name.startswith("AF_ALG, Linux ") for name in status.provider.values())
        assert [verdict.in_use for verdict in status.af_alg.values()] == [True]
        engine.remove_sas(["1/out", "1/in"])
        assert kernel.open == 2
        kernel.refuses["bind"] = errno.ENOENT
        engine.install_outbound(make_sa("1/out", spi=0x1001), Lease(9, 20))
        status = engine.status()
        engine.close()
    assert kernel.open == 0
    (event,) = events
    assert isinstance(event, AfAlgLost)
    assert "ENOENT" in event.reason
    assert all(name.startswith("OpenSSL ") for name in status.provider.values())
    (verdict,) = status.af_alg.values()
    assert not verdict.in_use
    assert event.reason in verdict.why


async def test_a_gateway_that_stops_leaves_no_key_in_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = install(monkeypatch)
    tun, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        monkeypatch.setattr(python_module, "open_tun", lambda _: tun.detach())
        engine = PythonEngine()
        engine.open(replace(SETTINGS, af_alg="on"), lambda _: None)
        monkeypatch.setattr(engine, "_outer_of", lambda _: Mock())
        engine.install_outbound(make_sa(), Lease(1, 9))
        assert kernel.open == 1
        engine.close()
    assert kernel.open == 0
