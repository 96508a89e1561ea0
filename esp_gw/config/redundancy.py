"""Policies that never match, because those before them take all of their packets.

The SPD is ordered (RFC 4301 4.4.1): such a policy is no error, but hardly ever meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from esp_gw.config.conflicts import covers, describe_selector
from esp_gw.model import IPNetwork, Policy, Selector


@dataclass(frozen=True, slots=True)
class Redundant:
    """A policy none of whose selectors matches anything, and the reason."""

    name: str
    message: str


class _Earlier:
    """Selectors with their policies, found by prefixes: there may be tens of thousands."""

    def __init__(self) -> None:
        self._found: dict[tuple[IPNetwork, IPNetwork], list[tuple[Selector, Policy]]] = {}
        self._lengths: set[tuple[int, int, int]] = set()

    def add(self, selector: Selector, policy: Policy) -> None:
        local, remote = selector.local, selector.remote
        self._found.setdefault((local, remote), []).append((selector, policy))
        self._lengths.add((local.version, local.prefixlen, remote.prefixlen))

    def around(self, narrow: Selector) -> tuple[Selector, Policy] | None:
        """Return an earlier selector that takes all packets of this one."""
        for version, local, remote in self._lengths:
            ours, theirs = narrow.local, narrow.remote
            if version != ours.version or local > ours.prefixlen or remote > theirs.prefixlen:
                continue
            key = (ours.supernet(new_prefix=local), theirs.supernet(new_prefix=remote))
            for wide, policy in self._found.get(key, ()):
                if covers(wide, narrow):
                    return wide, policy
        return None


def find_redundant(policies: Sequence[Policy]) -> Iterator[Redundant]:
    """Yield the policies that never match; they are in SPD order."""
    earlier = _Earlier()
    for policy in policies:
        taken = [earlier.around(selector) for selector in policy.selectors]
        first = taken[0] if taken else None
        if first is not None and None not in taken:
            yield Redundant(policy.name, _message(policy, *first))
        for selector in policy.selectors:
            earlier.add(selector, policy)


def _message(policy: Policy, wide: Selector, other: Policy) -> str:
    if policy.tunnel is not None and other.tunnel is not None and wide == policy.selectors[0]:
        return (
            f"sends nothing: the tunnel {other.tunnel} has the same prefixes, "
            f"{describe_selector(wide)}, and comes first; give each its own, or remove one"
        )
    return (
        f"never matches: {other.name} before it takes {describe_selector(wide)}; narrow "
        f"{other.name}, or put {policy.name} in front"
    )
