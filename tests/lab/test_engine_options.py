"""The options of the native engine in effect; the python engine reports that it lacks them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace
from esp_gw.demo.pair import GatewayPair
from esp_gw.demo.traffic import iperf, iperf_server
from esp_gw.model import Encapsulation
from tests.support.borrow import borrow_sockets
from tests.support.labtools import MakePair, carry_tcp, carry_tcp_both_ways, edit, ping, until

ALL = ("tso", "uso", "udp_gso", "udp_gro", "merge")
WIRE_FRAME = 1514


def is_native(pair: GatewayPair) -> bool:
    return bool(pair.a.ask("status")["engine"] == "native")


def both_ways(pair: GatewayPair, *options: str) -> None:
    carry_tcp_both_ways(pair.a.namespace, pair.b.namespace, pair.plan.inner(1), *options)


@pytest.mark.parametrize("encapsulation", list(Encapsulation))
@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_carries_everything(
    make_pair: MakePair, encapsulation: Encapsulation, workers: int
) -> None:
    settings = {"workers": workers, "pin_workers": True}
    pair = make_pair(encapsulation=encapsulation, settings=settings)
    pair.start()
    both_ways(pair, "-P", "4")
    assert ping(pair.a.namespace, pair.plan.inner(1), count=20, size=1400) == 20
    status = pair.a.ask("status")
    native = status["engine"] == "native"
    assert (status["workers"], status["pinned"]) == ((workers, True) if native else (1, False))
    assert (
        not {"auth-failed", "replay-duplicate", "unknown-spi"} & pair.b.ask("stats")["drops"].keys()
    )


def test_more_workers_than_flows_do_no_harm(
    make_pair: MakePair,
) -> None:
    pair = make_pair(settings={"workers": 64})
    pair.start()
    assert ping(pair.a.namespace, pair.plan.inner(1), count=5) == 5
    edit(pair.a, lambda config: config["gateway"].update(workers=65))
    assert "from 1 to 64" in pair.a.cli("reload", check=False).stderr


@contextmanager
def mean_size(namespace: Namespace, device: str, way: str) -> Iterator[list[float]]:
    """Mean size in bytes of the packets through a device; a super-packet counts as one."""

    def counters() -> tuple[int, int]:
        names = (
            f"/sys/class/net/{device}/statistics/{way}_{what}" for what in ("bytes", "packets")
        )
        size, packets = namespace.run("cat", *names).stdout.split()
        return int(size), int(packets)

    size, packets = counters()
    result: list[float] = []
    yield result
    now_size, now_packets = counters()
    result.append((now_size - size) / (now_packets - packets))


@pytest.mark.parametrize("off", [(), *((name,) for name in ALL), ALL], ids="+".join)
def test_super_packets_appear_where_their_offload_is_on(
    make_pair: MakePair, off: tuple[str, ...]
) -> None:
    pair = make_pair(settings={"offload": dict.fromkeys(off, False)})
    pair.start()
    target = pair.plan.inner(1)
    with (
        mean_size(pair.a.namespace, "esp0", "tx") as read,
        mean_size(pair.a.namespace, "wan", "tx") as sent,
        mean_size(pair.b.namespace, "esp0", "rx") as written,
    ):
        carry_tcp(pair.a.namespace, pair.b.namespace, target)
    native = is_native(pair)
    offload = pair.a.ask("status")["offload"]
    for (mean,), name in ((read, "tso"), (sent, "udp_gso"), (written, "merge")):
        assert (mean > 2 * WIRE_FRAME) == (native and name not in off), (name, mean)
    for name, entry in offload.items():
        assert entry["in_use"] == (native and name not in off)
        if native:
            assert entry["why"] == ("switched off" if name in off else "")


def test_one_side_may_turn_off_all_offloads(make_pair: MakePair) -> None:
    pair = make_pair()
    edit(pair.a, lambda config: config["gateway"].update(offload=dict.fromkeys(ALL, False)))
    pair.start()
    both_ways(pair)
    target = pair.plan.inner(1)
    with iperf_server(pair.b.namespace, target):
        result = iperf(pair.a.namespace, target, 1, "-u", "-b", "2M", "-l", "1360")
    assert result.lost_percent == 0.0


def test_the_providers_interoperate(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.start()
    native = is_native(pair)
    pair.stop()
    names = ("openssl", "aws-lc" if native else "auto")
    for gateway, name in zip((pair.a, pair.b), names, strict=True):
        edit(gateway, lambda config, name=name: config.update(crypto={"provider": name}))
    pair.start()
    both_ways(pair)
    libraries = [gateway.ask("status")["provider"] for gateway in (pair.a, pair.b)]
    assert [list(library) for library in libraries] == [["aes256gcm16"]] * 2
    assert libraries[0]["aes256gcm16"].startswith("OpenSSL ")
    assert libraries[1]["aes256gcm16"].startswith("AWS-LC " if native else "OpenSSL ")


def refuse_gso(gateway: LabGateway) -> None:
    """Make the kernel refuse UDP_SEGMENT on every UDP socket of a daemon.

    On a socket without checksums it fails with EINVAL (net/ipv4/udp.c, udp_send_skb).
    """
    found = 0
    for fd in borrow_sockets(gateway.pid):
        with socket.socket(fileno=fd) as theirs:
            if (theirs.family, theirs.type) == (socket.AF_INET, socket.SOCK_DGRAM):
                theirs.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
                found += 1
    assert found


def test_packets_go_one_by_one_without_loss_after_the_kernel_refuses_gso(
    make_pair: MakePair,
) -> None:
    pair = make_pair(settings={"workers": 2})
    pair.start()
    both_ways(pair)
    native = is_native(pair)
    before = pair.a.ask("stats")
    refuse_gso(pair.a)
    target = pair.plan.inner(1)
    # The fragments form one batch: losing any of them loses the reply, even the first ping's.
    assert ping(pair.a.namespace, target, count=3, size=20000) == 3
    with mean_size(pair.a.namespace, "wan", "tx") as sent:
        carry_tcp(pair.a.namespace, pair.b.namespace, target, "-P", "4")
    assert sent[0] <= WIRE_FRAME
    after = pair.a.ask("stats")
    assert after["packets_out"] > before["packets_out"]
    assert after["drops"].get("send-error", 0) == before["drops"].get("send-error", 0)
    assert after["drops"].get("too-big", 0) == before["drops"].get("too-big", 0)
    lines = [line for line in pair.a.log.read_text().splitlines() if "segmentation" in line]
    entry = pair.a.ask("status")["offload"]["udp_gso"]
    if not native:
        assert lines == []
        return
    (line,) = lines
    assert "192.0.2.2" in line
    assert "EINVAL" in line
    assert entry == {"in_use": False, "why": "refused for 192.0.2.2 (EINVAL)"}
    assert "udp_gso (refused for 192.0.2.2 (EINVAL))" in pair.a.cli("status", check=False).stdout


def worker_times(gateway: LabGateway) -> Mapping[str, int]:
    """Run time of each worker thread in nanoseconds, by thread id."""
    assert gateway.process is not None
    threads = Path(f"/proc/{gateway.process.pid}/task").iterdir()
    return {
        thread.name: int((thread / "schedstat").read_text().split()[0])
        for thread in threads
        if (thread / "comm").read_text().startswith("esp-worker")
    }


def test_a_worker_that_kept_processors_awake_sleeps_when_idle(make_pair: MakePair) -> None:
    pair = make_pair(settings={"latency": "low"})
    pair.start()
    both_ways(pair)
    assert ping(pair.a.namespace, pair.plan.inner(1), count=20) == 20
    status = pair.a.ask("status")
    assert status["latency"]["setting"] == "low"
    if status["engine"] == "python":
        assert worker_times(pair.a) == {}
        return

    def sleeps() -> bool:
        # A worker whose wait ends each 40 ms would have run in between.
        before: Any = worker_times(pair.a)
        time.sleep(0.1)
        return bool(before) and worker_times(pair.a) == before

    until(sleeps, "the workers sleep")
