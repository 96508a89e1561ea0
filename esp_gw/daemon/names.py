"""Addresses of the peers that have a name, as resolved last.

A name is resolved while it has no address, and while its tunnel doesn't hear the peer. The last
address stays over a restart, and while nobody answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from esp_gw import files
from esp_gw.desired import Desired
from esp_gw.errors import printable
from esp_gw.logs import log
from esp_gw.model import IPAddress, Sa
from esp_gw.values import FieldError, parse_outer_address

NAMES_NAME = "names.json"
INTERVAL = 10.0
"""Minimum seconds between two queries for a name."""
TIMEOUT = 10.0
"""Seconds for an answer."""
AT_ONCE = 8
"""Names that are asked for at a time."""
TURN = 30.0
"""Seconds for which each of several addresses is tried while the peer is not heard."""
MAX_NAMES_LEN = 1 << 20
_STEP = 1.0
_NAMED = 5

Resolve = Callable[[str], Awaitable[list[IPAddress]]]
Query = tuple[str, int]
"""A name, and the IP version that its address has to have: that of a written local address, or 0.

Tunnels of both IP versions may have one name.
"""


async def resolve(name: str) -> list[IPAddress]:
    """Return the addresses of a name in the order of preference. Raises OSError, TimeoutError.

    The thread that waits for the resolver doesn't hold up the end of the process.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[IPAddress]] = loop.create_future()

    def ask() -> None:
        found: list[IPAddress] | OSError
        try:
            infos = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
            found = [ip_address(str(info[4][0]).partition("%")[0]) for info in infos]
        except (OSError, UnicodeError) as error:
            found = error if isinstance(error, OSError) else OSError("not a name")
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(settle, found)

    def settle(found: list[IPAddress] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(list(dict.fromkeys(found)))

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    return await asyncio.wait_for(answer, TIMEOUT)


class Names:
    """The addresses of names, kept in the file `path`; `changed` is called after a change."""

    def __init__(self, path: Path, changed: Callable[[], None], resolve: Resolve = resolve) -> None:
        self._path = path
        self._changed = changed
        self._resolve = resolve
        self._known = _read(path)
        self._faults: dict[Query, str] = {}
        self._next: dict[Query, float] = {}
        self._asked: set[Query] = set()
        self._silent: set[Query] = set()
        self._since: dict[Query, float] = {}
        self._wanted: tuple[Query, ...] = ()
        self._placed: tuple[Desired, Desired] | None = None

    @property
    def missing(self) -> list[str]:
        """Warnings about names without an address."""
        return [
            f"{query[0]} has no address ({self._faults.get(query, 'not asked yet')}): no tunnel to "
            "it works until its resolver answers"
            for query in self._wanted
            if query not in self._known
        ][:_NAMED]

    def place(self, desired: Desired) -> Desired:
        """Return the desired state with the addresses of names, without SAs that have none.

        The same object is returned while nothing changes.
        """
        named = {
            sa.name: (sa.remote_name, 0 if sa.local.is_unspecified else sa.local.version)
            for sa in desired.sas
            if sa.remote_name is not None
        }
        self._wanted = tuple(dict.fromkeys(named.values()))
        if not named:
            return desired
        sas = tuple(
            _at(sa, self._known[named[sa.name]]) if sa.name in named else sa
            for sa in desired.sas
            if sa.name not in named or named[sa.name] in self._known
        )
        placed = replace(desired, sas=sas)
        if self._placed is None or self._placed != (desired, placed):
            self._placed = desired, placed
        return self._placed[1]

    def ask_again(self, names: Iterable[str]) -> None:
        """Have names resolved again whose peers are not heard."""
        asked = set(names)
        self._asked.update(query for query in self._wanted if query[0] in asked)

    def try_others(self, peers: Iterable[tuple[str, int]]) -> None:
        """Ask for names whose peers are down now, and try each of several addresses in turn.

        `peers` are names, each with the IP version of the address that it has.
        """
        down = set(peers)
        known = ((query, self._known.get(query)) for query in self._wanted)
        self._silent = {q for q, at in known if at is not None and (q[0], at.version) in down}
        self._asked.update(self._silent)

    async def step(self, own: Callable[[], frozenset[IPAddress]]) -> None:
        """Pause, and resolve the names that are due; `own` returns the addresses of this host."""
        await asyncio.sleep(_STEP)
        now = _now()
        due = [
            query
            for query in self._wanted
            if (query not in self._known or query in self._asked)
            and now >= self._next.get(query, 0.0)
        ]
        # The longest waiting first: a resolver that gives no answer holds up few of the others.
        due = sorted(due, key=lambda query: self._next.get(query, 0.0))[:AT_ONCE]
        for query in due:
            self._next[query] = now + INTERVAL
            self._asked.discard(query)
        before = dict(self._known)
        await asyncio.gather(*(self._ask(query, own()) for query in due))
        if self._known != before:
            await asyncio.to_thread(self._write)
        self._next = {query: at for query, at in self._next.items() if query in self._wanted}

    async def _ask(self, query: Query, own: frozenset[IPAddress]) -> None:
        name, version = query
        try:
            found = await self._resolve(name)
        except (OSError, TimeoutError) as error:
            self._fail(query, getattr(error, "strerror", None) or "no answer")
            return
        usable = [each for each in found if _is_usable(each, own) and version in (0, each.version)]
        if not usable:
            self._fail(query, _unusable(found, own, version))
            return
        self._faults.pop(query, None)
        known = self._known.get(query)
        if known not in usable:
            log.info("a peer's name has a new address", name=name, address=str(usable[0]))
            self._take(query, usable[0])
        elif (
            query in self._silent
            and len(usable) > 1
            and _now() >= self._since.setdefault(query, _now()) + TURN
        ):
            # Not one line for each turn: the tunnel is down, which has one.
            log.debug("the next address of a peer's name is tried", name=name)
            self._take(query, _after(known, usable))

    def _take(self, query: Query, address: IPAddress) -> None:
        self._known[query], self._since[query] = address, _now()
        self._changed()

    def _fail(self, query: Query, why: str) -> None:
        if self._faults.get(query) != why:
            log.warning("a peer's name can't be resolved", name=query[0], reason=printable(why))
        self._faults[query] = why

    def _write(self) -> None:
        known = [[*query, str(at)] for query, at in self._known.items() if query in self._wanted]
        # Without the file a restart asks again.
        with contextlib.suppress(OSError):
            files.replace(self._path, json.dumps(known).encode() + b"\n")


def _at(sa: Sa, address: IPAddress) -> Sa:
    local = type(address)(0) if sa.local.is_unspecified else sa.local
    return replace(sa, remote=address, local=local)


def _is_usable(address: IPAddress, own: frozenset[IPAddress]) -> bool:
    try:
        parse_outer_address(address)
    except FieldError:
        return False
    return not address.is_loopback and address not in own


def _unusable(found: list[IPAddress], own: frozenset[IPAddress], version: int) -> str:
    """Return the reason that none of the addresses can be a peer's."""
    if not found:
        return "no address"
    ours = next((each for each in found if each in own), None)
    if ours is not None:
        return f"{ours} is an address of this host"
    if version and all(each.version != version for each in found):
        return f"no IPv{version} address, as 'local' is"
    return f"{found[0]} can't be a peer's"


def _after(known: IPAddress, usable: list[IPAddress]) -> IPAddress:
    """Return the next address in an order that a resolver's turns don't change."""
    ordered = sorted(usable, key=lambda each: (each.version, int(each)))
    return ordered[(ordered.index(known) + 1) % len(ordered)]


def _now() -> float:
    return asyncio.get_running_loop().time()


def _read(path: Path) -> dict[Query, IPAddress]:
    try:
        with files.open_regular(path) as (fd, _):
            document = json.loads(files.read_bounded(fd, MAX_NAMES_LEN))
        read = {(name, version): parse_outer_address(at) for name, version, at in document}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return {query: at for query, at in read.items() if query[1] in (0, at.version)}
