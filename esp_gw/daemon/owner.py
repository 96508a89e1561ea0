"""The methods of an owner's session: an IKE daemon that has its SAs and policies carried here.

Every method but `Watch` is for the connection that is the session. A change of what the owner holds
waits for its turn among all changes, and is in the records before it is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from esp_gw.control.protocol import PREFIX
from esp_gw.control.server import Caller, Handler, Reply, WithFiles, is_owner
from esp_gw.control.sessions import Link, Sessions
from esp_gw.crypto.providers import provider_fault
from esp_gw.daemon.children import (
    ChildPolicy,
    ChildSa,
    ReservedSpi,
    SaChange,
    SaRef,
    parse,
    parse_all,
    parse_id,
    refuse_unknown,
)
from esp_gw.daemon.closed_time import ClosedTime
from esp_gw.daemon.held import Held, Key, key_of_ref
from esp_gw.daemon.holding import Holding
from esp_gw.daemon.ike_port import IkePort
from esp_gw.daemon.owner_events import OwnerEvents
from esp_gw.daemon.parameters import Parameters
from esp_gw.daemon.reservations import Reservations
from esp_gw.daemon.sources import Sources
from esp_gw.errors import ControlError
from esp_gw.logs import log
from esp_gw.model import SUITES, Direction, Encapsulation
from esp_gw.values import FieldError

OWNER = "ike"
VERSION = 3
"""Of an owner's session: 2 has `trap`, `connection`, `number` and `sa_number`; 3 has `expired` and
`ReleaseSpi`."""

Method = Callable[[Parameters], Awaitable[Parameters | WithFiles]]


class Owner:
    """The session of the owner `ike`, and what it holds."""

    def __init__(
        self, sources: Sources, holding: Holding, events: OwnerEvents, ike: IkePort
    ) -> None:
        self._sources = sources
        self._holding = holding
        self._events = events
        self._ike = ike
        self._sessions = Sessions()
        self._reserved = Reservations()
        self.closed_time = ClosedTime(sources, holding)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the methods, keyed by their full names."""
        methods: dict[str, Handler] = {
            "OpenSession": self.open_session,
            "Watch": self.watch,
            "ReserveSpi": self._of_session(self.reserve_spi),
            "ReleaseSpi": self._of_session(self.release_spi),
            "InstallChild": self._of_session(self.install_child),
            "UpdateSa": self._of_session(self.update_sa),
            "RemoveSas": self._of_session(self.remove_sas),
            "PutPolicy": self._of_session(self.put_policy),
            "RemovePolicy": self._of_session(self.remove_policy),
            "QuerySas": self._of_session(self.query_sas),
            "FlushOwner": self._of_session(self.flush_owner),
            "GetIkeSocket": self._of_session(self.get_ike_socket),
        }
        return {PREFIX + name: handler for name, handler in methods.items()}

    def ended(self, link: Link) -> None:
        """Take note that a connection has ended; what the owner holds stays."""
        if self._sessions.is_open(OWNER, link):
            self._ike.close()
            self.closed_time.stop()
        self._sessions.ended(link)

    async def open_session(self, parameters: Parameters, caller: Caller) -> Reply:
        """Make the connection the session; return what the former one left, or flush it.

        What it protected stays closed for a while.
        """
        _refuse_others(caller)
        _refuse_other_owner(parameters, ("owner", "take_over"))
        take_over = parameters.get("take_over", False)
        if not isinstance(take_over, bool):
            raise ControlError("InvalidParameter", "take_over: expected true or false")
        return await self._sources.changes.run(lambda: self._open(caller, take_over=take_over))

    async def _open(self, caller: Caller, *, take_over: bool) -> Parameters:
        if not take_over:
            await self._flush(self._holding.held.flushed())
        if caller.link is not None:
            self._ike.close()
            self._sessions.open(OWNER, caller.link)
        self.closed_time.begin()
        held = self._holding.held
        log.info(
            "a session of ike has begun",
            pid=caller.pid,
            sas=len(held.sas),
            left_closed=len(held.left),
        )
        provider = self._sources.configured.settings.provider
        return {
            "version": VERSION,
            "suites": [
                name for name, suite in SUITES.items() if not provider_fault(provider, suite)
            ],
            "sas": self._holding.counted(held.sas, _now()),
            "policies": [policy.plain() for policy in held.policies.values()],
        }

    async def watch(self, parameters: Parameters, caller: Caller) -> Reply:
        """Make the connection the one that the events go to."""
        _refuse_others(caller)
        _refuse_other_owner(parameters, ("owner",))
        if caller.link is not None:
            self._sessions.watch(OWNER, caller.link)
        return self._events.begin()

    async def reserve_spi(self, parameters: Parameters) -> Parameters:
        """Return an SPI for an inbound SA to come."""
        refuse_unknown(parameters, ())
        held = self._holding.held
        used = {sa.spi for sa in self._sources.lasting.sas if sa.direction is Direction.INBOUND}
        used |= {key.spi for key in held.sas if key.direction is Direction.INBOUND}
        return {"spi": self._reserved.reserve(used, _now())}

    async def release_spi(self, parameters: Parameters) -> Parameters:
        """Give back an SPI whose SA has not come; one that is not reserved is none to give back."""
        self._reserved.end(parse(ReservedSpi, parameters).spi)
        return {}

    async def install_child(self, parameters: Parameters) -> Parameters:
        """Add SAs, and add or replace policies, in one step."""
        refuse_unknown(parameters, ("sas", "policies"))
        sas = [entry.begun(_now()) for entry in parse_all(ChildSa, parameters, "sas")]
        policies = parse_all(ChildPolicy, parameters, "policies")
        for entry in sas:
            self._refuse_unfit(entry)
        await self._holding.change(self._holding.held.install(sas, policies))
        for entry in sas:
            if entry.direction is Direction.INBOUND:
                self._reserved.end(entry.spi)
        return {}

    async def update_sa(self, parameters: Parameters) -> Parameters:
        """Give an SA other addresses or another encapsulation; its numbers go on."""
        change = parse(SaChange, parameters)
        await self._holding.change(self._holding.held.update(change))
        return {}

    async def remove_sas(self, parameters: Parameters) -> Parameters:
        """Remove SAs, and return their last counters; a policy that used one holds."""
        refuse_unknown(parameters, ("sas",))
        keys = _keys(parse_all(SaRef, parameters, "sas"))
        return {"sas": await self._holding.remove(keys, _now())}

    async def put_policy(self, parameters: Parameters) -> Parameters:
        """Add a policy, or replace the one with the same id."""
        policy = parse(ChildPolicy, parameters)
        await self._holding.change(self._holding.held.install((), (policy,)))
        return {}

    async def remove_policy(self, parameters: Parameters) -> Parameters:
        """Remove a policy; what it protected is open afterwards."""
        refuse_unknown(parameters, ("id",))
        try:
            policy_id = parse_id(parameters.get("id"))
        except FieldError as error:
            raise ControlError("InvalidParameter", f"id: {error}") from None
        await self._holding.change(self._holding.held.remove_policy(policy_id))
        return {}

    async def query_sas(self, parameters: Parameters) -> Parameters:
        """Return the counters of SAs, of all without a list."""
        refuse_unknown(parameters, ("sas",))
        held = self._holding.held
        if parameters.get("sas") is None:
            return {"sas": self._holding.counted(held.sas, _now())}
        keys = _keys(parse_all(SaRef, parameters, "sas"))
        for key in keys:
            held.find(key)
        return {"sas": self._holding.counted(keys, _now())}

    async def get_ike_socket(self, parameters: Parameters) -> WithFiles:
        """Return a socket for the IKE messages that share the port with ESP in UDP."""
        refuse_unknown(parameters, ())
        theirs = await self._ike.open()
        return WithFiles({"port": self._sources.configured.settings.port}, (theirs,))

    async def flush_owner(self, parameters: Parameters) -> Parameters:
        """Remove all SAs, policies and reservations of the owner."""
        refuse_unknown(parameters, ())
        await self._flush(Held())
        return {}

    async def _flush(self, rest: Held) -> None:
        if self._holding.held != rest:
            await self._holding.change(rest)
        self._reserved.clear()

    def _refuse_unfit(self, entry: ChildSa) -> None:
        settings = self._sources.configured.settings
        if text := provider_fault(settings.provider, entry.suite):
            raise ControlError("Refused", f"{entry.spi:#x}: {text}")
        if entry.encapsulation is Encapsulation.UDP and entry.local_port not in (
            None,
            settings.port,
        ):
            raise ControlError(
                "Refused",
                f"{entry.spi:#x}: local_port {entry.local_port} is not the gateway's, which is "
                f"{settings.port}",
            )

    def _of_session(self, method: Method) -> Handler:
        """Return a method for the session alone, which waits for its turn."""

        async def run(parameters: Parameters, caller: Caller) -> Reply:
            _refuse_others(caller)
            return await self._sources.changes.run(lambda: in_turn(parameters, caller))

        async def in_turn(parameters: Parameters, caller: Caller) -> Parameters | WithFiles:
            # In its turn: another session may have begun meanwhile.
            if not self._sessions.is_open(OWNER, caller.link):
                raise ControlError(
                    "Refused", "this connection is not the owner's session", hint="OpenSession"
                )
            return await method(parameters)

        return run


def _refuse_others(caller: Caller) -> None:
    if not is_owner(caller):
        raise ControlError(
            "PermissionDenied", "only root and the gateway's own user may be its owner"
        )


def _refuse_other_owner(parameters: Parameters, known: Sequence[str]) -> None:
    refuse_unknown(parameters, known)
    if parameters.get("owner") != OWNER:
        raise ControlError("InvalidParameter", f"owner: expected {OWNER}")


def _keys(refs: Sequence[SaRef]) -> list[Key]:
    """Return the names of SAs, each once."""
    return list(dict.fromkeys(key_of_ref(ref) for ref in refs))


def _now() -> float:
    return asyncio.get_running_loop().time()
