"""Two gateways joined by a wire: the topology of the demo and of most lab tests.

    a [esp0 10.1.0.1] --- wan 192.0.2.1 ==== wire ==== 192.0.2.2 wan --- [esp0 10.2.0.1] b

IPv6 addresses: 2001:db8::1 and 2001:db8::2 on the wire, fd00:1::1 and fd00:2::1 inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from esp_gw.config.provision import DEFAULT_NAMES, make_pair
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import add_address, namespaces, wire
from esp_gw.model import DEFAULT_SUITE, Encapsulation, IPAddress, IPNetwork, Mode, Suite

OUTER = {
    4: (ip_address("192.0.2.1"), ip_address("192.0.2.2")),
    6: (ip_address("2001:db8::1"), ip_address("2001:db8::2")),
}
NETS = {
    4: (ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")),
    6: (ip_network("fd00:1::/64"), ip_network("fd00:2::/64")),
}


@dataclass(frozen=True, slots=True)
class PairPlan:
    """Common settings of the two gateways, with the outer and inner IP versions.

    Without `liveness`, as here by default, an idle wire stays idle.
    """

    mode: Mode = Mode.TUNNEL
    encapsulation: Encapsulation = Encapsulation.UDP
    suite: Suite = DEFAULT_SUITE
    sas: int = 1
    liveness: int = 0
    outer_version: int = 4
    inner_versions: tuple[int, ...] = (4,)
    mtu: int = 1500
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def outer(self) -> tuple[IPAddress, IPAddress]:
        """Outer addresses of a and b."""
        return OUTER[self.outer_version]

    def nets(self, side: int) -> tuple[IPNetwork, ...]:
        """Return the prefixes behind a side; transport mode has none."""
        if self.mode is Mode.TRANSPORT:
            return ()
        return tuple(NETS[version][side] for version in self.inner_versions)

    def inner(self, side: int, version: int | None = None) -> str:
        """Return the address of a gateway for traffic through the tunnel."""
        if self.mode is Mode.TRANSPORT:
            return str(self.outer[side])
        return str(NETS[version or self.inner_versions[0]][side][1])


@dataclass(frozen=True, slots=True)
class GatewayPair:
    """The two gateways of a lab, configured but not started."""

    plan: PairPlan
    a: LabGateway
    b: LabGateway

    def start(self) -> None:
        """Start both daemons and wait until both are ready. Raises LabError."""
        self.a.launch()
        self.b.launch()
        self.a.wait_ready()
        self.b.wait_ready()

    def stop(self) -> None:
        """Stop the daemons that are running."""
        for gateway in (self.a, self.b):
            if gateway.is_running:
                gateway.stop()


Provision = Callable[[Path, PairPlan, Sequence[Mapping[str, object]]], object]
"""Writes the configurations of both sides into a folder, with these settings of each."""


def with_manual_keys(
    output: Path, plan: PairPlan, settings: Sequence[Mapping[str, object]]
) -> None:
    """Write two matching configurations with keys, as `esp-gw init` does."""
    make_pair(
        output,
        local=plan.outer[0],
        remote=plan.outer[1],
        local_nets=plan.nets(0),
        remote_nets=plan.nets(1),
        mode=plan.mode,
        encapsulation=plan.encapsulation,
        suite=plan.suite,
        sas=plan.sas,
        liveness=plan.liveness,
        local_settings=settings[0],
        remote_settings=settings[1],
    )


@contextlib.contextmanager
def gateway_pair(
    folder: Path, plan: PairPlan, provision: Provision = with_manual_keys
) -> Iterator[GatewayPair]:
    """Create two namespaces, a wire, and the two configurations that `provision` writes.

    `folder` holds configurations, keys, ledgers and logs. At the end both daemons are stopped and
    the namespaces removed. Raises LabError.
    """
    with namespaces("a", "b") as (first, second):
        wire(first, second, mtu=plan.mtu)
        for side, namespace in enumerate((first, second)):
            for version, length in ((4, 24), (6, 64)):
                add_address(namespace, f"{OUTER[version][side]}/{length}")
        gateways = []
        for namespace, name in zip((first, second), DEFAULT_NAMES, strict=True):
            run_folder = folder / f"run-{name}"
            run_folder.mkdir(mode=0o700)
            config = folder / "init" / name / "gateway.yaml"
            gateways.append(LabGateway(namespace, config, run_folder))
        provision(
            folder / "init",
            plan,
            [
                {**gateway.settings, **_addresses(plan, side), **plan.settings}
                for side, gateway in enumerate(gateways)
            ],
        )
        for gateway in gateways:
            gateway.create_ledger()
        pair = GatewayPair(plan, *gateways)
        try:
            yield pair
        finally:
            pair.stop()


def _addresses(plan: PairPlan, side: int) -> dict[str, object]:
    # `init` sets one TUN address; a lab with both inner IP versions needs one of each.
    addresses = [str(net[1]) for net in plan.nets(side)]
    return {"address": addresses} if len(addresses) > 1 else {}
