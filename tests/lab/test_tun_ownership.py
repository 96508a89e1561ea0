"""Nobody but the gateway has a queue of its TUN device: no other user, and no other gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyroute2 import AsyncIPRoute

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, end, namespaces
from esp_gw.demo.pair import GatewayPair
from esp_gw.errors import LabError
from esp_gw.network.tun_queues import TunQueues, read_tun_queues
from tests.support.kernel_peer import inside
from tests.support.labtools import MakePair, guard, links, network, ping, until

NOBODY = 65534
ROUNDS = 4
INTRUDER = Path(__file__).parents[1] / "support" / "tun_intruder.py"
# As udev makes it: everybody may open it. Only this process and its children see it.
OPEN_TO_ALL = 'mount -t tmpfs tmpfs /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec "$@"'
VICTIM = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 9999)); s.setblocking(False)
print("ready", flush=True); sys.stdin.read()
n = 0
try:
    while True: s.recv(100); n += 1
except BlockingIOError: print(n)
"""


class Running:
    """A script in a namespace that prints a first line, and a last one when it is ended."""

    def __init__(self, namespace: Namespace, *command: str) -> None:
        self._process = namespace.start(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.first = next(iter(self._process.stdout or ()), "").strip()

    def finish(self) -> Any:
        output, _ = self._process.communicate("end\n", timeout=60)
        return json.loads(output)

    def close(self) -> None:
        end(self._process)


@contextlib.contextmanager
def intruder(namespace: Namespace, what: str, uid: int) -> Iterator[Running]:
    command = ("sh", "-c", OPEN_TO_ALL, "sh", sys.executable, "-I", "-S", str(INTRUDER))
    with contextlib.closing(Running(namespace, *command, what, str(uid))) as running:
        yield running


@contextlib.contextmanager
def victim(namespace: Namespace) -> Iterator[Running]:
    command = (sys.executable, "-I", "-S", "-c", VICTIM)
    with contextlib.closing(Running(namespace, *command)) as running:
        assert running.first == "ready"
        yield running


def tun(host: Namespace) -> dict[str, Any]:
    """Return what ip(8) shows of esp0."""
    (link,) = json.loads(host.ip("-d", "-j", "link", "show", "esp0"))
    data: dict[str, Any] = link["linkinfo"]["info_data"]
    return data


def is_native(pair: GatewayPair) -> bool:
    return pair.plan.settings["engine"] == "native"


def ended(gateway: LabGateway) -> str:
    """Wait until the daemon ends with an error, and return its last line."""
    process = gateway.process
    assert process is not None
    assert process.wait(30) == 1
    assert "Traceback" not in gateway.log.read_text()
    return gateway.last_words()


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespaces("host") as (host,):
        yield host


def test_a_device_without_an_owner_would_give_the_intruder_everything(host: Namespace) -> None:
    host.ip("tuntap", "add", "esp0", "mode", "tun", "multi_queue", "vnet_hdr")
    host.ip("address", "add", "10.1.0.1/24", "dev", "esp0")
    host.ip("link", "set", "esp0", "up")
    host.ip("route", "add", "10.2.0.0/24", "dev", "esp0")
    with victim(host) as target, intruder(host, "hold", NOBODY) as running:
        assert running.first == "opened"
        ping(host, "10.2.0.1", count=3)
        got = running.finish()
        assert got["written"] > 0
        assert got["read"] > 0
        assert target.finish() > 0


def test_the_queues_of_a_device_are_those_that_ip_counts(host: Namespace) -> None:
    host.ip("tuntap", "add", "esp0", "mode", "tun", "multi_queue", "vnet_hdr", "user", str(NOBODY))

    def look() -> TunQueues:
        async def read() -> TunQueues:
            async with AsyncIPRoute() as ipr:
                return await read_tun_queues(ipr, "esp0", 0)

        with inside(host):
            return asyncio.run(read())

    before = look()
    assert (before.count, before.owner, before.persistent) == (0, NOBODY, True)
    with intruder(host, "race", NOBODY) as first, intruder(host, "hold", 0) as second:
        assert (first.first, second.first) == ("ready", "opened")
        # The first one's queue is attached and detached by turns.
        until(lambda: tun(host)["numdisabled"] == 1, "a queue is detached")
        assert {look().count for _ in range(50)} == {2}
    host.ip("link", "delete", "esp0")


def test_no_other_user_opens_a_queue_while_the_gateway_runs(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.start()
    host = pair.a.namespace
    found = tun(host)
    assert found["user"] in ("root", 0)
    with intruder(host, "hold", NOBODY) as running:
        assert running.first == "EPERM"
    with victim(host) as target, intruder(host, "race", NOBODY) as running:
        assert running.first == "ready"
        assert ping(host, pair.plan.inner(1), count=20) == 20
        assert tun(host) == found
        pair.a.kill()
        # Nothing keeps the device alive.
        assert "esp0" not in links(host)
        got = running.finish()
        assert got["tries"] > 0
        assert (got["opened"], got["written"], got["read"]) == (0, 0, 0)
        assert target.finish() == 0


def test_a_start_among_intruders_is_clean_or_refused(make_pair: MakePair) -> None:
    pair = make_pair()
    host, target = pair.a.namespace, pair.plan.inner(1)
    pair.b.start()
    before = network(host)
    starts = 0
    with victim(host) as receiver, intruder(host, "race", NOBODY) as running:
        assert running.first == "ready"
        for _ in range(ROUNDS):
            pair.a.launch()
            try:
                pair.a.wait_ready()
            except LabError:
                assert "another program opened the TUN device" in ended(pair.a)
                assert "\n" not in pair.a.last_words()
            else:
                starts += 1
                found = tun(host)
                assert found["user"] in ("root", 0)
                assert not found["persist"]
                if is_native(pair):
                    workers = pair.a.ask("status")["workers"]
                    assert (found["numqueues"], found["numdisabled"]) == (workers, 0)
                assert ping(host, target, count=10) == 10
                assert pair.a.stop() == 0
            guard(pair.a, "down")
            assert network(host) == before
        got = running.finish()
        assert (got["written"], got["read"]) == (0, 0)
        assert receiver.finish() == 0
    assert starts == ROUNDS or is_native(pair)
    # Without the intruder it starts.
    pair.a.start()
    assert ping(host, target, count=2) == 2


def test_a_queue_that_root_opens_ends_the_native_gateway_and_leaks_nothing(
    make_pair: MakePair,
) -> None:
    pair = make_pair()
    pair.start()
    host, target = pair.a.namespace, pair.plan.inner(1)
    # A default route is the way out that a protected packet would take by mistake.
    host.ip("route", "add", "default", "via", "192.0.2.2")
    with intruder(host, "hold", 0) as running:
        if not is_native(pair):
            # Its device has a single queue, whoever asks.
            assert running.first == "EBUSY"
            assert ping(host, target, count=2) == 2
            return
        assert running.first == "opened"
        last = ended(pair.a)
        assert re.match(
            r"esp0: another program opened the TUN device, which is deleted: it has \d+ queues, "
            r"of which the gateway opened \d+; restart the gateway",
            last,
        )
        # The intruder's queue does not keep the device, and nothing goes another way.
        assert "esp0" not in links(host)
        assert "unreachable 10.2.0.0/24" in host.ip("route", "show", "table", "4500")
        assert ping(host, target, count=2) == 0
    pair.a.start()
    assert ping(host, target, count=2) == 2


def test_a_second_gateway_on_the_same_interface_is_refused_and_the_first_carries_on(
    make_pair: MakePair, tmp_path: Path
) -> None:
    pair = make_pair()
    pair.start()
    host, target = pair.a.namespace, pair.plan.inner(1)
    second = _second_gateway(pair, tmp_path / "second")
    before, alias = network(host), host.ip("link", "show", "esp0")
    assert "alias" in alias
    second.launch()
    last = ended(second)
    assert last.startswith("esp0: can't make the TUN device: a device of this name exists; ")
    assert "ip link delete esp0" in last
    assert ping(host, target, count=2) == 2
    # It closed its own prefixes, as every start that fails.
    guard(second, "down")
    assert network(host) == before
    assert host.ip("link", "show", "esp0") == alias
    assert ping(host, target, count=5) == 5
    # The first one had nothing to notice, and its end is a clean one.
    assert pair.a.stop() == 0
    assert "warning" not in pair.a.log.read_text()


def _second_gateway(pair: GatewayPair, folder: Path) -> LabGateway:
    """Configure a gateway beside a, which shares with it the name of the interface alone."""
    (folder / "run").mkdir(parents=True, mode=0o700)
    second = LabGateway(pair.a.namespace, pair.a.config.with_name("second.yaml"), folder / "run")
    document = yaml.safe_load(pair.a.config.read_text())
    document["gateway"] |= {**second.settings, "port": 4501, "table": 6000}
    second.config.write_text(yaml.safe_dump(document, sort_keys=False))
    second.config.chmod(pair.a.config.stat().st_mode)
    second.create_ledger()
    return second
