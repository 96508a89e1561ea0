"""Where the peers are: those that moved, and where those of `remote: any` were last.

The last address of such a peer is kept in a file, so that after a restart the gateway can send
before it hears the peer. It is no more than that: only a packet that is newer than all that were
ever received moves a peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from pathlib import Path

from esp_gw import files
from esp_gw.daemon.peer_log import PeerLog
from esp_gw.desired import Desired
from esp_gw.engine.base import Engine, SaCounters
from esp_gw.logs import log
from esp_gw.model import IPAddress, Origin, Sa
from esp_gw.per_object import PerObject
from esp_gw.values import parse_outer_address

PEERS_NAME = "peers.json"
INTERVAL = 10.0
"""Seconds between two writes of the addresses, at least."""
MAX_PEERS_LEN = 1 << 22

Place = tuple[IPAddress, int]
Counted = Callable[[Set[str]], Mapping[str, SaCounters]]
"""Return the counters of the engine's SAs that have these names."""


class Peers:
    """The present and the last addresses of peers; those of `any` are kept in the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = PeerLog()
        self._last = _read(path)
        self._wanted: set[str] = set()
        self._is_new = asyncio.Event()
        self._moved: set[str] = set()
        self._is_doubted = False
        self._bonds = PerObject(_names)
        self._elsewhere: dict[str, tuple[Sa, Sa]] = {}
        self.have_moved = False
        """True if a peer has been at another address than the configured one."""

    def follow(self, sa: Sa, address: IPAddress, port: int, now: float) -> None:
        """Take note of the new address of an SA's peer; `now` is in seconds."""
        self.have_moved = True
        self._moved.update(_names(sa))
        self._log.moved(sa, address, port, now)
        if sa.learns_peer:
            self._last |= dict.fromkeys(_names(sa), (address, port))
            self._is_new.set()

    def place(self, engine: Engine, sas: Mapping[str, Sa]) -> frozenset[IPAddress]:
        """Let the engine send to where the peers of these SAs were last, if they are unknown.

        Returns these addresses.
        """
        learning = {
            name: sa for name, sa in sas.items() if sa.origin is not Origin.IKE and sa.learns_peer
        }
        self._wanted = {bond for sa in learning.values() for bond in _names(sa)}
        places = set()
        for name, sa in learning.items():
            known = [self._last[bond] for bond in _names(sa) if bond in self._last]
            if known:
                self.have_moved = True
                self._moved.update(_names(sa))
                engine.place_peer(name, *known[0])
                places.add(known[0][0])
        return frozenset(places)

    def doubt(self) -> None:
        """Ask for all peers the next time: an event of one may be lost."""
        self._is_doubted = True

    def placed(self, desired: Desired, installed: Mapping[str, Sa], counted: Counted) -> Desired:
        """Return the desired state with the current addresses of peers that moved.

        An SA that is to have another peer than the `installed` one is not where that one is. Only
        those that have moved cost a call, and an SA is the same object while its peer stays.
        """
        bonds = list(zip(desired.sas, self._bonds.of(desired.sas), strict=True))
        moved = self._moved
        asked = [sa for sa, names in bonds if self._is_doubted or not moved.isdisjoint(names)]
        there = counted({sa.name for sa in asked if sa.name in installed}) if asked else {}
        before, self._elsewhere = self._elsewhere, {}
        for sa in asked:
            if sa.name not in there or installed[sa.name].remote != sa.remote:
                continue
            if (remote := there[sa.name].remote) != sa.remote:
                known = before.get(sa.name)
                is_same = known is not None and known[0] is sa and known[1].remote == remote
                new = known[1] if known is not None and is_same else replace(sa, remote=remote)
                self._elsewhere[sa.name] = (sa, new)
        if self._is_doubted:
            self._is_doubted = False
            self._moved = {name for sa, _ in self._elsewhere.values() for name in _names(sa)}
        elsewhere = self._elsewhere
        if not elsewhere:
            return desired
        sas = [elsewhere[sa.name][1] if sa.name in elsewhere else sa for sa in desired.sas]
        return replace(desired, sas=tuple(sas))

    async def step(self) -> None:
        """Write the addresses once there are new ones, and pause."""
        await self._is_new.wait()
        await self.keep()
        await asyncio.sleep(INTERVAL)

    async def keep(self) -> None:
        """Write the addresses if there are new ones."""
        if not self._is_new.is_set():
            return
        self._is_new.clear()
        self._last = {name: at for name, at in self._last.items() if name in self._wanted}
        content = {name: [str(address), port] for name, (address, port) in self._last.items()}
        try:
            await asyncio.to_thread(files.replace, self._path, json.dumps(content).encode() + b"\n")
        except OSError as error:
            # Without the file a restart waits for the peers.
            log.warning("the peers' addresses can't be kept", reason=error.strerror)


def _names(sa: Sa) -> list[str]:
    """Return the names under which the address of an SA's peer is kept, as the engines share it."""
    if sa.tunnel is not None:
        return [f"tunnel {sa.tunnel}"]
    return [f"sa {name}" for name in (sa.name, sa.pair) if name is not None]


def _read(path: Path) -> dict[str, Place]:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        with files.open_regular(path) as (fd, _):
            document = json.loads(files.read_bounded(fd, MAX_PEERS_LEN))
        return {
            str(name): (parse_outer_address(address), _port(port))
            for name, (address, port) in document.items()
        }
    return {}


def _port(port: object) -> int:
    if not isinstance(port, int) or not 0 < port < 1 << 16:
        raise ValueError("not a port")
    return port
