"""The guard: keeps closed what the last applied plan protects while no gateway carries it.

State directory: the plan (plan_file.py), a lock that a gateway holds while it runs, a lock of the
watcher, and a file that says that an operator opened the guard. Opening lasts until the next start
of the gateway or of the watcher.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

from esp_gw import files
from esp_gw.desired import Desired
from esp_gw.errors import EngineError, NetworkError
from esp_gw.logs import log
from esp_gw.model import Action, IPNetwork, Origin, Policy, Selector
from esp_gw.network.changes import ReplaceFirewall, network_changes
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.objects import Network, Route, Rule, missing_from
from esp_gw.network.plan import plan_guard
from esp_gw.network.plan_file import PlanFile

GATEWAY_LOCK = "gateway.lock"
WATCHER_LOCK = "guard.lock"
OPENED = "guard.opened"
_EVERYTHING: dict[int, IPNetwork] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_RETRY = 0.02
"""Seconds between attempts at a lock that a watcher holds during a check."""


class GuardState:
    """The guard's files in the state directory `folder`, which may be missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = PlanFile(folder)
        self._ignores_mark = False

    @contextlib.contextmanager
    def gateway(self) -> Iterator[None]:
        """Hold the lock of the one gateway of this state directory.

        Waits for the end of a watcher's check. Without the directory there is nothing to lock.
        Raises EngineError if there is another gateway.
        """
        if not self.is_there:
            yield
            return
        with _opened(self.folder / GATEWAY_LOCK) as lock:
            while not _acquired(lock, fcntl.LOCK_EX):
                # A watcher shares the lock, a gateway doesn't.
                if not _acquired(lock, fcntl.LOCK_SH):
                    raise EngineError(
                        "another gateway uses this state directory",
                        where=str(self.folder),
                        hint="stop it first, or set another gateway.state_dir",
                    )
                _release(lock)
                time.sleep(_RETRY)
            yield

    @contextlib.contextmanager
    def without_gateway(self) -> Iterator[bool]:
        """Yield True and keep a gateway from starting, or yield False if one runs."""
        with _opened(self.folder / GATEWAY_LOCK) as lock:
            yield _acquired(lock, fcntl.LOCK_SH)

    def wait_for_end(self) -> None:
        """Block until no gateway runs."""
        with _opened(self.folder / GATEWAY_LOCK) as lock:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def watcher(self) -> Iterator[bool]:
        """Hold the lock of the one watcher; yields False if there is another."""
        with _opened(self.folder / WATCHER_LOCK) as lock:
            yield _acquired(lock, fcntl.LOCK_EX)

    @property
    def is_there(self) -> bool:
        """True if the state directory exists. Raises NetworkError if that can't be known."""
        try:
            return stat.S_ISDIR(self.folder.stat().st_mode)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unusable(self.folder, error) from None

    @property
    def is_opened(self) -> bool:
        """True if an operator opened the guard; a mark that can't be looked for opens nothing."""
        try:
            return not self._ignores_mark and (self.folder / OPENED).exists()
        except OSError:
            return False

    def mark_opened(self) -> None:
        """Record that the guard is to stay open. Raises NetworkError."""
        try:
            files.replace(self.folder / OPENED, b"")
        except OSError as error:
            raise _unusable(self.folder / OPENED, error) from None

    def forget_opened(self) -> None:
        """Close the guard again, whatever becomes of the record that it was opened."""
        try:
            (self.folder / OPENED).unlink(missing_ok=True)
        except OSError as error:
            self._ignores_mark = True
            path, reason = str(self.folder / OPENED), error.strerror or str(error)
            log.warning("can't remove the mark of an opened guard", path=path, reason=reason)

    def last(self) -> Desired | None:
        """Return what the last run protected, or None without a readable plan."""
        try:
            stored = self.plan.read()
        except NetworkError:
            return None
        return None if stored is None else stored.protection

    def forget_ikes(self) -> None:
        """Leave IKE's policies out of the plan until they are installed again.

        Without a readable plan there is nothing to forget. Raises NetworkError.
        """
        if (last := self.last()) is not None:
            self.remember(last)

    def remember(self, desired: Desired) -> None:
        """Write the plan of an applied state; of IKE the standing policies alone.

        Raises NetworkError; a boot then holds the former plan.
        """
        try:
            self.plan.write(desired)
        except OSError as error:
            raise _unusable(self.folder, error) from None


