"""Lanes of the native engine: the worker that receives each, and the priority of lane 0's."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import end
from esp_gw.demo.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.demo.traffic import iperf_server
from esp_gw.model import Encapsulation
from tests.support.labtools import (
    MakePair,
    carry_tcp_both_ways,
    drops,
    edit,
    ping,
    until,
)

LIMIT = 400
"""Inbound SPIs that are steered by lane."""


@pytest.fixture
def make_workers(tmp_path: Path, stack: contextlib.ExitStack) -> MakePair:
    """Build a pair of native gateways with two workers and a tunnel of three SAs, not started."""

    def make(**fields: object) -> GatewayPair:
        settings = {"engine": "native", "workers": 2}
        fields = {"sas": 3, "settings": settings} | fields
        return stack.enter_context(gateway_pair(tmp_path, PairPlan(**fields)))  # type: ignore[arg-type]

    return make


def nices(gateway: LabGateway) -> dict[str, int]:
    """The nice value of each worker's thread (proc(5): field 19 of stat)."""
    found = {}
    for task in Path(f"/proc/{gateway.pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        if name.startswith("esp-worker-"):
            stat = (task / "stat").read_text()
            found[name.removeprefix("esp-worker-")] = int(stat.rpartition(")")[2].split()[16])
    return found


def wakes(gateway: LabGateway, worker: int) -> int:
    """How often a worker has slept (proc(5): voluntary_ctxt_switches): about once a packet."""
    for task in Path(f"/proc/{gateway.pid}/task").iterdir():
        if (task / "comm").read_text().strip() == f"esp-worker-{worker}":
            lines = (task / "status").read_text().splitlines()
            (line,) = (line for line in lines if line.startswith("voluntary_ctxt_switches"))
            return int(line.split()[1])
    raise AssertionError(f"no worker {worker}")


def lanes(gateway: LabGateway) -> dict[str, object]:
    """The state of the lanes, as `status` has it."""
    found: dict[str, object] = gateway.ask("status")["lanes"]
    return found


def set_settings(settings: dict[str, int], config: dict[str, Any]) -> None:
    config["gateway"].update(settings)


def reload(gateway: LabGateway, change: Callable[[dict[str, Any]], object]) -> None:
    edit(gateway, change)
    gateway.cli("reload")


@pytest.mark.parametrize("outer_version", [4, 6])
@pytest.mark.parametrize("encapsulation", list(Encapsulation))
def test_sparse_flows_wake_lane_0s_worker_and_bulk_the_other(
    make_workers: MakePair, encapsulation: Encapsulation, outer_version: int
) -> None:
    pair = make_workers(encapsulation=encapsulation, outer_version=outer_version)
    pair.start()
    assert lanes(pair.a)["steered"] is True
    # The devices' own first packets.
    until(lambda: is_asleep(pair.a) and is_asleep(pair.b), "the workers sleep")
    before = [[wakes(gateway, worker) for worker in (0, 1)] for gateway in (pair.a, pair.b)]
    assert ping(pair.a.namespace, pair.plan.inner(1), count=100, interval=0.01) == 100
    after = [[wakes(gateway, worker) for worker in (0, 1)] for gateway in (pair.a, pair.b)]
    for (sparse, bulk), (sparse_before, bulk_before) in zip(after, before, strict=True):
        # One wake may serve a packet of each direction.
        assert sparse - sparse_before >= 50
        assert bulk - bulk_before < 10
    with iperf_server(pair.b.namespace, pair.plan.inner(1)):
        # 20,000 datagrams in 4 s, of which a busy machine makes many wakes, too; the first of them,
        # and iperf3's own connection, are sparse.
        command = ("iperf3", "-u", "-b", "16M", "-l", "400", "-n", "8M", "-c")
        pair.a.namespace.run(*command, pair.plan.inner(1), timeout=60)
    received = [wakes(pair.b, worker) - after[1][worker] for worker in (0, 1)]
    assert received[1] > 10 * received[0]
    assert drops(pair.a) == drops(pair.b) == {}


def is_asleep(gateway: LabGateway) -> bool:
    """True if no worker wakes for a while."""
    seen = [wakes(gateway, worker) for worker in (0, 1)]
    time.sleep(0.2)
    return seen == [wakes(gateway, worker) for worker in (0, 1)]


def test_lane_0s_worker_is_preferred_while_it_receives_for_lane_0_alone(
    make_workers: MakePair,
) -> None:
    pair = make_workers()
    pair.start()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    preferred, equal = {"0": -11, "1": before}, {"0": before, "1": before}
    until(lambda: nices(pair.a) == preferred, "it is preferred")
    assert lanes(pair.a)["priority"] == -11
    assert "nice -11 for lane 0" in pair.a.cli("status", check=False).stdout
    # An SA without a lane, whose SPI leads to the first of two workers.
    key = pair.a.folder / "single.key"
    pair.a.cli("keygen", "--out", str(key))
    pair.a.cli(
        *("sa", "add", "single", "--direction", "inbound", "--spi", "0x9000"),
        *("--key-file", str(key), "--local", "192.0.2.1", "--remote", "192.0.2.2"),
        *("--local-ts", "10.1.0.0/24", "--remote-ts", "192.168.7.0/24"),
    )
    until(lambda: nices(pair.a) == equal, "it is one of several")
    assert lanes(pair.a)["priority"] is None
    pair.a.cli("sa", "delete", "single")
    until(lambda: nices(pair.a) == preferred, "it is preferred again")
    assert nices(pair.b) == preferred


def test_lane_0s_worker_is_not_preferred_while_a_peer_sends_bulk_by_it(
    make_workers: MakePair,
) -> None:
    pair = make_workers()
    edit(pair.b, lambda config: config["tunnels"]["pi-a"].update(sas=1))
    for key in (pair.b.config.parent / "keys").iterdir():
        key.write_text("".join(key.read_text().splitlines(keepends=True)[:-2]))
    pair.start()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    until(lambda: nices(pair.a) == {"0": -11, "1": before}, "it is preferred")
    target = pair.plan.inner(0)
    with iperf_server(pair.a.namespace, target):
        command = ("iperf3", "-u", "-b", "200M", "-l", "1200", "-t", "30", "-c", target)
        stream = pair.b.namespace.start(*command)
        until(lambda: nices(pair.a) == {"0": before, "1": before}, "it carries bulk")
        end(stream)
    # The next packets after a rest find it preferred again.
    until(
        lambda: ping(pair.b.namespace, target, count=1) == 1 and nices(pair.a)["0"] == -11,
        "it has rested",
    )
    assert drops(pair.a) == {}


def test_more_spis_than_the_kernel_lists_are_steered_by_their_remainder(
    make_workers: MakePair,
) -> None:
    pair = make_workers()
    pair.start()

    def add(config: dict[str, Any]) -> None:
        for number in range(7):
            keys = {}
            for way in ("out", "in"):
                keys[way] = pair.a.folder / f"{number}.{way}.key"
                pair.a.cli("keygen", "--sas", "64", "--out", str(keys[way]))
            config["tunnels"][f"t{number}"] = copy.deepcopy(config["tunnels"]["pi-b"]) | {
                "remote_ts": [f"10.9.{number}.0/24"],
                "sas": 64,
                "outbound": {"spi": 0x20000 + 64 * number, "key": {"file": str(keys["out"])}},
                "inbound": {"spi": 0x30000 + 64 * number, "key": {"file": str(keys["in"])}},
            }

    reload(pair.a, add)
    state = lanes(pair.a)
    assert (state["steered"], state["listed"], state["priority"]) == (False, 0, None)
    spis = f"{7 * 64 + 3} inbound SPIs, those of replaced SAs included"
    line = f"not steered: {spis}; at most {LIMIT} can be"
    assert line in pair.a.cli("status", check=False).stdout
    assert ping(pair.a.namespace, pair.plan.inner(1), count=3) == 3

    def take_away(config: dict[str, Any]) -> None:
        for number in range(7):
            del config["tunnels"][f"t{number}"]

    reload(pair.a, take_away)
    assert lanes(pair.a)["steered"] is True
    assert ping(pair.a.namespace, pair.plan.inner(1), count=3) == 3
    assert drops(pair.a) == drops(pair.b) == {}


@pytest.mark.parametrize("workers", [(1, 1), (1, 3), (4, 2)])
def test_any_numbers_of_workers_carry_lanes_between_them(
    make_workers: MakePair, workers: tuple[int, int]
) -> None:
    pair = make_workers(sas=4)
    for gateway, count in zip((pair.a, pair.b), workers, strict=True):
        settings = {"workers": count}
        edit(gateway, partial(set_settings, settings))
    pair.start()
    carry_tcp_both_ways(pair.a.namespace, pair.b.namespace, pair.plan.inner(1))
    assert ping(pair.a.namespace, pair.plan.inner(1), count=20, interval=0.01) == 20
    for gateway in (pair.a, pair.b):
        assert lanes(gateway)["steered"] is (gateway.ask("status")["workers"] > 1)
        assert not {"auth-failed", "no-sa", "unknown-spi"} & drops(gateway).keys()
