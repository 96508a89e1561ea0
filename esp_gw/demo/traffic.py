"""Traffic through a lab: runs ping and iperf3, and parses their results."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from esp_gw.demo.netns import Namespace, end
from esp_gw.errors import LabError

_RTT = re.compile(r"= [\d.]+/([\d.]+)/")
_RECEIVED = re.compile(r"(\d+) (?:packets )?received")
_GRACE = 20


@dataclass(frozen=True, slots=True)
class Ping:
    """Number of replies, and the mean round-trip time in microseconds (0 without a reply)."""

    received: int
    rtt_us: float


@dataclass(frozen=True, slots=True)
class Iperf:
    """Result of an iperf3 run at the receiver: Gbit/s, and the percentage lost for UDP."""

    gbit_s: float
    lost_percent: float = 0.0


def ping(
    namespace: Namespace, target: str, *, count: int = 5, size: int = 56, interval: float = 0.01
) -> Ping:
    """Ping `target` `count` times with `size` bytes of data; no reply is not an error."""
    result = namespace.run(
        "ping",
        "-n",
        *("-c", str(count)),
        *("-i", str(interval)),
        *("-W", "1"),
        *("-s", str(size)),
        target,
        timeout=count * (interval + 1) + 10,
        check=False,
    )
    received = _RECEIVED.search(result.stdout)
    rtt = _RTT.search(result.stdout)
    return Ping(
        int(received.group(1)) if received else 0, float(rtt.group(1)) * 1000 if rtt else 0.0
    )


@contextlib.contextmanager
def iperf_server(namespace: Namespace, address: str) -> Iterator[None]:
    """Run an iperf3 server on `address` for one client run.

    One alone: between two runs a server closes its listener, and resets a client that has
    connected to it already.
    """
    server = namespace.start(
        *("iperf3", "-s", "-1", "-B", address, "--forceflush"), stdout=subprocess.PIPE
    )
    try:
        if not any("listening" in line for line in server.stdout or ()):
            raise LabError("the iperf3 server did not start", where=namespace.name)
        yield
    finally:
        end(server)


def iperf(namespace: Namespace, target: str, seconds: int, *options: str) -> Iperf:
    """Run an iperf3 client to `target`. Raises LabError if it fails."""
    return _result(iperf_summary(namespace, target, seconds, *options))


def iperf_summary(namespace: Namespace, target: str, seconds: int, *options: str) -> dict[str, Any]:
    """Run an iperf3 client to `target`; return `end` of its JSON report. Raises LabError."""
    result = namespace.run(
        *_client(target, seconds), *options, timeout=seconds + _GRACE, check=False
    )
    return _summary(result.stdout, target)


class Load:
    """An iperf3 client that runs for some seconds, while something else is done."""

    def __init__(self, namespace: Namespace, target: str, seconds: int, *options: str) -> None:
        self._target = target
        self._timeout = seconds + _GRACE
        command = (*_client(target, seconds), *options)
        self._process = namespace.start(*command, stdout=subprocess.PIPE)

    @property
    def is_done(self) -> bool:
        """True if the client has ended."""
        return self._process.poll() is not None

    def finish(self) -> Iperf:
        """Wait for the end, and return the result. Raises LabError."""
        try:
            output, _ = self._process.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"took longer than {self._timeout} s", where="iperf3") from None
        return _result(_summary(output, self._target))

    def close(self) -> None:
        """End the client without a result."""
        end(self._process)


def _client(target: str, seconds: int) -> tuple[str, ...]:
    return ("iperf3", "-J", "-c", target, "-t", str(seconds), "--connect-timeout", "3000")


def _summary(output: str, target: str) -> dict[str, Any]:
    try:
        report = json.loads(output)
    except ValueError:
        raise LabError("iperf3 gave no report", where=target) from None
    if "error" in report:
        raise LabError(f"iperf3: {report['error']}", where=target)
    summary: dict[str, Any] = report["end"]
    return summary


def _result(summary: dict[str, Any]) -> Iperf:
    received = summary.get("sum_received") or summary["sum"]
    return Iperf(received["bits_per_second"] / 1e9, summary.get("sum", {}).get("lost_percent", 0.0))
