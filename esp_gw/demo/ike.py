"""The demo with keys by IKE: two charons find them, and rekey under load."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from esp_gw.config.ike import IKE_PROPOSAL, IkeTerms, make_ike_pair, section
from esp_gw.config.offer import End
from esp_gw.config.provision import DEFAULT_NAMES
from esp_gw.demo.charon import Charon, copy_plugins
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.demo.results import DemoResult, Row
from esp_gw.demo.steps import Demo, DemoOptions, Gateways, all_stats, sum_drops
from esp_gw.demo.tap import WireReport
from esp_gw.demo.traffic import Load
from esp_gw.errors import LabError
from esp_gw.model import Direction, DropReason

INITIATE_TIMEOUT = 20
AWAIT_TIMEOUT = 30.0
LOAD = 1000
"""Packets of a load that has begun."""
_PAUSE = 0.02
_LOSSES = (
    *(DropReason.NO_SA, DropReason.NO_PEER, DropReason.LEASE_EXHAUSTED),
    *(DropReason.SEQ_EXHAUSTED, DropReason.QUEUE_FULL, DropReason.QUEUE_TIMEOUT),
    DropReason.SEND_ERROR,
)
"""Reasons for which a packet of the tunnel is not sealed."""


@dataclass(frozen=True)
class IkeDemoResult(DemoResult):
    """Results of the demo with keys by IKE, and with `rekeys` under load.

    `lost` are the packets that a gateway did not seal, or that were sealed and not received. Those
    that a busy machine's workers brought too late, out of the replay window, are only among the
    drops: no rekey makes them late.
    """

    charon: str
    rekeys: int
    lost: int
    ike_messages_on_wire: int

    FIRST = "initiate to first packet"

    @property
    def fault(self) -> str | None:
        """The fault, as with manual keys, or a loss."""
        return super().fault or (f"{self.lost} PACKETS GOT LOST" if self.lost else None)

    def of_keys(self) -> Sequence[Row]:
        """Return the row on IKE."""
        return [("keys", f"IKEv2 by charon {self.charon}, {IKE_PROPOSAL}, a shared secret")]

    def of_losses(self) -> Sequence[Row]:
        """Return the rows on the rekeys and on the messages of IKE."""
        return [
            ("rekeys under load", f"{self.rekeys}, packets lost by them: {self.lost or 'none'}"),
            ("IKE messages on the wire", str(self.ike_messages_on_wire)),
        ]


def with_ike(output: Path, plan: PairPlan, settings: Sequence[Mapping[str, object]]) -> None:
    """Write the configurations of both gateways and both charons, as `esp-gw init --ike` does."""
    here, there = (
        End(name, plan.outer[side], plan.nets(side), None, settings[side])
        for side, name in enumerate(DEFAULT_NAMES)
    )
    make_ike_pair(output, here, there, IkeTerms(plan.mode, plan.encapsulation, plan.suite))


def make_charon(gateway: LabGateway, folder: Path, plugins: Path) -> Charon:
    """Return charon for a gateway of `with_ike`, not started, in a new folder."""
    folder.mkdir(mode=0o700)
    swanctl = gateway.config.parent / "swanctl"
    # As the distribution's.
    (swanctl / "swanctl.conf").write_text("include conf.d/*.conf\n")
    return Charon(gateway.namespace, folder, plugins, gateway.socket, swanctl)


class IkeDemo(Demo):
    """The demo with two charons, whose child is rekeyed once from each end under load."""

    def __init__(self, options: DemoOptions, folder: Path) -> None:
        super().__init__(options, folder)
        self._charons: list[Charon] = []
        self._rekeys = 0

    @contextlib.contextmanager
    def build(self) -> Iterator[GatewayPair]:
        """Create the namespaces, and the configurations of the gateways and of charon."""
        plugins = copy_plugins(self.folder, self.options.plugin)
        self.say("create two network namespaces, a wire, and the files of 'esp-gw init --ike'")
        with (
            gateway_pair(self.folder, self.plan, with_ike) as pair,
            contextlib.ExitStack() as stack,
        ):
            for gateway, name in zip((pair.a, pair.b), DEFAULT_NAMES, strict=True):
                charon = make_charon(gateway, self.folder / f"charon-{name}", plugins)
                stack.callback(charon.close)
                self._charons.append(charon)
            yield pair

    def start(self, pair: GatewayPair) -> None:
        """Start everything; the tunnel waits for its first packet."""
        self.say("start both gateways, and a charon for each")
        pair.start()
        for charon in self._charons:
            charon.start()

    def bring_up(self, pair: GatewayPair) -> None:
        """Let charon find the keys."""
        self.say("initiate the tunnel")
        child = section(DEFAULT_NAMES[1])
        command = ("--initiate", "--child", child, "--timeout", str(INITIATE_TIMEOUT))
        self._charons[0].swanctl(*command)

    def under_load(self, gateways: Gateways, load: Load) -> None:
        """Rekey as soon as a load runs, from the other end each time."""
        before = _sent(gateways)
        _await(lambda: load.is_done or _sent(gateways) > before + LOAD, "no load came")
        if not load.is_done and self._rekey(gateways, load):
            self._rekeys += 1
            return
        # Its own error comes first.
        load.finish()
        raise LabError("iperf3 ended before the rekey", hint="give it more --seconds")

    def strange(self, report: WireReport) -> int:
        """Return the number of frames that should not have been on the wire."""
        return report.cleartext + report.leaked

    def result(self, gateways: Gateways, report: WireReport, figures: DemoResult) -> DemoResult:
        """Return the figures with those of IKE."""
        return IkeDemoResult(
            **asdict(figures),
            charon=self._charons[0].version,
            rekeys=self._rekeys,
            lost=_count_lost(gateways),
            ike_messages_on_wire=report.ike,
        )

    def _rekey(self, gateways: Gateways, load: Load) -> bool:
        """Rekey the child; return True once both ends send by the new SA, while the load runs."""
        end = self._rekeys % 2
        before = [_used_sas(gateway) for gateway in gateways]
        self.say(f"rekey the tunnel under load, from {DEFAULT_NAMES[end]}")
        self._charons[end].swanctl("--rekey", "--child", section(DEFAULT_NAMES[1 - end]))

        def is_done() -> bool:
            return all(map(_sends_by_another, gateways, before))

        _await(lambda: is_done() or load.is_done, "no packet came by the new SA")
        return is_done()


def _sent(gateways: Gateways) -> int:
    sas = (sa for gateway in gateways for sa in gateway.call("ListSas")["sas"])
    return sum(int(sa["packets"]) for sa in sas if sa["direction"] == Direction.OUTBOUND)


def _used_sas(gateway: LabGateway) -> set[str]:
    """Return the names of the SAs that the policies use."""
    policies = gateway.call("ListPolicies")["policies"]
    return {name for policy in policies for name in policy["sas"]}


def _sends_by_another(gateway: LabGateway, former: set[str]) -> bool:
    used = _used_sas(gateway)
    sas = gateway.call("ListSas")["sas"]
    sent = {sa["name"] for sa in sas if sa["packets"]}
    return bool(used) and not used & former and used <= sent


def _count_lost(gateways: Gateways) -> int:
    """Return the packets that did not arrive, once nothing is on its way any more."""
    lost = 0
    for _ in range(int(1 / _PAUSE)):
        stats = all_stats(gateways)
        sealed = sum(each["packets_out"] for each in stats)
        drops = sum_drops(stats)
        dropped = sum(drops.get(reason, 0) for reason in _LOSSES)
        received = sum(each["packets_in"] for each in stats)
        lost = sealed + dropped - received - drops.get(DropReason.REPLAY_OLD, 0)
        if not lost:
            break
        time.sleep(_PAUSE)
    return int(lost)


def _await(condition: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + AWAIT_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(otherwise)
        time.sleep(_PAUSE)