@dataclass(frozen=True, slots=True)
class Held:
    """The guard in place; `missing` and `done` name what others removed and the changes made."""

    network: Network
    missing: tuple[str, ...]
    done: tuple[str, ...]


async def hold(kernel: KernelNetwork, desired: Desired, before: Network | None = None) -> Held:
    """Close what the desired state protects, without a way into the TUN.

    `before` is the network of the last call. Raises NetworkError, also beside another gateway whose
    rules would mix with ours.
    """
    there = await kernel.observe()
    kernel.refuse_neighbours()
    wanted = replace(plan_guard(desired, await kernel.host(desired.settings.fwmark)), mtu=there.mtu)
    changes = network_changes(wanted, there)
    await kernel.apply(changes)
    if kernel.filter_fault is not None:
        wanted = replace(wanted, firewall=None)
        changes = [change for change in changes if not isinstance(change, ReplaceFirewall)]
    missing = () if before is None else missing_from(there, before, wanted)
    return Held(wanted, missing, tuple(change.describe() for change in changes))


def left_closed(there: Network, desired: Desired) -> tuple[Policy, ...]:
    """Return policies that close what is closed there beyond what the desired state protects.

    A gateway that has ended has left it for IKE's children, which are in no plan. The routes know
    remote prefixes alone, but for a default route: its rules tell for which sources it is closed.
    """
    pairs = {
        Selector(local, route.destination)
        for route in there.routes
        if route.is_guard
        for local in _sources_of(route, there.rules)
    }
    found = [
        Policy(
            f"left closed: {pair.local} to {pair.remote}",
            Action.PROTECT,
            (pair,),
            origin=Origin.IKE,
        )
        for pair in sorted(pairs, key=str)
    ]
    return beyond(found, desired.policies)


def beyond(left: Sequence[Policy], policies: Iterable[Policy]) -> tuple[Policy, ...]:
    """Return those that close something in the kernel's network that these policies don't."""
    closed = {
        _closed_by(selector)
        for policy in policies
        if policy.action is not Action.BYPASS
        for selector in policy.selectors
    }
    return tuple(each for each in left if not closed.issuperset(map(_closed_by, each.selectors)))


def _sources_of(route: Route, rules: Iterable[Rule]) -> list[IPNetwork]:
    everything = _EVERYTHING[route.destination.version]
    if route.destination.prefixlen:
        return [everything]
    return [
        rule.source or everything
        for rule in rules
        if (rule.version, rule.table) == (route.destination.version, route.table)
        and (rule.source is None or int(rule.source.network_address))
    ]


def _closed_by(selector: Selector) -> tuple[IPNetwork, IPNetwork | None]:
    return selector.remote, None if selector.remote.prefixlen else selector.local


async def release(kernel: KernelNetwork) -> list[str]:
    """Remove everything of ours from the kernel's network; return the changes in words.

    Raises NetworkError.
    """
    there = await kernel.observe()
    changes = network_changes(Network(mtu=there.mtu), there)
    await kernel.apply(changes)
    return [change.describe() for change in changes]


def without_guard(network: Network) -> Network:
    """Return a network that closes nothing while its TUN is absent, for an opened guard."""
    routes = frozenset(route for route in network.routes if not route.is_guard)
    return replace(network, routes=routes, firewall=None)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """Open a lock file, creating it for the owner of its directory.

    Yields None where that is impossible, as on a read-only disk: closing goes before locking.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = None
    for more in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, flags | more, 0o600)
            break
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                files.give_to_owner_of_folder(descriptor, path)
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _unusable(path: Path, error: OSError) -> NetworkError:
    hint = "use sudo" if isinstance(error, PermissionError) else None
    return NetworkError(error.strerror or str(error), where=str(path), hint=hint)


def _acquired(lock: int | None, kind: int) -> bool:
    if lock is None:
        return True
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _release(lock: int | None) -> None:
    if lock is not None:
        fcntl.flock(lock, fcntl.LOCK_UN)
