"""A full disk: no number outside a stored lease is used, and traffic resumes with free space."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from esp_gw.demo.netns import end
from esp_gw.demo.pair import GatewayPair
from esp_gw.demo.traffic import iperf_server
from esp_gw.ledger.ledger import LEASE_NO_ESN
from tests.support.disks import BALLAST, fill, small_disk
from tests.support.labtools import (
    MakePair,
    StartCapture,
    drops,
    edit,
    esp_packets,
    ping,
    sas,
    tunnel,
    until,
)

OUT = "pi-b/out"


@pytest.fixture
def disk(tmp_path: Path, stack: contextlib.ExitStack) -> Path:
    return stack.enter_context(small_disk(tmp_path / "disk"))


def _small_leases_on(pair: GatewayPair, disk: Path) -> None:
    """Disable ESN, so that a lease is small enough for a test to exhaust, and use `disk` on a."""
    for gateway in (pair.a, pair.b):
        edit(gateway, lambda config: tunnel(config).update(esn=False))
    edit(pair.a, lambda config: config["gateway"].update(state_dir=str(disk)))
    pair.a.cli("ledger", "create", "--state-dir", str(disk))


def test_without_a_new_lease_nothing_is_sent_until_there_is_space(
    make_pair: MakePair, capture: StartCapture, disk: Path
) -> None:
    pair = make_pair()
    _small_leases_on(pair, disk)
    pair.start()
    fill(disk)
    a, target = pair.a.namespace, pair.plan.inner(1)
    with iperf_server(pair.b.namespace, target):
        client = a.start("iperf3", "-c", target, "-u", "-b", "0", "-l", "16", "-t", "60")
        until(lambda: drops(pair.a).get("lease-exhausted", 0) > 1000, "the lease is used up", 60)
        wire = capture(a)
        client.kill()
        end(client)
    assert ping(a, target, count=20) == 0
    assert sas(pair.a)[OUT]["seq"] == LEASE_NO_ESN + 1
    assert pair.a.ask("stats")["packets_out"] <= LEASE_NO_ESN
    spi = sas(pair.a)[OUT]["spi"]
    assert [packet for packet in esp_packets(wire.stop()) if packet.spi == spi] == []
    assert pair.a.log.read_text().count("sequence numbers for") == 1

    (disk / BALLAST).unlink()
    until(lambda: ping(a, target, count=1), "sequence numbers are available again")
    assert LEASE_NO_ESN + 1 < sas(pair.a)[OUT]["seq"] < LEASE_NO_ESN + 1000
    assert ping(a, target, count=5) == 5


def test_a_full_disk_refuses_new_keys_and_harms_nothing_that_runs(
    make_pair: MakePair, disk: Path
) -> None:
    pair = make_pair()
    _small_leases_on(pair, disk)
    pair.start()
    fill(disk)
    add = [
        *("sa", "add", "more", "--direction", "outbound", "--spi", "0x9001"),
        *("--local", "192.0.2.1", "--remote", "192.0.2.2", "--suite", "aes128gcm16"),
        *("--local-ts", "10.1.9.0/24", "--remote-ts", "10.2.9.0/24", "--key-file"),
    ]
    key = disk.parent / "more.key"
    key.write_text("17" * 20 + "\n")
    key.chmod(0o600)
    for command in ([*add, str(key)], _policy()):
        result = pair.a.cli(*command, check=False)
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == 1
        assert "state_dir" in result.stderr or "ledger" in result.stderr, result.stderr
    assert set(sas(pair.a)) == {OUT, "pi-b/in"}
    assert [policy["name"] for policy in pair.a.ask("policy", "list")["policies"]] == ["pi-b"]
    assert "10.7.0.0/24" not in pair.a.namespace.ip("route", "show", "table", "all")
    assert ping(pair.a.namespace, pair.plan.inner(1), count=3) == 3
    (disk / BALLAST).unlink()
    pair.a.cli(*add, str(key))
    pair.a.cli(*_policy())
    assert set(sas(pair.a)) == {OUT, "pi-b/in", "more"}


def _policy() -> list[str]:
    return ["policy", "add", "gone", "--action", "discard", "--remote-ts", "10.7.0.0/24"]
