"""The steps of the demo: two real gateways, iperf3 through the tunnel, and a tap on the wire."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace
from esp_gw.demo.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.demo.results import DemoResult
from esp_gw.demo.tap import Tap, WireReport
from esp_gw.demo.traffic import Load, iperf_server, ping
from esp_gw.errors import LabError
from esp_gw.model import Encapsulation, Mode, Suite
from esp_gw.protocol import UDP_ENCAP_PORT

PINGS = 50

Gateways = tuple[LabGateway, LabGateway]
Stats = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of the demo; `seconds` is the duration of each iperf3 run.

    `plugin` is charon's plugin, where it isn't the installed one.
    """

    engine: str
    mode: Mode
    encapsulation: Encapsulation
    suite: Suite
    seconds: int
    json_output: bool
    plugin: Path | None = None


class Demo:
    """The demo with manual keys, in a folder of its own. Another kind of keys overrides steps."""

    def __init__(self, options: DemoOptions, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.plan = PairPlan(
            mode=options.mode,
            encapsulation=options.encapsulation,
            suite=options.suite,
            settings={"engine": options.engine},
        )
        self.inner = (self.plan.inner(0), self.plan.inner(1))
        self._step = 0

    def run(self) -> DemoResult:
        """Run all steps. Raises LabError; whatever happens, everything it created is removed."""
        # The addresses as in the inner header, which must never be readable on the wire.
        plaintext = b"".join(ip_address(address).packed for address in self.inner)
        if self.options.mode is Mode.TRANSPORT:
            plaintext = b""  # the outer header has the same addresses
        with self.build() as pair:
            tap = Tap(pair.a.namespace, "wan", UDP_ENCAP_PORT, plaintext)
            with contextlib.closing(tap):
                self.start(pair)
                began = time.monotonic()
                self.bring_up(pair)
                if not _wait_for_reply(pair.a.namespace, self.inner[1]):
                    raise LabError("no ping came through the tunnel", hint=_explain(pair))
                first = time.monotonic() - began
                return self._measure((pair.a, pair.b), tap, first)

    @contextlib.contextmanager
    def build(self) -> Iterator[GatewayPair]:
        """Create the namespaces and the configurations."""
        self.say("create two network namespaces, a wire, and two configurations with fresh keys")
        with gateway_pair(self.folder, self.plan) as pair:
            yield pair

    def start(self, pair: GatewayPair) -> None:
        """Start what has to run before the tunnel comes up."""

    def bring_up(self, pair: GatewayPair) -> None:
        """Bring up the tunnel, from which on the time to the first packet counts."""
        self.say("start both gateways")
        pair.start()

    def under_load(self, gateways: Gateways, load: Load) -> None:
        """Do what is to be shown while a load runs."""

    def strange(self, report: WireReport) -> int:
        """Return the number of frames that should not have been on the wire."""
        return report.cleartext + report.leaked + report.ike

    def result(self, gateways: Gateways, report: WireReport, figures: DemoResult) -> DemoResult:
        """Return the figures with those that only this kind of keys has."""
        return figures

    def say(self, text: str) -> None:
        """Tell the next step."""
        self._step += 1
        print(f"  {self._step}. {text}", file=sys.stderr, flush=True)

    def _measure(self, gateways: Gateways, tap: Tap, first: float) -> DemoResult:
        a, b = (gateway.namespace for gateway in gateways)
        near, far = self.inner
        seconds = self.options.seconds
        self.say(f"ping {far}")
        rtt = ping(a, far, count=PINGS)
        before = [gateway.usage() for gateway in gateways]
        began = time.monotonic()
        rates = []
        for direction, options in (("", ()), (", reverse", ("-R",))):
            self.say(f"iperf3 for {seconds} s{direction}")
            with (
                iperf_server(b, far),
                contextlib.closing(Load(a, far, seconds, "-B", near, *options)) as load,
            ):
                self.under_load(gateways, load)
                rates.append(load.finish().gbit_s)
        elapsed = time.monotonic() - began
        after = [gateway.usage() for gateway in gateways]
        self.say("evaluate the tap on the wire")
        statuses = [gateway.call("GetStatus") for gateway in gateways]
        stats = all_stats(gateways)
        report = tap.finish()
        cpu = [
            100 * (end.cpu_s - start.cpu_s) / elapsed
            for start, end in zip(before, after, strict=True)
        ]
        figures = DemoResult(
            engine=statuses[0]["engine"],
            aes=statuses[0]["aes"],
            mode=self.options.mode,
            encapsulation=self.options.encapsulation,
            suite=self.options.suite.name,
            mtu=statuses[0]["mtu"],
            seconds_to_first_packet=round(first, 3),
            rtt_us=round(rtt.rtt_us),
            tcp_gbit_s=round(rates[0], 6),
            tcp_reverse_gbit_s=round(rates[1], 6),
            cpu_percent_a=round(cpu[0]),
            cpu_percent_b=round(cpu[1]),
            rss_mb=round(max(usage.rss for usage in after) / 2**20, 1),
            esp_packets_on_wire=report.esp,
            cleartext_packets_on_wire=self.strange(report),
            cleartext_examples=report.examples,
            packets_out=sum(values["packets_out"] for values in stats),
            packets_in=sum(values["packets_in"] for values in stats),
            drops=sum_drops(stats),
        )
        return self.result(gateways, report, figures)


def all_stats(gateways: Gateways) -> Stats:
    """Return the counters of both gateways."""
    return [gateway.call("GetStats") for gateway in gateways]


def sum_drops(stats: Stats) -> dict[str, int]:
    """Return the drops of both gateways together, by reason."""
    total: dict[str, int] = {}
    for values in stats:
        for reason, count in values["drops"].items():
            total[reason] = total.get(reason, 0) + count
    return total


def _wait_for_reply(namespace: Namespace, target: str) -> bool:
    return any(ping(namespace, target, count=1).received for _ in range(5))


def _explain(pair: GatewayPair) -> str:
    drops = sum_drops(all_stats((pair.a, pair.b)))
    return f"drops: {drops}" if drops else "the gateways dropped nothing"
