"""Conflicts between SAs and policies, checked across the configuration and the CLI's additions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from esp_gw.model import (
    Action,
    Direction,
    IPNetwork,
    Mode,
    Origin,
    Policy,
    PortRange,
    Sa,
    Selector,
)
from esp_gw.protocol import PORT_PROTOCOLS
from esp_gw.values import host_network

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conflict:
    """SAs or policies that exclude each other; the last of `names` is the one to change."""

    names: tuple[str, ...]
    message: str


def find_conflicts(sas: Sequence[Sa], policies: Sequence[Policy]) -> list[Conflict]:
    """Every conflict among SAs and policies; the policies are in SPD order.

    RFC 4301 4.4.1 (the SPD is ordered), RFC 4106 3 (an IV never repeats under one key).
    """
    return [
        *_duplicate_names([sa.name for sa in sas], "SA"),
        *_duplicate_names([policy.name for policy in policies], "policy"),
        *_duplicate_spis(sas),
        *_shared_keys(sas),
        *_wrong_transport(sas),
        *_unusable_sas(sas, policies),
        *_leaking_bypasses(policies),
    ]


def leaking(first: Sequence[Policy], others: Sequence[Policy]) -> list[Conflict]:
    """Return the policies of `others`, behind `first`, that let out what one before them closes.

    The last name of each conflict is the policy's.
    """
    names = {policy.name for policy in others}
    return [each for each in _leaking_bypasses((*first, *others)) if each.names[-1] in names]


def covers(wide: Selector, narrow: Selector) -> bool:
    """True if `wide` matches every packet that `narrow` matches."""
    return (
        _holds(wide.local, narrow.local)
        and _holds(wide.remote, narrow.remote)
        and wide.protocol in (None, narrow.protocol)
        and _holds_ports(wide.local_port, narrow.local_port)
        and _holds_ports(wide.remote_port, narrow.remote_port)
    )


def overlap(one: Selector, other: Selector) -> bool:
    """True if some packet matches both selectors."""
    return (
        _meet(one.local, other.local)
        and _meet(one.remote, other.remote)
        and _protocols_meet(one, other)
        and _ports_meet(one.local_port, other.local_port)
        and _ports_meet(one.remote_port, other.remote_port)
    )


def _repeated(items: Sequence[T], key: Callable[[T], Hashable]) -> Iterator[tuple[T, T]]:
    """Each item whose key is a duplicate, preceded by the first item with that key."""
    seen: dict[Hashable, T] = {}
    for item in items:
        value = key(item)
        if value in seen:
            yield seen[value], item
        else:
            seen[value] = item


def _duplicate_names(names: Sequence[str], what: str) -> Iterator[Conflict]:
    for first, second in _repeated(names, str):
        yield Conflict((first, second), f"there is another {what} with the name {second}")


def _duplicate_spis(sas: Sequence[Sa]) -> Iterator[Conflict]:
    inbound = [sa for sa in sas if sa.direction is Direction.INBOUND]
    outbound = [sa for sa in sas if sa.direction is Direction.OUTBOUND]
    for first, second in _repeated(inbound, lambda sa: sa.spi):
        yield Conflict(
            (first.name, second.name),
            f"SPI {second.spi:#x} is already used by the inbound SA {first.name}: "
            "every inbound SA needs its own",
        )
    # Peers that may be anywhere may be two, each with an SPI of its own choice.
    outbound = [sa for sa in outbound if not sa.learns_peer]
    for first, second in _repeated(outbound, lambda sa: (sa.spi, sa.remote_name or sa.remote)):
        yield Conflict(
            (first.name, second.name),
            f"SPI {second.spi:#x} to {second.remote_name or second.remote} is already used by "
            f"{first.name}: a peer needs a different SPI for each SA",
        )


def _shared_keys(sas: Sequence[Sa]) -> Iterator[Conflict]:
    for first, second in _repeated(sas, lambda sa: hashlib.sha256(sa.keymat.to_bytes()).digest()):
        if first.direction is not second.direction:
            between = "inbound and outbound"
        else:
            between = f"two {second.direction}"
        yield Conflict(
            (first.name, second.name),
            f"has the same key as {first.name} ({between}), which would repeat an IV: "
            "give every SA its own key",
        )


def _wrong_transport(sas: Sequence[Sa]) -> Iterator[Conflict]:
    for sa in sas:
        if sa.mode is not Mode.TRANSPORT:
            continue
        ends = (host_network(sa.local), host_network(sa.remote))
        if any((selector.local, selector.remote) != ends for selector in sa.selectors):
            yield Conflict(
                (sa.name,),
                f"transport mode carries only {ends[0]} to {ends[1]}: "
                "use these selectors, or tunnel mode",
            )


def _unusable_sas(sas: Sequence[Sa], policies: Sequence[Policy]) -> Iterator[Conflict]:
    known = {sa.name: sa for sa in sas}
    for policy in policies:
        if policy.action is not Action.PROTECT:
            continue
        # One of IKE's may wait for its SA.
        nothing = () if policy.origin is Origin.IKE else ("(none)",)
        for name in policy.sas or nothing:
            sa = known.get(name)
            if sa is None:
                yield Conflict((policy.name,), f"the policy's SA {name} does not exist")
            elif sa.direction is not Direction.OUTBOUND:
                yield Conflict(
                    (policy.name, name),
                    f"the policy {policy.name} protects with {name}, which is not an outbound SA",
                )
            elif (narrow := _beyond(policy, sa)) is not None:
                yield Conflict(
                    (policy.name,),
                    f"the policy matches {describe_selector(narrow)}, "
                    f"more than its SA {name} may carry",
                )


def _beyond(policy: Policy, sa: Sa) -> Selector | None:
    """The first selector of the policy that its SA does not cover, or None."""
    if policy.selectors == sa.selectors:
        return None
    same = set(sa.selectors)
    for narrow in policy.selectors:
        if narrow not in same and not any(covers(wide, narrow) for wide in sa.selectors):
            return narrow
    return None


def _leaking_bypasses(policies: Sequence[Policy]) -> Iterator[Conflict]:
    earlier: list[tuple[Policy, Selector]] = []
    for policy in policies:
        if policy.action is not Action.BYPASS:
            earlier += [(policy, selector) for selector in policy.selectors]
            continue
        for guard in _guards(policy, earlier):
            yield Conflict(
                (guard.name, policy.name),
                f"the bypass policy {policy.name} overlaps the {guard.action} policy "
                f"{guard.name} before it, so routing would send those packets "
                f"in the clear: put {policy.name} before {guard.name}, or narrow it",
            )


def _guards(bypass: Policy, earlier: Sequence[tuple[Policy, Selector]]) -> list[Policy]:
    found: dict[int, Policy] = {}
    for policy, selector in earlier:
        if id(policy) not in found and any(overlap(selector, mine) for mine in bypass.selectors):
            found[id(policy)] = policy
    return list(found.values())


def describe_selector(selector: Selector) -> str:
    """A selector as text: `10.1.0.0/24 to 10.2.0.0/24, protocol 6, remote port 22`."""
    parts = [f"{selector.local} to {selector.remote}"]
    if selector.protocol is not None:
        parts.append(f"protocol {selector.protocol}")
    if selector.local_port is not None:
        parts.append(f"local port {selector.local_port}")
    if selector.remote_port is not None:
        parts.append(f"remote port {selector.remote_port}")
    return ", ".join(parts)


def _meet(one: IPNetwork, other: IPNetwork) -> bool:
    # Two prefixes are either nested or disjoint.
    return _holds(one, other) or _holds(other, one)


def _holds(wide: IPNetwork, narrow: IPNetwork) -> bool:
    if wide.version != narrow.version or wide.prefixlen > narrow.prefixlen:
        return False
    shift = wide.max_prefixlen - wide.prefixlen
    return int(wide.network_address) >> shift == int(narrow.network_address) >> shift


def _holds_ports(wide: PortRange | None, narrow: PortRange | None) -> bool:
    # A given range, even 0-65535, doesn't match packets without ports; None does.
    if wide is None:
        return True
    return narrow is not None and wide.first <= narrow.first and narrow.last <= wide.last


def _ports_meet(one: PortRange | None, other: PortRange | None) -> bool:
    if one is None or other is None:
        return True
    return one.first <= other.last and other.first <= one.last


def _protocols_meet(one: Selector, other: Selector) -> bool:
    if one.protocol is not None and other.protocol is not None:
        return one.protocol == other.protocol
    given = one.protocol if one.protocol is not None else other.protocol
    has_ports = any((one.local_port, one.remote_port, other.local_port, other.remote_port))
    return not (has_ports and given is not None and given not in PORT_PROTOCOLS)
