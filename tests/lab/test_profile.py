"""`profile` with real daemons and traffic: every stage that a packet must pass has time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from esp_gw.control.client import stream
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import end
from esp_gw.demo.pair import GatewayPair
from esp_gw.engine.stages import Stage
from esp_gw.errors import ControlError
from tests.support.labtools import carry_tcp_both_ways, until

PATIENCE = 60.0
STAGES = {
    "native": set(Stage),
    # One packet a system call: there is nothing to merge.
    "python": set(Stage) - {Stage.MERGE},
}


def name_of(gateway: LabGateway) -> str:
    return str(gateway.call("ListTunnels")["tunnels"][0]["name"])


@pytest.fixture
def client(pair: GatewayPair) -> Iterator[subprocess.Popen[str]]:
    """A client whose profile has begun, and goes on."""
    program = (sys.executable, "-m", "esp_gw.cli.main", "--socket", str(pair.a.socket))
    process = pair.a.namespace.start(
        *(*program, "profile", name_of(pair.a), "--seconds", "3000"),
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with contextlib.closing(Ending(process)):
        until(lambda: "seconds=3000" in pair.a.log.read_text(), "the profile begins", PATIENCE)
        yield process


class Ending:
    """Ends a process that may have ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def close(self) -> None:
        end(self._process)


def is_free(gateway: LabGateway) -> bool:
    """True if the gateway takes another profile, which is ended at once."""
    replies = stream(gateway.socket, "Profile", {"tunnel": name_of(gateway), "seconds": 1}, 30)
    try:
        with contextlib.closing(replies):
            next(replies)
    except ControlError as error:
        assert "running already" in str(error)
        return False
    return True


def test_every_stage_has_time_and_no_thread_more_than_there_was(pair: GatewayPair) -> None:
    request = {"tunnel": name_of(pair.a), "seconds": 120}
    status = pair.a.call("GetStatus")
    wanted, carried = STAGES[status["engine"]], False
    with contextlib.closing(stream(pair.a.socket, "Profile", request, 60)) as replies:
        for reply in replies:
            found: dict[str, Any] = dict(reply)
            for thread in found["threads"]:
                spent = sum(thread["ns"].values())
                assert spent <= found["seconds"] * 1e9 + 1e6
                assert spent >= 0
            timed = {
                stage for thread in found["threads"] for stage, ns in thread["ns"].items() if ns > 0
            }
            if timed == wanted and found["packets_out"] and found["packets_in"]:
                break
            if not carried:
                carry_tcp_both_ways(pair.a.namespace, pair.b.namespace, pair.plan.inner(1))
                carried = True
    assert timed == wanted
    assert len(found["threads"]) == status["workers"]
    # A turn counts at its end, a packet of an SA at once: neither is ahead for sure.
    for direction in ("packets_out", "packets_in"):
        assert found[direction] > 0
        assert sum(each[direction] for each in found["threads"]) > 0
    assert sum(each["clock_reads"] for each in found["threads"]) > 0
    # Traffic afterwards is not measured: the next profile begins with nothing.
    carry_tcp_both_ways(pair.a.namespace, pair.b.namespace, pair.plan.inner(1))
    with contextlib.closing(stream(pair.a.socket, "Profile", request, 60)) as replies:
        first: dict[str, Any] = dict(next(replies))
    for thread in first["threads"]:
        assert sum(thread["ns"].values()) <= first["seconds"] * 1e9 + 1e6


def test_the_command_prints_a_table_and_writes_a_flame_graph(
    pair: GatewayPair, tmp_path: Path
) -> None:
    name, graph = name_of(pair.a), tmp_path / "graph.svg"
    program = (sys.executable, "-m", "esp_gw.cli.main", "--socket", str(pair.a.socket))
    run = (*program, "profile", name, "--seconds", "1")
    done = pair.a.namespace.run(*run, "--output", str(graph))
    engine = pair.a.call("GetStatus")["engine"]
    assert all(stage in done.stdout for stage in STAGES[engine])
    assert str(graph) in done.stdout
    ElementTree.fromstring(graph.read_text())
    before = graph.read_bytes()
    again = pair.a.namespace.run(*run, "--output", str(graph), check=False)
    assert again.returncode == 1
    assert again.stderr.startswith("esp-gw: error: ")
    assert "exists already and is not overwritten" in again.stderr
    assert len(again.stderr.splitlines()) == 1
    assert graph.read_bytes() == before
    found = json.loads(pair.a.namespace.run("env", "PATH=", *run, "--json").stdout)
    assert {each["stage"] for each in found["stages"]} == STAGES[engine]
    assert found["output"] is None
    if engine == "native":
        assert found["perf"]["why"] == "perf is not installed"


@pytest.mark.either_engine
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_client_that_ends_ends_the_profile(
    pair: GatewayPair, client: subprocess.Popen[str], number: signal.Signals
) -> None:
    client.send_signal(number)
    client.wait(PATIENCE)
    until(lambda: is_free(pair.a), "the profile ends", PATIENCE)


@pytest.mark.either_engine
def test_a_gateway_that_ends_during_a_profile_ends_in_order(
    pair: GatewayPair, client: subprocess.Popen[str]
) -> None:
    assert pair.a.stop() == 0
    _, said = client.communicate(timeout=PATIENCE)
    assert client.returncode == 1
    assert said.splitlines()[-1].startswith("esp-gw: error: ")
    assert "Traceback" not in pair.a.log.read_text()


@pytest.mark.either_engine
def test_wrong_requests_are_one_line(pair: GatewayPair, tmp_path: Path) -> None:
    name = name_of(pair.a)
    for words, status, text in (
        (("nope", "--seconds", "1"), 1, "there is no tunnel nope"),
        ((name, "--seconds", "0"), 2, "--seconds"),
        ((name, "--seconds", "999999999999"), 2, "--seconds"),
        ((name, "--seconds", "1", "--output", str(tmp_path / "no" / "x.svg")), 1, "x.svg"),
        ((name, "--seconds", "1", "--output", "-"), 1, "--output"),
        ((name, "--seconds", "1", "--output", str(tmp_path)), 2, "--output"),
    ):
        done = pair.a.cli("profile", *words, check=False)
        assert (done.returncode, done.stdout) == (status, ""), words
        assert len(done.stderr.splitlines()) == 1
        assert text in done.stderr
    assert not (tmp_path / "no").exists()
