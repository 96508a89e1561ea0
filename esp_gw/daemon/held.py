"""SAs and policies of IKE's children, which the owner's session holds, as values.

A change makes a new value, so that a refused one has changed nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple

from esp_gw.daemon.children import ChildPolicy, ChildSa, SaChange, SaRef
from esp_gw.daemon.left_policies import left_behind, uncovered
from esp_gw.desired import Desired
from esp_gw.errors import ControlError
from esp_gw.model import Action, Direction, Encapsulation, KeyMaterial, Origin, Policy, Sa, Tunnel

PREFIX = "ike:"
"""Begins the names of IKE's tunnels, SAs and policies; no person can give such a name."""


class Key(NamedTuple):
    """The name of an SA.

    Its peer has chosen the SPI of an outbound one, so another may have the same one: the owner's
    `number` tells them apart.
    """

    direction: Direction
    spi: int
    number: int = 0

    def __str__(self) -> str:
        return f"{self.spi:#x}, number {self.number}" if self.number else f"{self.spi:#x}"

    def plain(self) -> dict[str, object]:
        """Return it as JSON values."""
        return {"direction": str(self.direction), "spi": self.spi, "number": self.number}


def sa_name(key: Key) -> str:
    """Return the name of an SA in the gateway."""
    way = "out" if key.direction is Direction.OUTBOUND else "in"
    number = f"-{key.number}" if key.number else ""
    return f"{PREFIX}{key.spi:08x}{number}/{way}"


def key_of(name: str) -> Key | None:
    """Return the key of an SA of the owner by its name in the gateway, None for any other SA."""
    if not name.startswith(PREFIX):
        return None
    spi, way = name.removeprefix(PREFIX).split("/")
    spi, _, number = spi.partition("-")
    direction = Direction.OUTBOUND if way == "out" else Direction.INBOUND
    return Key(direction, int(spi, 16), int(number or 0))


def key_of_ref(ref: SaRef) -> Key:
    """Return the key by which a request names an SA."""
    return Key(ref.direction, ref.spi, ref.number)


def outbound_of(policy: ChildPolicy) -> Key | None:
    """Return the key of the SA that a policy protects by, None if it has none."""
    return None if policy.sa is None else Key(Direction.OUTBOUND, policy.sa, policy.sa_number)


def policy_name(policy_id: str) -> str:
    """Return the name of a policy in the SPD."""
    return f"{PREFIX}{policy_id}"


@dataclass(frozen=True, slots=True)
class HeldSa:
    """An SA of the owner; one that has `expired` is used no more, until the owner removes it."""

    entry: ChildSa
    sa: Sa
    expired: bool = False

    @classmethod
    def of(cls, entry: ChildSa, *, expired: bool = False) -> HeldSa:
        """Return the SA of a checked entry."""
        sa = Sa(
            name=sa_name(Key(entry.direction, entry.spi, entry.number)),
            direction=entry.direction,
            spi=entry.spi,
            suite=entry.suite,
            keymat=entry.keymat,
            mode=entry.mode,
            encapsulation=entry.encapsulation,
            local=entry.local,
            remote=entry.remote,
            selectors=entry.pairs,
            remote_port=entry.peer_port,
            esn=entry.esn,
            replay_window=entry.replay_window,
            keepalive=entry.nat_keepalive,
            local_original=entry.local_original,
            remote_original=entry.remote_original,
            tunnel=f"{PREFIX}{entry.child}" if entry.child else None,
            origin=Origin.IKE,
        )
        return cls(entry, sa, expired)

    @property
    def key(self) -> Key:
        """The name of the SA for its owner."""
        return Key(self.entry.direction, self.entry.spi, self.entry.number)


