"""Address ranges of the prefixes whose longest match has a given verdict.

A set of nftables knows no longest match, so prefixes inside one another become disjoint ranges.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
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


class RunList:
    """Disjoint ranges in order, as `ranges` returns them, of prefixes that meet no other one."""

    def __init__(self, there: Iterable[Range]) -> None:
        self._ranges = list(there)
        self._firsts = [(each.first.version, int(each.first)) for each in self._ranges]

    def ranges(self) -> tuple[Range, ...]:
        """Return the ranges."""
        return tuple(self._ranges)

    def add(self, new: Range) -> None:
        """Add a range that meets none; one beside another becomes one with it."""
        version, first, last = new.first.version, int(new.first), int(new.last)
        at = bisect_left(self._firsts, (version, first))
        begin, end = at, at
        if at and self._firsts[at - 1][0] == version:
            before = self._ranges[at - 1]
            if int(before.last) + 1 == first:
                begin, new = at - 1, Range(before.first, new.last)
        if at < len(self._ranges) and self._firsts[at] == (version, last + 1):
            end, new = at + 1, Range(new.first, self._ranges[at].last)
        self._replace(begin, end, [new])

    def remove(self, prefix: IPNetwork) -> None:
        """Remove the addresses of a prefix, which are inside a range."""
        first, last = prefix.network_address, prefix.broadcast_address
        at = bisect_right(self._firsts, (prefix.version, int(first))) - 1
        whole = self._ranges[at]
        rest = []
        if whole.first != first:
            rest.append(Range(whole.first, first - 1))
        if whole.last != last:
            rest.append(Range(last + 1, whole.last))
        self._replace(at, at + 1, rest)

    def _replace(self, begin: int, end: int, new: list[Range]) -> None:
        self._ranges[begin:end] = new
        self._firsts[begin:end] = [(each.first.version, int(each.first)) for each in new]
