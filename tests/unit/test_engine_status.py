"""What the python engine says of itself, and what it can't do for a configuration."""

from __future__ import annotations

import socket

import pytest
from builders import make_sa

from esp_gw.engine import python as python_module
from esp_gw.engine.base import EngineSettings
from esp_gw.engine.python import PythonEngine
from esp_gw.errors import EngineError
from esp_gw.model import SUITES, Direction, Encapsulation, Lease

SETTINGS = EngineSettings("esp0", 4500, 1, workers=4, pin_workers=True, busy_poll_us=100)


async def test_the_python_engine_tells_what_it_does_without(
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
        engine.install_inbound(
            make_sa("t/in", Direction.INBOUND, 0x1002, suite=SUITES["chacha20poly1305"]), 0
        )
        status = engine.status()
        engine.close()
    assert (status.workers, status.pinned, status.busy_poll_us) == (1, False, 0)
    assert set(status.provider) == {out.suite.name, "chacha20poly1305"}
    assert all(version.startswith("OpenSSL ") for version in status.provider.values())
    assert set(status.offload) == {"tso", "uso", "udp_gso", "udp_gro", "merge"}
    for offload in status.offload.values():
        assert not offload.in_use
        assert "python engine" in offload.why


async def test_the_python_engine_has_no_aws_lc() -> None:
    with pytest.raises(EngineError, match="aws-lc needs the native engine"):
        PythonEngine().open(EngineSettings("esp0", 4500, 1, provider="aws-lc"), lambda _: None)


async def test_af_alg_is_refused_where_it_can_not_be_had() -> None:
    with pytest.raises(EngineError, match="no AF_ALG"):
        PythonEngine().open(EngineSettings("esp0", 4500, 1, af_alg="on"), lambda _: None)
