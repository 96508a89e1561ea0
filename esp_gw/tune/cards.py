"""The cards by which the peers of the gateway are reached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from esp_gw.model import IPAddress
from esp_gw.network.messages import MessageSocket
from esp_gw.network.route_lookup import way_to

_MOST = 64
"""Peers that are looked up; a gateway of thousands reaches them by the same few cards."""
_NET = "sys/class/net"
_LEVELS = 4
"""Interfaces on top of each other: a VLAN on a bridge on a bond on a card."""


def outgoing_cards(peers: Iterable[IPAddress], tun: str, root: Path) -> list[str]:
    """Return the names of the cards to some peers; those of the default route without any.

    An interface on top of others, such as a bridge or a VLAN, stands for the ones below. Raises
    OSError if the kernel can't be asked.
    """
    wanted = [peer for peer in dict.fromkeys(peers) if not peer.is_unspecified][:_MOST]
    with contextlib.closing(MessageSocket()) as messages:
        names = list(_ways(messages, wanted, tun)) or list(_default_routes(root, tun))
    found = (card for name in names for card in _below(root, name, _LEVELS))
    return list(dict.fromkeys(found))


def _ways(messages: MessageSocket, peers: Iterable[IPAddress], tun: str) -> Iterator[str]:
    for peer in peers:
        way = way_to(messages, peer)
        # To a peer inside a protected prefix the outer packets go by another route.
        if way.device not in ("", "lo", tun) and not way.is_local:
            yield way.device


def _default_routes(root: Path, tun: str) -> Iterator[str]:
    """Yield the interfaces of the main table's default routes (proc(5), net/ipv6/route.c)."""
    for path, at, zero, name in (("route", 1, "0" * 8, 0), ("ipv6_route", 0, "0" * 32, -1)):
        for words in _lines(root / "proc/net" / path):
            mask = words[7] if path == "route" else words[1]
            if words[at] == zero and not mask.strip("0") and words[name] not in ("lo", tun):
                yield words[name]


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split()
        if len(words) > 7:
            yield words


def _below(root: Path, name: str, levels: int) -> Iterator[str]:
    folder = root / _NET / name
    lower = sorted(path.name.removeprefix("lower_") for path in folder.glob("lower_*"))
    if not lower or not levels:
        yield name
        return
    for each in lower:
        yield from _below(root, each, levels - 1)
