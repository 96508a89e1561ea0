"""Two gateways whose SAs and policies sessions of an IKE daemon hold."""

from __future__ import annotations

import contextlib

from esp_gw.demo.pair import NETS, OUTER, GatewayPair
from tests.support.labtools import MakePair, edit
from tests.support.owner_client import Child, Session

Sessions = tuple[Session, Session]


def start(make_pair: MakePair, **fields: object) -> GatewayPair:
    """Start a pair without tunnels in its configuration."""
    pair = make_pair(inner_versions=(4, 6), **fields)
    for gateway in (pair.a, pair.b):
        edit(gateway, lambda document: document.pop("tunnels"))
    pair.start()
    return pair


def sessions(
    pair: GatewayPair, stack: contextlib.ExitStack, *, take_over: bool = False
) -> Sessions:
    found = tuple(Session(each.socket, take_over=take_over) for each in (pair.a, pair.b))
    for session in found:
        stack.callback(session.close)
    return found[0], found[1]


def child(number: int = 1, inner: int = 4, outer: int = 4, **fields: object) -> Child:
    ends = OUTER[outer]
    nets = NETS[inner]
    return Child(
        f"office{{{number}}}",
        (str(ends[0]), str(ends[1])),
        (str(nets[0]), str(nets[1])),
        (0xC0000000 + 2 * number, 0xC0000001 + 2 * number),
        **fields,
    )


def target(inner: int) -> str:
    """Return the address behind b."""
    return str(NETS[inner][1][1])
