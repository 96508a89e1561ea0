"""A tunnel of several SAs for tests without an engine."""

from __future__ import annotations

from dataclasses import replace

from esp_gw.desired import Desired
from esp_gw.model import Direction, Sa, Tunnel
from tests.support.builders import desired, make_sa, protect

OUT = make_sa("t/out", Direction.OUTBOUND, 0x1001)


def four_lanes(**fields: object) -> Desired:
    """Return a tunnel of four SAs each way; `fields` are those of lane 0's outbound SA."""
    sas: list[Sa] = []
    for lane in range(4):
        out = make_sa(f"t/out.{lane}", Direction.OUTBOUND, 0x1011 + lane, *OUT.selectors, esn=False)
        into = make_sa(f"t/in.{lane}", Direction.INBOUND, 0x1021 + lane, *OUT.selectors, esn=False)
        sas += [replace(sa, tunnel="t", lane=lane) for sa in (out, into)]
    sas[0] = replace(sas[0], **fields)  # type: ignore[arg-type]
    names = tuple(sa.name for sa in sas)
    policy = replace(protect("t", "", *OUT.selectors), sas=names[::2], tunnel="t")
    tunnel = Tunnel(
        *("t", OUT.mode, OUT.encapsulation, OUT.suite, OUT.local, OUT.remote, (), ()),
        names,
        ("t",),
    )
    return replace(desired(tuple(sas), (policy,)), tunnels=(tunnel,))


def one_lane() -> Desired:
    """Return the tunnel of `four_lanes` with its first SA each way alone."""
    whole = four_lanes()
    (tunnel,), (policy,) = whole.tunnels, whole.policies
    return replace(
        whole,
        sas=whole.sas[:2],
        policies=(replace(policy, sas=policy.sas[:1]),),
        tunnels=(replace(tunnel, sas=tunnel.sas[:2]),),
    )