class Made:
    """Policies and tunnels made of entries that are still the same: a comparison costs no more."""

    def __init__(self) -> None:
        self._policies: dict[str, tuple[ChildPolicy, Policy]] = {}
        self._tunnels: dict[str, tuple[Sa, Sa, Tunnel]] = {}

    def policies(self, entries: Iterable[ChildPolicy]) -> tuple[Policy, ...]:
        """Return the policies of these entries, in the order of the SPD."""
        before, self._policies = self._policies, {}
        found = []
        for entry in sorted(entries, key=attrgetter("priority")):
            known = before.get(entry.id)
            made = known[1] if known and known[0] is entry else _policy(entry)
            self._policies[entry.id] = (entry, made)
            found.append(made)
        return tuple(found)

    def tunnels(self, sas: Iterable[Sa]) -> list[Tunnel]:
        """Return a tunnel for each child that has one SA in each direction; an odd one has none."""
        children: defaultdict[str, list[Sa]] = defaultdict(list)
        for sa in sas:
            if sa.tunnel is not None:
                children[sa.tunnel].append(sa)
        before, self._tunnels = self._tunnels, {}
        for name, both in children.items():
            if len(both) != 2 or both[0].direction is both[1].direction:
                continue
            out, into = both if both[0].direction is Direction.OUTBOUND else reversed(both)
            known = before.get(name)
            is_same = known is not None and known[0] is out and known[1] is into
            made = known[2] if known is not None and is_same else _tunnel(name, out, into)
            self._tunnels[name] = (out, into, made)
        return [made for _, _, made in self._tunnels.values()]


@dataclass(frozen=True, slots=True)
class Held:
    """SAs by their keys, and policies by their id, each in the order of its coming.

    Behind them stands what a former session has `left` closed.
    """

    sas: Mapping[Key, HeldSa] = field(default_factory=dict)
    policies: Mapping[str, ChildPolicy] = field(default_factory=dict)
    left: tuple[Policy, ...] = ()
    _made: Made = field(default_factory=Made, compare=False, repr=False)

    def find(self, key: Key) -> HeldSa:
        """Return an SA. Raises ControlError (NotFound)."""
        found = self.sas.get(key)
        if found is None:
            raise ControlError("NotFound", f"there is no {key.direction} SA with the SPI {key}")
        return found

    def install(self, sas: Sequence[ChildSa], policies: Sequence[ChildPolicy]) -> Held:
        """Add SAs; add policies, or replace those with the same id. Raises ControlError."""
        there = dict(self.sas)
        for entry in sas:
            held = HeldSa.of(entry)
            if held.key in there:
                raise ControlError(
                    "AlreadyExists",
                    f"there is an {entry.direction} SA with the SPI {held.key} already",
                )
            there[held.key] = held
        spd = dict(self.policies)
        for policy in policies:
            if (key := outbound_of(policy)) is not None:
                user = there.get(key)
                if user is None:
                    raise ControlError(
                        "NotFound",
                        f"policy {policy.id}: there is no outbound SA with the SPI {key}",
                    )
                if user.expired:
                    raise ControlError("Refused", f"policy {policy.id}: the SA {key} has expired")
            spd[policy.id] = policy
        new = ((policy.action, pair) for policy in policies for pair in policy.pairs)
        return Held(there, spd, uncovered(self.left, new), self._made)

    def update(self, change: SaChange) -> Held:
        """Give an SA other addresses or another encapsulation. Raises ControlError."""
        key = key_of_ref(change)
        before = self.find(key)
        fields = change.model_dump(exclude={"direction", "spi", "number"})
        entry = before.entry.model_copy(update=fields)
        original = entry.local_original or entry.remote_original
        if change.encapsulation is Encapsulation.NONE and original is not None:
            raise ControlError("Refused", "an SA with original addresses needs encapsulation: udp")
        return replace(self, sas={**self.sas, key: HeldSa.of(entry, expired=before.expired)})

    def remove(self, keys: Iterable[Key]) -> Held:
        """Remove SAs; a policy that used one holds. Raises ControlError."""
        there = dict(self.sas)
        gone = set()
        for key in keys:
            self.find(key)
            there.pop(key, None)
            if key.direction is Direction.OUTBOUND:
                gone.add(key)
        policies = _without(self.policies, gone) if gone else self.policies
        return replace(self, sas=there, policies=policies)

    def expire(self, key: Key) -> Held:
        """Use an SA no more; a policy that used it holds. Raises ControlError."""
        there = {**self.sas, key: replace(self.find(key), expired=True)}
        if key.direction is Direction.INBOUND:
            return replace(self, sas=there)
        return replace(self, sas=there, policies=_without(self.policies, {key}))

    def remove_policy(self, policy_id: str) -> Held:
        """Remove a policy. Raises ControlError (NotFound)."""
        if policy_id not in self.policies:
            raise ControlError("NotFound", f"there is no policy {policy_id}")
        return replace(self, policies={k: p for k, p in self.policies.items() if k != policy_id})

    def without_policy(self, name: str) -> Held:
        """Leave out the policy that has this name in the SPD, if there is one."""
        policies = {k: p for k, p in self.policies.items() if policy_name(k) != name}
        return replace(self, policies=policies)

    def closed(self) -> Held:
        """Return the policies alone, without any SA: those that protect hold."""
        return replace(self, sas={}, policies=_without(self.policies, self.sas.keys()))

    def flushed(self) -> Held:
        """Return only what the policies close, for the session that comes next."""
        return Held(left=left_behind(self.spd))

    def with_left(self, policies: Sequence[Policy]) -> Held:
        """Return it with what is left closed behind the owner's policies."""
        return replace(self, left=left_behind((*self.left, *policies)))

    @property
    def spd(self) -> tuple[Policy, ...]:
        """The policies in the order of the SPD, with those that are left."""
        return (*self._made.policies(self.policies.values()), *self.left)

    @property
    def _in_use(self) -> list[Sa]:
        return [held.sa for held in self.sas.values() if not held.expired]

    @property
    def tunnels(self) -> list[Tunnel]:
        """The children that have an SA in use in each direction."""
        return self._made.tunnels(self._in_use)

    @property
    def holds(self) -> bool:
        """True if a policy has no SA, and so waits for one."""
        # One call, however many there are.
        return None in {each.sa for each in self.policies.values() if each.action is Action.PROTECT}

    def holding(self, name: str) -> ChildPolicy | None:
        """Return the policy of this name in the SPD, if it has no SA."""
        policy = self.policies.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        return policy if policy is not None and _is_holding(policy) else None

    def retired(self, after: Held) -> list[KeyMaterial]:
        """Return the keys that a later value has no more."""
        return [self.sas[key].sa.keymat for key in self.sas.keys() - after.sas.keys()]

    def join(self, desired: Desired) -> Desired:
        """Return a state with the owner's SAs and policies, which come after all others."""
        if not self.sas and not self.policies and not self.left:
            return desired
        sas = self._in_use
        return replace(
            desired,
            tunnels=(*desired.tunnels, *self._made.tunnels(sas)),
            sas=(*desired.sas, *sas),
            policies=(*desired.policies, *self.spd),
        )


