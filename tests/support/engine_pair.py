"""Two engines without daemons, each in a namespace with its TUN device, and traffic between them.

10.1.0.1 [esp0] a, wan 192.0.2.1 ==== wire ==== 192.0.2.2 wan, b [esp0] 10.2.0.1
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from esp_gw.daemon.engines import make_engine
from esp_gw.demo.netns import Namespace, add_address, namespaces, wire
from esp_gw.desired import EngineSettings
from esp_gw.engine.base import EngineFailed, Event, OuterSocket
from esp_gw.model import Direction, Encapsulation, Lease, Mode, Sa
from lab.waiting import comes_to_hold
from tests.support.builders import OUTER, make_sa, mirrored, protect, selector
from tests.support.kernel_peer import inside

DEVICE = "esp0"
PORT = 4500
OTHER_PORT = 4501
"""Another UDP port at which both engines can be reached."""
INNER = ("10.1.0.1", "10.2.0.1")
RATES = {"python": 800, "native": 8000}
"""Datagrams a second in each direction: many in each turn of an engine, few enough for its queues
on a busy machine."""

_PROGRAM = Path(__file__).with_name("numbered.py")
_PATIENCE = 30.0
# Without connection tracking, which may drop packets when it learns of a second port. The checksum
# stays zero (RFC 3948 2.1), which nft would update.
_TO_PORT = f"""
table ip lab {{
    chain pre {{
        type filter hook prerouting priority -300
        udp dport {OTHER_PORT} udp dport set {PORT} udp checksum set 0
    }}
}}
"""


class Side:
    """One engine in its namespace, with an outer socket for each encapsulation."""

    def __init__(self, kind: str, namespace: Namespace, number: int) -> None:
        self.namespace = namespace
        self.events: list[Event] = []
        self.address, self.other = INNER[number], INNER[1 - number]
        self.engine = make_engine(kind)
        add_address(namespace, f"{OUTER[4][number]}/24")
        namespace.run("nft", _TO_PORT)
        with inside(namespace):
            settings = EngineSettings(DEVICE, PORT, 0xE5B, workers=2, af_alg="off")
            self.engine.open(settings, self._on_event)
            self.engine.start()
            namespace.run("sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6")
            # Room for what comes while an engine isn't scheduled.
            namespace.ip("link", "set", DEVICE, "txqueuelen", "50000", "mtu", "1400", "up")
            add_address(namespace, f"{self.address}/32", DEVICE)
            namespace.ip("route", "add", f"{self.other}/32", "dev", DEVICE)
            local = ip_address(OUTER[4][number])
            self.engine.set_outer_sockets([OuterSocket(local, way) for way in Encapsulation])

    def _on_event(self, event: Event) -> None:
        assert not isinstance(event, EngineFailed), event.reason
        self.events.append(event)

    def carried(self, name: str) -> int:
        """The packets that an SA has carried."""
        return self.engine.counters().sas[name].packets


class Flow:
    """Numbered datagrams from one side to the other, from its creation to `finish`."""

    def __init__(self, sender: Process, receiver: Process) -> None:
        self._sender, self._receiver = sender, receiver

    @classmethod
    async def start(cls, source: Side, target: Side, rate: int) -> Flow:
        receiver = await _program(target, "receive", target.address, "7000")
        sender = await _program(source, "send", source.address, target.address, "7000", str(rate))
        return cls(sender, receiver)

    async def finish(self) -> tuple[int, dict[str, int]]:
        """Return the number of datagrams sent, and what the receiver says of them."""
        sent, _ = await asyncio.wait_for(self._sender.communicate(b""), _PATIENCE)
        report, _ = await asyncio.wait_for(self._receiver.communicate(b""), _PATIENCE)
        return int(sent), json.loads(report)

    def kill(self) -> None:
        """End the programs, also after a failure."""
        for process in (self._sender, self._receiver):
            with contextlib.suppress(ProcessLookupError):
                process.kill()


async def _program(side: Side, *arguments: str) -> Process:
    command = side.namespace.command(sys.executable, str(_PROGRAM), *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), _PATIENCE)
    assert line == b"ready\n", line
    return process


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition while the engines run."""
    assert await comes_to_hold(_PATIENCE, condition), f"never happened: {what}"


@contextlib.asynccontextmanager
async def engine_pair(kind: str) -> AsyncIterator[tuple[Side, Side]]:
    """Two engines of a kind, started, without SAs and policies."""
    async with contextlib.AsyncExitStack() as stack:
        hosts = stack.enter_context(namespaces("move-a", "move-b"))
        wire(*hosts)
        sides = []
        for number, host in enumerate(hosts):
            side = Side(kind, host, number)
            stack.callback(side.engine.close)
            sides.append(side)
        yield sides[0], sides[1]


def outbound(mode: Mode = Mode.TUNNEL, way: Encapsulation = Encapsulation.UDP) -> Sa:
    """The first side's SA."""
    ends = OUTER[4] if mode is Mode.TRANSPORT else INNER
    return make_sa(
        "a/out", Direction.OUTBOUND, 0x1001, selector(*ends), mode=mode, encapsulation=way
    )


def inbound(sa: Sa) -> Sa:
    """The same SA at the second side."""
    return replace(
        sa,
        name="b/in",
        direction=Direction.INBOUND,
        local=sa.remote,
        remote=sa.local,
        selectors=mirrored(sa.selectors),
    )


def install(pair: tuple[Side, Side], sa: Sa) -> None:
    """Install an SA at both sides, and the policy that sends into it."""
    pair[1].engine.install_inbound(inbound(sa), 0)
    pair[0].engine.install_outbound(sa, Lease(1, 10_000))
    pair[0].engine.replace_policies([protect("p", sa.name, *sa.selectors)])


def remove(pair: tuple[Side, Side], sa: Sa) -> None:
    """Take back what `install` did, and what was seen meanwhile."""
    pair[0].engine.replace_policies([])
    pair[0].engine.remove_sas([sa.name])
    pair[1].engine.remove_sas(["b/in"])
    for side in pair:
        side.engine.refused()
        side.engine.openings()
