"""Address ranges of the prefixes whose longest match has a given verdict.

A set of nftables knows no longest match, so prefixes inside one another become disjoint ranges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from esp_gw.model import IPAddress, IPNetwork


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses `first` to `last` of one IP version, inclusive."""

    first: IPAddress
    last: IPAddress


def ranges(included: Iterable[IPNetwork], excluded: Iterable[IPNetwork] = ()) -> tuple[Range, ...]:
    """Return the addresses whose longest matching prefix is an included one, as disjoint ranges.

    A prefix that is both counts as included. Ranges are in ascending order, IPv4 first; adjacent
    ones are one.
    """
    verdicts = dict.fromkeys(excluded, False) | dict.fromkeys(included, True)
    found: list[Range] = []
    for version in (4, 6):
        prefixes = [prefix for prefix in verdicts if prefix.version == version]
        runs = _runs({prefix: verdicts[prefix] for prefix in prefixes})
        make = type(prefixes[0].network_address) if prefixes else ip_address
        found += [Range(make(first), make(last)) for first, last in runs]
    return tuple(found)


def _runs(verdicts: dict[IPNetwork, bool]) -> list[tuple[int, int]]:
    """Return the included runs of numbers of prefixes of one IP version."""
    runs: list[tuple[int, int]] = []

    def add(first: int, last: int) -> None:
        if first > last:
            return
        if runs and runs[-1][1] + 1 == first:
            runs[-1] = (runs[-1][0], last)
        else:
            runs.append((first, last))

    # Prefixes around the current address, widest first, each with its last address.
    around: list[tuple[int, bool]] = []
    at = 0

    def advance(to: int) -> None:
        """Move to the address `to`, closing the prefixes that end before it."""
        nonlocal at
        while around and around[-1][0] < to:
            last, is_included = around.pop()
            if is_included:
                add(at, last)
            at = max(at, last + 1)
        if around and around[-1][1]:
            add(at, to - 1)
        at = max(at, to)

    ordered = sorted(verdicts, key=lambda prefix: (int(prefix.network_address), prefix.prefixlen))
    for prefix in ordered:
        advance(int(prefix.network_address))
        around.append((int(prefix.broadcast_address), verdicts[prefix]))
    while around:
        last, is_included = around.pop()
        if is_included:
            add(at, last)
        at = max(at, last + 1)
    return runs
