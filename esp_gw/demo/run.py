"""The demo: two real gateways, iperf3 through the tunnel, and a tap that proves the encryption."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace
from esp_gw.demo.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.demo.signals import ended_by_signals
from esp_gw.demo.tap import Tap, WireReport
from esp_gw.demo.traffic import iperf, iperf_server, ping
from esp_gw.errors import LabError
from esp_gw.model import NO_AES, Encapsulation, Mode, Suite
from esp_gw.protocol import UDP_ENCAP_PORT

PINGS = 50
_PROGRAMS = ("ip", "setpriv", "ping", "iperf3")


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of the demo; `seconds` is the duration of each iperf3 run."""

    engine: str
    mode: Mode
    encapsulation: Encapsulation
    suite: Suite
    seconds: int
    json_output: bool


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Results of the demo; CPU percentages are of one core, during the iperf3 runs."""

    engine: str
    aes: str
    mode: str
    encapsulation: str
    suite: str
    mtu: int
    seconds_to_first_packet: float
    rtt_us: float
    tcp_gbit_s: float
    tcp_reverse_gbit_s: float
    cpu_percent_a: float
    cpu_percent_b: float
    rss_mb: float
    esp_packets_on_wire: int
    cleartext_packets_on_wire: int
    cleartext_examples: tuple[str, ...]
    packets_out: int
    packets_in: int
    drops: dict[str, int]

    @property
    def passed(self) -> bool:
        """True if traffic passed both ways and the tap saw nothing but ESP."""
        moved = min(self.tcp_gbit_s, self.tcp_reverse_gbit_s, self.rtt_us) > 0
        return moved and self.esp_packets_on_wire > 0 and self.cleartext_packets_on_wire == 0


def run(options: DemoOptions) -> int:
    """Run the demo; return 0 only if traffic passed and no cleartext was on the wire.

    Raises LabError if it can't run here. It always removes everything it created.
    """
    _check_machine()
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="esp-gw-demo-") as folder:
        result = _Demo(options, Path(folder)).run()
    if options.json_output:
        print(json.dumps(asdict(result)))
    else:
        _print_table(result, options.seconds)
    return 0 if result.passed else 1


class _Demo:
    def __init__(self, options: DemoOptions, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._step = 0

    def run(self) -> DemoResult:
        options = self._options
        plan = PairPlan(
            mode=options.mode,
            encapsulation=options.encapsulation,
            suite=options.suite,
            settings={"engine": options.engine},
        )
        inner = (plan.inner(0), plan.inner(1))
        # The addresses as in the inner header, which must never be readable on the wire.
        plaintext = b"".join(ip_address(address).packed for address in inner)
        if options.mode is Mode.TRANSPORT:
            plaintext = b""  # the outer header has the same addresses
        self._say("create two network namespaces, a wire, and two configurations with fresh keys")
        with gateway_pair(self._folder, plan) as pair:
            tap = Tap(pair.a.namespace, "wan", UDP_ENCAP_PORT, plaintext)
            with contextlib.closing(tap):
                self._say("start both gateways")
                began = time.monotonic()
                pair.start()
                if not _wait_for_reply(pair.a.namespace, inner[1]):
                    raise LabError("no ping came through the tunnel", hint=_explain(pair))
                first = time.monotonic() - began
                return self._measure((pair.a, pair.b), inner, tap, first)

    def _measure(
        self,
        gateways: tuple[LabGateway, LabGateway],
        inner: tuple[str, str],
        tap: Tap,
        first: float,
    ) -> DemoResult:
        a, b = (gateway.namespace for gateway in gateways)
        seconds = self._options.seconds
        self._say(f"ping {inner[1]}")
        rtt = ping(a, inner[1], count=PINGS)
        before = [gateway.usage() for gateway in gateways]
        began = time.monotonic()
        self._say(f"iperf3 for {seconds} s")
        with iperf_server(b, inner[1]):
            forward = iperf(a, inner[1], seconds, "-B", inner[0])
        self._say(f"iperf3 for {seconds} s, reverse")
        with iperf_server(b, inner[1]):
            backward = iperf(a, inner[1], seconds, "-B", inner[0], "-R")
        elapsed = time.monotonic() - began
        after = [gateway.usage() for gateway in gateways]
        self._say("evaluate the tap on the wire")
        statuses = [gateway.call("GetStatus") for gateway in gateways]
        stats = [gateway.call("GetStats") for gateway in gateways]
        report = tap.finish()
        cpu = [
            100 * (end.cpu_s - start.cpu_s) / elapsed
            for start, end in zip(before, after, strict=True)
        ]
        return DemoResult(
            engine=statuses[0]["engine"],
            aes=statuses[0]["aes"],
            mode=self._options.mode,
            encapsulation=self._options.encapsulation,
            suite=self._options.suite.name,
            mtu=statuses[0]["mtu"],
            seconds_to_first_packet=round(first, 3),
            rtt_us=round(rtt.rtt_us),
            tcp_gbit_s=round(forward.gbit_s, 6),
            tcp_reverse_gbit_s=round(backward.gbit_s, 6),
            cpu_percent_a=round(cpu[0]),
            cpu_percent_b=round(cpu[1]),
            rss_mb=round(max(usage.rss for usage in after) / 2**20, 1),
            esp_packets_on_wire=report.esp,
            cleartext_packets_on_wire=_cleartext(report),
            cleartext_examples=report.examples,
            packets_out=sum(values["packets_out"] for values in stats),
            packets_in=sum(values["packets_in"] for values in stats),
            drops=_sum_drops(stats),
        )

    def _say(self, text: str) -> None:
        self._step += 1
        print(f"  {self._step}. {text}", file=sys.stderr, flush=True)


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise LabError("the demo needs root to create network namespaces", hint="run it with sudo")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise LabError(
            f"not installed: {', '.join(missing)}",
            hint="on Debian: 'apt-get install iproute2 util-linux iputils-ping iperf3'",
        )
    if not Path("/dev/net/tun").exists():
        raise LabError("there is no /dev/net/tun", hint="load the module with 'modprobe tun'")


def _wait_for_reply(namespace: Namespace, target: str) -> bool:
    return any(ping(namespace, target, count=1).received for _ in range(5))


def _explain(pair: GatewayPair) -> str:
    drops = _sum_drops([gateway.call("GetStats") for gateway in (pair.a, pair.b)])
    return f"drops: {drops}" if drops else "the gateways dropped nothing"


def _cleartext(report: WireReport) -> int:
    return report.cleartext + report.leaked


def _sum_drops(stats: list[dict[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for values in stats:
        for reason, count in values["drops"].items():
            total[reason] = total.get(reason, 0) + count
    return total


def _rate(gbit_s: float) -> str:
    return f"{gbit_s:.2f} Gbit/s" if gbit_s >= 0.1 else f"{gbit_s * 1000:.2f} Mbit/s"


def _print_table(result: DemoResult, seconds: int) -> None:
    how = "ESP in UDP" if result.encapsulation == Encapsulation.UDP else "ESP, protocol 50"
    drops = ", ".join(f"{count} {reason}" for reason, count in result.drops.items())
    aes = "no AES instructions" if result.aes == NO_AES else f"AES by {result.aes}"
    verdict = (
        "only ESP was on the wire"
        if result.passed
        else "CLEARTEXT WAS ON THE WIRE"
        if result.cleartext_packets_on_wire
        else "no traffic passed"
    )
    rows = (
        ("engine", f"{result.engine}, {aes}"),
        ("tunnel", f"{result.mode} mode, {how}, {result.suite}, MTU {result.mtu}"),
        ("start to first packet", f"{result.seconds_to_first_packet:.2f} s"),
        ("round trip", f"{result.rtt_us:.0f} us"),
        (f"TCP, {seconds} s", _rate(result.tcp_gbit_s)),
        (f"TCP reverse, {seconds} s", _rate(result.tcp_reverse_gbit_s)),
        ("CPU of the gateways", f"{result.cpu_percent_a:.0f} % and {result.cpu_percent_b:.0f} %"),
        ("memory of a gateway", f"{result.rss_mb:.0f} MB"),
        ("inner packets", f"{result.packets_out} sent, {result.packets_in} received"),
        ("dropped", drops or "none"),
        ("ESP packets on the wire", str(result.esp_packets_on_wire)),
        ("cleartext on the wire", str(result.cleartext_packets_on_wire)),
        *(("cleartext, from the IP header on", example) for example in result.cleartext_examples),
        ("verdict", verdict),
    )
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows))