def _tunnel(name: str, outbound: Sa, inbound: Sa) -> Tunnel:
    return Tunnel(
        name=name,
        mode=outbound.mode,
        encapsulation=outbound.encapsulation,
        suite=outbound.suite,
        local=outbound.local,
        remote=outbound.remote,
        local_ts=tuple(dict.fromkeys(each.local for each in outbound.selectors)),
        remote_ts=tuple(dict.fromkeys(each.remote for each in outbound.selectors)),
        sas=(outbound.name, inbound.name),
        policies=(),
    )


def _policy(policy: ChildPolicy) -> Policy:
    key = outbound_of(policy)
    sas = () if key is None else (sa_name(key),)
    return Policy(
        policy_name(policy.id),
        policy.action,
        policy.pairs,
        sas=sas,
        tunnel=f"{PREFIX}{policy.child}" if policy.child else None,
        origin=Origin.IKE,
        standing=policy.action is Action.DISCARD
        or (policy.action is Action.PROTECT and policy.trap),
    )


def _is_holding(policy: ChildPolicy) -> bool:
    return policy.action is Action.PROTECT and policy.sa is None


def _without(policies: Mapping[str, ChildPolicy], keys: Set[Key]) -> dict[str, ChildPolicy]:
    # Looked at by their SPIs, which costs no call for each.
    spis = {key.spi for key in keys}
    return {
        name: policy.model_copy(update={"sa": None})
        if policy.sa in spis and outbound_of(policy) in keys
        else policy
        for name, policy in policies.items()
    }
