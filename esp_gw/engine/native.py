"""Adapter to the native engine: Rust worker threads carry the packets, Python configures them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from ipaddress import ip_address
from typing import Any

import esp_gw_core

from esp_gw.crypto import probe
from esp_gw.crypto.aead import AfAlgStatus
from esp_gw.crypto.measure import Sealer
from esp_gw.desired import EngineSettings
from esp_gw.engine.base import (
    AfAlgLost,
    Counters,
    EngineFailed,
    EngineStatus,
    Event,
    GsoRefused,
    HardExpired,
    LeaseLow,
    OffloadStatus,
    OuterSocket,
    PathMtuChanged,
    PeerAddressChanged,
    SaCounters,
    SoftExpired,
)
from esp_gw.engine.refusals import TUN_DEVICE, socket_refused, tun_not_created, tun_not_opened
from esp_gw.errors import EngineError
from esp_gw.model import AF_ALG_ON, Direction, Encapsulation, Lease, Policy, Sa, Selector


class NativeEngine:
    """An engine (see engine/base.py) whose packets never touch Python."""

    name = "native"

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._keepalives: dict[int, dict[str, int]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._removed: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self._removed_drops: Counter[str] = Counter()
        self._waiting: list[tuple[Sa, tuple[Any, Any]]] | None = None

    def open(self, settings: EngineSettings, on_event: Callable[[Event], None]) -> None:
        """Create the TUN device and start the workers. Raises EngineError."""
        self._on_event = on_event
        sealer = Sealer(native=True, provider=settings.provider)
        self._af_alg = probe.choose(settings.af_alg, sealer)
        self._af_alg_required = settings.af_alg == AF_ALG_ON
        try:
            self._core: Any = esp_gw_core.NativeEngine(_Settings(settings, self._af_alg))
        except OSError as error:
            opening = TUN_DEVICE in str(error.strerror)
            raise (tun_not_opened if opening else tun_not_created)(
                settings.interface, error
            ) from None
        except ValueError as error:
            raise EngineError(f"the native engine: {error}") from None
        self._settings = settings
        self._outers: list[OuterSocket] = []
        self._event_fd = self._core.event_fd()
        self._loop.add_reader(self._event_fd, self._take_events)

    def close(self) -> None:
        """End the workers; the TUN device goes with them."""
        for timer in self._timers.values():
            timer.cancel()
        self._loop.remove_reader(self._event_fd)
        del self._core

    def set_outer_sockets(self, wanted: Sequence[OuterSocket]) -> None:
        """Open those that are missing, then close those not named. Raises EngineError."""
        for outer in [outer for outer in wanted if outer not in self._outers]:
            try:
                self._set_sockets([*self._outers, outer])
            except OSError as error:
                raise socket_refused(outer, self._settings.port, error) from None
        self._set_sockets(wanted)

    def _set_sockets(self, wanted: Sequence[OuterSocket]) -> None:
        self._core.set_sockets([(str(s.address), s.encapsulation.value) for s in wanted])
        self._outers = list(wanted)

    def install_outbound(self, sa: Sa, lease: Lease) -> None:
        """Add an outbound SA that begins at the lease's first sequence number."""
        self._install(sa, (_Arguments(sa), (lease.first, lease.end)))

    def install_inbound(self, sa: Sa, highest_seq: int) -> None:
        """Add an inbound SA whose window treats every number up to `highest_seq` as seen."""
        self._install(sa, (_Arguments(sa), highest_seq))

    def _install(self, sa: Sa, arguments: tuple[Any, Any]) -> None:
        status = self._af_alg[sa.suite.name]
        if self._af_alg_required and not status.in_use:
            raise probe.unavailable(status.why)
        if self._waiting is not None:
            self._waiting.append((sa, arguments))
        else:
            with self.at_once():
                self._install(sa, arguments)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Collect what is installed inside; the workers get new tables once, at its end."""
        waiting = self._waiting = []
        try:
            yield
        finally:
            self._waiting = None
        ways = (Direction.OUTBOUND, Direction.INBOUND)
        lists = [[given for sa, given in waiting if sa.direction is way] for way in ways]
        try:
            self._core.install(*lists)
        except ValueError as error:
            # It begins with the SA's name.
            where, _, text = str(error).partition(": ")
            raise EngineError(text, where=where) from None
        for sa, _ in waiting:
            if sa.keepalive and sa.encapsulation is Encapsulation.UDP:
                self._keepalives.setdefault(sa.keepalive, {})[sa.name] = 0
                if sa.keepalive not in self._timers:
                    self._arm_keepalives(sa.keepalive)

    def remove_sas(self, names: Sequence[str]) -> list[SaCounters]:
        """Forget SAs and their keys; the counters are final: nothing more is sent or accepted."""
        try:
            found = self._core.remove(list(names))
        except ValueError as error:
            raise EngineError(str(error)) from None
        for sas in self._keepalives.values():
            for name in names:
                sas.pop(name, None)
        return [self._fold(sa) for sa in found]

    def _fold(self, found: tuple[Any, ...]) -> SaCounters:
        """Keep in the totals what a removed SA has counted."""
        final = _sa_counters(found)
        totals = self._removed[found[1]]
        totals["packets"] += final.packets
        totals["bytes"] += final.bytes
        self._removed_drops.update(final.drops)
        return final

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        """Put a new SPD in place in one step, in the order given."""
        self._core.replace_policies(
            [
                (
                    policy.name,
                    policy.action.value,
                    [_selector(selector) for selector in policy.selectors],
                    policy.sas,
                )
                for policy in policies
            ]
        )

    def extend_lease(self, name: str, lease: Lease) -> None:
        """Give an outbound SA more sequence numbers, used after those it has."""
        try:
            self._core.extend_lease(name, (lease.first, lease.end))
        except ValueError as error:
            raise EngineError(str(error), where=name) from None

    def counters(self) -> Counters:
        """Return a snapshot of every counter."""
        sas: dict[str, SaCounters] = {}
        totals = {way: Counter(counts) for way, counts in self._removed.items()}
        drops = Counter(self._removed_drops)
        for found in self._core.sas():
            sa = sas[found[0]] = _sa_counters(found)
            totals[found[1]]["packets"] += sa.packets
            totals[found[1]]["bytes"] += sa.bytes
            drops.update(sa.drops)
        (keepalives_out, _, drops_out), (keepalives_in, _, drops_in) = self._core.rest()
        drops.update(dict(drops_out))
        drops.update(dict(drops_in))
        return Counters(
            packets_out=totals[True]["packets"],
            bytes_out=totals[True]["bytes"],
            packets_in=totals[False]["packets"],
            bytes_in=totals[False]["bytes"],
            keepalives_out=keepalives_out,
            keepalives_in=keepalives_in,
            drops=dict(drops),
            sas=sas,
        )

    def advanced(self) -> dict[str, int]:
        """Return how far the inbound SAs came whose windows advanced since the last call."""
        return dict(self._core.advanced())

    def status(self) -> EngineStatus:
        """How it works: what it uses of what there is, and why not more."""
        providers = self._core.providers()
        return EngineStatus(
            workers=self._core.workers(),
            pinned=self._settings.pin_workers,
            busy_poll_us=self._settings.busy_poll_us,
            provider=providers,
            aes=esp_gw_core.aes_path,
            offload={
                name: OffloadStatus(in_use, why) for name, in_use, why in self._core.offloads()
            },
            af_alg={suite: self._af_alg[suite] for suite in providers},
        )

    def _take_events(self) -> None:
        for kind, text, address, number in self._core.take_events():
            match kind:
                case "lease-low":
                    self._on_event(LeaseLow(text))
                case "soft-expired":
                    self._on_event(SoftExpired(text))
                case "hard-expired":
                    self._on_event(HardExpired(text))
                case "peer-address-changed":
                    self._on_event(PeerAddressChanged(text, ip_address(address), number))
                case "path-mtu-changed":
                    self._on_event(PathMtuChanged(ip_address(address), number))
                case "gso-refused":
                    self._on_event(GsoRefused(ip_address(address), text))
                case "af-alg-lost":
                    self._af_alg = probe.without(self._af_alg, text)
                    self._af_alg_required = False
                    self._on_event(AfAlgLost(text))
                case "failed":
                    self._on_event(EngineFailed(text))

    def _arm_keepalives(self, period: int) -> None:
        self._timers[period] = self._loop.call_later(period / 2, self._send_keepalives, period)

    def _send_keepalives(self, period: int) -> None:
        # As in the python engine: half the period, and only where nothing else was sent in it. One
        # timer does for all SAs with this period: there may be thousands.
        sas = self._keepalives[period]
        for name, seen in sas.items():
            sent = self._core.sent(name)
            if sent == seen:
                self._core.keepalive(name)
                sent = -1
            sas[name] = sent
        self._arm_keepalives(period)


class _Settings:
    """The settings as the extension reads them, attribute by attribute."""

    def __init__(self, settings: EngineSettings, af_alg: Mapping[str, AfAlgStatus]) -> None:
        self.interface = settings.interface
        self.port = settings.port
        self.fwmark = settings.fwmark
        self.workers = settings.workers
        self.pin_workers = settings.pin_workers
        self.busy_poll_us = settings.busy_poll_us
        self.provider = settings.provider
        self.af_alg = [name for name, status in af_alg.items() if status.in_use]
        self.offloads = [name for name, wanted in asdict(settings.offload).items() if wanted]


class _Arguments:
    """An SA as the extension reads it, attribute by attribute."""

    def __init__(self, sa: Sa) -> None:
        self.name = sa.name
        self.spi = sa.spi
        self.suite = sa.suite.name
        self.keymat = sa.keymat.to_bytes()
        self.mode = sa.mode.value
        self.encapsulation = sa.encapsulation.value
        self.local = str(sa.local)
        self.remote = str(sa.remote)
        self.remote_port = sa.remote_port
        self.selectors = [_selector(selector) for selector in sa.selectors]
        self.esn = sa.esn
        self.replay_window = sa.replay_window
        self.pair = sa.pair
        self.tunnel = sa.tunnel


def _selector(selector: Selector) -> tuple[Any, ...]:
    return (
        (str(selector.local.network_address), selector.local.prefixlen),
        (str(selector.remote.network_address), selector.remote.prefixlen),
        selector.protocol,
        _ports(selector.local_port),
        _ports(selector.remote_port),
    )


def _ports(ports: Any) -> tuple[int, int] | None:
    return None if ports is None else (ports.first, ports.last)


def _sa_counters(found: tuple[Any, ...]) -> SaCounters:
    _, _, (packets, size, drops), seq, lease_end, address, port = found
    return SaCounters(packets, size, seq, lease_end, ip_address(address), port, dict(drops))
