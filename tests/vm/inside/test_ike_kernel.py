"""Children that charon negotiates for a gateway, with peers that use the kernel's own ESP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest

from tests.support.charon import Installation, take_built_plugin
from tests.support.engines import ENGINES
from tests.support.evidence import RecordProperty, record_trial
from tests.support.ike_kernel import (
    PATIENCE,
    KernelIke,
    Libreswan,
    Peer,
    Shape,
    Strongswan,
    kernel_ike,
)
from tests.support.ike_sites import encapsulations, replace_ike
from tests.support.labtools import carry_tcp_both_ways, lost, ping, start_pings
from tests.support.libreswan import ROOT

# Two IKE daemons in an emulator take minutes.
pytestmark = pytest.mark.vm_full
PEERS = ("strongswan", "libreswan")
# Either inner IP version in either outer one.
SHAPES = [
    Shape(is_udp, outer, outer if esn else 10 - outer, esn)
    for is_udp, outer, esn in product((True, False), (4, 6), (True, False))
]


@dataclass(frozen=True)
class Trial:
    """A peer, and what the two ends negotiate."""

    kind: str
    shape: Shape

    def __str__(self) -> str:
        return f"{self.kind}-{self.shape}"


def _trials() -> Iterator[tuple[str, Trial]]:
    """Yield every shape with both peers, with one engine each; those of an engine together."""
    for number, engine in enumerate(ENGINES):
        for place, shape in enumerate(SHAPES):
            for which, kind in enumerate(PEERS):
                # The parity of a shape's properties: either engine has half of each of them.
                if (place.bit_count() + which) % len(ENGINES) == number:
                    yield engine, Trial(kind, shape)


VOLUME = ("-n", "1M")
MakePeer = Callable[[str], Peer]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return take_built_plugin(tmp_path_factory.mktemp("ike"))


@pytest.fixture(scope="module")
def sites(
    request: pytest.FixtureRequest,
    installed: Installation,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[KernelIke]:
    """The gateway and its charon, for all tests with one engine."""
    with kernel_ike(tmp_path_factory.mktemp("sites"), request.param, installed) as sites:
        yield sites


@pytest.fixture
def make_peer(sites: KernelIke, installed: Installation, tmp_path: Path) -> MakePeer:
    def make(kind: str) -> Peer:
        if kind == "libreswan":
            return Libreswan(sites.far, tmp_path, ROOT)
        return Strongswan(sites.far, tmp_path, installed)

    return make


@pytest.mark.parametrize(
    # The scope keeps a gateway for all tests of its engine.
    ("sites", "trial"),
    list(_trials()),
    ids=str,
    indirect=["sites"],
    scope="module",
)
def test_a_child_carries_traffic_and_is_rekeyed_from_both_ends(
    sites: KernelIke, trial: Trial, make_peer: MakePeer, record_property: RecordProperty
) -> None:
    peer, near, shape = make_peer(trial.kind), sites.site, trial.shape
    record_trial(
        record_property,
        peer=peer.name,
        configuration=shape.words,
        tried="pings and TCP both ways, child and IKE SA rekeyed from both ends",
        engine=near.gateway.call("GetStatus")["engine"],
    )
    with sites.joined(shape, peer):
        sites.initiate(peer)
        sites.until(lambda: ping(sites.near, shape.target, count=1), "the tunnel carries", peer)
        assert encapsulations(near) == {"udp" if shape.is_udp else "none"}
        assert ping(sites.far, shape.near_target, count=20) == 20
        carry_tcp_both_ways(sites.near, sites.far, shape.target, *VOLUME)
        # No more a second than the python engine carries in an emulator.
        pings = start_pings(sites.near, shape.target, 60_000, interval=0.2)
        for rekey in (near.rekey, peer.rekey_child):
            former = near.policy_sa()
            rekey()
            sites.until(lambda former=former: near.carries_by_another(former), "a new SA", peer)
        replace_ike(near)
        replace_ike(near, peer.rekey_ike)
        assert lost(pings) == 0, sites.refused()


@pytest.mark.parametrize("sites", ENGINES[-1:], indirect=True, scope="module")
@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("killed", ["our-charon", "the-peers-daemon", "the-gateway"])
def test_the_tunnel_comes_back_after_a_kill(
    sites: KernelIke, kind: str, killed: str, make_peer: MakePeer, record_property: RecordProperty
) -> None:
    peer, near, shape = make_peer(kind), sites.site, replace(SHAPES[0], dpd_delay=2)
    record_trial(
        record_property,
        peer=peer.name,
        configuration=shape.words,
        tried="SIGKILL of either end's IKE daemon, and of the gateway: the tunnel comes back",
        engine=near.gateway.call("GetStatus")["engine"],
    )

    def carries() -> bool:
        return bool(ping(sites.near, shape.target, count=1))

    with sites.joined(shape, peer):
        sites.initiate(peer)
        sites.until(carries, "the tunnel carries", peer)
        before = near.spis()
        if killed == "the-gateway":
            near.gateway.kill()
            near.gateway.start()
            sites.until(carries, "the child goes on", peer)
            assert near.spis() == before
            near.charon.await_log("esp_gw: session with the gateway", PATIENCE)
        elif killed == "our-charon":
            near.charon.kill()
            near.charon.start()
        else:
            peer.kill()
            peer.start(shape)
        if killed != "the-gateway":
            sites.until(lambda: not before & near.spis(), "the former SAs are gone", peer)
            sites.until(carries, "the tunnel is back", peer)
        former = near.policy_sa()
        near.charon.swanctl("--rekey", "--child", "net")
        sites.until(lambda: carries() and near.carries_by_another(former), "a new SA", peer)
