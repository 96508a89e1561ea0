"""Real daemons and commands under small limits: they run, or end with one line that is true."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from esp_gw.demo.netns import end
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import MakePair, forwarding, network, ping

pytestmark = pytest.mark.either_engine

MIB = 1 << 20
START_TIMEOUT = 60.0
FILES = r"LimitNOFILE= of the unit, or 'ulimit -n'$"
SPACE = r"LimitAS= of the unit, or 'ulimit -v'$"
THREADS = r"TasksMax= and LimitNPROC= of the unit, or 'ulimit -u'$"
_CAPABILITIES = "+net_admin,+net_raw,+dac_override"
_UNPRIVILEGED = (
    *("setpriv", "--reuid=65530", "--regid=65530", "--clear-groups"),
    f"--inh-caps={_CAPABILITIES}",
    f"--ambient-caps={_CAPABILITIES}",
)
"""A user for whom the limit of threads counts, and who may do all that the test's files need."""


@dataclass(frozen=True)
class Outcome:
    """The exit status of a command, or None for a daemon that became ready; and what it said."""

    status: int | None
    lines: Sequence[str]


def outcome(pair: GatewayPair, limit: Sequence[str], *arguments: str, ready: str = "") -> Outcome:
    """Run a command under a limit until its end, or until it logs that it is ready."""
    command = ("prlimit", *limit, sys.executable, "-m", "esp_gw.cli.main", *arguments)
    process = pair.a.namespace.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines: list[str] = []
    try:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            if ready and ready in line:
                return Outcome(None, lines)
        return Outcome(process.wait(START_TIMEOUT), lines)
    finally:
        end(process)


def assert_ends_with_one_line(found: Outcome, line: str) -> None:
    """Check that a command ended as it does for a fault that a person has to mend.

    Warnings may come before the line.
    """
    assert found.status == 1, found
    *before, last = found.lines
    assert re.search(line, last), found
    assert last.startswith("esp-gw: error: "), found
    assert all(" warning " in each for each in before), found


@pytest.fixture
def closed(make_pair: MakePair) -> GatewayPair:
    """A gateway that has run, and has left its prefixes closed."""
    pair = make_pair(settings={"workers": 2})
    pair.a.start()
    pair.a.stop()
    assert "unreachable" in pair.a.namespace.ip("route", "show", "table", "all")
    return pair


def test_a_gateway_starts_or_names_the_limit_and_leaves_the_prefixes_closed(
    closed: GatewayPair,
) -> None:
    before = network(closed.a.namespace)
    run = ("run", "--config", str(closed.a.config))
    for files in (6, 10, 15, 16, 24, 28, 31):
        assert_ends_with_one_line(outcome(closed, [f"--nofile={files}"], *run), FILES)
        assert network(closed.a.namespace) == before, files
    for space in (50, 85, 100, 127):
        assert_ends_with_one_line(outcome(closed, [f"--as={space * MIB}"], *run), SPACE)
        assert network(closed.a.namespace) == before, space
    for limit in ("--nofile=64", f"--as={150 * MIB}", f"--as={200 * MIB}", f"--as={250 * MIB}"):
        found = outcome(closed, [limit], *run, ready=" ready ")
        assert found.status is None, (limit, found)
        assert len(found.lines) == 1, found


def test_a_guard_holds_or_names_the_limit(make_pair_of_one_engine: MakePair) -> None:
    pair = make_pair_of_one_engine()
    pair.a.start()
    pair.a.stop()
    run = ("guard", "run", "--config", str(pair.a.config))
    for files in (6, 11, 15):
        assert_ends_with_one_line(outcome(pair, [f"--nofile={files}"], *run), FILES)
    for space in (40, 60, 79):
        assert_ends_with_one_line(outcome(pair, [f"--as={space * MIB}"], *run), SPACE)
    for limit in ("--nofile=24", f"--as={100 * MIB}"):
        found = outcome(pair, [limit], *run, ready="guarding")
        assert found.status is None, (limit, found)


def test_commands_need_few_descriptors_and_little_memory(
    make_pair_of_one_engine: MakePair,
) -> None:
    pair = make_pair_of_one_engine()
    # Without a warning `status` ends with 0.
    forwarding(pair.a.namespace)
    pair.a.start()
    for command in (
        ("config", "check", str(pair.a.config)),
        ("--socket", str(pair.a.socket), "status"),
    ):
        for limit in ("--nofile=6", f"--as={75 * MIB}"):
            found = outcome(pair, [limit], *command)
            assert found.status == 0, (limit, found)
        # Below this Python itself has no room for the modules of the command line.
        starved = outcome(pair, [f"--as={24 * MIB}"], *command)
        if starved.status:
            assert_ends_with_one_line(starved, SPACE)


def test_too_few_threads_are_named(closed: GatewayPair) -> None:
    run = ("run", "--config", str(closed.a.config))
    for threads in (1, 2):
        found = outcome(closed, [f"--nproc={threads}", *_UNPRIVILEGED], *run)
        assert_ends_with_one_line(found, THREADS)


def test_a_gateway_without_a_free_descriptor_answers_again_once_it_has_one(
    pair: GatewayPair,
) -> None:
    def allow(files: int) -> None:
        subprocess.run(("prlimit", f"--pid={pair.a.pid}", f"--nofile={files}:"), check=True)

    allow(len(pair.a.namespace.run("ls", f"/proc/{pair.a.pid}/fd").stdout.split()))
    assert pair.a.cli("status", check=False).returncode == 1
    assert ping(pair.a.namespace, pair.plan.inner(1), count=2) == 2
    allow(1000)
    assert pair.a.ask("status")["sas"] == 2
    log = pair.a.log.read_text()
    assert "Traceback" not in log
    assert log.count("no control connection is accepted") == 1
