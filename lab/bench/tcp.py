"""TCP throughput: one stream and several, over the wire as it is and with wire-size packets."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from esp_gw.demo.netns import Namespace, end
from esp_gw.demo.traffic import iperf_server, iperf_summary
from esp_gw.errors import LabError
from lab.bench.cpu import Spent, metered
from lab.bench.model import Lengths, Link, Memory, Run, Sample
from lab.bench.streams import CUBIC, congestion_control, received_gbit_s

_FEATURE = re.compile(r"^\s*([\w-]+): (on|off)", re.MULTILINE)
_WIRE_SIZE = {
    "tx-udp-segmentation": "off",
    "tcp-segmentation-offload": "off",
    "generic-receive-offload": "on",
}


def tcp(*options: str) -> Run:
    """An iperf3 TCP test with `options`: Gbit/s received, both directions summed.

    And the gateways' processor seconds a gigabit, at full speed.
    """

    def run(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
        control = congestion_control(CUBIC)
        with iperf_server(link.b, link.target), metered(link.pids) as spent:
            summary = iperf_summary(
                *(link.a, link.target, lengths.tcp), "-B", link.source, *control, *options
            )
        return list(_samples(received_gbit_s(summary), spent[0], sender_seconds(summary)))

    return run


def _samples(gbit_s: float, spent: Spent, seconds: float) -> Iterator[Sample]:
    cpu = spent.percent(seconds)
    yield Sample("throughput", "Gbit/s", gbit_s, cpu)
    if spent.daemons:
        yield Sample("gateways", "s/Gbit", sum(spent.daemons) / (gbit_s * seconds), cpu)


def sender_seconds(summary: Mapping[str, Any]) -> float:
    """The duration of an iperf3 run by its sender."""
    return float(summary["sum_sent"]["seconds"])


def tcp_wire(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """TCP over a wire that carries no packet above its MTU, like a NIC without offloads."""
    with contextlib.ExitStack() as undo:
        for host in (link.a, link.b):
            before = parse_features(host.run("ethtool", "-k", "wan").stdout)
            undo.callback(_set_features, host, {name: before[name] for name in _WIRE_SIZE})
            _set_features(host, _WIRE_SIZE)
        return tcp()(link, lengths, memory)


def parse_features(output: str) -> dict[str, str]:
    """Each feature that `ethtool -k` lists, with its state: on or off."""
    return dict(_FEATURE.findall(output))


def _set_features(host: Namespace, states: Mapping[str, str]) -> None:
    host.run("ethtool", "-K", "wan", *(word for pair in states.items() for word in pair))


def tcp_tunnels(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """Four TCP streams at once, shared out over all tunnels of the link; Gbit/s, summed."""
    ways = [(link.source, link.target), *link.further]
    options = (*congestion_control(CUBIC), "-P", str(4 // len(ways)))
    with contextlib.ExitStack() as servers:
        for _, target in ways:
            servers.enter_context(iperf_server(link.b, target))
        with metered(link.pids) as spent:
            summaries = list(_at_once(link.a, ways, lengths.tcp, options))
    gbit_s = sum(map(received_gbit_s, summaries))
    return list(_samples(gbit_s, spent[0], sender_seconds(summaries[0])))


def _at_once(
    host: Namespace, ways: list[tuple[str, str]], seconds: int, options: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    clients = [
        host.start(
            *("iperf3", "-J", "-c", target, "-B", source, "-t", str(seconds)),
            *("--connect-timeout", "3000", *options),
            stdout=subprocess.PIPE,
        )
        for source, target in ways
    ]
    try:
        for client, (_, target) in zip(clients, ways, strict=True):
            report = json.loads(client.communicate(timeout=seconds + 20)[0])
            if "error" in report:
                raise LabError(f"iperf3: {report['error']}", where=target)
            yield report["end"]
    except (ValueError, subprocess.TimeoutExpired):
        raise LabError("iperf3 gave no report") from None
    finally:
        for client in clients:
            end(client)
